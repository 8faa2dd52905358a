"""Scanners that examine code blocks, and the rules they apply (``rules/<language>/``)."""

from __future__ import annotations

from collections.abc import Sequence

from guardrail.errors import ScanError
from guardrail.verdict import Finding

__all__ = ["PartialScan", "TooSlow"]


class PartialScan(ScanError):
    """A block was not scanned to its end; what was found in the part that was is kept.

    Attributes:
        findings: Rule hits in the part that was understood. Their absence means nothing.
    """

    def __init__(self, message: str, findings: Sequence[Finding] = ()) -> None:
        super().__init__(message)
        self.findings = tuple(findings)

    def __reduce__(self) -> tuple[type[PartialScan], tuple[str, tuple[Finding, ...]]]:
        return (PartialScan, (str(self), self.findings))


class TooSlow(ScanError):
    """A scan took longer than scans of as much code usually do."""
