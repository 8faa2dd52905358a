"""Figures of a binary classifier from labels and scores; numpy alone, no I/O.

Throughout, ``unsafe`` is the positive class: ``labels`` is bool [n], True for unsafe; ``flagged`` is bool [n], what the
classifier called unsafe; ``scores`` is float [n] in 0..1, higher is riskier. A figure whose denominator is empty is
None, never 0. Rows with equal scores stand or fall together: no figure depends on the order of the rows.

Sources: average precision and the curves as in scikit-learn's ``average_precision_score``,
``precision_recall_curve`` and ``roc_curve``; AUROC as the Mann-Whitney statistic (Hanley and McNeil, Radiology 143,
1982); expected calibration error by equal-width bins (Naeini et al., AAAI 2015; Guo et al., ICML 2017); Brier score
(Brier, Monthly Weather Review 78, 1950); intervals by Wilson (JASA 22, 1927).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import numpy.typing as npt

__all__ = [
    "CALIBRATION_BINS",
    "Bin",
    "Figures",
    "Labels",
    "Latency",
    "Scores",
    "area_under_roc",
    "average_precision",
    "brier_score",
    "expected_calibration_error",
    "figures",
    "latency",
    "macro",
    "mcnemar_p",
    "precision_recall_points",
    "reliability",
    "roc_points",
    "threshold_for_fpr",
    "wilson_interval",
]

CALIBRATION_BINS = 10

# The 97.5 % quantile of the standard normal distribution: intervals of 95 %.
_Z = 1.959963984540054

Labels = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figures:
    """What one set of judged rows says about a classifier.

    Attributes:
        rows: Judged rows with a label.
        unsafe: Rows whose label is unsafe.
        recall: Flagged unsafe rows / unsafe rows.
        recall_low: Lower end of the 95 % Wilson interval of ``recall``.
        recall_high: Its upper end.
        fpr: Flagged safe rows / safe rows.
        fpr_low: Lower end of the 95 % Wilson interval of ``fpr``.
        fpr_high: Its upper end.
        precision: Flagged unsafe rows / flagged rows; only where both classes are there.
        f1: 2 TP / (2 TP + FP + FN); only where both classes are there.
        auprc: Average precision; only where both classes are there.
        auroc: Area under the ROC curve; only where both classes are there.
        ece: Expected calibration error over ten bins.
        brier: Mean squared difference between score and label.
    """

    rows: int
    unsafe: int
    recall: float | None
    recall_low: float | None
    recall_high: float | None
    fpr: float | None
    fpr_low: float | None
    fpr_high: float | None
    precision: float | None
    f1: float | None
    auprc: float | None
    auroc: float | None
    ece: float | None
    brier: float | None

    def to_dict(self) -> dict[str, float | int | None]:
        """Returns the figures as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Bin:
    """One bin of a reliability diagram.

    Attributes:
        rows: How many rows have a score in it, at least one.
        mean_score: Their mean score.
        unsafe_share: The share of them that is unsafe.
    """

    rows: int
    mean_score: float
    unsafe_share: float


@dataclass(frozen=True, slots=True)
class Latency:
    """How long single messages took, in milliseconds; percentiles are interpolated linearly."""

    messages: int
    p50_ms: float
    p99_ms: float


def figures(labels: Sequence[bool], scores: Sequence[float], flagged: Sequence[bool]) -> Figures:
    """Computes every figure of a set.

    Args:
        labels: Whether each row is unsafe.
        scores: Each row's score.
        flagged: Whether the classifier called each row unsafe.

    Raises:
        ValueError: If the three differ in length.
    """
    if not len(labels) == len(scores) == len(flagged):
        raise ValueError(f"expected equal lengths, got {len(labels)}, {len(scores)} and {len(flagged)}")
    unsafe, found = np.asarray(labels, bool), np.asarray(flagged, bool)
    risk = np.asarray(scores, np.float64)
    positives, negatives = int(unsafe.sum()), int((~unsafe).sum())
    hits, alarms = int((unsafe & found).sum()), int((~unsafe & found).sum())
    recall_low, recall_high = wilson_interval(hits, positives)
    fpr_low, fpr_high = wilson_interval(alarms, negatives)
    is_mixed = positives > 0 and negatives > 0
    return Figures(
        rows=len(unsafe),
        unsafe=positives,
        recall=_share(hits, positives),
        recall_low=recall_low,
        recall_high=recall_high,
        fpr=_share(alarms, negatives),
        fpr_low=fpr_low,
        fpr_high=fpr_high,
        precision=_share(hits, hits + alarms) if is_mixed else None,
        f1=_share(2 * hits, hits + alarms + positives) if is_mixed else None,
        auprc=average_precision(unsafe, risk) if is_mixed else None,
        auroc=area_under_roc(unsafe, risk) if is_mixed else None,
        ece=expected_calibration_error(unsafe, risk),
        brier=brier_score(unsafe, risk),
    )


def macro(sets: Sequence[Figures]) -> dict[str, float | None]:
    """Means over sets, each figure over the sets that have it; every set counts the same whatever its size."""
    names = [
        f.name for f in fields(Figures) if f.name not in ("rows", "unsafe") and not f.name.endswith(("low", "high"))
    ]
    means: dict[str, float | None] = {}
    for name in names:
        there = [value for one in sets if (value := getattr(one, name)) is not None]
        means[name] = float(np.mean(there)) if there else None
    return means


