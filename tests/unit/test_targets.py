"""Files for semgrep: what holds for every block, and what the likeliest repairs write around one."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.shield.languages import DIALECTS
from guardrail.shield.repairs.tokens import STRING, tokenize
from guardrail.shield.targets import CANARY, LANGUAGES, MAX_TARGETS, Target, make_targets
from guardrail.verdict import CodeBlock, Span

languages = st.sampled_from(sorted(LANGUAGES))
# Pieces of code of all kinds, so that brackets, quotes, comments and keywords meet in odd ways.
PIECES = [
    *("{", "}", "(", ")", "[", "]", "${", '"', "'", "`", '"""', "'''", "/*", "*/", "//", "#", "#if 1\n", "#endif\n"),
    *("<<A\n", "<<~A\n", "\nA\n", "=begin\n", "\n=end\n", "<?php ", "?>", ">>> ", "...\n", "{{ x }}", "{%", "\\", "\n"),
    *("if", "else", "end", "do", "done", "fi", "case", "esac", ";;", "def f", "try", "catch", "class A", "return", "@"),
    *("x", "f(x)", " = ", ", ", ": ", "; ", " ", "    ", "\t", "\n  ", "\n    - ", "é", "😀", "\ud800", "\u2028", "\0"),
    *("r#", '@"', "$", "=>", "->", "when", "rescue", "except:", "for x in", "PRIu64", "1'000", "/x/", "<div>", "..."),
]
codes = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
FILLERS = set(" #_")


def targets_of(code: str, language: str) -> list[Target]:
    return make_targets(CodeBlock(code, language, Span(0, len(code)), (0,)), "x")


def around(code: str, language: str) -> list[tuple[str, str]]:
    """What stands before and after the code, without the canary."""
    return [
        (target.prefix, target.suffix.removesuffix(f"\n{LANGUAGES[target.language].canary}"))
        for target in targets_of(code, language)
    ]


class TestEveryBlock:
    @settings(max_examples=200, deadline=None)
    @given(codes, languages)
    def test_a_body_stands_for_the_code_one_for_one(self, code: str, language: str) -> None:
        """Each body has the code's length, and each of its characters is the code's own, or a filler in its place."""
        plain = targets_of(code, language)[0].body
        for target in targets_of(code, language):
            assert len(target.body) == len(code)
            is_session = language == "python" and ">>>" in code  # prompts move the text of their lines
            for own, other in zip(plain, target.body, strict=True):
                assert other == own or other in FILLERS or is_session
                assert (own == "\n") == (other == "\n")

    @settings(max_examples=200, deadline=None)
    @given(codes, languages)
    def test_files_are_few_and_different(self, code: str, language: str) -> None:
        """No file is scanned twice, names are used once, and there is a limit to their number and to what is added."""
        targets = targets_of(code, language)
        assert 1 <= len(targets) <= MAX_TARGETS
        assert len({(target.language, target.text) for target in targets}) == len(targets)
        assert len({target.name for target in targets}) == len(targets)
        for target in targets:
            assert len(target.text) - len(code) <= 4 * len(code) + 600

    @settings(max_examples=200, deadline=None)
    @given(codes, languages)
    def test_the_first_file_is_the_code_as_it_stands(self, code: str, language: str) -> None:
        """Nothing is repaired before the block was read as it is; PHP alone needs its opening tag."""
        first = targets_of(code, language)[0]
        assert first.language == DIALECTS.get(language, (language,))[0]
        assert first.prefix in ({"", "<?php "} if language == "php" else {""})
        assert first.suffix.removeprefix("\n<?php ") == f"\n{LANGUAGES[language].canary}"

    @settings(max_examples=200, deadline=None)
    @given(codes, languages)
    def test_behind_each_stands_its_canary(self, code: str, language: str) -> None:
        """A file without one could not be told from one that was not read to its end."""
        for target in targets_of(code, language):
            assert target.suffix.endswith(f"\n{LANGUAGES[target.language].canary}")
            assert CANARY in target.suffix

    @settings(max_examples=200, deadline=None)
    @given(codes, languages)
    def test_some_file_proves(self, code: str, language: str) -> None:
        """However doubtful a block is, there is a reading that can verify it."""
        assert any(target.proves for target in targets_of(code, language))


