"""Every rule against its own cases, through the real semgrep, in one batched scan."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from guardrail import shield
from guardrail.errors import ScanError
from guardrail.shield.semgrep import SemgrepScanner
from guardrail.verdict import CodeBlock, Finding, Span

RULES = Path(shield.__file__).parent / "rules"
RULE_FILES = sorted(path for path in RULES.glob("*/*.yaml") if not path.name.endswith(".cases.yaml"))


def block_of(code: str, language: str) -> CodeBlock:
    """Makes a block that is a whole message."""
    starts = [0]
    for line in code.split("\n")[:-1]:
        starts.append(starts[-1] + len(line) + 1)
    return CodeBlock(code, language, Span(0, len(code)), tuple(starts))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def all_rules() -> list[tuple[Path, dict[str, Any]]]:
    return [(path, rule) for path in RULE_FILES for rule in load(path)["rules"]]


def all_cases() -> list[tuple[str, str, str, bool]]:
    cases = []
    for path in RULE_FILES:
        for rule_id, sides in load(path.with_suffix(".cases.yaml")).items():
            cases += [(path.parent.name, rule_id, code, True) for code in sides["match"]]
            cases += [(path.parent.name, rule_id, code, False) for code in sides["clean"]]
    return cases


async def test_every_rule_finds_its_cases_and_nothing_in_the_clean_ones() -> None:
    """A rule hits each of its ``match`` snippets and none of its ``clean`` ones, and every snippet is verified."""
    cases = all_cases()
    results = await SemgrepScanner(timeout_s=120, every_rule=True).scan(
        [block_of(code, language) for language, _, code, _ in cases]
    )
    wrong = []
    for (_, rule_id, code, should_match), result in zip(cases, results, strict=True):
        if isinstance(result, ScanError):
            wrong.append(f"{rule_id}: {code!r}: {result}")
        elif (rule_id in {finding.rule_id for finding in result}) != should_match:
            wrong.append(f"{rule_id}: expected {'a hit' if should_match else 'no hit'} in {code!r}")
    assert not wrong, "\n".join(wrong)


async def test_javascript_rules_hold_for_typescript_and_c_rules_for_cpp() -> None:
    """A block labelled with the sister language gets the same hits."""
    sister = {"javascript": "typescript", "c": "cpp"}
    cases = [case for case in all_cases() if case[0] in sister and case[3] and "dangerously" not in case[2]]
    results = await SemgrepScanner(timeout_s=120, every_rule=True).scan(
        [block_of(code, sister[name]) for name, _, code, _ in cases]
    )
    missed = [
        (rule_id, code, str(result))
        for (_, rule_id, code, _), result in zip(cases, results, strict=True)
        if not isinstance(result, list) or rule_id not in {finding.rule_id for finding in result}
    ]
    assert not missed
    assert all(isinstance(finding, Finding) for result in results if isinstance(result, list) for finding in result)


@pytest.mark.parametrize(
    ("path", "rule"), all_rules(), ids=lambda value: value["id"] if isinstance(value, dict) else ""
)
def test_rule_is_complete(path: Path, rule: dict[str, Any]) -> None:
    """A rule has an id of its language, a CWE, an OWASP category, a severity, a confidence, a fix, and its cases."""
    assert rule["id"].startswith(f"{path.parent.name}.")
    assert rule["metadata"]["cwe"].startswith("CWE-")
    assert rule["metadata"]["cwe"][4:].isdigit()
    assert rule["severity"] in {"INFO", "WARNING", "ERROR"}
    assert rule["metadata"]["confidence"] in {"LOW", "MEDIUM", "HIGH"}
    assert rule["severity"] != "ERROR" or rule["metadata"]["confidence"] != "LOW"
    assert rule["metadata"]["owasp"][:1] == "A"
    assert len(rule["metadata"]["fix"].strip()) >= 10
    assert "\n" not in rule["metadata"]["fix"].strip()
    assert len(rule["message"]) > 20
    sides = load(path.with_suffix(".cases.yaml"))[rule["id"]]
    assert len(sides["match"]) >= 2
    assert len(sides["clean"]) >= 2


def test_every_language_has_rules() -> None:
    """Each language folder holds at least six rules, with ids used once."""
    counts = Counter(path.parent.name for path, _ in all_rules())
    assert set(counts) >= {"python", "javascript", "java", "c", "php", "go"}
    assert min(counts.values()) >= 6
    assert max(Counter(rule["id"] for _, rule in all_rules()).values()) == 1
