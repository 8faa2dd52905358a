"""Which readings of a block are scanned, and in what order."""

from __future__ import annotations

import sys

import pytest

from guardrail.shield.likely import choose
from guardrail.shield.targets import make_targets
from guardrail.verdict import CodeBlock, Span

pytest.importorskip("ast_grep_py", reason="needs guardrail[code]")


def block(code: str, language: str) -> CodeBlock:
    return CodeBlock(code, language, Span(0, len(code)), (0,))


def test_code_that_is_whole_is_read_as_it_stands():
    readings = make_targets(block("print(1)\n", "python"), "x")
    assert choose(readings).targets[0] is readings[0]


def test_a_fragment_is_read_first_as_what_makes_it_whole():
    readings = make_targets(block("    start();\n} else {\n    stop();\n}\n", "java"), "x")
    targets, is_told = choose(readings)
    assert targets[0] is not readings[0]
    assert "if" in targets[0].prefix
    assert sorted(t.name for t in targets) == sorted(t.name for t in readings)
    assert not is_told


def test_of_what_no_parser_understands_a_few_readings_are_left():
    readings = make_targets(block("first you ( take ) ] the = = pan, def def and } stir { it\n" * 3, "rust"), "x")
    targets, is_told = choose(readings)
    assert is_told
    assert targets[0] is readings[0]
    assert len(targets) <= 4 < len(readings)


def test_a_stray_sign_is_blanked_in_a_reading_of_its_own():
    code = "def f(path):\n    )\n    return open(path)\n"
    readings = make_targets(block(code, "python"), "x")
    targets, is_told = choose(readings)
    assert is_told
    assert len(targets[0].body) == len(code)
    assert targets[0].body.replace(" ", "") == code.replace(" ", "").replace("\n)\n", "\n\n")
    assert targets[0].name not in {reading.name for reading in readings}
    assert readings[0] in targets


def test_what_may_hold_a_weakness_is_not_blanked():
    readings = make_targets(block('fn f() { os::system("a" ; ) = 1 ] run(y) = ( { \n', "rust"), "x")
    targets, is_told = choose(readings)
    assert is_told
    assert all(target in readings for target in targets)


def test_code_is_scanned_before_a_reading_that_blanks_some_of_it():
    """As a session, the second line is output; as it stands, it is code."""
    readings = make_targets(block(">>> a = 1\neval(b)\n1", "python"), "x")
    targets, _ = choose(readings)
    assert targets[0] is readings[0]
    assert targets[1].body != readings[0].body


@pytest.mark.parametrize(
    ("code", "language"),
    [
        ("x = 1\n" * 1000, "python"),
        ("FROM scratch\n", "dockerfile"),
        ("<?php f(); ?>\n<p>text</p>\n", "php"),
        ('import os\nos.system(x)\n"""\ny = 2\n', "python"),
    ],
    ids=["long", "no grammar", "a page", "in doubt"],
)
def test_some_are_left_as_they_are(code: str, language: str):
    readings = make_targets(block(code, language), "x")
    assert choose(readings) == (readings, False)


def test_without_parsers_the_order_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ast_grep_py", None)
    readings = make_targets(block("public void run() { start(); }\n", "java"), "x")
    assert choose(readings) == (readings, False)