ENDLESS = [
    *(
        "}",
        "{",
        "([",
        "[/",
        "/*",
        '"""',
        "`${",
        "<<A\n",
        "do\n",
        "end\n",
        "case x;;",
        "a)\n",
        "\\",
        "\n\t",
        "$((",
        "x:\n",
    ),
    *("else\n", "try:\n", "- ", '@"', "{{ ", "#if 1\n", "<?php ?>", "'a'", "if x\n", "})", "} else "),
]


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_work_grows_with_the_size_of_the_code(language: str) -> None:
    """Four times the code takes at most about four times the steps, also where nothing matches."""
    for piece in ENDLESS:
        small, large = (count_steps((piece * size)[:size], language) for size in (250, 1000))
        assert large <= 5.5 * small + 1500, piece


def count_steps(code: str, language: str) -> int:
    """The lines of Python that are run for a block."""
    steps = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal steps
        steps += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        targets_of(code, language)
    finally:
        sys.settrace(before)
    return steps


class TestTokens:
    @settings(max_examples=200, deadline=None)
    @given(codes, languages)
    def test_tokens_are_in_order_and_in_the_code(self, code: str, language: str) -> None:
        """A token stands where it says."""
        found = tokenize(code, language)
        places = [token.at for token in found.tokens]
        assert places == sorted(set(places))
        for token in found.tokens:
            assert token.text == STRING or code.startswith(token.text, token.at)

    @pytest.mark.parametrize(
        ("code", "language", "words"),
        [
            ('f(@"C:\\", x)', "csharp", ["f", "(", "@", '"', ",", "x", ")"]),
            ('f(@"a "" { b", x)', "csharp", ["f", "(", "@", '"', ",", "x", ")"]),
            ("a = `x ${ {b: 1}.b } y`;", "javascript", [*'a="', "${", *"{b:", "1", *"}.b};"]),
            ("s.replace(/[/\"{]/g, '')", "javascript", ["s", ".", "replace", "(", '"', "g", ",", '"', ")"]),
            ("a / b / c", "javascript", ["a", "/", "b", "/", "c"]),
            ("c = '\"'; f::<'a>(x)", "rust", [*"c=;f::<a>(x)"]),
            ('r#"a " b"# }', "rust", ["r", "#", '"', "}"]),
            ("x = <<~SQL\n  it's {\nSQL\ny", "ruby", ["x", "=", "<", "y"]),
            ("=begin\nit's {\n=end\ny", "ruby", ["y"]),
            ("it's <b>{</b> <?php f(); ?> don't {", "php", ["f", "(", ")", ";", "?"]),
            ("#[A]\n# don't\nf();", "php", ["#", "[", "A", "]", "f", "(", ")", ";"]),
            ("x = 1'000 + '{';", "cpp", ["x", "=", "1", "000", "+", '"', ";"]),
        ],
    )
    def test_what_a_string_or_a_comment_holds_is_no_code(self, code: str, language: str, words: list[str]) -> None:
        """Brackets and quotes in strings, comments, characters, regular expressions and pages do not count."""
        code = f"<{code}" if language == "php" and code.startswith("it") else code
        code = f"\n{code}" if code.startswith("=begin") else code
        assert [token.text for token in tokenize(code, language).tokens] == words


