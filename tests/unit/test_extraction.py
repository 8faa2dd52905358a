"""Code blocks in messages: places, languages, CommonMark's block structure, and bounded work."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from guardrail.extraction import extract_code_blocks
from guardrail.extraction.markdown import find_markdown_blocks

REFERENCE = MarkdownIt("commonmark")
PREFIXES = ["", "", "> ", ">", "- ", "1. ", "  ", "   ", "    ", "      ", "\t", "2) ", "* ", " > ", "> > ", "10. "]
BODIES = [
    *("```", "~~~", "````", "```py", "~~~~ js x", "``` a`b", "text", "code()", "", "", "# h", "---", "===", "***"),
    *("- x", "    x", "\ty", ">q", "-", "1.", "7. z", "* * *", "  ", "```   ", "```x"),
    *(
        "~~~~",
        "~~~ ```",
        "`````",
        "````` ~",
        "   ```",
        "       y",
        "> > ~~~",
        "- - ```",
        "1) ```",
        "#",
        "`a`",
        "~~~~   ",
    ),
]
LINES = st.builds(
    lambda prefixes, body: "".join(prefixes) + body,
    st.lists(st.sampled_from(PREFIXES), max_size=2),
    st.sampled_from(BODIES),
)


def documents(lines: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(
        lambda lines, end: end.join(lines) + end,
        st.lists(lines, min_size=1, max_size=12),
        st.sampled_from(["\n", "\r\n", "\r"]),
    )


DOCUMENTS = documents(LINES)
LOOSE = documents(
    st.one_of(LINES, st.sampled_from(["so: ```py", "- so: ````py", "> x ```js", "x```", "> x````", "   x```"]))
)


def columns(line: str) -> int:
    wide = line.expandtabs(4)
    return len(wide) - len(wide.lstrip())


def is_known_difference(text: str) -> bool:
    """Whether a document has what markdown-it-py reads otherwise than CommonMark 0.31.2 says.

    - A line indented by four columns or more, directly after a line inside a container: by the specification it goes
      on with the paragraph (a lazy line); markdown-it lets a block start that is not indented *for the container*.
    - ``>`` after four columns: by the specification no quote marker; markdown-it takes it inside an open quote.
    - A tab after a container marker: by the specification the rest of the tab stands as spaces (example 6);
      markdown-it keeps the tab.

    And what this scanner reads otherwise by intent: a fence behind words, such as a number that starts no list.
    """
    seen, before = False, ""
    for line in re.split(r"\r\n|\r|\n", text):
        if seen and columns(line) >= 4 and before.strip() and columns(before) < 4:
            return True
        if re.search(r"[0-9][.)].*```py *$", line):
            return True
        if re.match(r"\s{4,}>|\s*\t\s*>", line) or re.match(r".*(?:>|[-*+]|[0-9][.)])[ ]*\t", line):
            return True
        if before.strip() and re.match(r"\s*>[\s>]*\s{5}", line):
            return True  # the same, where the outer quote marks are there
        seen = seen or re.match(r"\s*(?:>|[-*](?:\s|$)|\d+[.)])", line) is not None
        before = line
    return False


class TestAgainstReference:
    @settings(max_examples=400, deadline=None)
    @given(DOCUMENTS)
    def test_finds_what_commonmark_finds(self, text: str) -> None:
        """The blocks are those of markdown-it-py, but for the differences named above."""
        assume(not is_known_difference(text))
        expected = [
            token.content.removesuffix("\n") for token in REFERENCE.parse(text) if token.type in ("fence", "code_block")
        ]
        assert [found.block.code for found in find_markdown_blocks(text)] == expected

    @settings(max_examples=300, deadline=None)
    @given(st.one_of(DOCUMENTS, LOOSE))
    def test_places_with_fences_hold_the_code(self, text: str) -> None:
        """A block's outer place is whole lines, holds the code, and is apart from the next block's."""
        end = 0
        for found in find_markdown_blocks(text):
            span = found.block.span
            assert end <= found.start <= span.start <= span.end <= found.end <= len(text)
            assert found.start == 0 or text[found.start - 1] in "\r\n"
            # A fence with nothing after it ends where its code would start.
            assert found.end == len(text) or text[found.end] in "\r\n" or not found.block.code
            end = found.end

    @settings(max_examples=300, deadline=None)
    @given(st.one_of(DOCUMENTS, LOOSE, st.text(st.sampled_from("`~> -\t\r\na1.😀"), max_size=80)))
    def test_places_are_exact(self, text: str) -> None:
        """Every line of code stands at its offset in the message, unless a tab was cut in two."""
        for block in extract_code_blocks(text):
            lines = block.code.split("\n")
            assert len(lines) == len(block.line_starts)
            for line, start in zip(lines, block.line_starts, strict=True):
                assert text.startswith(line, start) or text[start] == "\t"
            assert 0 <= block.span.start <= block.span.end <= len(text)


class TestBlocks:
    def test_fence_gives_code_language_and_place(self) -> None:
        """The span covers the code alone, in code points of the message."""
        text = "é😀\r\n```Python title='x'\r\na = 1\r\n  b\r\n```\r\nend"
        (block,) = extract_code_blocks(text)
        assert (block.code, block.language) == ("a = 1\n  b", "python")
        assert text[block.span.start : block.span.end] == "a = 1\r\n  b"
        assert block.message_offset(2, 3) == text.index("b\r")

    def test_quote_and_list_prefixes_are_removed(self) -> None:
        """Code inside containers reads as a compiler would read it."""
        text = "> - x\n>\n>   ```js\n>   f()\n>     g()\n>   ```\n"
        (block,) = extract_code_blocks(text)
        assert block.code == "f()\n  g()"
        assert text[block.line_starts[1] :].startswith("  g()")

    def test_longer_fence_holds_shorter_ones(self) -> None:
        """A fence ends only at one at least as long, of the same character."""
        (block,) = extract_code_blocks("````md\n```py\nx\n```\n~~~~\n````\n")
        assert block.code == "```py\nx\n```\n~~~~"

    def test_unterminated_fence_counts(self) -> None:
        """An answer cut short is still judged."""
        (block,) = extract_code_blocks("```py\neval(x)")
        assert block.code == "eval(x)"

    def test_a_fence_with_a_language_may_open_behind_words(self) -> None:
        """As models write it; what a reader takes for code is judged as code."""
        text = "Of course! Here you are: ```python\nimport os\nos.system(x)\n```\nBye."
        (block,) = extract_code_blocks(text)
        assert (block.code, block.language) == ("import os\nos.system(x)", "python")
        assert text[block.span.start : block.span.end] == block.code
        (block,) = extract_code_blocks("- first: ```` c++\n  ```\n  f();\n  ````\n")
        assert (block.code, block.language) == ("```\nf();", "cpp")
        for code in ("### Code ```py\neval(x)\n```", "1) Try ```py\neval(x)\n```\n2) b", "> a ```py\n> eval(x)```\nb"):
            (block,) = extract_code_blocks(code)
            assert (block.code, block.language) == ("eval(x)", "python")

    @pytest.mark.parametrize(
        "text", ["Write ```py and then", "See ```ok\nx", "An empty ```\nx", "a ```x``` b ```py\nx", "`` ```py ``\nx"]
    )
    def test_talk_of_fences_opens_none(self, text: str) -> None:
        """Without the name of a language at the end of the line it is prose."""
        assert extract_code_blocks(text) == []

    def test_indented_code_needs_a_blank_line_before(self) -> None:
        """Four spaces after a paragraph go on with it; after a blank line they are code."""
        assert extract_code_blocks("a\n    b\n") == []
        (block,) = extract_code_blocks("a\n\n    b\n\n\tc\n\n\nd")
        assert (block.code, block.language) == ("b\n\nc", None)

    def test_no_code(self) -> None:
        """Plain text has no blocks."""
        assert extract_code_blocks("hello `x` there\n- a\n") == []

    @pytest.mark.parametrize(
        "text",
        [
            *("```\n" * 10_000, "a" * 10**6, "`" * 10**6, ">" * 10**6, "> ```" * 10**5, "- " * 5 * 10**5 + "```"),
            *(
                "- " * 40 + "\n" * 10**5 + "```",
                "``` `\n" * 10**5,
                "\t" * 10**6,
                "* " * 10**5 + "```",
                "\r" * 10**5 + "\t",
                "a" + "`" * 10**6,
                "a ```" * 10**5 + "py",
            ),
        ],
        ids=range(13),
    )
    @pytest.mark.timeout(20)
    def test_hostile_text_ends(self, text: str) -> None:
        """Work is linear in the message: each of these would take minutes otherwise."""
        extract_code_blocks(text)
