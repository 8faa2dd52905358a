"""What an evaluation found, as values and as JSON (``guardrail.evaluation/1``; its fields are in docs/evaluation.md).

A report keeps of each row its id, label, score and outcome, and never its text. So two reports can be compared, and
curves drawn, without the files they come from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from guardrail.errors import InvalidInput
from guardrail.evaluation.metrics import Figures, Latency, figures, macro
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Outcome, Source

__all__ = [
    "SCHEMA",
    "CategoryFigures",
    "Operating",
    "Report",
    "RowResult",
    "SavedRun",
    "SetResult",
    "Speed",
    "load_run",
]

SCHEMA = "guardrail.evaluation/1"


@dataclass(frozen=True, slots=True)
class RowResult:
    """What was found about one row.

    Attributes:
        id: The row's id.
        is_unsafe: Its label; None where nobody knows.
        score: P(unsafe) in 0..1; None exactly where the row is unverified.
        outcome: What the classifier concluded.
    """

    id: str
    is_unsafe: bool | None
    score: float | None
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class CategoryFigures:
    """How one category fares, over judged unsafe rows that are labelled with it.

    Attributes:
        rows: Such rows.
        recall: The share of them that is flagged, under whatever category.
        named: Those flagged with at least one category.
        top1: The share of ``named`` whose first category is one of the row's own.
    """

    rows: int
    recall: float | None
    named: int
    top1: float | None


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast the classifier was, each figure measured by itself.

    Attributes:
        latency: Of messages asked one after another; None where none was.
        texts: Rows judged in batches.
        batch_size: The most rows in a batch.
        texts_per_s: ``texts`` over the time that the batches took; None of none.
    """

    latency: Latency | None
    texts: int
    batch_size: int
    texts_per_s: float | None


@dataclass(frozen=True, slots=True)
class Operating:
    """A threshold chosen on the evaluated rows themselves, so its figures are kinder than those on other rows.

    Attributes:
        target_fpr: The false-positive rate that was asked for, over all rows together.
        threshold: The lowest score at which it is kept; None where there is none.
    """

    target_fpr: float
    threshold: float | None


@dataclass(frozen=True)  # without slots: figures are computed once
class SetResult:
    """One file's rows, or several together.

    Attributes:
        name: The set's name.
        file: The file as it was given, ``""`` of several together.
        sha256: Of the file's bytes in hex, ``""`` of several together.
        bad_rows: Rows that could not be read.
        rows: Every row that was read.
        categories: Figures of the categories that occur.
        top1: Over all named rows with a category: the share whose first category is one of the row's own.
    """

    name: str
    file: str
    sha256: str
    bad_rows: int
    rows: tuple[RowResult, ...]
    categories: Mapping[HazardCategory, CategoryFigures]
    top1: float | None

    @cached_property
    def judged(self) -> tuple[tuple[bool, float, bool], ...]:
        """Label, score, and whether it was flagged, of the rows that have a label and a verdict."""
        return tuple(
            (row.is_unsafe, row.score, row.outcome is Outcome.UNSAFE)
            for row in self.rows
            if row.is_unsafe is not None and row.score is not None
        )

    @cached_property
    def figures(self) -> Figures:
        """The figures at the classifier's own threshold."""
        return figures(*_columns(self.judged))

    def figures_at(self, threshold: float) -> Figures:
        """The figures where rows with a score of at least ``threshold`` are flagged."""
        return figures(*_columns([(label, score, score >= threshold) for label, score, _ in self.judged]))

    @property
    def unlabelled(self) -> int:
        """Rows without a label, which no figure counts."""
        return sum(row.is_unsafe is None for row in self.rows)

    def unverified(self, is_unsafe: bool | None) -> int:
        """Rows of one label that the classifier could not judge, which no figure counts."""
        return sum(row.outcome is Outcome.UNVERIFIED and row.is_unsafe is is_unsafe for row in self.rows)

    @property
    def unverified_rows(self) -> int:
        """Rows of any label that the classifier could not judge."""
        return sum(row.outcome is Outcome.UNVERIFIED for row in self.rows)


