"""Runs a classifier over labelled sets: verdicts in batches, then single messages for their latency.

::

    LabelledSets ─▶ Guard.acheck_many ─▶ Verdicts ─▶ Report
                    (the pipeline turns every failure into UNVERIFIED, here as everywhere)

Flagged is what the classifier itself calls unsafe, whatever a policy makes of it. An unverified row is counted apart,
by its label, and is in no figure: it is neither a hit nor safe.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import guardrail
from guardrail.evaluation.metrics import Figures, figures, latency, threshold_for_fpr
from guardrail.evaluation.report import CategoryFigures, Operating, Report, RowResult, SetResult, Speed
from guardrail.evaluation.rows import LabelledRow, LabelledSet
from guardrail.pipeline import Guard
from guardrail.policy import Policy
from guardrail.protocols import HazardClassifier
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Outcome, Verdict

__all__ = ["BATCH_SIZE", "LATENCY_MESSAGES", "evaluate"]

# As many rows as `guardrail scan` judges at once.
BATCH_SIZE = 256
LATENCY_MESSAGES = 200
# A guard model on a CPU takes seconds a message: the sample ends here whatever its size.
_LATENCY_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class _Judged:
    """A row with its verdict."""

    row: LabelledRow
    verdict: Verdict

    @property
    def is_counted(self) -> bool:
        """Whether figures count it: it has a label and a verdict."""
        return self.row.is_unsafe is not None and self.verdict.outcome is not Outcome.UNVERIFIED


async def evaluate(
    classifier: HazardClassifier,
    sets: Sequence[LabelledSet],
    *,
    name: str,
    policy: Policy,
    target_fpr: float | None = None,
    latency_messages: int = LATENCY_MESSAGES,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> Report:
    """Judges every row and sums up.

    Args:
        classifier: What is evaluated.
        sets: Its rows.
        name: What to call it in the report.
        policy: Its ``deadline_s`` is the time one message may take; nothing else of it counts.
        target_fpr: Chooses a threshold on these rows at which the pooled false-positive rate is at most this.
        latency_messages: At most so many single messages are timed; 0 for none.
        on_progress: Is told after each batch how many rows it had.
    """
    guard = Guard(classifier, policy=policy)
    every = [row for one in sets for row in one.rows]
    if every:
        await guard.acheck(every[0].conversation)  # the first answer pays for what is loaded late
    judged: dict[str, list[_Judged]] = {}
    elapsed_s = 0.0
    for one in sets:
        judged[one.name] = []
        for start in range(0, len(one.rows), BATCH_SIZE):
            batch = one.rows[start : start + BATCH_SIZE]
            began = time.perf_counter()
            decisions = await guard.acheck_many([row.conversation for row in batch])
            elapsed_s += time.perf_counter() - began
            judged[one.name] += [_Judged(row, d.verdicts[0]) for row, d in zip(batch, decisions, strict=True)]
            on_progress(len(batch))
    times_ms = await _single_times_ms(guard, every, latency_messages)
    results = tuple(_result(one.name, one.file, one.sha256, len(one.bad_rows), judged[one.name]) for one in sets)
    pooled = [item for one in sets for item in judged[one.name]]
    overall = _result("all rows", "", "", sum(one.bad_rows for one in results), pooled)
    return Report(
        classifier=name,
        source=classifier.source,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        guardrail_version=guardrail.__version__,
        sets=results,
        overall=overall,
        operating=None if target_fpr is None else _operating(overall, target_fpr),
        speed=Speed(latency(times_ms), len(every), BATCH_SIZE, len(every) / elapsed_s if elapsed_s > 0 else None),
        decided_by=Counter(str(i.verdict.source) for i in pooled if i.verdict.outcome is not Outcome.UNVERIFIED),
        slices=_slices(pooled),
    )


async def _single_times_ms(guard: Guard, rows: Sequence[LabelledRow], count: int) -> list[float]:
    """Times messages spread evenly over the rows, one after another; an unverified one gives no time."""
    count = min(count, len(rows))
    times_ms: list[float] = []
    started = time.perf_counter()
    for number in range(count):
        began = time.perf_counter()
        if began - started > _LATENCY_LIMIT_S:
            break
        decision = await guard.acheck(rows[number * len(rows) // count].conversation)
        if decision.outcome is not Outcome.UNVERIFIED:
            times_ms.append(1000 * (time.perf_counter() - began))
    return times_ms


def _result(name: str, file: str, sha256: str, bad_rows: int, judged: Sequence[_Judged]) -> SetResult:
    labelled = [item for item in judged if item.is_counted and item.row.is_unsafe and item.row.categories]
    return SetResult(
        name=name,
        file=file,
        sha256=sha256,
        bad_rows=bad_rows,
        rows=tuple(RowResult(i.row.id, i.row.is_unsafe, _score(i.verdict), i.verdict.outcome) for i in judged),
        categories={
            category: _category([item for item in labelled if category in item.row.categories])
            for category in HazardCategory
            if any(category in item.row.categories for item in labelled)
        },
        top1=_category(labelled).top1,
    )


def _category(rows: Sequence[_Judged]) -> CategoryFigures:
    flagged = [item for item in rows if item.verdict.outcome is Outcome.UNSAFE]
    named = [item for item in flagged if item.verdict.categories]
    right = sum(item.verdict.categories[0] in item.row.categories for item in named)
    return CategoryFigures(
        rows=len(rows),
        recall=len(flagged) / len(rows) if rows else None,
        named=len(named),
        top1=right / len(named) if named else None,
    )


def _score(verdict: Verdict) -> float | None:
    """P(unsafe); of a classifier that gives none, its highest category score, else its outcome as 0 or 1."""
    if verdict.outcome is Outcome.UNVERIFIED:
        return None
    if verdict.unsafe_probability is not None:
        return verdict.unsafe_probability
    return max(verdict.scores.values(), default=float(verdict.outcome is Outcome.UNSAFE))


def _operating(overall: SetResult, target_fpr: float) -> Operating:
    labels = [label for label, _, _ in overall.judged]
    scores = [score for _, score, _ in overall.judged]
    return Operating(target_fpr, threshold_for_fpr(labels, scores, target_fpr))


def _slices(judged: Sequence[_Judged]) -> Mapping[str, Mapping[str, Figures]]:
    """Figures by language and by source, where there are at least two to tell apart."""
    values_of: Mapping[str, Callable[[LabelledRow], str]] = {"lang": lambda r: r.lang, "source": lambda r: r.source}
    found: dict[str, dict[str, Figures]] = {}
    for column, value_of in values_of.items():
        groups: dict[str, list[_Judged]] = {}
        for item in judged:
            if item.is_counted and value_of(item.row):
                groups.setdefault(value_of(item.row), []).append(item)
        if len(groups) > 1:
            found[column] = {value: _figures(groups[value]) for value in sorted(groups)}
    return found


def _figures(judged: Sequence[_Judged]) -> Figures:
    return figures(
        [bool(item.row.is_unsafe) for item in judged],
        [_score(item.verdict) or 0.0 for item in judged],
        [item.verdict.outcome is Outcome.UNSAFE for item in judged],
    )
