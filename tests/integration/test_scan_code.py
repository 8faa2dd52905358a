"""``guardrail scan-code`` with the real semgrep: what is printed, in which format, with which exit code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from guardrail.cli import app, console
from guardrail.errors import ScanError
from guardrail.shield.semgrep import SemgrepScanner
from guardrail.verdict import CodeBlock, Finding

SCHEMAS = Path(__file__).parents[1] / "support" / "schemas"
BAD = "import sqlite3\ndef f(cur, name):\n\tcur.execute(\"SELECT 1 FROM t WHERE ä = '%s'\" % name)  # \x1b[31m\n"
WEAK = "import hashlib\nprint(hashlib.md5(b'x').hexdigest())\n"
README = "# T\n\n1. Run it:\n\n   ```js\n   eval(location.hash)\n   ```\n\n```scala\nval x = 1\n```\n"
RULE = """
rules:
- id: {id}
  languages: [python]
  severity: {severity}
  message: Word of $X.
  metadata: {{cwe: CWE-1, confidence: HIGH, fix: Use another word.}}
  pattern: {pattern}
"""


def run(*args: str | Path, stdin: bytes = b"") -> Any:
    return CliRunner().invoke(app, ["scan-code", *map(str, args)], input=stdin)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two weaknesses in two files, one in a README, one file too large."""
    root = tmp_path_factory.mktemp("project")
    (root / "src").mkdir()
    (root / "src" / "db.py").write_text(BAD, "utf-8")
    (root / "weak.py").write_text(WEAK, "utf-8")
    (root / "README.md").write_text(README, "utf-8")
    (root / "big.py").write_text("#" * 1_000_001, "utf-8")
    (root / "fine.py").write_text("x = 1\n", "utf-8")
    return root


@pytest.fixture(scope="module")
def text(project: Path) -> Any:
    return run(project)


def user_rule(folder: Path, pattern: str, rule_id: str = "mine.word", severity: str = "ERROR") -> Path:
    path = folder / "python" / "mine.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(RULE.format(id=rule_id, pattern=pattern, severity=severity), "utf-8")
    return path


class Failing(SemgrepScanner):
    """Scans nothing to its end."""

    async def scan(self, blocks: Sequence[CodeBlock]) -> list[list[Finding] | ScanError]:
        return [ScanError("told to fail") for _ in blocks]


class TestText:
    def test_each_finding_has_its_place_rule_and_fix(self, text: Any, project: Path) -> None:
        """``path:line:column``, as editors read it; the exit code says that something was found."""
        assert text.exit_code == 3
        lines = text.stdout.splitlines()
        assert any(line.startswith(f"{project}/src/db.py:3:14: error CWE-89 python.") for line in lines)
        assert any(line.startswith(f"{project}/weak.py:2:7: warning CWE-328 python.weak-hash") for line in lines)
        assert any(line.startswith("    fix: ") for line in lines)

    def test_a_block_of_markdown_is_placed_in_the_file(self, text: Any, project: Path) -> None:
        """Line and column count in the README, not in the block, whose indentation is taken off."""
        assert f"{project}/README.md:6:4: error CWE-95 javascript.code-injection" in text.stdout

    def test_the_caret_stands_below_what_was_found(self, text: Any) -> None:
        """Also behind a tab."""
        lines = text.stdout.splitlines()
        (at,) = [i for i, line in enumerate(lines) if line.startswith("    3 | ")]
        start = lines[at + 1].index("^")
        assert lines[at][start:].startswith('"SELECT')

    def test_control_characters_of_the_code_are_shown_and_not_obeyed(self, text: Any) -> None:
        """A comment cannot paint the terminal, or hide a finding; without a terminal there are no colours at all."""
        assert "␛[31m" in text.stdout
        assert "\x1b" not in text.output

    def test_the_summary_counts_what_was_and_was_not_scanned(self, text: Any) -> None:
        """Nothing is left out in silence."""
        assert "scanned: 4 files (python 3, javascript 1)" in text.stdout
        assert "found: error " in text.stdout
        assert "too large files 1" in text.stdout
        assert "no rules for scala 1" in text.stdout

    def test_a_file_gets_the_findings_and_stdout_the_summary(self, project: Path, tmp_path: Path) -> None:
        """And the exit code is the same."""
        output = tmp_path / "report.txt"
        result = run(project / "weak.py", "-o", output)
        assert result.exit_code == 3
        assert "CWE-328" in output.read_text("utf-8")
        assert "CWE-328" not in result.stdout
        assert "scanned: 1 files" in result.stdout