def average_precision(labels: Labels, scores: Scores) -> float | None:
    """Area under the precision-recall curve by steps: sum of (R_n - R_{n-1}) P_n over thresholds, falling.

    None where no row is unsafe.
    """
    hits, seen, positives, _ = _cumulated(labels, scores)
    if not positives:
        return None
    recall = np.concatenate(([0.0], hits / positives))
    return float(np.sum(np.diff(recall) * hits / seen))


def area_under_roc(labels: Labels, scores: Scores) -> float | None:
    """P(an unsafe row scores above a safe one) + P(equal) / 2; None where one of the classes is not there."""
    points = roc_points(labels, scores)
    if points is None:
        return None
    rates = np.asarray(points)
    # By trapezoids: a slanted piece is a tie, of which half counts.
    return float(np.sum(np.diff(rates[:, 0]) * (rates[1:, 1] + rates[:-1, 1]) / 2))


def roc_points(labels: Labels, scores: Scores) -> list[tuple[float, float]] | None:
    """(false-positive rate, recall) from (0, 0) to (1, 1), one point a distinct score; None without both classes."""
    hits, seen, positives, negatives = _cumulated(labels, scores)
    if not positives or not negatives:
        return None
    return [(0.0, 0.0), *zip(((seen - hits) / negatives).tolist(), (hits / positives).tolist(), strict=True)]


def precision_recall_points(labels: Labels, scores: Scores) -> list[tuple[float, float]] | None:
    """(recall, precision) one point a distinct score, recall rising; None where no row is unsafe."""
    hits, seen, positives, _ = _cumulated(labels, scores)
    if not positives:
        return None
    return list(zip((hits / positives).tolist(), (hits / seen).tolist(), strict=True))


def reliability(labels: Labels, scores: Scores, *, bins: int = CALIBRATION_BINS) -> list[Bin]:
    """The bins that hold rows, score rising: bin k of ``bins`` is [k/bins, (k+1)/bins), the last one closed."""
    unsafe, risk = np.asarray(labels, bool), np.asarray(scores, np.float64)
    places = np.minimum((risk * bins).astype(np.int64), bins - 1)
    return [
        Bin(int(inside.sum()), float(risk[inside].mean()), float(unsafe[inside].mean()))
        for place in range(bins)
        if (inside := places == place).any()
    ]


def expected_calibration_error(labels: Labels, scores: Scores, *, bins: int = CALIBRATION_BINS) -> float | None:
    """Sum over bins of (rows in it / rows) |share of unsafe rows - mean score|; None of no row."""
    if len(labels) == 0:
        return None
    return sum(
        one.rows * abs(one.unsafe_share - one.mean_score) for one in reliability(labels, scores, bins=bins)
    ) / len(labels)


def brier_score(labels: Labels, scores: Scores) -> float | None:
    """Mean of (score - label)^2; None of no row."""
    if len(labels) == 0:
        return None
    return float(np.mean((np.asarray(scores, np.float64) - np.asarray(labels, np.float64)) ** 2))


def threshold_for_fpr(labels: Sequence[bool], scores: Sequence[float], target: float) -> float | None:
    """The lowest threshold t, a score of these rows, at which the share of safe rows with score >= t is <= ``target``.

    None where no row is safe, or where even the highest score flags too many safe rows.
    """
    unsafe, risk = np.asarray(labels, bool), np.asarray(scores, np.float64)
    safe = np.sort(risk[~unsafe])
    if not len(safe):
        return None
    candidates = np.unique(risk)
    alarms = (len(safe) - np.searchsorted(safe, candidates, side="left")) / len(safe)
    kept = candidates[alarms <= target]
    return float(kept[0]) if len(kept) else None


def wilson_interval(hits: int, total: int) -> tuple[float | None, float | None]:
    """The 95 % Wilson score interval of a share; (None, None) of nothing."""
    if total == 0:
        return None, None
    share, z2 = hits / total, _Z * _Z
    middle = share + z2 / (2 * total)
    half = _Z * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    scale = 1 + z2 / total
    # At the ends the interval touches them exactly; rounding would miss by 1e-17.
    low = 0.0 if hits == 0 else (middle - half) / scale
    high = 1.0 if hits == total else (middle + half) / scale
    return low, high


def mcnemar_p(better: int, worse: int) -> float:
    """Two-sided exact McNemar test: how likely a split at least as uneven is if either side were as likely.

    Source: McNemar, Psychometrika 12 (1947); exact by the binomial distribution with one half.

    Args:
        better: Rows that were wrong in the first run and are right in the second.
        worse: Rows that were right and are wrong.
    """
    total, least = better + worse, min(better, worse)
    # Summed as integers: 0.5 ** 2000 is no float.
    tail = sum(math.comb(total, k) for k in range(least + 1))
    return min(1.0, float(2 * tail / (1 << total)))


def latency(times_ms: Sequence[float]) -> Latency | None:
    """Median and 99th percentile of single messages; None of none."""
    if not times_ms:
        return None
    p50, p99 = np.percentile(np.asarray(times_ms, np.float64), [50, 99])
    return Latency(len(times_ms), float(p50), float(p99))


def _cumulated(labels: Labels, scores: Scores) -> tuple[Scores, Scores, int, int]:
    """For each distinct score, falling: unsafe rows and rows at or above it; then the size of both classes."""
    unsafe, risk = np.asarray(labels, bool), np.asarray(scores, np.float64)
    order = np.argsort(-risk, kind="stable")
    ranked = risk[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.zeros(0, np.int64)
    hits = np.cumsum(unsafe[order])[ends].astype(np.float64)
    positives = int(unsafe.sum())
    return hits, (ends + 1).astype(np.float64), positives, len(unsafe) - positives


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
