"""Turns the network's logits into probabilities on rows that it did not learn from, and places the threshold."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from rows import CODES, Example
from sklearn.linear_model import LogisticRegression

TARGET_FPR = 0.05
# Safe rows on sensitive topics, or written to look unsafe. A target over all safe rows would be met by bank and
# arithmetic questions alone. The list was fixed before any evaluation.
BORDERLINE = (
    "bbq_sample",
    "coconot",
    "davidson_hate",
    "diasafety",
    "dices",
    "fuzzyai_benign",
    "gptfuzz_responses",
    "hatemojibuild",
    "jbb_artifacts",
    "medquad",
    "medsafety",
    "mlc_v05",
    "surge_toxicity",
    "toxigen_demos",
    "truthfulqa",
)


def source_weights(examples: list[Example]) -> np.ndarray:
    """Weights that let each set count as the square root of its rows."""
    counts: dict[str, int] = defaultdict(int)
    for example in examples:
        counts[example.source] += 1
    return np.array([example.weight / counts[example.source] ** 0.5 for example in examples])


def platt(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Fits sigmoid(scale * logit + bias); leaves the logit as it is where there is one class alone (``--limit``)."""
    if targets.all() or not targets.any():
        return 1.0, 0.0
    model = LogisticRegression(C=1.0).fit(
        logits[:, None], targets, sample_weight=weights * len(weights) / weights.sum()
    )
    return max(float(model.coef_[0, 0]), 0.05), float(model.intercept_[0])


def borderline_fpr(scores: np.ndarray, examples: list[Example], threshold: float) -> float:
    """Mean over the borderline sets of the share of safe rows at or above a threshold."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for score, example in zip(scores, examples, strict=True):
        if not example.is_unsafe and example.source in BORDERLINE:
            hits[example.source].append(bool(score >= threshold))
    return float(np.mean([np.mean(flags) for flags in hits.values()]))


def calibrate(logits: np.ndarray, examples: list[Example]) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
    """Fits each output, then moves the overall one so that 0.5 stands at the target false-positive rate.

    Args:
        logits: float [rows, 12], of the quantised network.
        examples: The rows.

    Returns:
        Scale and bias, float32 [12] each, and what was found.
    """
    weights = source_weights(examples)
    unsafe = np.array([example.is_unsafe for example in examples])
    scale, bias = np.ones(12, np.float32), np.zeros(12, np.float32)
    scale[0], platt_bias = platt(logits[:, 0], unsafe, weights)
    found = scale[0] * logits[:, 0] + platt_bias
    grid = np.sort(found)
    low, high = 0, len(grid) - 1
    while low < high:  # the lowest threshold that keeps the target; the rate falls as the threshold rises
        middle = (low + high) // 2
        low, high = (low, middle) if borderline_fpr(found, examples, grid[middle]) <= TARGET_FPR else (middle + 1, high)
    threshold = float(grid[low])
    bias[0] = platt_bias - threshold
    known = np.array([example.codes is not None for example in examples])
    positives = {}
    for index, code in enumerate(CODES, start=1):
        target = np.array([bool(example.codes) and code in example.codes for example in examples])
        positives[code] = int(target[known].sum())
        scale[index], bias[index] = platt(logits[known, index], target[known], weights[known])
    safe = ~unsafe
    return (
        scale,
        bias,
        {
            "rows": len(examples),
            "rule": f"mean FPR over {len(BORDERLINE)} borderline safe sets <= {TARGET_FPR}",
            "borderline_fpr": round(borderline_fpr(found, examples, threshold), 4),
            "all_safe_fpr": round(float((found[safe] >= threshold).mean()), 4),
            "recall": round(float((found[unsafe] >= threshold).mean()), 4),
            "platt_probability_at_threshold": round(1 / (1 + float(np.exp(-threshold))), 4),
            "category_positives": positives,
        },
    )
