"""Chat logs in, rows out: JSON Lines, CSV and Parquet, one row (of Parquet, some thousand) in memory at a time.

::

    Input ─▶ bytes ─┬─▶ JSON Lines: one object a line ─┐
                    ├─▶ CSV with a header (RFC 4180)  ─┼─▶ record: the Rows, the BadRow or the EmptyRow of one row
                    └─▶ Parquet, batch by batch       ─┘

Text is UTF-8. A name that ends in ``.csv`` is CSV, one in ``.jsonl``, ``.ndjson`` or ``.json`` is JSON Lines, whatever
the compression's ending behind it; any other is JSON Lines where its first character is a bracket. Parquet is known by
its first bytes. Blank lines are not rows. A line longer than 64 MiB is a bad row. So is the place where a file is
damaged: what stands behind it is not read.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, BinaryIO

from guardrail.errors import InvalidInput
from guardrail.logscan.inputs import COMPRESSED, Input, Stream, find_inputs, open_input
from guardrail.logscan.rows import BadRow, EmptyRow, Layout, Row, layout_name, parse_json, turns_of

__all__ = ["Position", "Record", "cuts_of", "read_log", "read_rows"]

# Bounds memory where a file has no line ends at all; the csv module's own limit, 128 KiB, is less than chats have.
_MAX_LINE_BYTES = 64 * 1024 * 1024

_BLOCK_BYTES = 1024 * 1024  # in which line ends are counted

_TEXTS = ("text", "prompt", "response")

_BOM = b"\xef\xbb\xbf"
_PARQUET = b"PAR1"

Record = list["Row | BadRow | EmptyRow"]
"""What one row of a log holds, never empty: its turns in order, or why there are none."""

_Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Position:
    """How far a log was read.

    Attributes:
        line: Line (of Parquet the row) of the last record.
        end_byte: Where that record ends; of a compressed file or of Parquet an estimate for the progress bar.
    """

    line: int
    end_byte: int


def read_rows(path: str | PurePath, layout: Layout | None = None) -> Iterator[Row | BadRow]:
    """Reads a log's rows, in order; every row is there, the unreadable ones as :class:`BadRow`.

    Args:
        path: A file, or anything that can be opened and read from its start to its end.
        layout: How its rows are read.

    Raises:
        InvalidInput: If it is not there.
        OSError: If it cannot be opened or read.
    """
    for source in find_inputs([str(path)]):
        for record in read_log(source, layout or Layout()):
            yield from (row for row in record if not isinstance(row, EmptyRow))


def read_log(
    source: Input, layout: Layout, *, after: Position | None = None, tell_layout: _Told | None = None
) -> Iterator[Record]:
    """Reads a log's records, in order.

    Args:
        source: The log.
        layout: How its rows are read.
        after: Where an earlier reading ended: only what comes behind it is read. Its name and content are as before.
        tell_layout: Is told once, in words, how the rows are read.

    Raises:
        OSError: If it cannot be opened or read.
        MissingExtra: If a package that it needs is not installed.
    """
    make = _Maker(source.name, layout, tell_layout)
    with open_input(source) as stream:
        if stream.head == _PARQUET or _suffix(source.name) == ".parquet":
            from guardrail.logscan.parquet import read_batches

            done = after.line if after is not None else 0
            yield from _parquet(make, source, read_batches(stream, layout, after_row=done), done)
            return
        lines = _Lines(stream)
        is_csv = _is_csv(source.name, lines)
        if after is not None and stream.is_plain and not is_csv:
            lines.seek(after)
        records = (_csv_records if is_csv else _jsonl_records)(make, lines)
        if after is None:
            yield from records
            return
        for record in records:
            if record[0].line > after.line:
                yield record


def cuts_of(source: Input, every: int) -> Iterator[Position]:
    """Finds where a log can be cut, so that each part but the last has so many lines (of Parquet, rows).

    CSV and compressed JSON Lines have no such places: who reads a part of them reads all that is before it.

    Args:
        source: The log; it can be read again.
        every: Lines of a part.

    Raises:
        OSError: If it cannot be opened or read.
        MissingExtra: If a package that it needs is not installed.
    """
    with open_input(source) as stream:
        if stream.head == _PARQUET or _suffix(source.name) == ".parquet":
            from guardrail.logscan.parquet import count_rows

            yield from (Position(line, 0) for line in range(every, count_rows(stream), every))
            return
        lines = _Lines(stream)
        if not stream.is_plain or _is_csv(source.name, lines):
            return
        stream.file.seek(0)
        cut: Position | None = None
        line = before = 0  # lines, and bytes, before the block
        while block := stream.file.read(_BLOCK_BYTES):
            if cut is not None:  # there is a line behind it
                yield cut
                cut = None
            count, at = block.count(b"\n"), 0
            # Line ends are counted in whole blocks; where one is looked for, it is a cut.
            for number in range(line - line % every + every, line + count + 1, every):
                for _ in range(number - max(line, number - every)):
                    at = block.index(b"\n", at) + 1
                cut = Position(number, before + at)
                if at < len(block):
                    yield cut
                    cut = None
            line, before = line + count, before + len(block)


class _Maker:
    """Makes records of a file's columns.

    Args:
        file: The log's name.
        layout: How its rows are read.
        tell: Is told once how that is.
    """

    def __init__(self, file: str, layout: Layout, tell: _Told | None) -> None:
        self.file = file
        self._layout = layout
        self._tell = tell

    def record(self, columns: Mapping[str, Any], line: int, end_byte: int) -> Record:
        """Makes the record of a row."""
        if self._tell is not None and (words := layout_name(columns, self._layout)):
            self._tell(words)
            self._tell = None
        try:
            turns = turns_of(columns, self._layout)
        except InvalidInput as exc:
            return self.bad(str(exc), line, end_byte, columns)
        if not turns:
            return [EmptyRow(self.file, line, end_byte)]
        row_id, kept, file = self._id(columns, line), self._kept(columns), self.file
        return [Row(row_id, file, line, end_byte, conversation, turn, kept) for turn, conversation in turns]

    def bad(self, error: str, line: int, end_byte: int, columns: Mapping[str, Any] | None = None) -> Record:
        """Makes the record of a row that cannot be read."""
        columns = columns or {}
        return [BadRow(self._id(columns, line), self.file, line, end_byte, error, self._kept(columns))]

    def _id(self, columns: Mapping[str, Any], line: int) -> Any:
        given = columns.get("id")
        return f"{self.file}:{line}" if given is None else given

    def _kept(self, columns: Mapping[str, Any]) -> Mapping[str, Any] | None:
        keep = self._layout.keep
        return {name: columns.get(name) for name in keep} if keep else None


class _Lines:
    """The lines of a file with their numbers; an overlong one is None.

    Attributes:
        number: Of the line last read, from 1.
    """

    def __init__(self, stream: Stream) -> None:
        self._file: BinaryIO = stream.file
        self._position = None if stream.is_plain else stream.position
        self._read_bytes = 0
        self._peeked: list[bytes | None] = []
        self.number = 0

    @property
    def end_byte(self) -> int:
        """Bytes of the input read so far; of a compressed one as it is stored."""
        return self._read_bytes if self._position is None else self._position()

    def seek(self, after: Position) -> None:
        """Goes to the end of a line."""
        self._file.seek(after.end_byte)
        self._peeked.clear()
        self._read_bytes, self.number = after.end_byte, after.line

    def __iter__(self) -> Iterator[bytes | None]:
        """Yields the lines from here on; who begins again goes on behind the last."""
        try:
            while True:
                self.number += 1
                yield self._peeked.pop() if self._peeked else self._read()
        except EOFError:
            return

    def peek(self) -> bytes:
        """Returns the first line that is not blank, without using it up; ``b""`` where there is none."""
        try:
            while (line := self._read()) is not None and not line.strip():
                self.number += 1
        except EOFError:
            return b""
        self._peeked.append(line)
        return line or b""

    def _read(self) -> bytes | None:
        """Reads a line; raises EOFError behind the last."""
        is_first = self._read_bytes == 0
        line = self._readline(_MAX_LINE_BYTES + 1)
        if not line:
            raise EOFError
        if len(line) > _MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (more := self._readline(_MAX_LINE_BYTES)) and not more.endswith(b"\n"):
                pass
            return None
        return line.removeprefix(_BOM) if is_first else line

    def _readline(self, limit: int) -> bytes:
        try:
            line = self._file.readline(limit)
        except (EOFError, zlib.error) as exc:
            raise _Damaged from exc
        except OSError as exc:
            if exc.errno is None:  # gzip's and pyarrow's way to say that the bytes make no sense
                raise _Damaged from exc
            raise
        self._read_bytes += len(line)
        return line


class _Damaged(Exception):
    """The compressed bytes end too soon or make no sense."""


_DAMAGED = "the compressed file is damaged or ends too soon: nothing from here on could be read"


def _suffix(name: str) -> str:
    path = PurePath(name.lower())
    return PurePath(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def _is_csv(name: str, lines: _Lines) -> bool:
    suffix = _suffix(name)
    if suffix in (".csv", ".jsonl", ".ndjson", ".json"):
        return suffix == ".csv"
    try:
        first = lines.peek()
    except _Damaged:  # is met again by who reads the lines
        return False
    return bool(first) and not first.lstrip().startswith((b"{", b"["))


def _overlong() -> str:
    return f"expected a line of at most {_MAX_LINE_BYTES} bytes, got a longer one"


def _jsonl_records(make: _Maker, lines: _Lines) -> Iterator[Record]:
    try:
        for line in lines:
            if line is not None and line.isspace():
                continue
            try:
                columns = _json_columns(line)
            except InvalidInput as exc:
                yield make.bad(str(exc), lines.number, lines.end_byte)
            else:
                yield make.record(columns, lines.number, lines.end_byte)
    except _Damaged:
        yield make.bad(_DAMAGED, lines.number, lines.end_byte)


def _json_columns(line: bytes | None) -> dict[str, Any]:
    if line is None:
        raise InvalidInput(_overlong())
    columns = parse_json(line)
    if not isinstance(columns, dict):
        raise InvalidInput(f"expected a JSON object in each line, got {type(columns).__name__}")
    return columns


def _csv_records(make: _Maker, lines: _Lines) -> Iterator[Record]:
    csv.field_size_limit(_MAX_LINE_BYTES)
    # Strict, so that a quote which is never closed is an error and not one row with the rest of the file in it.
    records = csv.reader(_decoded(lines), strict=True)
    header: list[str] | None = None
    while True:
        error, values = "", []
        before = lines.number
        try:
            values = next(records)
        except StopIteration:
            return
        except _Damaged:
            yield make.bad(_DAMAGED, before + 1, lines.end_byte)
            return
        except csv.Error as exc:
            error = f"not CSV: {exc}"
        except InvalidInput as exc:
            error = str(exc)
            records = csv.reader(_decoded(lines), strict=True)  # its generator ended with the error
        if not error and not values:
            continue  # a blank line
        if header is None:
            header = [name.strip() for name in values]  # of an unreadable header none, so no row fits it
            if not error:
                continue
        columns: dict[str, Any] = {}
        try:
            if not error:
                columns = _csv_columns(header, values)
        except InvalidInput as exc:
            error = str(exc)
        if error:
            yield make.bad(error, before + 1, lines.end_byte)
        else:
            yield make.record(columns, before + 1, lines.end_byte)


def _decoded(lines: _Lines) -> Iterator[str]:
    for line in lines:
        if line is None:
            raise InvalidInput(_overlong())
        # Undecodable bytes become lone surrogates: the row they stand in is known only after the quotes are read.
        yield line.decode("utf-8", "surrogateescape")


def _csv_columns(header: list[str], values: list[str]) -> dict[str, Any]:
    for number, value in enumerate(values, start=1):
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise InvalidInput(f"not UTF-8: field {number} of {len(values)} at character {exc.start + 1}") from exc
    if len(values) != len(header):
        raise InvalidInput(f"expected {len(header)} fields as in the header, got {len(values)}")
    # An empty cell and a column that is not there are one thing in CSV, except for the text itself.
    return {name: value for name, value in zip(header, values, strict=True) if value or name in _TEXTS}


def _parquet(
    make: _Maker, source: Input, batches: Iterable[tuple[int, float, list[dict[str, Any]]]], done: int
) -> Iterator[Record]:
    """Records of Parquet's batches: number of the first row, share of the file that is read then, the rows."""
    last = 0
    try:
        for first, share, rows in batches:
            end_byte = round(share * (source.size or 0))
            for number, columns in enumerate(rows, start=first):
                if number > done:
                    yield make.record(columns, number, end_byte)
            last = first + len(rows) - 1
    except InvalidInput as exc:
        yield make.bad(str(exc), last + 1, source.size or 0)
