"""Findings that a policy's owner has looked at and accepted, for a time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase

from guardrail.verdict import Finding

__all__ = ["Suppression"]


@dataclass(frozen=True, slots=True)
class Suppression:
    """Findings that ask for nothing; all that is given has to fit.

    Attributes:
        rule: A rule id with ``*`` and ``?`` as in file names, e.g. ``"python.weak-*"``; None fits every rule.
        cwe: A weakness, e.g. ``"CWE-327"``; None fits every one.
        path: The conversation's path, with ``*`` and ``?``; None fits every one, and none.
        until: The last day on which it holds, in UTC; None means for good.
        reason: For people.
    """

    rule: str | None = None
    cwe: str | None = None
    path: str | None = None
    until: date | None = None
    reason: str = ""

    def covers(self, finding: Finding, *, path: str, today: date) -> bool:
        """Whether a finding is accepted on a day."""
        return (
            (self.rule is None or fnmatchcase(finding.rule_id, self.rule))
            and (self.cwe is None or finding.cwe == self.cwe)
            and (self.path is None or fnmatchcase(path, self.path))
            and (self.until is None or today <= self.until)
        )
