"""What a scan found, counted while it runs; holds counts and a few places, never text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from guardrail.logscan.engine import ScanResult
from guardrail.logscan.rows import BadRow
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Action, Severity

__all__ = ["Summary"]

_SHOWN_BAD_ROWS = 5


@dataclass(slots=True)
class Summary:
    """Counts of one scan; a row is a judged turn, where more than one of a log's row is judged.

    Attributes:
        rows: All rows, the bad ones included.
        errors: Bad rows: nothing of them could be judged.
        empty: Rows of a log without a turn that was asked for; they are no rows here.
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
    empty: int = 0
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
        self.decisions[decision.action] += 1
        has_categories = is_unscanned = False
        for verdict in decision.verdicts:
            is_unscanned = is_unscanned or bool(verdict.unscanned)
            has_categories = has_categories or bool(verdict.categories)
            for finding in verdict.findings:
                self.weaknesses[finding.cwe, finding.severity] += 1
        self.unscanned += is_unscanned
        if has_categories:
            self.categories.update(decision.categories)
            if not decision.action.releases:
                self.withheld.update(decision.categories)

    def merge(self, other: Summary) -> None:
        """Adds the counts of another part of the same scan, which comes after this one."""
        self.rows += other.rows
        self.errors += other.errors
        self.empty += other.empty
        self.unverified += other.unverified
        self.unscanned += other.unscanned
        self.decisions.update(other.decisions)
        self.categories.update(other.categories)
        self.withheld.update(other.withheld)
        self.weaknesses.update(other.weaknesses)
        self.first_errors = [*self.first_errors, *other.first_errors][:_SHOWN_BAD_ROWS]

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

    def to_dict(self) -> dict[str, Any]:
        """Returns the counts as JSON values."""
        return {
            "rows": self.rows,
            "bad_rows": self.errors,
            "empty_rows": self.empty,
            "unverified": self.unverified,
            "unscanned": self.unscanned,
            "block_rate": self.block_rate,
            "decisions": {action.value: self.decisions[action] for action in Action},
            "categories": {
                category.value: {"rows": self.categories[category], "blocked": self.withheld[category]}
                for category in HazardCategory
            },
            "weaknesses": [
                {"cwe": cwe, "severity": severity.value, "findings": count}
                for (cwe, severity), count in sorted(self.weaknesses.items())
            ],
            "first_bad_rows": [{"file": row.file, "line": row.line, "error": row.error} for row in self.first_errors],
        }

    @classmethod
    def from_dict(cls, counts: Mapping[str, Any]) -> Summary:
        """Returns the summary that :meth:`to_dict` wrote, to count on."""
        categories = {HazardCategory(name): count for name, count in counts["categories"].items()}
        return cls(
            counts["rows"],
            counts["bad_rows"],
            counts["empty_rows"],
            counts["unverified"],
            counts["unscanned"],
            Counter({Action(name): count for name, count in counts["decisions"].items()}),
            Counter({category: count["rows"] for category, count in categories.items() if count["rows"]}),
            Counter({category: count["blocked"] for category, count in categories.items() if count["blocked"]}),
            Counter({(w["cwe"], Severity(w["severity"])): w["findings"] for w in counts["weaknesses"]}),
            [BadRow(None, row["file"], row["line"], 0, row["error"]) for row in counts["first_bad_rows"]],
        )
