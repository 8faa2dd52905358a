"""Verdicts read back from the JSON values that ``Verdict.to_dict`` writes, for decisions without a model.

Strict where it matters: every field that is written is expected, with its type and range, since a field that is missing
could make a decision milder. Keys that are not known are passed over: a later version may write more. Errors name the
field, never its value. The timing is not stored, so it is not read back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

from guardrail.errors import InvalidInput
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Confidence, Finding, Outcome, Severity, Source, Span, Verdict

__all__ = ["read_enum", "read_finding", "read_verdict"]

_E = TypeVar("_E", bound=Enum)
_T = TypeVar("_T")

_CWE = re.compile(r"CWE-\d+", re.ASCII)


def read_verdict(values: Any, where: str = "verdict") -> Verdict:
    """Reads one verdict; ``read_verdict(verdict.to_dict()) == verdict``.

    Args:
        values: What ``Verdict.to_dict`` returned, after a way through JSON.
        where: What errors call it, e.g. ``"verdicts[0]"``.

    Raises:
        InvalidInput: If it is not a verdict; the message names the field.
    """
    fields = _mapping(values, where)
    unsafe = _field(fields, "unsafe_probability", where)
    scores = _mapping(_field(fields, "scores", where), f"{where}.scores")
    return Verdict(
        read_enum(Outcome, _field(fields, "outcome", where), f"{where}.outcome"),
        Source(*(_text(fields, name, where) for name in ("model", "revision", "template_hash"))),
        scores={
            read_enum(HazardCategory, name, f"{where}.scores"): _share(score, f"{where}.scores")
            for name, score in scores.items()
        },
        categories=tuple(
            read_enum(HazardCategory, name, f"{where}.categories") for name in _list(fields, "categories", where)
        ),
        unsafe_probability=None if unsafe is None else _share(unsafe, f"{where}.unsafe_probability"),
        findings=tuple(
            read_finding(finding, f"{where}.findings[{number}]")
            for number, finding in enumerate(_list(fields, "findings", where))
        ),
        unscanned=tuple(_of(str, name, f"{where}.unscanned") for name in _list(fields, "unscanned", where)),
        detail=_text(fields, "detail", where),
    )


def read_finding(values: Any, where: str = "finding") -> Finding:
    """Reads one finding; ``read_finding(finding.to_dict()) == finding``.

    Args:
        values: What ``Finding.to_dict`` returned, after a way through JSON.
        where: What errors call it.

    Raises:
        InvalidInput: If it is not a finding; the message names the field.
    """
    fields = _mapping(values, where)
    start, end, line, column = (
        _of(int, _field(fields, name, where), f"{where}.{name}") for name in ("start", "end", "line", "column")
    )
    if not 0 <= start <= end:
        raise InvalidInput(f"{where}: expected 0 <= start <= end, got {start}..{end}")
    if line < 1 or column < 1:
        raise InvalidInput(f"{where}: lines and columns count from 1, got {line}:{column}")
    cwe = _text(fields, "cwe", where)
    if not _CWE.fullmatch(cwe):
        raise InvalidInput(f"{where}.cwe: expected a weakness such as CWE-89, got {len(cwe)} characters")
    return Finding(
        _text(fields, "rule_id", where),
        cwe,
        read_enum(Severity, _field(fields, "severity", where), f"{where}.severity"),
        Span(start, end),
        line,
        column,
        _text(fields, "language", where),
        _text(fields, "message", where),
        read_enum(Confidence, _field(fields, "confidence", where), f"{where}.confidence"),
        _text(fields, "fix", where),
    )


def read_enum(kind: type[_E], value: Any, where: str) -> _E:
    """Reads a member of an enum by its value.

    Raises:
        InvalidInput: If it is none; the message lists what is.
    """
    try:
        return kind(value)
    except ValueError as exc:
        got = f"{len(value)} other characters" if isinstance(value, str) else type(value).__name__
        known = ", ".join(str(member.value) for member in kind)
        raise InvalidInput(f"{where}: expected one of {known}; got {got}") from exc


def _field(fields: Mapping[str, Any], name: str, where: str) -> Any:
    try:
        return fields[name]
    except KeyError:
        raise InvalidInput(f"{where}: expected a field {name}, which is not there") from None


def _of(kind: type[_T], value: Any, where: str) -> _T:
    # True is an int to isinstance, and no place in a text.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InvalidInput(f"{where}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def _text(fields: Mapping[str, Any], name: str, where: str) -> str:
    return _of(str, _field(fields, name, where), f"{where}.{name}")


def _list(fields: Mapping[str, Any], name: str, where: str) -> list[Any]:
    return _of(list, _field(fields, name, where), f"{where}.{name}")


def _mapping(value: Any, where: str) -> dict[str, Any]:
    return _of(dict, value, where)


def _share(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise InvalidInput(f"{where}: expected a number in 0..1")
    return float(value)
