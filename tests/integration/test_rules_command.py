"""``guardrail rules list | test | explain``, and the check of rules, with the real semgrep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from guardrail.cli import app
from guardrail.shield.install import find_semgrep
from guardrail.shield.rulebook import RULES, Rulebook
from guardrail.shield.validate import find_faults

ABOUT = {"cwe": "CWE-1", "confidence": "HIGH", "fix": "Use another word."}


def run(*args: str | Path) -> Any:
    return CliRunner().invoke(app, ["rules", *map(str, args)])


def a_rule(rule_id: str = "mine.word", languages: tuple[str, ...] = ("python",), **keys: Any) -> dict[str, Any]:
    start = {"id": rule_id, "languages": list(languages), "severity": "ERROR", "message": "A word.", "metadata": ABOUT}
    return {**start, **(keys or {"pattern": "word(...)"})}


def write(folder: Path, *rules: dict[str, Any], cases: dict[str, Any] | None = None) -> Path:
    """Writes a folder of rules, with cases that the rule of ``a_rule`` keeps."""
    (folder / "python").mkdir(parents=True, exist_ok=True)
    (folder / "python" / "mine.yaml").write_text(yaml.safe_dump({"rules": list(rules)}), "utf-8")
    if cases is None:
        cases = {rule["id"]: {"match": ["word(1)"], "clean": ["x = 1"]} for rule in rules}
    (folder / "python" / "mine.cases.yaml").write_text(yaml.safe_dump(cases), "utf-8")
    return folder


class TestList:
    def test_a_line_for_each_rule(self) -> None:
        """Id, weakness, severity, confidence, languages: to read and to search."""
        lines = run("list").stdout.splitlines()
        assert lines[-1] == f"{len(Rulebook.load(RULES).rules)} rules"
        (line,) = [line for line in lines if line.startswith("python.weak-hash ")]
        assert line.split() == ["python.weak-hash", "CWE-328", "warning", "medium", "python"]

    def test_language_chooses(self) -> None:
        """By any of its names; a C rule is for C++ too."""
        listed = json.loads(run("list", "--language", "c++", "--json").stdout)
        assert listed
        assert all("cpp" in rule["languages"] for rule in listed)
        assert {"id", "cwe", "owasp", "severity", "confidence", "message", "fix", "file"} < listed[0].keys()

    def test_no_language_of_that_name_is_bad_usage(self) -> None:
        """Not an empty list."""
        assert run("list", "--language", "klingon").exit_code == 2

    def test_rules_of_ones_own_are_listed_too(self, tmp_path: Path) -> None:
        """After those of the package."""
        assert "mine.word  " in run("list", "--rules", write(tmp_path, a_rule())).stdout


class TestExplain:
    def test_it_says_all_there_is_to_say(self) -> None:
        """What it finds, what to do, where it stands, and its cases."""
        result = run("explain", "python.weak-hash")
        assert result.exit_code == 0
        for words in ("CWE-328", "A02:2021", "hashlib.sha256", "medium", "crypto.yaml", "it finds", "md5(x)"):
            assert words in result.stdout, words

    def test_an_unknown_id_gives_the_nearest(self) -> None:
        """A typo costs one look."""
        result = run("explain", "python.weak-hsh")
        assert result.exit_code == 2
        assert "did you mean python.weak-hash" in result.stderr

    def test_a_rule_without_cases_is_explained_all_the_same(self, tmp_path: Path) -> None:
        """A user's may have none."""
        write(tmp_path, a_rule())
        (tmp_path / "python" / "mine.cases.yaml").unlink()
        result = run("explain", "mine.word", "--rules", tmp_path)
        assert result.exit_code == 0
        assert "A word." in result.stdout
        assert "none: expected the cases" in result.stdout


class TestTest:
    def test_rules_that_keep_their_cases_exit_with_0(self, tmp_path: Path) -> None:
        """Each case is counted."""
        result = run("test", write(tmp_path, a_rule()))
        assert (result.exit_code, result.stdout) == (0, "1 rules, 2 cases: all kept\n")

    def test_a_case_that_is_not_kept_is_named(self, tmp_path: Path) -> None:
        """Both ways: what is missed, and what is found wrongly; and a snippet that is no code proves nothing."""
        sides = {"match": ["word(1)", "sword(1)", "def f(:\n  word(1) return =="], "clean": ["x = 1", "word(2)"]}
        result = run("test", write(tmp_path, a_rule(), cases={"mine.word": sides}))
        assert result.exit_code == 1
        first, second, third = sorted(result.stdout.splitlines(), key=len)
        assert first == "mine.word: expected no hit, got one in python case 'word(2)'"
        assert second == "mine.word: expected a hit, got none in python case 'sword(1)'"
        assert third.startswith("mine.word: not scanned to its end")

    def test_a_rule_that_cannot_be_used_is_named_and_the_others_are_tested(self, tmp_path: Path) -> None:
        """One bad pattern hides nothing of the other rules."""
        folder = write(tmp_path, a_rule("mine.bad", pattern="def ((: x"), a_rule())
        result = run("test", folder)
        assert result.exit_code == 1
        assert "mine.yaml: rule mine.bad: semgrep cannot use it for python: Invalid pattern" in result.stdout
        assert "2 rules, 2 cases: 1 rules that cannot be used, 0 cases that are not kept" in result.stderr

    @pytest.mark.parametrize(
        "cases",
        [
            {},
            {"mine.word": {"match": ["word(1)"]}},
            {"mine.word": {"match": ["word(1)"], "clean": []}},
            {"mine.word": {"match": ["word(1)"], "clean": [1]}},
            {"mine.word": {"match": ["word(1)"], "clean": ["x"]}, "mine.other": {"match": ["x"], "clean": ["x"]}},
        ],
    )
    def test_a_rule_needs_cases_of_both_kinds(self, tmp_path: Path, cases: dict[str, Any]) -> None:
        """A rule without them is not tested, and does not pass for tested."""
        result = run("test", write(tmp_path, a_rule(), cases=cases))
        assert result.exit_code == 2
        assert "mine.cases.yaml" in result.stderr


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (a_rule(pattern="def ((: x"), "for python: Invalid pattern"),
        (a_rule(languages=("go", "python"), pattern="func f() { $X }"), "for python: Invalid pattern"),
        (a_rule(**{"pattern-regex": "(("}), "invalid regex"),
        (a_rule(patterns=[{"pattern-not": "x"}]), "at least one positive term"),
        (a_rule(patern="x"), "did you mean 'pattern'?"),
        (a_rule(**{"pattern": "x", "patern-not": "y"}), "unknown key 'patern-not'"),
        (a_rule(mode="taint", **{"pattern-sources": [{"pattern": "a(b"}], "pattern-sinks": [{"pattern": "c"}]}), "Inv"),
        (a_rule(pattern="x", metadata={**ABOUT, "needs": ["x"]}), "expected metadata.needs to be lists of texts"),
        (a_rule(pattern="x", metadata={**ABOUT, "needs-match": ["(x"]}), "RE2 cannot use metadata.needs-match '(x'"),
    ],
)
def test_what_semgrep_cannot_use_is_found_before_it_is_used(tmp_path: Path, rule: dict[str, Any], words: str) -> None:
    """In each language of the rule, where semgrep itself reads the first alone; a good rule beside it is not blamed."""
    rulebook = Rulebook.load(write(tmp_path, a_rule("mine.good"), rule))
    faults = find_faults(rulebook.rules.values(), find_semgrep())
    assert {fault.rule.id for fault in faults} == {"mine.word"}
    assert any(words in str(fault) for fault in faults), faults
