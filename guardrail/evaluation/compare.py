"""Two runs side by side: what moved between them, and the thresholds of a cascade of the two.

Only the rows' ids, labels, scores and outcomes are read, from two reports of ``guardrail eval --json``. Rows are
matched by set and id; rows that one run alone has, or that one run could not judge, are counted and left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from guardrail.errors import InvalidInput
from guardrail.evaluation.metrics import Figures, Scores, figures, mcnemar_p
from guardrail.evaluation.report import RowResult, SavedRun
from guardrail.verdict import Outcome

__all__ = ["CascadeChoice", "Comparison", "SetComparison", "choose_cascade", "compare"]

Pair = tuple[RowResult, RowResult]


@dataclass(frozen=True, slots=True)
class SetComparison:
    """One set in two runs, over the rows that both judged.

    Attributes:
        name: The set's name, or ``all rows``.
        before: Figures of the first run.
        after: Figures of the second.
        only_before: Rows that the first run alone has.
        only_after: Rows that the second run alone has.
        unjudged: Rows of both that have no label, two different labels, or no verdict in one of the runs.
        fixed: Rows that were wrong and are right.
        broken: Rows that were right and are wrong.
        p: Exact McNemar test of ``fixed`` against ``broken``.
    """

    name: str
    before: Figures
    after: Figures
    only_before: int
    only_after: int
    unjudged: int
    fixed: int
    broken: int
    p: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs over the sets that both have.

    Attributes:
        sets: In the order of the first run.
        overall: All their rows together.
        only_before: Sets that the first run alone has.
        only_after: Sets that the second run alone has.
    """

    sets: tuple[SetComparison, ...]
    overall: SetComparison
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CascadeChoice:
    """Where a cascade asks its guard, chosen on these rows.

    Attributes:
        low: Below it the embedded model alone passes a text.
        high: Above it the embedded model alone flags a text.
        budget: The largest share of errors that was allowed, on either side.
        rows: Rows that both runs judged.
        guard_unsafe: Those the guard calls unsafe.
        passed: Those of ``guard_unsafe`` that the embedded model alone passes.
        guard_safe: Those the guard calls safe.
        flagged: Those of ``guard_safe`` that the embedded model alone flags.
        saved: Rows for which the guard is not asked.
    """

    low: float
    high: float
    budget: float
    rows: int
    guard_unsafe: int
    passed: int
    guard_safe: int
    flagged: int
    saved: int

    @property
    def saved_share(self) -> float:
        """The share of the guard's calls that the cascade saves."""
        return self.saved / self.rows


def compare(before: SavedRun, after: SavedRun) -> Comparison:
    """Compares two runs set by set.

    Raises:
        InvalidInput: If they have no set in common.
    """
    shared = _shared_sets(before, after)
    found = [(name, *_pairs(before, after, name)) for name in shared]
    sets = tuple(_compared(name, pairs, only) for name, pairs, only in found)
    pooled = [pair for _, pairs, _ in found for pair in pairs]
    only_counts = (sum(only[0] for _, _, only in found), sum(only[1] for _, _, only in found))
    return Comparison(
        sets,
        _compared("all rows", pooled, only_counts),
        tuple(name for name in before.sets if name not in after.sets),
        tuple(name for name in after.sets if name not in before.sets),
    )


def choose_cascade(embedded: SavedRun, guard: SavedRun, *, miss_budget: float) -> CascadeChoice:
    """Chooses the thresholds that save the most calls of the guard within an error budget; labels are not used.

    ``low`` is the highest threshold <= 0.5 below which stand at most ``miss_budget`` of the rows that the guard calls
    unsafe; ``high`` is the lowest >= 0.5 above which stand at most that share of those it calls safe. One half bounds
    both, since below it the embedded model itself says safe.

    Args:
        embedded: A run of the first stage.
        guard: A run of the guard over the same rows.
        miss_budget: 0..1.

    Raises:
        InvalidInput: If no row was judged by both, or ``miss_budget`` is not in 0..1.
    """
    if not 0.0 <= miss_budget <= 1.0:
        raise InvalidInput(f"expected a miss budget in 0..1, got {miss_budget:g}")
    both = [
        pair for name in _shared_sets(embedded, guard) for pair in _pairs(embedded, guard, name)[0] if _has_scores(pair)
    ]
    if not both:
        raise InvalidInput("the two runs have no row that both judged; run guardrail eval on the same files")
    scores = np.array([first.score for first, _ in both], np.float64)
    unsafe = np.array([second.outcome is Outcome.UNSAFE for _, second in both], bool)
    low = _rounded(min(0.5, _after(np.sort(scores[unsafe]), miss_budget, default=0.5)), math.floor)
    high = _rounded(max(0.5, _after(np.sort(scores[~unsafe])[::-1], miss_budget, default=0.5)), math.ceil)
    passed, flagged = scores < low, scores > high
    return CascadeChoice(
        low=low,
        high=high,
        budget=miss_budget,
        rows=len(both),
        guard_unsafe=int(unsafe.sum()),
        passed=int((passed & unsafe).sum()),
        guard_safe=int((~unsafe).sum()),
        flagged=int((flagged & ~unsafe).sum()),
        saved=int((passed | flagged).sum()),
    )


def _after(ranked: Scores, budget: float, *, default: float) -> float:
    """The score that has at most ``budget`` of the others strictly before it."""
    allowed = math.floor(budget * len(ranked))
    return float(ranked[allowed]) if allowed < len(ranked) else default


def _rounded(threshold: float, towards: Callable[[float], int]) -> float:
    """Six digits, rounded so that the guard is asked more often and not less."""
    return towards(threshold * 1e6) / 1e6


def _shared_sets(first: SavedRun, second: SavedRun) -> list[str]:
    shared = [name for name in first.sets if name in second.sets]
    if not shared:
        raise InvalidInput(
            f"the two runs have no set in common: {_listed(first.sets)} and {_listed(second.sets)}; sets are matched "
            "by the name of their file"
        )
    return shared


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    return (", ".join(every[:5]) or "none") + (f" and {len(every) - 5} more" if len(every) > 5 else "")


def _pairs(first: SavedRun, second: SavedRun, name: str) -> tuple[list[Pair], tuple[int, int]]:
    """The rows that both runs have, and how many each has alone."""
    ours, theirs = first.sets[name], second.sets[name]
    pairs = [(row, theirs[key]) for key, row in ours.items() if key in theirs]
    return pairs, (len(ours) - len(pairs), len(theirs) - len(pairs))


def _compared(name: str, pairs: Sequence[Pair], only: tuple[int, int]) -> SetComparison:
    judged = [
        pair
        for pair in pairs
        if pair[0].is_unsafe is not None and pair[0].is_unsafe is pair[1].is_unsafe and _has_scores(pair)
    ]
    right = [tuple((row.outcome is Outcome.UNSAFE) is row.is_unsafe for row in pair) for pair in judged]
    fixed, broken = right.count((False, True)), right.count((True, False))
    return SetComparison(
        name,
        _figures([first for first, _ in judged]),
        _figures([second for _, second in judged]),
        *only,
        unjudged=len(pairs) - len(judged),
        fixed=fixed,
        broken=broken,
        p=mcnemar_p(fixed, broken),
    )


def _has_scores(pair: Pair) -> bool:
    return all(row.score is not None for row in pair)


def _figures(rows: Sequence[RowResult]) -> Figures:
    return figures(
        [bool(row.is_unsafe) for row in rows],
        [row.score or 0.0 for row in rows],
        [row.outcome is Outcome.UNSAFE for row in rows],
    )