class TestRepairs:
    @pytest.mark.parametrize(
        ("code", "language", "shape"),
        [
            (" text of it.\n */\nf();", "java", ("/*", "")),
            (" * Text,\n *\n * and more", "java", ("/*", "*/")),
            ('of it";\nF(x);\n', "csharp", ('@"', "")),
            ("f();\n} catch (E e) { g(); }", "java", ("try {", "")),
            ("f();\n} else { g(); }", "go", ("func f() { if true {", "\n}")),
            ("case 1:\n f();\n}\ng();", "javascript", ("switch (1) { case 0:", "")),
            ("try {\n  f(x", "java", ("", ");} finally {}")),
            ("do {\n  f();", "c", ("", "} while (0);")),
            ("x = a +", "javascript", ("", " 0;")),
            ("f(a,", "c", ("", " 0);")),
            ("#ifdef A\nf();", "c", ("", "\n#endif")),
            ("f();\n#endif\n", "c", ("#if 1\n", "")),
            ("a: 1,\nb: 2,\n})\n", "javascript", ("({", "")),
            ("'a' => 1, 'b' => 2)", "php", ("<?php array(", ";")),
            ("a, b) + 1\nx = 2\n", "python", ("f(", "")),
            (
                "        a()\n    b()\nc()\n",
                "python",
                ("if 1:\n    if 1:\n", ""),
            ),
            ("try:\n    f()\n", "python", ("", "\n        pass\nexcept: pass\n")),
            ("@route(\n    'x',\n", "python", ("", ")\ndef f(): pass\n")),
            ("  f\nend\n", "ruby", ("begin;", "")),
            ("def f\n  x if y\n  z do |a|\n", "ruby", ("", "\nend\nend")),
            ("when 1 then f\nend", "ruby", ("case x;", "")),
            ("f\nfi\n", "bash", ("if :; then :; ", "")),
            ("if a; then\n b\n", "bash", ("", "\n:; fi")),
            ("cat <<EOF\nit's\n", "bash", ("", "\nEOF")),
            ("    apt-get install x && \\\n    y\nUSER a\n", "dockerfile", ("RUN ", "")),
            ("      b: 1\n  c: 2\n", "yaml", ("  g:\n", "")),
            ("  a = 1\n}\n", "hcl", ("g {\n", "")),
        ],
    )
    def test_a_repair_fits_what_is_missing(self, code: str, language: str, shape: tuple[str, str]) -> None:
        """What is only closed is opened, what is only opened is closed, by the words around it."""
        assert shape in around(code, language)

    def test_templates_and_directives_become_blank(self) -> None:
        """What is no code of the language, but stands among it, is blanked in place."""
        bodies = [target.body for target in targets_of("a: {{ .x }}\n{{- end }}\n", "yaml")]
        assert "a: __ .x __\n          \n" in bodies
        assert "     \nx();" in [target.body for target in targets_of("#if A\nx();", "csharp")]
        assert 'f("%"       );' in [target.body for target in targets_of('f("%" PRIu64);', "c")]


class TestDoubt:
    @pytest.mark.parametrize(
        ("code", "language", "mark"),
        [
            ('    of it.\n    """\n    f(x)\n', "python", '"""'),
            ("</p>`;\nf(x);\n", "javascript", "`"),
            ("x\n`\nf(x)\n", "go", "`"),
            ("of it';\nf($x);\n", "php", "'"),
            ('a";\nf(x);\n', "rust", '"'),
            ("x'\nrm $y\n", "bash", "'"),
        ],
    )
    def test_an_odd_mark_is_read_both_ways(self, code: str, language: str, mark: str) -> None:
        """The first reading that takes the rest for a string proves nothing; one with the string before it follows."""
        targets = targets_of(code, language)
        turned = [i for i, target in enumerate(targets) if target.prefix.endswith(mark)]
        closed = [
            i
            for i, target in enumerate(targets)
            if target.proves and not target.prefix.endswith(mark) and target.suffix.lstrip().startswith(mark)
        ]
        assert turned
        assert not targets[1].proves
        assert all(i > turned[0] for i in closed)

    @pytest.mark.parametrize(
        ("code", "language"),
        [
            ('"""\nf(x)\n\ndef g():\n    """', "python"),
            ('# a comment\n"""\nf(x)\n\ndef g():\n    """', "python"),
            ('Text\n"""\nf(x)\n\ndef g():\n    """', "python"),
            ("`;\nf(x);\nconst b = `", "javascript"),
            ('";\nf($x);\n$b = "', "php"),
        ],
    )
    def test_code_between_two_strings_is_not_taken_for_one(self, code: str, language: str) -> None:
        """A block that starts at a string's end and stops at the next one's start is not verified as it stands."""
        first, *others = targets_of(code, language)
        assert not first.proves
        assert any(target.proves and target.prefix.endswith(('"', "`")) for target in others)

    @pytest.mark.parametrize(
        "code", ['"""The docstring of a module.\n\nIt uses f(x).\n"""\n', '"""\nText of it.\n"""\nf(x)\n', "x = 1\n"]
    )
    def test_a_docstring_is_not_doubted(self, code: str) -> None:
        """What starts with text is what it seems to be; the block is read once."""
        assert targets_of(code, "python")[0].proves
