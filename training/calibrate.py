"""Turns the network's logits into probabilities on rows that it did not learn from, and places the threshold."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from rows import CODES, Example
from sklearn.linear_model import LogisticRegression

TARGET_FPR = 0.04
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
    "own_hate_everyday",
    "own_intent_advice",
    "own_intent_alarming",
    "own_intent_chatlog",
    "own_intent_crime",
    "own_intent_hate",
    "own_intent_novice",
    "own_intent_overask",
    "own_intent_passages",
    "own_intent_plain",
    "own_intent_polite",
    "own_intent_posts",
    "own_intent_replies",
    "own_intent_secops",
    "own_intent_security",
    "own_intent_secwork",
    "own_intent_selfharm",
    "own_intent_streets",
    "own_intent_violence",
    "own_intent_wrapped",
    "own_intent_xsafe",
    "own_security_crime",
    "own_violence_selfharm",
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
    """Fits the overall output, moves it so that 0.5 stands at the target rate, and fits the shares' temperature.

    Args:
        logits: float [rows, 12]: the overall logit, and the logarithm of each category's share.
        examples: The rows.

    Returns:
        Scale and bias, float32 [12] each (see ``network.Exported``), and what was found.
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
    scale[1:] = sharpness(logits[:, 1:], examples)
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
            "category_positives": {code: sum(code in (e.codes or ()) for e in examples) for code in CODES},
        },
    )


def sharpness(shares: np.ndarray, examples: list[Example]) -> float:
    """The factor on the logarithms of the shares under which the unsafe rows' first categories are likeliest.

    Every category counts alike, as it does where the category layer is fitted.
    """
    named = [row for row, example in enumerate(examples) if example.is_unsafe and example.codes]
    first = np.array([CODES.index((examples[row].codes or ())[0]) for row in named])
    each = 1.0 / np.bincount(first, minlength=len(CODES))[first]
    each /= each.sum()

    def loss(factor: float) -> float:
        values = factor * shares[named]
        top = values.max(1)
        total = top + np.log(np.exp(values - top[:, None]).sum(1))
        return float((each * (total - values[np.arange(len(named)), first])).sum())

    return min(np.arange(0.1, 4.05, 0.05).tolist(), key=loss)
