"""Rows in, results out, in the order of the rows; memory holds one chunk.

::

    read_rows ─▶ chunks ─▶ Guard.check_many ─▶ ScanResult ─▶ ResultWriter, Summary

The decision is the guard's own, so a scanned row says what ``guardrail check`` and the sidecar say of the same text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from guardrail.logscan.rows import BadRow, Row
from guardrail.pipeline import Guard
from guardrail.verdict import Decision, Outcome

__all__ = ["ScanResult", "scan"]

# A chunk costs one start of semgrep, some seconds: many rows share it. The second bound is for rows of megabytes.
_CHUNK_ROWS = 256
_CHUNK_CHARS = 4_000_000


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What came of one row.

    Attributes:
        row: The row.
        decision: What the policy says; None for a bad row.
    """

    row: Row | BadRow
    decision: Decision | None

    @property
    def is_judged(self) -> bool:
        """Whether every classifier that was asked gave an answer; code without rules is counted apart."""
        verdicts = self.decision.verdicts if self.decision is not None else ()
        return bool(verdicts) and all(v.outcome is not Outcome.UNVERIFIED or v.unscanned for v in verdicts)

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values: the id, and then what ``guardrail check --json`` prints.

        A bad row has no decision; it is unverified, and says why and where.
        """
        if isinstance(self.row, BadRow):
            return {
                "id": self.row.id,
                "decision": None,
                "outcome": Outcome.UNVERIFIED.value,
                "error": self.row.error,
                "file": self.row.file,
                "line": self.row.line,
            }
        assert self.decision is not None
        return {"id": self.row.id, **self.decision.to_dict()}

    def to_json_line(self) -> bytes:
        """Returns the result as one line of JSON in UTF-8, line feed included."""
        # A lone surrogate in an id goes out as the \\udXXX escape that it came in as.
        return json.dumps(self.to_dict(), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def scan(rows: Iterable[Row | BadRow], guard: Guard, *, chunk_rows: int = _CHUNK_ROWS) -> Iterator[ScanResult]:
    """Judges rows; there is one result for each, in their order.

    Args:
        rows: Read as they are needed.
        guard: Judges them; the policy's deadline counts once for each row of a chunk.
        chunk_rows: How many rows are judged together, at least 1.
    """
    chunk: list[Row | BadRow] = []
    chars = 0
    for row in rows:
        chunk.append(row)
        chars += _chars(row)
        if len(chunk) >= chunk_rows or chars >= _CHUNK_CHARS:
            yield from _judge(chunk, guard)
            chunk, chars = [], 0
    yield from _judge(chunk, guard)


def _judge(chunk: list[Row | BadRow], guard: Guard) -> Iterator[ScanResult]:
    conversations = [row.conversation for row in chunk if isinstance(row, Row)]
    decisions = iter(guard.check_many(conversations) if conversations else ())
    for row in chunk:
        yield ScanResult(row, next(decisions) if isinstance(row, Row) else None)


def _chars(row: Row | BadRow) -> int:
    return sum(len(message.content) for message in row.conversation.messages) if isinstance(row, Row) else 0
