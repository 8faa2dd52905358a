"""Every rule against its own cases, through the real semgrep, in one batched scan."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from guardrail.shield.cases import load_cases, run_cases
from guardrail.shield.install import find_semgrep
from guardrail.shield.rulebook import RULES, Rulebook
from guardrail.shield.semgrep import SemgrepScanner
from guardrail.shield.validate import find_faults

RULE_FILES = sorted(path for path in RULES.glob("*/*.yaml") if not path.name.endswith(".cases.yaml"))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def all_rules() -> list[tuple[Path, dict[str, Any]]]:
    return [(path, rule) for path in RULE_FILES for rule in load(path)["rules"]]


async def test_every_rule_finds_its_cases_and_nothing_in_the_clean_ones() -> None:
    """A rule hits each of its ``match`` snippets and none of its ``clean`` ones, in every language that it is for."""
    rulebook = Rulebook.load(RULES)
    cases = load_cases(rulebook.rules.values())
    assert {case.rule.id for case in cases} == set(rulebook.rules)
    assert {language for case in cases for language in case.languages} >= {"javascript", "typescript", "c", "cpp"}
    scanner = SemgrepScanner(rules=rulebook, timeout_s=120, every_rule=True)
    failures = await run_cases(cases, scanner)
    assert not failures, "\n".join(map(str, failures))


def test_semgrep_can_read_every_rule_in_each_of_its_languages() -> None:
    """A pattern is read in the first language of a rule alone: one that the second cannot read would go unnoticed."""
    faults = find_faults(Rulebook.load(RULES).rules.values(), find_semgrep())
    assert not faults, "\n".join(map(str, faults))


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
