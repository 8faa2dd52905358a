"""A scan from inputs to files: reading, judging and writing beside each other, and every step of it on the disk.

::

    reader thread ─▶ 2 chunks ─▶ this thread: Judge ─▶ 2 chunks ─▶ writer thread: results, bad rows, counts, commits

The queues between are bounded, so memory does not grow with the log. A chunk holds whole records. It grows while
judging it is quick and shrinks where it is slow, so that a slow model's answers reach the disk soon; what a judge says
of a row does not depend on the chunk.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from guardrail.errors import GuardrailError, InvalidInput
from guardrail.logscan.engine import CHUNK_CHARS, CHUNK_ROWS, Judge, ScanResult, chars_of
from guardrail.logscan.inputs import Input
from guardrail.logscan.ledger import Ledger, Progress
from guardrail.logscan.readers import Record, read_log
from guardrail.logscan.rows import BadRow, EmptyRow, Layout, Row
from guardrail.logscan.summary import Summary
from guardrail.logscan.writer import AppendFile

__all__ = ["Chunk", "LineWriter", "Pace", "Sink", "read_chunks", "run"]

T = TypeVar("T")

_FIRST_ROWS = 32
_QUICK_S, _SLOW_S = 4.0, 20.0
_COMMIT_EVERY_S = 0.5
_WAIT_S = 0.2  # how soon a thread that waits for room notices that nobody will make any
_AHEAD = 2


class LineWriter(Protocol):
    """What takes the lines of results."""

    def write(self, lines: bytes) -> None:
        """Writes whole lines."""
        ...

    def sync(self) -> int:
        """Brings them to the disk, and returns how many bytes it has of them."""
        ...


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole records, to be judged together.

    Attributes:
        rows: Their rows, in order.
        input: Which input the last record is of, from 0.
        line: That record's line.
        end_byte: Where it ends.
        empty: How many of the records had nothing to judge.
    """

    rows: Sequence[Row | BadRow]
    input: int
    line: int
    end_byte: int
    empty: int = 0


