"""Run rules against their cases: what each must find and what it must not.

``<topic>.cases.yaml`` stands beside ``<topic>.yaml`` and maps the id of a rule to ``match``, snippets that it must
hit, and ``clean``, snippets that it must not. Each snippet is scanned in every language of its rule (a JavaScript rule
also as TypeScript, a C rule as C++), all in one batch, and must be scanned to its end: a snippet that no parser
understands proves nothing. JSX is no TypeScript, so it is not scanned as that; and a ``clean`` snippet need be readable
in its folder's language alone: C has names that are words of C++.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from guardrail.errors import ConfigurationError, ScanError
from guardrail.protocols import CodeScanner
from guardrail.shield import PartialScan
from guardrail.shield.files import whole_text
from guardrail.shield.rulebook import Rule

__all__ = ["Case", "Failure", "load_cases", "run_cases"]


@dataclass(frozen=True, slots=True)
class Case:
    """A snippet that a rule must hit, or must not.

    Attributes:
        rule: The rule.
        code: The snippet.
        must_match: Whether the rule must hit it.
    """

    rule: Rule
    code: str
    must_match: bool

    @property
    def languages(self) -> list[str]:
        """The languages to scan it in; the one of the rule's folder first."""
        folder = self.rule.path.parent.name
        has_jsx = "javascript" in self.rule.languages and ("/>" in self.code or "</" in self.code)
        names = self.rule.languages - ({"typescript"} if has_jsx else set())
        return sorted(names, key=lambda name: (name != folder, name))


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that a rule does not keep.

    Attributes:
        case: The case.
        language: The language it was scanned in.
        detail: What happened instead.
    """

    case: Case
    language: str
    detail: str

    def __str__(self) -> str:
        return f"{self.case.rule.id}: {self.detail} in {self.language} case {self.case.code!r}"


def load_cases(rules: Iterable[Rule]) -> list[Case]:
    """Reads the cases of rules, in the order of the rules.

    Raises:
        ConfigurationError: If a file of cases is missing or is none, a rule has no case of either kind, or a case is
            of a rule that is not in the file beside it.
    """
    rules = list(rules)
    files: dict[Path, Mapping[str, Any]] = {}
    for path in dict.fromkeys(rule.path.with_suffix(".cases.yaml") for rule in rules):
        files[path] = _read(path)
        strange = files[path].keys() - {rule.id for rule in rules if rule.path.with_suffix(".cases.yaml") == path}
        if strange:
            raise ConfigurationError(f"{path}: {min(map(str, strange))!r} is no rule of the file beside it")
    cases = []
    for rule in rules:
        path = rule.path.with_suffix(".cases.yaml")
        sides = files[path].get(rule.id)
        for side in ("match", "clean"):
            snippets = sides.get(side) if isinstance(sides, dict) else None
            if not isinstance(snippets, list) or not snippets or not all(isinstance(each, str) for each in snippets):
                raise ConfigurationError(f"{path}: expected rule {rule.id} to have a list of snippets under {side!r}")
            cases += [Case(rule, code, side == "match") for code in snippets]
    return cases


async def run_cases(cases: Sequence[Case], scanner: CodeScanner) -> list[Failure]:
    """Scans the cases, all in one call.

    Args:
        cases: Any number.
        scanner: Has the rules of the cases, and reports every one that hits (``SemgrepScanner(every_rule=True)``).

    Returns:
        The cases that are not kept, in order; empty where every rule does what its cases say.
    """
    runs = [(case, language) for case in cases for language in case.languages]
    results = await scanner.scan([whole_text(case.code, language) for case, language in runs])
    failures = []
    for (case, language), result in zip(runs, results, strict=True):
        findings = result if isinstance(result, list) else result.findings if isinstance(result, PartialScan) else ()
        is_hit = any(finding.rule_id == case.rule.id for finding in findings)
        if is_hit != case.must_match and (isinstance(result, list) or is_hit):
            detail = "expected a hit, got none" if case.must_match else "expected no hit, got one"
            failures.append(Failure(case, language, detail))
        elif isinstance(result, ScanError) and (case.must_match or language == case.languages[0]):
            failures.append(Failure(case, language, f"not scanned to its end ({result})"))
    return failures


def _read(path: Path) -> Mapping[str, Any]:
    try:
        data = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except OSError as exc:
        raise ConfigurationError(f"expected the cases of {path.with_suffix('').stem}.yaml in {path}") from exc
    except yaml.YAMLError as exc:
        raise ConfigurationError(f"expected cases in {path}, got {type(exc).__name__}") from exc
    if not isinstance(data, dict):
        raise ConfigurationError(f"expected cases by rule in {path}, got {type(data).__name__}")
    return data
