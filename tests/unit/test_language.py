"""The language of a block: labels, and guesses held to a floor on blocks as they stand in chats."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from guardrail.language import LANGUAGES, canonical_language, guess_language

DATA = Path(__file__).parent.parent / "data/languages"
FLOOR = 0.85
NO_PROGRAM = {None, "ini", "csv", "json", "text", "console", "markdown"}


def blocks() -> list[tuple[str, str]]:
    return [
        (path.stem, code) for path in sorted(DATA.glob("*.yaml")) for code in yaml.safe_load(path.read_text("utf-8"))
    ]


def is_right(language: str, code: str) -> bool:
    guess = guess_language(code)
    return guess in NO_PROGRAM if language == "none" else guess == language


class TestGuesses:
    def test_the_blocks_are_enough(self) -> None:
        """The floor means something: twenty blocks in at least twelve languages, and some that are no program."""
        counts = Counter(language for language, _ in blocks())
        assert sum(n >= 20 for language, n in counts.items() if language != "none") >= 12
        assert counts["none"] >= 20
        assert set(counts) - {"none"} <= LANGUAGES

    def test_most_blocks_are_told(self) -> None:
        """Of blocks without a label at least 85 % are told, and half of every language's."""
        right: Counter[str] = Counter()
        count: Counter[str] = Counter()
        for language, code in blocks():
            right[language] += is_right(language, code)
            count[language] += 1
        assert sum(right.values()) >= FLOOR * sum(count.values())
        assert [language for language in count if right[language] < 0.5 * count[language]] == []

    def test_most_are_told_without_parsers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """ast-grep settles what is close; without it the floor is the same."""
        monkeypatch.setitem(sys.modules, "ast_grep_py", None)
        assert sum(is_right(*block) for block in blocks()) >= FLOOR * len(blocks())

    def test_no_prose_is_a_program(self) -> None:
        """Letters, logs, tables, tracebacks and JSON never go to the rules of a language."""
        wrong = [
            code
            for language, code in blocks()
            if language in ("none", "json") and guess_language(code) not in NO_PROGRAM
        ]
        assert wrong == []

    @pytest.mark.parametrize(
        ("code", "language"),
        [
            ("import os\n\ndef f(x):\n    return os.system(x)", "python"),
            ("<?php echo 1;", "php"),
            ("const a = require('b');\nconsole.log(a);", "javascript"),
            ("#include <stdio.h>\nint main(void) {\n  char b[8];\n  gets(b);\n}", "c"),
            ("#include <iostream>\nint main() { std::cout << 1; }", "cpp"),
            ("package main\n\nfunc main() {\n}", "go"),
            ("import java.util.List;\npublic class A {\n}", "java"),
            (">>> x = 1\n>>> x\n1", "python"),
            ("the cat sat on the mat", None),
            ("total 8\ndrwxr-xr-x 2 root", None),
            ("", None),
            ("\n \n", None),
        ],
    )
    def test_guess(self, code: str, language: str | None) -> None:
        """Clear code is recognised; anything else is left open."""
        assert guess_language(code) == language

    @pytest.mark.parametrize(
        "code",
        [
            *(
                "[" * 30_000,
                "{" * 30_000,
                "(" * 30_000,
                "a" * 10**6,
                "def f(" + ":" * 10**5,
                "\n".join(["def f(" + ":#" * 190] * 300),
            ),
            *(
                "<div " * 10**5,
                "SELECT " * 10**5,
                '"' * 10**5,
                "- " * 10**5,
                "\n- a:" * 10**5,
                "$" * 10**5,
                "\n" * 10**6,
            ),
            *(
                "for x in " * 10**5,
                "class A<" + "<" * 10**5,
                "'\"" * 10**5,
                "A" + " b" * 10**5,
                "GRANT " + "a " * 10**5,
            ),
        ],
        ids=range(18),
    )
    @pytest.mark.timeout(20)
    def test_hostile_code_ends(self, code: str) -> None:
        """Work is bounded: of a block only so much is read."""
        guess_language(code)

    def test_parsers_are_loaded_when_needed(self) -> None:
        """Importing Code Shield loads no parser; that is for the first block that is not clear."""
        program = "import sys, guardrail.code_shield; print('ast_grep_py' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"


class TestLabels:
    @pytest.mark.parametrize(
        ("info", "language"),
        [
            *(
                ("py", "python"),
                ("Python3", "python"),
                ("{.python .numberLines}", "python"),
                ('python title="x"', "python"),
            ),
            *(("python{1,3}", "python"), ("language-js", "javascript"), ("jsx", "javascript"), ("tsx", "typescript")),
            *(
                ("c++", "cpp"),
                ("C#", "csharp"),
                ("golang", "go"),
                ("sh", "bash"),
                ("", None),
                ("  ", None),
                ("Zig", "zig"),
            ),
        ],
    )
    def test_info_string(self, info: str, language: str | None) -> None:
        """Aliases become canonical, attributes are left out, unknown words stay."""
        assert canonical_language(info) == language