@dataclass(frozen=True, slots=True)
class Report:
    """An evaluation of one classifier.

    Attributes:
        classifier: The name it was asked for by.
        source: What answered.
        created: UTC, ISO 8601.
        guardrail_version: Of the package.
        sets: One for each file.
        overall: All rows together.
        operating: The threshold chosen on these rows, where one was asked for.
        speed: How fast it was.
        decided_by: Source -> rows that it decided; of a cascade, how many each stage did.
        slices: ``lang`` or ``source`` -> value -> figures, where rows have more than one value.
    """

    classifier: str
    source: Source
    created: str
    guardrail_version: str
    sets: tuple[SetResult, ...]
    overall: SetResult
    operating: Operating | None
    speed: Speed
    decided_by: Mapping[str, int]
    slices: Mapping[str, Mapping[str, Figures]]

    @property
    def macro(self) -> dict[str, float | None]:
        """Means over the sets."""
        return macro([one.figures for one in self.sets])

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON values."""
        return {
            "schema": SCHEMA,
            "created": self.created,
            "guardrail": self.guardrail_version,
            "classifier": {
                "name": self.classifier,
                "model": self.source.model,
                "revision": self.source.revision,
                "template_hash": self.source.template_hash,
            },
            "operating": None if self.operating is None else asdict(self.operating),
            "speed": asdict(self.speed),
            "decided_by": dict(self.decided_by),
            "overall": self._set_dict(self.overall),
            "macro": self.macro,
            "slices": {
                column: {value: found.to_dict() for value, found in values.items()}
                for column, values in self.slices.items()
            },
            "sets": [
                {
                    "name": one.name,
                    "file": one.file,
                    "sha256": one.sha256,
                    **self._set_dict(one),
                    "rows": [
                        {"id": row.id, "unsafe": row.is_unsafe, "score": row.score, "outcome": row.outcome.value}
                        for row in one.rows
                    ],
                }
                for one in self.sets
            ],
        }

    def _set_dict(self, one: SetResult) -> dict[str, Any]:
        threshold = self.operating.threshold if self.operating is not None else None
        return {
            "counts": {
                "read": len(one.rows),
                "bad": one.bad_rows,
                "unlabelled": one.unlabelled,
                "unverified_unsafe": one.unverified(True),
                "unverified_safe": one.unverified(False),
                "unverified_unlabelled": one.unverified(None),
            },
            "figures": one.figures.to_dict(),
            "figures_at_threshold": None if threshold is None else one.figures_at(threshold).to_dict(),
            "top1": one.top1,
            "categories": {category.value: asdict(found) for category, found in one.categories.items()},
        }


@dataclass(frozen=True, slots=True)
class SavedRun:
    """What comparisons need of a report on disk.

    Attributes:
        classifier: The name it was asked for by.
        source: What answered.
        sets: Set name -> row key -> row. A key is the row's id and how often the set had that id before, so rows
            with equal ids are told apart by their order.
    """

    classifier: str
    source: Source
    sets: Mapping[str, Mapping[tuple[str, int], RowResult]]


def load_run(path: str | Path) -> SavedRun:
    """Reads a report's rows.

    Raises:
        InvalidInput: If the file is no report of this schema; the message says what is wrong.
        OSError: If it cannot be read.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except (ValueError, RecursionError) as exc:  # of decoding and of JSON alike
        raise InvalidInput(f"{path}: not JSON in UTF-8; expected what guardrail eval --json writes") from exc
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        got = "none" if not isinstance(schema, str) else repr(schema[:60])
        raise InvalidInput(f"{path}: expected a report with schema {SCHEMA!r}, got {got}; run guardrail eval again")
    try:
        classifier = content["classifier"]
        source = Source(*(str(classifier[key]) for key in ("model", "revision", "template_hash")))
        sets = {str(one["name"]): _keyed([_row(row) for row in one["rows"]]) for one in content["sets"]}
        return SavedRun(str(classifier["name"]), source, sets)
    except (KeyError, TypeError, ValueError) as exc:
        raise InvalidInput(
            f"{path}: a report with fields missing or of the wrong kind; run guardrail eval again"
        ) from exc


def _row(columns: Mapping[str, Any]) -> RowResult:
    is_unsafe, score, outcome = columns["unsafe"], columns["score"], Outcome(columns["outcome"])
    if is_unsafe is not None and not isinstance(is_unsafe, bool):
        raise ValueError("unsafe is no truth value")
    if (score is None) != (outcome is Outcome.UNVERIFIED):
        raise ValueError("unverified rows alone have no score")
    if score is not None and not (math.isfinite(score) and 0.0 <= score <= 1.0):
        raise ValueError("a score is outside 0..1")
    return RowResult(str(columns["id"]), is_unsafe, score, outcome)


def _keyed(rows: Sequence[RowResult]) -> dict[tuple[str, int], RowResult]:
    seen: dict[str, int] = {}
    keyed: dict[tuple[str, int], RowResult] = {}
    for row in rows:
        number = seen.get(row.id, 0)
        seen[row.id] = number + 1
        keyed[row.id, number] = row
    return keyed


def _columns(judged: Sequence[tuple[bool, float, bool]]) -> tuple[list[bool], list[float], list[bool]]:
    return [label for label, _, _ in judged], [score for _, score, _ in judged], [found for _, _, found in judged]