class Pace:
    """How many rows go into a chunk; set by who judges, read by who reads."""

    def __init__(self) -> None:
        self.rows = _FIRST_ROWS

    def took(self, rows: int, seconds: float) -> None:
        """Learns from a chunk."""
        if seconds < _QUICK_S and rows >= self.rows:
            self.rows = min(2 * self.rows, CHUNK_ROWS)
        elif seconds > _SLOW_S:
            self.rows = max(self.rows // 2, 1)


def read_chunks(
    inputs: Sequence[Input],
    layout: Layout,
    pace: Pace,
    *,
    start: Progress | None = None,
    last_line: int | None = None,
    is_strict: bool = False,
    tell_layout: Callable[[str, str], None] = lambda file, words: None,
) -> Iterator[Chunk]:
    """Reads inputs one after the other.

    Args:
        inputs: The logs.
        layout: How their rows are read.
        pace: How much goes into a chunk.
        start: Where an earlier scan came to.
        last_line: The last line to read of each input; None for all.
        is_strict: Whether a bad row ends the reading.
        tell_layout: Is told of each log how its rows are read.

    Raises:
        InvalidInput: If a row is bad and ``is_strict``; the rows before it were yielded.
        GuardrailError: If an input cannot be read; the rows before that were yielded.
    """
    start = start or Progress()
    for number in range(start.input, len(inputs)):
        source = inputs[number]
        after = start.position if number == start.input else None
        gathered = _Gathered(number)
        try:
            for record in read_log(
                source,
                layout,
                after=after,
                tell_layout=lambda words, name=source.name: tell_layout(name, words),  # type: ignore[misc]
            ):
                if last_line is not None and record[0].line > last_line:
                    break
                if is_strict and isinstance(bad := record[0], BadRow):
                    raise InvalidInput(f"bad row {bad.file}:{bad.line}: {bad.error}")
                gathered.add(record)
                if len(gathered.rows) + gathered.empty >= pace.rows or gathered.chars >= CHUNK_CHARS:
                    yield gathered.chunk()
                    gathered = _Gathered(number)
        except (GuardrailError, OSError) as exc:
            if gathered.last is not None:
                yield gathered.chunk()
            if isinstance(exc, OSError):
                raise GuardrailError(f"cannot read {source.name}: {exc.strerror or type(exc).__name__}") from exc
            raise
        if gathered.last is not None:
            yield gathered.chunk()


class _Gathered:
    """What is to become a chunk.

    Args:
        number: Of the input that its records are of.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self.rows: list[Row | BadRow] = []
        self.empty = self.chars = 0
        self.last: Row | BadRow | EmptyRow | None = None

    def add(self, record: Record) -> None:
        self.last = last = record[-1]
        if isinstance(last, EmptyRow):
            self.empty += 1
        else:
            self.rows += record  # type: ignore[arg-type]  # an EmptyRow stands alone
            self.chars += chars_of(last)

    def chunk(self) -> Chunk:
        assert self.last is not None
        return Chunk(self.rows, self._number, self.last.line, self.last.end_byte, self.empty)


class Sink:
    """Takes results: writes and counts them, and notes how far they go; used by one thread at a time.

    Args:
        writer: Takes the lines; None where only counts are wanted.
        errors: Takes the bad rows' places and reasons.
        ledger: Notes the progress; None where the scan cannot be continued.
        start: Where an earlier scan came to.
        advance: Is told of each chunk that is done.
    """

    def __init__(
        self,
        writer: LineWriter | None = None,
        *,
        errors: AppendFile | None = None,
        ledger: Ledger | None = None,
        start: Progress | None = None,
        advance: Callable[[Chunk], None] = lambda chunk: None,
    ) -> None:
        self._writer = writer
        self._errors = errors
        self._ledger = ledger
        self._advance = advance
        self._last = start or Progress()
        self._committed_s = time.monotonic()
        self.summary: Summary = self._last.summary

    def take(self, item: tuple[Chunk, Sequence[ScanResult]]) -> None:
        """Takes the results of a chunk."""
        chunk, results = item
        if self._writer is not None:
            self._writer.write(b"".join([result.to_json_line() for result in results]))
        for result in results:
            if self._errors is not None and isinstance(result.row, BadRow):
                self._errors.write(_error_line(result.row))
            self.summary.add(result)
        self.summary.empty += chunk.empty
        self._last = Progress(chunk.input, chunk.line, chunk.end_byte)
        self._advance(chunk)
        if time.monotonic() - self._committed_s >= _COMMIT_EVERY_S:
            self.commit()

    def commit(self, *, is_at_end: bool = False) -> Progress:
        """Brings everything to the disk, and then the note of how far it goes."""
        last = self._last
        progress = Progress(
            last.input,
            last.line,
            last.end_byte,
            self._writer.sync() if self._writer is not None else 0,
            self._errors.sync() if self._errors is not None else 0,
            is_at_end,
            self.summary.to_dict(),
        )
        if self._ledger is not None:
            self._ledger.commit(progress)
        self._committed_s = time.monotonic()
        return progress


def _error_line(row: BadRow) -> bytes:
    return json.dumps({"file": row.file, "line": row.line, "reason": row.error}).encode() + b"\n"


def run(chunks: Iterable[Chunk], judge: Judge, sink: Sink, pace: Pace) -> None:
    """Judges chunks, in order; reading and writing happen in threads of their own.

    However it ends, what was judged is written: after ``KeyboardInterrupt`` too the sink can be committed.

    Raises:
        GuardrailError: What reading or writing raised.
    """
    with _WriteBehind(sink.take) as behind, _ReadAhead(chunks) as ahead:
        for chunk in ahead:
            started = time.monotonic()
            results = judge.judge(chunk.rows)
            pace.took(len(chunk.rows), time.monotonic() - started)
            behind.put((chunk, results))


class _ReadAhead(Generic[T]):
    """Iterates in a thread of its own, a few items ahead; what it raises is raised where its items are used."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = items
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(_AHEAD)
        self._is_closed = threading.Event()
        # A daemon: it may wait for standard input when everything else is over.
        self._thread = threading.Thread(target=self._read, name="guardrail-scan-reader", daemon=True)

    def _read(self) -> None:
        try:
            for item in self._items:
                if not self._put(("item", item)):
                    return
        except BaseException as exc:  # whatever it is, it belongs to who waits for the next item
            self._put(("error", exc))
        else:
            self._put(("end", None))

    def _put(self, message: tuple[str, Any]) -> bool:
        while not self._is_closed.is_set():
            try:
                self._queue.put(message, timeout=_WAIT_S)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[T]:
        while True:
            kind, value = self._queue.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value

    def __enter__(self) -> _ReadAhead[T]:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_closed.set()


class _WriteBehind(Generic[T]):
    """Hands items to a function in a thread of its own; what that raises is raised by the next :meth:`put`, or the end.

    After an error the rest is thrown away: nothing may be written behind a gap.
    """

    def __init__(self, take: Callable[[T], None]) -> None:
        self._take = take
        self._queue: queue.Queue[list[T]] = queue.Queue(_AHEAD)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="guardrail-scan-writer", daemon=True)

    def _write(self) -> None:
        while items := self._queue.get():
            if self._error is None:
                try:
                    self._take(items[0])
                except BaseException as exc:  # belongs to the thread that put it in
                    self._error = exc

    def put(self, item: T) -> None:
        """Hands an item on."""
        if self._error is not None:
            raise self._error
        self._queue.put([item])

    def __enter__(self) -> _WriteBehind[T]:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._queue.put([])
        self._thread.join()
        if self._error is not None and exc is not self._error:
            raise self._error