class TestMachineFormats:
    def test_json_is_one_object_with_all_of_it(self, project: Path) -> None:
        """Findings with place, weakness and fix; what was not scanned, with why."""
        result = run(project, "--format", "json")
        report = json.loads(result.stdout)
        (found,) = [each for each in report["findings"] if each["path"].endswith("weak.py")]
        assert (found["line"], found["column"], found["end_line"], found["end_column"]) == (2, 7, 2, 24)
        assert (found["cwe"], found["owasp"], found["severity"]) == ("CWE-328", "A02:2021", "warning")
        assert found["confidence"] == "medium"
        assert found["fix"]
        assert {each["why"] for each in report["not_scanned"]} == {"too large", "no rules"}
        assert report["summary"]["findings"]["warning"] >= 1
        assert "scanned: 4 files" in result.stderr

    def test_sarif_is_valid_and_places_by_code_points(self, project: Path) -> None:
        """The schema of the standard accepts it; a character outside ASCII is one column."""
        result = run(project, "--format", "sarif", "--quiet")
        log = json.loads(result.stdout)
        jsonschema.validate(log, json.loads((SCHEMAS / "sarif-schema-2.1.0.json").read_text("utf-8")))
        (at,) = [each for each in log["runs"][0]["results"] if each["ruleId"] == "python.sql-injection"]
        region = at["locations"][0]["physicalLocation"]["region"]
        line = BAD.split("\n")[2]
        assert line[region["startColumn"] - 1 : region["endColumn"] - 1] == "\"SELECT 1 FROM t WHERE ä = '%s'\" % name"
        assert "SELECT" not in result.stdout
        assert result.stderr == ""


