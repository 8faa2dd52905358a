"""Write findings as SARIF 2.1.0, which GitHub's code scanning, GitLab and editors read.

One run: the rules that were hit, a result for each finding, and a notification for what was not scanned. Lines and
columns count from 1, columns in Unicode code points. No text of the code is written: a fingerprint holds a hash of the
line, so that a finding stays the same one while the lines above it move. Equal input gives equal bytes: no times.

Source: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html, and for ``security-severity``, ``precision``
and the tags https://docs.github.com/en/code-security/code-scanning/integrating-with-code-scanning/sarif-support-for-code-scanning
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

import guardrail
from guardrail.shield.files import NotScanned, Why
from guardrail.shield.rulebook import Rule
from guardrail.verdict import Finding, Severity

__all__ = ["Place", "to_sarif"]

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_ROOT = "SRCROOT"
_LEVELS = {Severity.INFO: "note", Severity.WARNING: "warning", Severity.ERROR: "error"}
# GitHub shows from 7.0 on as high, from 4.0 on as medium, below as low.
_SCORES = {Severity.INFO: "2.0", Severity.WARNING: "5.5", Severity.ERROR: "8.0"}


@dataclass(frozen=True, slots=True)
class Place:
    """What a finding does not say of its place.

    Attributes:
        end_line: Line of its end, from 1.
        end_column: Column behind its end, from 1.
        line_text: The line that it starts in; hashed, never written.
    """

    end_line: int
    end_column: int
    line_text: str


def to_sarif(
    results: Iterable[tuple[str, Finding] | tuple[str, Finding, Place]],
    rules: Mapping[str, Rule],
    *,
    revision: str = "",
    not_scanned: Iterable[NotScanned] = (),
) -> dict[str, Any]:
    """Makes a SARIF log of one run, as JSON values.

    Args:
        results: Each finding after the path or URL of what it is in; its line and column are those of that file.
        rules: The rules by id, those of the findings among them.
        revision: Of rules and scanner, e.g. ``SemgrepScanner.revision``.
        not_scanned: What was left out; with one that failed, the run does not count as successful.
    """
    indices: dict[str, int] = {}
    seen: Counter[tuple[str, str, str]] = Counter()
    entries = []
    for path, finding, *rest in results:
        index = indices.setdefault(finding.rule_id, len(indices))
        entries.append(_result(path, finding, rest[0] if rest else None, index, seen))
    left_out = list(not_scanned)
    driver: dict[str, Any] = {
        "name": "guardrail Code Shield",
        "version": guardrail.__version__,
        "semanticVersion": guardrail.__version__,
        "rules": [_rule(rules[rule_id]) for rule_id in indices],
    }
    if revision:
        driver["properties"] = {"revision": revision}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {_ROOT: {"description": {"text": "The folder that the scan was started in."}}},
        "invocations": [
            {
                "executionSuccessful": not any(each.why is Why.FAILED for each in left_out),
                "toolExecutionNotifications": [_notification(each) for each in left_out],
            }
        ],
        "results": entries,
    }
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _result(
    path: str, finding: Finding, place: Place | None, index: int, seen: Counter[tuple[str, str, str]]
) -> dict[str, Any]:
    region: dict[str, Any] = {"startLine": finding.line, "startColumn": finding.column}
    if place is not None:
        region |= {"endLine": place.end_line, "endColumn": place.end_column}
    return {
        "ruleId": finding.rule_id,
        "ruleIndex": index,
        "level": _LEVELS[finding.severity],
        "message": {"text": f"{finding.message} {finding.fix}".strip()},
        "locations": [{"physicalLocation": {"artifactLocation": _artifact(path), "region": region}}],
        "partialFingerprints": {"guardrailFinding/v1": _fingerprint(path, finding, place, seen)},
    }


def _fingerprint(path: str, finding: Finding, place: Place | None, seen: Counter[tuple[str, str, str]]) -> str:
    """Names a finding by rule, file and the line's text; equal lines of a file are counted."""
    text = place.line_text.strip() if place is not None else f"{finding.line}:{finding.column}"
    key = (finding.rule_id, path, text)
    seen[key] += 1
    return hashlib.sha256("\0".join((*key, str(seen[key]))).encode("utf-8", errors="replace")).hexdigest()[:32]


def _rule(rule: Rule) -> dict[str, Any]:
    number = rule.cwe.removeprefix("CWE-")
    tags = ["security", f"external/cwe/cwe-{number}", *([f"external/owasp/{rule.owasp}"] if rule.owasp else [])]
    text = f"{rule.message}\n\n{rule.fix}".strip()
    return {
        "id": rule.id,
        "name": "".join(word.capitalize() for word in rule.id.replace(".", "-").replace("_", "-").split("-")),
        "shortDescription": {"text": rule.message},
        "fullDescription": {"text": rule.message},
        "help": {"text": text, "markdown": text},
        "helpUri": f"https://cwe.mitre.org/data/definitions/{number}.html",
        "defaultConfiguration": {"level": _LEVELS[rule.severity]},
        "properties": {
            "tags": tags,
            "precision": rule.confidence.value,
            "security-severity": _SCORES[rule.severity],
            "problem.severity": {"info": "recommendation"}.get(rule.severity.value, rule.severity.value),
        },
    }


def _notification(each: NotScanned) -> dict[str, Any]:
    place: dict[str, Any] = {"artifactLocation": _artifact(each.path)}
    if each.line:
        place["region"] = {"startLine": each.line}
    return {
        "descriptor": {"id": "not-scanned"},
        "level": "error" if each.why is Why.FAILED else "note",
        "message": {"text": f"not scanned ({each.why.value}): {each.detail}"},
        "locations": [{"physicalLocation": place}],
    }


def _artifact(path: str) -> dict[str, Any]:
    if "://" in path:
        return {"uri": path}
    # Bytes of a name that are not UTF-8 stay what they are.
    uri = quote(os.fsencode(PurePath(path).as_posix() + ("/" if path.endswith("/") else "")))
    return {"uri": f"file://{uri}"} if path.startswith("/") else {"uri": uri, "uriBaseId": _ROOT}
