"""Rows in, results out, in the order of the rows; memory holds one chunk, and what was judged lately.

::

    rows ─▶ chunks ─▶ Judge: what it has judged before it knows; the rest ─▶ Guard.check_many ─▶ ScanResult

The decision is the guard's own, so a scanned row says what ``guardrail check`` and the sidecar say of the same text.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from guardrail.logscan.render import decision_json, dumps, place_json
from guardrail.logscan.rows import BadRow, EmptyRow, Row, content_hash
from guardrail.pipeline import Guard
from guardrail.verdict import Conversation, Decision, Outcome

__all__ = ["CHUNK_CHARS", "CHUNK_ROWS", "Judge", "Judgement", "ScanResult", "chars_of", "scan"]

CHUNK_ROWS = 256
"""Rows judged together: a chunk may cost one start of semgrep, some seconds, which many rows share."""

CHUNK_CHARS = 4_000_000
"""The same in characters, for rows of megabytes."""

_UNVERIFIED = Outcome.UNVERIFIED  # asked of each row, and a member of an Enum costs five times as much

# Some 4 KB each: what repeats in a log, greetings and canned answers, repeats within fewer.
_REMEMBERED = 10_000


@dataclass(slots=True)
class Judgement:
    """A decision, shared by the rows that it is about.

    Attributes:
        decision: What the policy says.
    """

    decision: Decision
    _json: str = ""

    @property
    def json(self) -> str:
        """The decision as JSON; made once."""
        if not self._json:
            self._json = decision_json(self.decision)
        return self._json

    @property
    def is_complete(self) -> bool:
        """Whether every classifier that was asked gave an answer; code without rules is counted apart."""
        for verdict in self.decision.verdicts:
            if verdict.outcome is _UNVERIFIED and not verdict.unscanned:
                return False
        return bool(self.decision.verdicts)


class ScanResult(NamedTuple):
    """What came of one row; a tuple as :class:`~guardrail.logscan.rows.Row` is.

    Attributes:
        row: The row.
        judgement: What was decided; None for a bad row.
        hash: Of what was judged, see :func:`~guardrail.logscan.rows.content_hash`; ``""`` for a bad row.
    """

    row: Row | BadRow
    judgement: Judgement | None
    hash: str = ""

    @property
    def decision(self) -> Decision | None:
        """What the policy says; None for a bad row."""
        return self.judgement.decision if self.judgement is not None else None

    @property
    def is_judged(self) -> bool:
        """Whether every classifier that was asked gave an answer; code without rules is counted apart."""
        return self.judgement is not None and self.judgement.is_complete

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values: the row's place, and then what ``guardrail check --json`` prints.

        A bad row has no decision; it is unverified, and says why.
        """
        if self.judgement is None:
            assert isinstance(self.row, BadRow)
            outcome = Outcome.UNVERIFIED.value
            return {**self._place(), "decision": None, "outcome": outcome, "error": self.row.error}
        return {**self._place(), **self.judgement.decision.to_dict()}

    def to_json_line(self) -> bytes:
        """Returns the result as one line of JSON in UTF-8, line feed included."""
        row = self.row
        if self.judgement is None or isinstance(row, BadRow):
            text = dumps(self.to_dict()) + "\n"
        else:
            place = place_json(row.id, row.file, row.line, row.turn, self.hash)
            kept = f', "fields": {dumps(row.kept)}' if row.kept else ""
            text = f"{place}{kept}, {self.judgement.json[1:]}\n"
        # A lone surrogate in an id goes out as the \\udXXX escape that it came in as.
        return text.encode("utf-8", "backslashreplace")

    def _place(self) -> dict[str, Any]:
        row = self.row
        place = {
            "id": row.id,
            "file": row.file,
            "line": row.line,
            "turn": row.turn if isinstance(row, Row) else None,
            "hash": self.hash or None,
        }
        if row.kept:
            place["fields"] = row.kept
        return place


class Judge:
    """Judges chunks of rows; equal roles, contexts and texts are judged once, as long as they are remembered.

    What could not be judged is not remembered: the next row like it has another chance.

    Args:
        guard: Judges; the policy's deadline counts once for each row that it is asked about.
        remembered: How many judgements are kept, those used last.
    """

    def __init__(self, guard: Guard, *, remembered: int = _REMEMBERED) -> None:
        self._guard = guard
        self._size = remembered
        self._known: OrderedDict[str, Judgement] = OrderedDict()
        self.repeats = 0

    def judge(self, rows: Sequence[Row | BadRow]) -> list[ScanResult]:
        """Judges rows together; result i belongs to row i."""
        hashes = [content_hash(row.conversation) if isinstance(row, Row) else "" for row in rows]
        known, new = self._known, dict[str, Conversation]()
        answers: dict[str, Judgement | None] = {"": None}
        for row, key in zip(rows, hashes, strict=True):
            if not isinstance(row, Row):
                continue
            if key in answers or key in new:
                self.repeats += 1
            elif key in known:
                known.move_to_end(key)
                answers[key] = known[key]
                self.repeats += 1
            else:
                new[key] = row.conversation
        if new:
            for key, decision in zip(new, self._guard.check_many(list(new.values())), strict=True):
                answers[key] = judgement = Judgement(decision)
                if judgement.is_complete:
                    known[key] = judgement
            while len(known) > self._size:
                known.popitem(last=False)
        return [ScanResult(row, answers[key], key) for row, key in zip(rows, hashes, strict=True)]


def scan(rows: Iterable[Row | BadRow], guard: Guard, *, chunk_rows: int = CHUNK_ROWS) -> Iterator[ScanResult]:
    """Judges rows; there is one result for each, in their order.

    Args:
        rows: Read as they are needed.
        guard: Judges them; the policy's deadline counts once for each row of a chunk.
        chunk_rows: How many rows are judged together, at least 1.
    """
    judge = Judge(guard)
    chunk: list[Row | BadRow] = []
    chars = 0
    for row in rows:
        chunk.append(row)
        chars += chars_of(row)
        if len(chunk) >= chunk_rows or chars >= CHUNK_CHARS:
            yield from judge.judge(chunk)
            chunk, chars = [], 0
    yield from judge.judge(chunk)


def chars_of(row: Row | BadRow | EmptyRow) -> int:
    """Returns how much text a row holds."""
    chars = 0
    if isinstance(row, Row):
        for message in row.conversation.messages:
            chars += len(message.content)
    return chars
