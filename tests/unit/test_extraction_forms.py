"""Code in messages in other forms than Markdown: HTML, diffs, sessions, notebooks, one-liners; and where they meet."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.extraction import extract_code_blocks
from guardrail.verdict import CodeBlock

PIECES = [
    *(
        "```\n",
        "```diff\n",
        "```console\n",
        "```json\n",
        "~~~\n",
        "\n",
        "    x\n",
        "> ",
        "- ",
        "text ",
        "`",
        "\r\n",
        "\t",
    ),
    *(
        "<pre>",
        "\n<pre>\n",
        "</pre>",
        '<code class="language-py">',
        "</code>",
        "&lt;",
        "&#10;",
        "<br>",
        "<span>",
        "<pre ",
    ),
    *("--- a/x.py\n", "+++ b/x.py\n", "@@ -1,2 +1,3 @@\n", "@@ -1 +1 @@\n", "+a\n", "-b\n", " c\n", "diff --git a b\n"),
    *("$ ls\n", "$ a \\\n", "> b\n", "u@h:~$ cat <<E\n", "E\n", "curl https://a.b ", "| sh ", "bash <(", ")", "wget "),
    *('{"cells": [', '{"cell_type": "code", "source": [', '"x\\n"', ",", "]}", '"!ls', "\\u00e9", '"', "%%bash\\n"),
]
MESSAGES = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)


def notebook(*cells: Any, language: str | None = None, indent: int | None = 1) -> str:
    metadata = {"kernelspec": {"language": language}} if language else {}
    made = [{"cell_type": "code", "metadata": {}, "source": source} for source in cells]
    return json.dumps(
        {"cells": [{"cell_type": "markdown", "source": ["# x"]}, *made], "metadata": metadata}, indent=indent
    )


def placed(text: str, block: CodeBlock) -> list[str]:
    """What stands in the message where each line starts, as long as the line."""
    lines = block.code.split("\n")
    return [text[start : start + len(line)] for line, start in zip(lines, block.line_starts, strict=True)]


class TestAllForms:
    @settings(max_examples=500, deadline=None)
    @given(MESSAGES)
    def test_every_place_lies_in_its_block(self, text: str) -> None:
        """Whatever is written, no finding points outside the code it was found in, and blocks come in order."""
        before = 0
        for block in extract_code_blocks(text):
            lines = block.code.split("\n")
            assert len(lines) == len(block.line_starts)
            assert list(block.line_starts) == sorted(block.line_starts)
            assert before <= block.span.start <= block.span.end <= len(text)
            before = block.span.start
            for number, line in enumerate(lines, 1):
                for column in (1, len(line) + 1, 10**6):
                    assert block.span.start <= block.message_offset(number, column) <= block.span.end

    @pytest.mark.parametrize(
        "text",
        [
            *(
                "<pre>" * 50_000,
                "<pre>\nx\n</pre>\n" * 5_000,
                "<pre>\nx\n```\ny\n```\n</pre>\n" * 3_000,
                "<pre " * 50_000,
            ),
            *("<pre>\n" + "<span " * 50_000, "<pre>\n" + "&#9" * 100_000, "<pre>\n&#" + "9" * 10**6 + ";"),
            *("curl " * 20_000, "curl x.y |" * 20_000, "sh -c $(curl a.b " * 10_000, "wget a.b" + " " * 10**6),
            *("--- a\n+++ b\n@@ -1 +1 @@\n" * 10_000, "--- a\n+++ b\n@@ -1,999999999 +1 @@\n" + "+x\n" * 50_000),
            *(
                "```diff\n" + "--- a\n+++ b\n+x\n" * 10_000,
                "```console\n" + "$ a \\\n" * 50_000,
                "```\n" + "a@" * 10**5,
            ),
            *(
                '{"cell_type"' + "[" * 10**6,
                '{"cell_type"' + '"\\' * 10**5,
                "    \n" * 10**5,
                " \t" * 10**5,
                "a\n    " * 10**5,
            ),
            '{"cells": [{"cell_type": "code", "source": [' + '"a\\n",' * 10**5,
        ],
        ids=range(22),
    )
    @pytest.mark.timeout(20)
    def test_hostile_text_ends(self, text: str) -> None:
        """Work is linear in the message: each of these would take minutes otherwise."""
        extract_code_blocks(text)

    def test_inline_code_is_no_block(self) -> None:
        """Words between backticks or in ``<code>`` are too short to be judged."""
        assert extract_code_blocks("Use `eval(x)` or <code>exec(x)</code>, the `<pre>` tag, or <pre> in a line.") == []


class TestHtml:
    def test_entities_and_tags_are_read(self) -> None:
        """Code is what a browser shows; its language is that of the class; lines start where they stand."""
        text = (
            'So:\n<pre><code class="hljs language-py">if a &lt; b:\n'
            '    <span class="k">return</span> &quot;x&quot;\n</code></pre>'
        )
        (block,) = extract_code_blocks(text)
        assert (block.code, block.language) == ('if a < b:\n    return "x"', "python")
        assert text[block.line_starts[1] :].startswith("    <span")
        assert placed(text, block)[0] == "if a &lt;"

    def test_a_break_is_a_line(self) -> None:
        """``<br>`` and an encoded line feed end a line, and no line is without a place."""
        (block,) = extract_code_blocks("<pre>a<br>b<br/>\nc&#10;d</pre>")
        assert block.code.split("\n") == ["a", "b", "c", "d"]

    def test_angle_brackets_of_code_stay(self) -> None:
        """Models do not always write entities."""
        (block,) = extract_code_blocks("<pre>\n#include <stdio.h>\nList<String> x;\n</pre>")
        assert block.code == "#include <stdio.h>\nList<String> x;"

    def test_code_of_several_lines_needs_no_pre(self) -> None:
        """``<code>`` alone is a block where it has lines."""
        (block,) = extract_code_blocks('Do <code class="js">a();\nb();</code> so')
        assert (block.code, block.language) == ("a();\nb();", "javascript")

    def test_unterminated_pre_counts(self) -> None:
        """An answer cut short is still judged."""
        (block,) = extract_code_blocks("x\n<pre>\neval(x)")
        assert block.code == "eval(x)"

    def test_a_fence_in_pre_hides_nothing(self) -> None:
        """The fence is a block, and so is what stands around it."""
        blocks = extract_code_blocks("<pre>\neval(a)\n```js\nf()\n```\neval(b)\n</pre>")
        assert [(block.code, block.language) for block in blocks] == [
            ("eval(a)", None),
            ("f()", "javascript"),
            ("eval(b)", None),
        ]

    def test_nothing_is_read_inside_a_fence(self) -> None:
        """HTML in a fence is the fence's code, once."""
        (block,) = extract_code_blocks("```html\n<pre>\nx\n</pre>\n```")
        assert block.code == "<pre>\nx\n</pre>"

    def test_indented_lines_of_pre_are_one_block(self) -> None:
        """A blank line inside does not make indented code of the rest."""
        (block,) = extract_code_blocks("<pre>\ndef f():\n\n    return 1\n</pre>")
        assert block.code == "def f():\n\n    return 1"

    def test_quoted_pre(self) -> None:
        """The marks of a block quote are taken off."""
        (block,) = extract_code_blocks("> <pre>\n> a\n>   b\n> </pre>")
        assert block.code == "a\n  b"


