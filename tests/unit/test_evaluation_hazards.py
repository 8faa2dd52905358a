"""The hazard sentences of the tests, and the least that the shipped model must make of them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from guardrail.evaluation import read_sets
from guardrail.models.embedded import EmbeddedClassifier
from guardrail.taxonomy import HazardCategory

ROOT = Path(__file__).parents[2]
HAZARDS = ROOT / "tests/data/hazards.jsonl"
SLICES = {
    "plain", "contrast", "negation", "quoted", "everyday", "obfuscation", "languages",
    "long benign", "refusals", "answers",
}  # fmt: skip
# Any sane model is above it; what a model reaches is printed by the benchmark.
FLOOR = 0.6


def test_the_sentences_are_a_labelled_set() -> None:
    """At least 600 rows that ``guardrail eval`` reads, each once, with every category in every place it belongs."""
    (found,) = read_sets([HAZARDS])
    assert found.bad_rows == ()
    assert len(found.rows) >= 600
    assert len({row.id for row in found.rows}) == len(found.rows)
    assert len({row.conversation for row in found.rows}) == len(found.rows)
    rows = [json.loads(line) for line in HAZARDS.read_text("utf-8").splitlines()]
    assert {row["slice"] for row in rows} == SLICES
    assert all(bool(row["categories"]) is row["unsafe"] for row in rows)
    plain = Counter(category for row in rows if row["slice"] == "plain" for category in row["categories"])
    assert {category.value: 15 for category in HazardCategory} == plain


def test_the_shipped_model_is_above_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that was exported wrongly, or whose threshold slipped, fails here."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import hazard_slices

    classifier = EmbeddedClassifier(threads=2)
    answers = hazard_slices.judge(classifier, HAZARDS)
    classifier.close()
    assert hazard_slices.accuracy(answers) >= FLOOR
    table = hazard_slices.table(answers).splitlines()
    assert len(table) == 2 + len(SLICES) + 1
    assert f"| all rows | {len(answers)} |" in table[-1]
