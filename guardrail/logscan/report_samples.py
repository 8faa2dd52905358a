"""Rows for a report's table: a bounded choice, made while the results pass by, and their texts where asked for.

Rows are of four sorts: blocked (or to retry), flagged, unverified (also those that a policy blocks for that, and bad
ones), allowed. Each sort keeps a uniform choice (Vitter's Algorithm R, seeded, so that equal results give equal pages);
at the end each gets its share of the table, and what a sort leaves free goes to the others, the gravest first.

Texts come from the log itself, by file and line. A text is shown only if it is the one that was judged: where the
result holds the hash of what was judged, the log's row must have it.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from guardrail.errors import InvalidInput
from guardrail.logscan.report import is_unverified, time_of
from guardrail.logscan.rows import Layout, Turns, content_hash, conversation_of, turns_of
from guardrail.logscan.stored import at, id_of, log_place, open_lines
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Conversation, Rail, ReasonKind

__all__ = ["SORTS", "Chooser", "Sample", "join_texts"]

SORTS = {"blocked": 0.5, "flagged": 0.2, "unverified": 0.2, "allowed": 0.1}
"""Sort of row -> its share of the table."""

_PLACE_CHARS = 120
# A detail of a failure; long ones are exceptional.
_DETAIL_CHARS = 200


@dataclass(slots=True)
class Sample:
    """One row of the table.

    Attributes:
        order: Its number among all rows, from 1.
        sort: One of ``SORTS``.
        place: Where to look for it.
        log: File and line of the log; None where the result does not say.
        turn: Which message of the row it is, from 1; None where the result does not say.
        hash: Of what was judged; ``""`` where the result does not say.
        id: The row's id, shortened.
        action: What was decided; None for a bad row.
        rail: Which rail; None for a bad row.
        risk: The highest of its scores, 0..1; None without any.
        causes: Titles of categories and CWEs that it has, each once.
        detail: Why there was no answer, or why the row is bad.
        when: Seconds since 1970; None where the row does not say.
        text: The message that was judged, once it is joined.
    """

    order: int
    sort: str
    place: str
    log: tuple[str, int] | None
    turn: int | None
    hash: str
    id: str
    action: str | None
    rail: str | None
    risk: float | None
    causes: tuple[str, ...]
    detail: str
    when: float | None
    text: str | None = None


class Chooser:
    """Chooses rows while they pass by.

    Args:
        most: Rows of the table.
    """

    def __init__(self, most: int = 2000) -> None:
        self._most = most
        self._random = random.Random(most)  # noqa: S311  a choice of rows, no secret
        self._kept: dict[str, list[Sample]] = {sort: [] for sort in SORTS}
        self.seen = dict.fromkeys(SORTS, 0)

    def add(self, path: str, number: int, row: Mapping[str, Any]) -> None:
        """Looks at one row, which a report has counted.

        Args:
            path: The file of results.
            number: The row's line in it.
            row: The row.
        """
        sort = _sort(row)
        self.seen[sort] += 1
        kept = self._kept[sort]
        if len(kept) < self._most:
            kept.append(self._sample(sort, path, number, row))
        elif (place := int(self._random.random() * self.seen[sort])) < self._most:
            kept[place] = self._sample(sort, path, number, row)

    def chosen(self) -> list[Sample]:
        """Returns the rows of the table: sort by sort, each in the order of the results."""
        counts = {sort: min(len(self._kept[sort]), int(self._most * share)) for sort, share in SORTS.items()}
        for sort, kept in self._kept.items():
            counts[sort] += min(len(kept) - counts[sort], self._most - sum(counts.values()))
        return [
            sample
            for sort, kept in self._kept.items()
            for sample in sorted(self._random.sample(kept, counts[sort]), key=lambda sample: sample.order)
        ]

    def _sample(self, sort: str, path: str, number: int, row: Mapping[str, Any]) -> Sample:
        place = at(path, number, row)
        turn = row.get("turn")
        common = {
            "order": sum(self.seen.values()),
            "sort": sort,
            "place": place if len(place) <= _PLACE_CHARS else "…" + place[1 - _PLACE_CHARS :],
            "log": log_place(row),
            "turn": turn if isinstance(turn, int) else None,
            "hash": row["hash"] if isinstance(row.get("hash"), str) else "",
            "id": id_of(row),
            "action": row["decision"],
            "when": time_of(row),
        }
        if row["decision"] is None:
            return Sample(**common, rail=None, risk=None, causes=(), detail=row["error"][:_DETAIL_CHARS])
        scores = [score for score in (row["unsafe_probability"], *row["scores"].values()) if score is not None]
        titles = [
            HazardCategory(reason["subject"]).title
            for reason in row["reasons"]
            if reason["kind"] == ReasonKind.HAZARD.value
        ]
        titles += [HazardCategory(category).title for category in row["categories"]]
        details = [
            f"code not examined: {', '.join(verdict['unscanned'])}" if verdict["unscanned"] else verdict["detail"]
            for verdict in row["verdicts"]
            if verdict["outcome"] == "unverified"
        ]
        return Sample(
            **common,
            rail=Rail(row["rail"]).value,
            risk=max(scores, default=None),
            causes=tuple(dict.fromkeys([*titles, *(finding["cwe"] for finding in row["findings"])])),
            detail="; ".join(details)[:_DETAIL_CHARS],
        )


def _sort(row: Mapping[str, Any]) -> str:
    if row["decision"] is None or is_unverified(row):
        return "unverified"
    return {"allow": "allowed", "flag": "flagged"}.get(row["decision"], "blocked")


def join_texts(samples: Iterable[Sample], logs: Iterable[str | Path]) -> int:
    """Gives samples the texts that were judged, from the logs they came from.

    Args:
        samples: Of which those whose results name file and line can be found.
        logs: The files that were scanned: JSON Lines, plain or gzipped. A file is known by the path it was scanned
            under, by being that file, or by its name where only one of the logs has it.

    Returns:
        How many samples have a text now.

    Raises:
        ConfigurationError: If a log cannot be read.
        InvalidInput: If a log is not JSON Lines.
    """
    paths = [Path(log) for log in logs]
    wanted: dict[Path, dict[int, list[Sample]]] = {}
    for sample in samples:
        # Nothing was judged of a bad row.
        path = _log_of(sample, paths) if sample.action is not None else None
        if path is not None and sample.log is not None:
            wanted.setdefault(path, {}).setdefault(sample.log[1], []).append(sample)
    joined = 0
    for path in paths:
        if path.name.removesuffix(".gz").endswith((".csv", ".tsv", ".parquet")):
            raise InvalidInput(f"--texts {path}: expected JSON Lines; other logs have no lines to join by")
        lines = wanted.get(path, {})
        last = max(lines, default=0)
        for number, line in open_lines(path) if lines else ():
            if number > last:
                break
            for sample in lines.get(number, ()):
                conversation = _conversation(line, sample)
                if conversation is not None:
                    sample.text = conversation.last.content
                    joined += 1
    return joined


def _log_of(sample: Sample, paths: list[Path]) -> Path | None:
    if sample.log is None:
        return None
    file = sample.log[0]
    named = [path for path in paths if path.name == Path(file).name]
    for path in paths:
        if str(path) == file or _real(str(path)) == _real(file):
            return path
    return named[0] if len(named) == 1 else None


@lru_cache(maxsize=1024)
def _real(file: str) -> str:
    try:
        return os.path.realpath(file)
    except ValueError:  # What a result calls a file need not be one's name.
        return file


def _conversation(line: bytes, sample: Sample) -> Conversation | None:
    """The conversation that was judged; None where the log's line is another one now."""
    try:
        columns = json.loads(line)
        if not isinstance(columns, dict):
            return None
        if sample.turn is None:
            conversation = conversation_of(columns)
        else:
            turns = dict(turns_of(columns, Layout(turns=Turns.ALL)))
            conversation = turns[sample.turn]
    except (ValueError, KeyError, RecursionError):
        return None
    return conversation if not sample.hash or content_hash(conversation) == sample.hash else None