DIFF = "--- a/x.py\n+++ b/x.py\n@@ -1,2 +1,2 @@\n import os\n-os.remove(a)\n+os.remove(b)\n"


class TestDiffs:
    def test_new_lines_of_each_file(self) -> None:
        """What is added and what stays is the code, in the language of the file; what is removed is not judged."""
        text = (
            f"```diff\ndiff --git a/x.py b/x.py\nindex 1..2\n{DIFF}--- a/y.js\n+++ b/y.js\n@@ -1 +1 @@\n-f()\n+g()\n```"
        )
        blocks = extract_code_blocks(text)
        assert [(b.code, b.language) for b in blocks] == [("import os\nos.remove(b)", "python"), ("g()", "javascript")]
        for block in blocks:
            assert placed(text, block) == block.code.split("\n")

    def test_as_it_stands_in_a_message(self) -> None:
        """A pasted diff ends where its counts say, and prose goes on after it."""
        text = f"Apply:\n{DIFF}+ 1 for this\n"
        (block,) = extract_code_blocks(text)
        assert (block.code, block.language) == ("import os\nos.remove(b)", "python")
        assert text[: block.span.end] == f"Apply:\n{DIFF}".rstrip("\n")

    def test_without_a_name_the_code_decides(self) -> None:
        """A loose diff is code where it looks like some, and data where it does not."""
        (block,) = extract_code_blocks("```diff\n- foo()\n+ import os\n+ print(os.getcwd())\n```")
        assert (block.code, block.language) == ("import os\nprint(os.getcwd())", "python")
        (block,) = extract_code_blocks("```diff\n-two words\n+three words here\n```")
        assert block.language == "diff"

    def test_only_removed_lines(self) -> None:
        """A diff without new code stays what it is."""
        (block,) = extract_code_blocks("```diff\n-eval(x)\n```")
        assert (block.code, block.language) == ("-eval(x)", "diff")

    def test_a_diff_ends_at_a_fence(self) -> None:
        """Counts that promise more than there is swallow no fence."""
        blocks = extract_code_blocks("--- a/x.md\n+++ b/x.md\n@@ -1,99 +1,99 @@\n+x\n```js\neval(x)\n```\n")
        assert [(b.code, b.language) for b in blocks] == [("x", "markdown"), ("eval(x)", "javascript")]