class TestExitCode:
    @pytest.mark.parametrize(("fail_on", "code"), [("info", 3), ("warning", 3), ("error", 0), ("never", 0)])
    def test_fail_on_is_the_least_severity_that_fails(self, project: Path, fail_on: str, code: int) -> None:
        """The worst finding of this file is a warning."""
        assert run(project / "weak.py", "--fail-on", fail_on).exit_code == code

    def test_severity_hides_and_says_how_many(self, project: Path) -> None:
        """What is not shown is counted; what fails the run is always shown."""
        result = run(project / "weak.py", "--severity", "error", "--fail-on", "error")
        assert result.exit_code == 0
        assert "CWE-328" not in result.stdout
        assert "below --severity not shown" in result.stdout
        assert "CWE-328" in run(project / "weak.py", "--severity", "error", "--fail-on", "warning").stdout

    def test_a_clean_file_exits_with_0(self, project: Path) -> None:
        """Scanned, and nothing found."""
        result = run(project / "fine.py")
        assert (result.exit_code, "found: error 0, warning 0, info 0" in result.stdout) == (0, True)

    def test_a_file_not_scanned_to_its_end_exits_with_4(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Could not check is never safe; who accepts that says so."""
        monkeypatch.setattr("guardrail.shield.semgrep.SemgrepScanner", Failing)
        result = run(project / "fine.py")
        assert result.exit_code == 4
        assert f"{project}/fine.py: not scanned to its end" in result.stdout
        assert "told to fail" in result.stdout
        assert run(project / "fine.py", "--allow-unjudged").exit_code == 0
        assert json.loads(run(project / "fine.py", "--format", "json").stdout)["not_scanned"][0]["why"] == "failed"

    def test_a_named_file_that_is_too_large_exits_with_4(self, project: Path) -> None:
        """In a folder it is counted; by name it was asked for."""
        assert run(project / "big.py").exit_code == 4

    def test_nothing_to_scan_is_not_clean(self, tmp_path: Path) -> None:
        """A path that holds no code with rules looks like a mistake, and in CI would pass for ever."""
        result = run(tmp_path)
        assert result.exit_code == 4
        assert "nothing was scanned" in result.stderr

    @pytest.mark.parametrize(
        "args",
        [
            ["nowhere.py"],
            ["-", "-"],
            ["--language", "py", "."],
            ["-", "--language", "klingon"],
            ["--format", "xml", "."],
        ],
    )
    def test_what_cannot_work_exits_with_2(self, args: list[str]) -> None:
        """And nothing is scanned."""
        result = run(*args)
        assert (result.exit_code, result.stdout) == (2, "")


class TestStdin:
    def test_an_answer_is_read_for_its_code_blocks(self) -> None:
        """As a chatbot wrote it."""
        result = run("-", "-q", stdin=b"Sure:\n\n```python\nimport os\nos.system(input())\n```\n")
        assert result.exit_code == 3
        assert result.stdout.startswith("<stdin>:5:11: error CWE-78")

    def test_language_makes_it_code(self) -> None:
        """``git show :a.py | guardrail scan-code - --language python``."""
        result = run("-", "-q", "--language", "py", stdin=b"eval(input())")
        assert result.stdout.startswith("<stdin>:1:6: error CWE-94")


class TestUserRules:
    def test_they_are_added_to_the_packages(self, project: Path, tmp_path: Path) -> None:
        """Both kinds find."""
        user_rule(tmp_path, "print(...)")
        found = json.loads(run(project / "weak.py", "--rules", tmp_path, "--format", "json").stdout)["findings"]
        assert {each["rule_id"] for each in found} == {"mine.word", "python.weak-hash"}

    def test_the_setting_does_the_same(self, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """``GUARDRAIL_RULES``."""
        user_rule(tmp_path, "print(...)")
        monkeypatch.setenv("GUARDRAIL_RULES", str(tmp_path))
        assert "mine.word" in run(project / "weak.py").stdout

    def test_one_of_the_same_id_replaces(self, project: Path, tmp_path: Path) -> None:
        """A rule can be turned down, or narrowed."""
        user_rule(tmp_path, "hashlib.sha1(...)", "python.weak-hash")
        result = run(project / "weak.py", "--rules", tmp_path)
        assert result.exit_code == 0

    def test_a_pattern_that_semgrep_cannot_read_is_refused_by_file_and_rule(
        self, project: Path, tmp_path: Path
    ) -> None:
        """It would end the scan of every Python file; nothing is scanned."""
        path = user_rule(tmp_path, '"def ((: x"')
        result = run(project / "weak.py", "--rules", tmp_path)
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"{path}: rule mine.word: semgrep cannot use it for python: Invalid pattern" in result.stderr

    @pytest.mark.parametrize("name", ["mine.yaml", "python/deep/mine.yaml", "python/mine.yml"])
    def test_a_file_that_would_not_be_read_is_refused(self, project: Path, tmp_path: Path, name: str) -> None:
        """A rule in the wrong place must not look like one that finds nothing."""
        user_rule(tmp_path, "print(...)", "mine.other")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("rules: []", "utf-8")
        result = run(project / "weak.py", "--rules", tmp_path)
        assert result.exit_code == 2
        assert "would not be read" in result.stderr

    def test_no_folder_and_an_empty_one_are_refused(self, project: Path, tmp_path: Path) -> None:
        """A typo in the path does not scan with fewer rules."""
        assert run(project / "weak.py", "--rules", tmp_path / "nowhere").exit_code == 2
        assert run(project / "weak.py", "--rules", tmp_path).exit_code == 2


@pytest.mark.parametrize("char", ["\x1b", "\x07", "\r", "\n", "\x7f", "\x9b", "\u202e", "\u2066", "\u200b", "\udc80"])
def test_what_a_terminal_would_obey_becomes_a_visible_character(char: str) -> None:
    """One for one, so that columns stay right; all else stays as it is."""
    shown = console.visible(f"a{char}ä漢")
    assert len(shown) == 4
    assert char not in shown
    assert shown[0] + shown[2:] == "aä漢"
    assert shown[1].isprintable()
