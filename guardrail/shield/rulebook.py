"""The rules of Code Shield: ``<folder>/<language>/*.yaml`` -> semgrep's rules, and what a finding says of each.

A rule is semgrep's own format (https://semgrep.dev/docs/writing-rules/rule-syntax) with ``metadata``: ``cwe``,
``owasp``, ``confidence`` and ``fix``, one line that says what to do instead. Beside each file its ``.cases.yaml`` says
what every rule must find and what it must not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from guardrail.errors import ConfigurationError
from guardrail.shield.targets import LANGUAGES
from guardrail.verdict import Confidence, Severity

__all__ = ["CANARY_RULE", "RULES", "Rule", "Rulebook"]

RULES = Path(__file__).parent / "rules"
"""The rules of this package, one folder a language."""

CANARY_RULE = "guardrail.canary"
"""What the ids of the rules that find canaries begin with."""

_SEVERITIES = {"INFO": Severity.INFO, "WARNING": Severity.WARNING, "ERROR": Severity.ERROR}


@dataclass(frozen=True, slots=True)
class Rule:
    """What a finding says of its rule.

    Attributes:
        id: E.g. ``"python.sql-injection"``.
        languages: Semgrep's names of the languages it is for.
        cwe: E.g. ``"CWE-89"``.
        owasp: Category of OWASP's top ten of 2021, e.g. ``"A03:2021"``; ``""`` where there is none.
        severity: How much a finding matters.
        confidence: How sure a finding is.
        message: What is wrong.
        fix: What to do instead, in one line; may be empty.
        source: The rule as semgrep reads it.
        path: The file that it stands in.
    """

    id: str
    languages: frozenset[str]
    cwe: str
    owasp: str
    severity: Severity
    confidence: Confidence
    message: str
    fix: str
    source: Mapping[str, Any]
    path: Path

    @property
    def rank(self) -> tuple[int, int]:
        """Grows with severity, then with confidence."""
        return list(Severity).index(self.severity), list(Confidence).index(self.confidence)


class Rulebook:
    """Rules by id, and the hash that names them.

    Args:
        rules: At least one, ids used once.
        digest: Hash of the files they came from.
    """

    def __init__(self, rules: Iterable[Rule], digest: str) -> None:
        self.rules = {rule.id: rule for rule in rules}
        self.digest = digest
        self._texts: dict[tuple[str, frozenset[str]], str] = {}
        named = frozenset[str]().union(*(rule.languages for rule in self.rules.values()))
        self.languages = frozenset(name for name, language in LANGUAGES.items() if language.rules in named) - {"tsx"}

    @classmethod
    def load(cls, *folders: Path) -> Rulebook:
        """Reads the rules of folders that hold a folder a language; a later rule of the same id takes the place of one.

        Raises:
            ConfigurationError: If a file holds no rules, a rule lacks something, or there is none at all.
        """
        digest = hashlib.sha256()
        rules: list[Rule] = []
        for folder in folders:
            for path in sorted(folder.glob("*/*.yaml")):
                if path.name.endswith(".cases.yaml"):
                    continue
                data = path.read_bytes()
                digest.update(f"{path.relative_to(folder).as_posix()}\0{len(data)}\0".encode() + data)
                rules += _read(path, data)
        if not rules:
            where = ", ".join(map(str, folders))
            raise ConfigurationError(f"expected rules under {where}/<language>/*.yaml, got none")
        return cls(rules, digest.hexdigest())

    def for_semgrep(self, languages: Iterable[str], only: Container[str] | None = None) -> bytes:
        """Returns semgrep's configuration with the rules of some languages, in its names, and their canaries.

        Args:
            languages: At least one.
            only: Ids of the rules to take; None takes all.
        """
        wanted = frozenset(languages)
        chosen = [
            self._text(rule, wanted & rule.languages)
            for rule in self.rules.values()
            if wanted & rule.languages and (only is None or rule.id in only)
        ]
        canaries = [_canary(f"{CANARY_RULE}.{language}", language) for language in sorted(wanted)]
        return f'{{"rules": [{", ".join([*chosen, *canaries])}]}}'.encode()

    def for_file(self, language: str, rule_ids: Iterable[str], *, canary: str) -> bytes:
        """Returns semgrep's configuration for a single file.

        Args:
            language: Of the file, in semgrep's name.
            rule_ids: The rules; those of other languages are left out.
            canary: Id of the canary's rule.
        """
        rules = [self.rules[rule_id] for rule_id in rule_ids]
        chosen = [self._text(rule, frozenset([language])) for rule in rules if language in rule.languages]
        return f'{{"rules": [{", ".join([*chosen, _canary(canary, language)])}]}}'.encode()

    def _text(self, rule: Rule, languages: frozenset[str]) -> str:
        key = (rule.id, languages)
        if key not in self._texts:
            # A pattern is parsed in the first language of its rule. Metadata is not semgrep's business.
            source = {name: value for name, value in rule.source.items() if name != "metadata"}
            self._texts[key] = json.dumps({**source, "languages": sorted(languages)})
        return self._texts[key]


def _canary(rule_id: str, language: str) -> str:
    pattern = next(known.pattern for known in LANGUAGES.values() if known.rules == language)
    rule = {"id": rule_id, "languages": [language], "severity": "INFO", "message": "canary", "pattern": pattern}
    return json.dumps(rule)


def _read(path: Path, data: bytes) -> list[Rule]:
    try:
        sources = yaml.load(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["rules"]  # noqa: S506
    except (yaml.YAMLError, KeyError, TypeError) as exc:
        raise ConfigurationError(f"expected semgrep rules in {path}, got {type(exc).__name__}") from exc
    rules = []
    for source in sources:
        name = source.get("id") if isinstance(source, dict) else None
        try:
            metadata = source["metadata"]
            rule = Rule(
                id=str(source["id"]),
                languages=frozenset(source["languages"]),
                cwe=str(metadata["cwe"]),
                owasp=str(metadata.get("owasp", "")),
                severity=_SEVERITIES[source["severity"]],
                confidence=Confidence(metadata["confidence"].lower()),
                message=str(source["message"]).strip(),
                fix=str(metadata.get("fix", "")).strip(),
                source=source,
                path=path,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise ConfigurationError(
                f"{path}: expected rule {name!r} to have an id, languages, severity (INFO, WARNING or ERROR), message, "
                f"metadata.cwe and metadata.confidence (LOW, MEDIUM or HIGH); {type(exc).__name__}: {exc}"
            ) from exc
        unknown = rule.languages - {language.rules for language in LANGUAGES.values()}
        if unknown:
            known = ", ".join(sorted({language.rules for language in LANGUAGES.values()}))
            raise ConfigurationError(f"{path}: rule {name!r} is for {min(unknown)!r}; expected one of: {known}")
        if not rule.cwe.removeprefix("CWE-").isdigit():
            raise ConfigurationError(f"{path}: expected metadata.cwe of rule {name!r} like CWE-89, got {rule.cwe!r}")
        rules.append(rule)
    return rules