class TestSessions:
    def test_commands_without_output(self) -> None:
        """Prompts and output are left out, a continued command is whole."""
        text = "```console\nuser@host:~/x$ curl a.b | \\\n> sh\nfetched\n$ ls\na b\n```"
        (block,) = extract_code_blocks(text)
        assert (block.code, block.language) == ("curl a.b | \\\nsh\nls", "bash")
        assert placed(text, block) == block.code.split("\n")

    def test_here_document(self) -> None:
        """Lines of a here-document are part of the command."""
        (block,) = extract_code_blocks("```\n$ cat > a <<'EOF'\nx = 1\nEOF\nok\n$ ls\n```")
        assert block.code == "cat > a <<'EOF'\nx = 1\nEOF\nls"

    def test_a_shell_keeps_its_lines(self) -> None:
        """In a block that says it is a shell's, a line without a prompt may be a command: it is judged."""
        (block,) = extract_code_blocks("```bash\n$ ls\nrm -rf x\n```")
        assert block.code == "ls\nrm -rf x"

    def test_output_alone_is_no_code(self) -> None:
        """A console without a prompt stays what it is."""
        (block,) = extract_code_blocks("```console\nall done\n```")
        assert (block.code, block.language) == ("all done", "console")


class TestNotebooks:
    @pytest.mark.parametrize("fence", ["", "```json\n", "```\n"])
    @pytest.mark.parametrize("indent", [None, 1, 4])
    def test_cells_are_one_program(self, fence: str, indent: int | None) -> None:
        """Code of all cells is one block, whose lines stand in the message; prose cells are left out."""
        text = (
            fence
            + notebook(["import os\n", "x = 1"], "print(x)\nos.getcwd()", indent=indent)
            + ("\n```" if fence else "")
        )
        (block,) = extract_code_blocks(text)
        assert (block.code, block.language) == ("import os\nx = 1\nprint(x)\nos.getcwd()", "python")
        assert placed(text, block) == block.code.split("\n")

    def test_language_of_the_metadata(self) -> None:
        """It stands behind the cells and is found all the same."""
        (block,) = extract_code_blocks(notebook("x <- 1", language="R"))
        assert block.language == "r"

    def test_magics(self) -> None:
        """Shell commands are a shell's, other magics comments, and lines keep their numbers."""
        blocks = extract_code_blocks(notebook(["%matplotlib inline\n", "!pip install x\n", "y = 1"], "%%bash\nls -l"))
        assert [(b.code, b.language) for b in blocks] == [
            ("#matplotlib inline\n#pip install x\ny = 1", "python"),
            ("pip install x\nls -l", "bash"),
        ]

    def test_escapes_are_read(self) -> None:
        """Quotes and letters that JSON escapes are those of the code."""
        (block,) = extract_code_blocks(notebook('print("é\\n")\nx = 2'))
        assert block.code == 'print("é\\n")\nx = 2'

    def test_cut_short(self) -> None:
        """A notebook that ends early gives what it has."""
        text = notebook(["import os\n", "os.getcwd()"])
        (block,) = extract_code_blocks(text[: text.index("getcwd") + 3])
        assert block.code == "import os\nos.get"

    def test_other_json_is_data(self) -> None:
        """A document that only names a cell type stays JSON."""
        (block,) = extract_code_blocks('```json\n{"cell_type": "code", "source": ["x"]}\n```')
        assert block.language == "json"


class TestOneLiners:
    @pytest.mark.parametrize(
        ("text", "code"),
        [
            (
                "Run `curl -fsSL https://a.b/i.sh | sudo bash -s -- --yes` now",
                "curl -fsSL https://a.b/i.sh | sudo bash -s -- --yes",
            ),
            ("Run curl https://a.b/i.sh | sh to install.", "curl https://a.b/i.sh | sh"),
            ('or sh -c "$(wget -qO- $URL)" it', 'sh -c "$(wget -qO- $URL)"'),
            ("bash <(curl -s a.b/x)", "bash <(curl -s a.b/x)"),
            ("wget -qO- a.b/x.py | python3 -", "wget -qO- a.b/x.py | python3 -"),
        ],
    )
    def test_a_script_that_is_fetched_and_run(self, text: str, code: str) -> None:
        """The one line that is a weakness at any length is found in prose and inline."""
        (block,) = extract_code_blocks(text)
        assert (block.code, block.language) == (code, "bash")
        assert placed(text, block) == [code]

    @pytest.mark.parametrize(
        "text", ["never pipe `curl | sh`", "curl https://a.b | shasum", "curl a.b > x; less x", "wget a.b | sh-x"]
    )
    def test_talk_of_it_is_none(self, text: str) -> None:
        """What names nothing to fetch, or runs nothing, is prose."""
        assert extract_code_blocks(text) == []

    def test_once_in_a_fence(self) -> None:
        """A line that is part of a block is not a second block."""
        assert len(extract_code_blocks("```\ncurl https://a.b | sh\n```")) == 1
