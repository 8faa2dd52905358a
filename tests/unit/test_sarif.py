"""The SARIF writer, against the schema of the standard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from guardrail.shield.files import NotScanned, Why
from guardrail.shield.rulebook import Rule
from guardrail.shield.sarif import Place, to_sarif
from guardrail.verdict import Confidence, Finding, Severity, Span

# schemas/README.md says where it comes from.
SCHEMA = json.loads((Path(__file__).parents[1] / "support/schemas/sarif-schema-2.1.0.json").read_text("utf-8"))


def rule(rule_id: str = "python.sql", severity: Severity = Severity.ERROR, owasp: str = "A03:2021") -> Rule:
    languages = frozenset({"python"})
    message, fix = "SQL from text.", "Use parameters."
    confidence = Confidence.HIGH
    return Rule(
        rule_id, languages, "CWE-89", owasp, severity, confidence, message, fix, {"id": rule_id}, Path("r.yaml")
    )


def finding(rule_id: str = "python.sql", line: int = 3, severity: Severity = Severity.ERROR) -> Finding:
    span = Span(10, 14)
    return Finding(rule_id, "CWE-89", severity, span, line, 5, "python", "SQL.", Confidence.HIGH, "Use parameters.")


def valid(log: dict[str, Any]) -> Any:
    """Returns the one run of a log that the schema accepts."""
    jsonschema.Draft7Validator(SCHEMA, format_checker=jsonschema.FormatChecker()).validate(log)
    (run,) = log["runs"]
    return run


def test_a_log_is_valid_and_holds_rule_place_and_fix() -> None:
    """What a code host shows is there: rule, CWE, severity, place, message with what to do."""
    run = valid(to_sarif([("src/a b.py", finding(), Place(3, 9, "    x = 1"))], {"python.sql": rule()}, revision="r1"))
    (result,) = run["results"]
    assert run["columnKind"] == "unicodeCodePoints"
    assert result["ruleId"] == "python.sql"
    assert result["level"] == "error"
    assert result["message"]["text"] == "SQL. Use parameters."
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "src/a%20b.py", "uriBaseId": "SRCROOT"}
    assert place["region"] == {"startLine": 3, "startColumn": 5, "endLine": 3, "endColumn": 9}
    (described,) = run["tool"]["driver"]["rules"]
    assert described["help"]["text"].endswith("Use parameters.")
    assert described["properties"]["tags"] == ["security", "external/cwe/cwe-89", "external/owasp/A03:2021"]
    assert described["properties"]["precision"] == "high"
    assert float(described["properties"]["security-severity"]) >= 7.0
    assert run["tool"]["driver"]["properties"] == {"revision": "r1"}


def test_a_log_without_findings_is_valid() -> None:
    """An empty result says that the scan was done."""
    run = valid(to_sarif([], {}))
    assert run["results"] == []
    assert run["invocations"][0]["executionSuccessful"] is True


def test_each_rule_stands_once_and_results_point_at_it() -> None:
    """``ruleIndex`` is the place of the rule in the driver's list."""
    rules = {name: rule(name) for name in ("a", "b", "unused")}
    run = valid(to_sarif([("x.py", finding(name)) for name in ("b", "a", "b")], rules))
    assert [each["id"] for each in run["tool"]["driver"]["rules"]] == ["b", "a"]
    assert [each["ruleIndex"] for each in run["results"]] == [0, 1, 0]


@pytest.mark.parametrize("severity", list(Severity))
def test_every_severity_has_a_level_and_a_score(severity: Severity) -> None:
    """The standard's words for each of ours."""
    run = valid(to_sarif([("x.py", finding(severity=severity))], {"python.sql": rule(severity=severity, owasp="")}))
    level = {"info": "note", "warning": "warning", "error": "error"}[severity.value]
    assert run["results"][0]["level"] == level
    assert run["tool"]["driver"]["rules"][0]["defaultConfiguration"] == {"level": level}


def test_a_fingerprint_survives_moved_lines_and_tells_equal_lines_apart() -> None:
    """A finding stays the same when lines above it move; two equal lines are two findings."""
    rules = {"python.sql": rule()}

    def prints(*results: tuple[str, Finding, Place]) -> list[str]:
        run = valid(to_sarif(results, rules))
        return [each["partialFingerprints"]["guardrailFinding/v1"] for each in run["results"]]

    line = "    cur.execute(secret_word)"
    before = prints(("a.py", finding(line=3), Place(3, 9, line)), ("a.py", finding(line=7), Place(7, 9, line)))
    after = prints(("a.py", finding(line=13), Place(13, 9, line)), ("a.py", finding(line=17), Place(17, 9, line)))
    assert before == after
    assert len(set(before)) == 2
    assert prints(("b.py", finding(line=3), Place(3, 9, line)))[0] not in before


def test_no_code_is_written() -> None:
    """A line may hold the very secret that a rule found: its hash goes out, the line does not."""
    log = to_sarif([("a.py", finding(), Place(3, 9, "password = 'hunter-two'"))], {"python.sql": rule()})
    assert "hunter" not in json.dumps(log)


def test_what_was_not_scanned_is_a_notification() -> None:
    """A file that could not be scanned to its end makes the run unsuccessful; one left out on purpose does not."""
    left_out = NotScanned("node_modules/", Why.EXCLUDED, "other people's code")
    failed = NotScanned("README.md", Why.FAILED, "semgrep reported 'Timeout'", line=12)
    invocation = valid(to_sarif([], {}, not_scanned=[left_out]))["invocations"][0]
    assert invocation["executionSuccessful"] is True
    assert [each["level"] for each in invocation["toolExecutionNotifications"]] == ["note"]
    invocation = valid(to_sarif([], {}, not_scanned=[left_out, failed]))["invocations"][0]
    assert invocation["executionSuccessful"] is False
    last = invocation["toolExecutionNotifications"][1]
    assert last["level"] == "error"
    assert "Timeout" in last["message"]["text"]
    assert last["locations"][0]["physicalLocation"]["region"] == {"startLine": 12}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/abs/ä.py", {"uri": "file:///abs/%C3%A4.py"}),
        ("https://logs.test/chat.jsonl", {"uri": "https://logs.test/chat.jsonl"}),
        ("a\udcff#b%.py", {"uri": "a%FF%23b%25.py", "uriBaseId": "SRCROOT"}),
        ("<stdin>", {"uri": "%3Cstdin%3E", "uriBaseId": "SRCROOT"}),
    ],
)
def test_any_path_is_a_uri(path: str, expected: dict[str, str]) -> None:
    """Names with any bytes, absolute paths and URLs."""
    run = valid(to_sarif([(path, finding())], {"python.sql": rule()}))
    assert run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"] == expected


def test_equal_input_gives_equal_bytes() -> None:
    """A log can be compared with the last one: there are no times in it."""
    results = [("a.py", finding(), Place(3, 9, "x"))]
    assert json.dumps(to_sarif(results, {"python.sql": rule()})) == json.dumps(
        to_sarif(results, {"python.sql": rule()})
    )
