"""What a scan found, counted while it runs; holds counts and a few places, never text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from guardrail.logscan.engine import ScanResult
from guardrail.logscan.rows import BadRow
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Action, Severity

__all__ = ["Summary"]

_SHOWN_BAD_ROWS = 5


@dataclass(slots=True)
class Summary:
    """Counts of one scan.

    Attributes:
        rows: All rows, the bad ones included.
        errors: Bad rows: nothing of them could be judged.
        unverified: Rows with a decision in which a classifier gave no answer.
        unscanned: Rows with code that no rule could examine.
        decisions: Action -> rows.
        categories: Category that a classifier names -> rows.
        withheld: Category -> those of its rows that the policy would not release.
        weaknesses: (CWE, severity) -> findings.
        first_errors: The first few bad rows.
    """

    rows: int = 0
    errors: int = 0
    unverified: int = 0
    unscanned: int = 0
    decisions: Counter[Action] = field(default_factory=Counter)
    categories: Counter[HazardCategory] = field(default_factory=Counter)
    withheld: Counter[HazardCategory] = field(default_factory=Counter)
    weaknesses: Counter[tuple[str, Severity]] = field(default_factory=Counter)
    first_errors: list[BadRow] = field(default_factory=list)

    def add(self, result: ScanResult) -> None:
        """Counts one result."""
        self.rows += 1
        decision = result.decision
        if decision is None:
            self.errors += 1
            if isinstance(result.row, BadRow) and len(self.first_errors) < _SHOWN_BAD_ROWS:
                self.first_errors.append(result.row)
            return
        self.unverified += not result.is_judged
        self.unscanned += any(verdict.unscanned for verdict in decision.verdicts)
        self.decisions[decision.action] += 1
        self.categories.update(decision.categories)
        if not decision.action.releases:
            self.withheld.update(decision.categories)
        self.weaknesses.update((finding.cwe, finding.severity) for finding in decision.findings)

    @property
    def blocked(self) -> int:
        """Rows that the policy would not release: ``BLOCK`` and ``RETRY``."""
        return self.decisions[Action.BLOCK] + self.decisions[Action.RETRY]

    @property
    def block_rate(self) -> float:
        """Blocked rows over rows with a decision, 0..1; 0 where there is none."""
        decided = self.rows - self.errors
        return self.blocked / decided if decided else 0.0

    @property
    def unjudged(self) -> int:
        """Rows of which some judgement was lost: bad rows and unverified ones."""
        return self.errors + self.unverified
