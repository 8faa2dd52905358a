"""Chat logs in, rows out: JSON Lines and CSV, in UTF-8, one row in memory at a time.

::

    file ─▶ lines of bytes ─┬─▶ JSON Lines: one object a line ─┬─▶ Row | BadRow
                            └─▶ CSV with a header (RFC 4180)  ─┘

A file whose name ends in ``.csv`` is CSV, one in ``.jsonl``, ``.ndjson`` or ``.json`` is JSON Lines; any other is JSON
Lines where its first character is ``{``. Blank lines are not rows. A line longer than 64 MiB is a bad row.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from guardrail.errors import InvalidInput
from guardrail.logscan.rows import BadRow, Row, conversation_of, parse_json

__all__ = ["read_rows"]

# Bounds memory where a file has no line ends at all; the csv module's own limit, 128 KiB, is less than chats have.
_MAX_LINE_BYTES = 64 * 1024 * 1024

_TEXTS = ("text", "prompt", "response")

_BOM = b"\xef\xbb\xbf"


def read_rows(path: str | Path) -> Iterator[Row | BadRow]:
    """Reads a log file's rows, in order; every row is there, the unreadable ones as :class:`BadRow`.

    Args:
        path: A file, or anything that can be opened and read from its start to its end.

    Raises:
        OSError: If the file cannot be opened or read.
    """
    with open(path, "rb") as file:
        lines = _Lines(file)
        yield from (_csv_rows if _is_csv(Path(path), lines) else _jsonl_rows)(str(path), lines)


class _Lines:
    """The lines of a file with their numbers; an overlong one is None.

    Attributes:
        number: Of the line last read, from 1.
        end_byte: Bytes read so far.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._peeked: list[bytes | None] = []
        self.number = 0
        self.end_byte = 0

    def __iter__(self) -> Iterator[bytes | None]:
        return self

    def __next__(self) -> bytes | None:
        self.number += 1
        return self._peeked.pop() if self._peeked else self._read()

    def peek(self) -> bytes:
        """Returns the first line that is not blank, without using it up; ``b""`` where there is none."""
        try:
            while (line := self._read()) is not None and not line.strip():
                self.number += 1
        except StopIteration:
            return b""
        self._peeked.append(line)
        return line or b""

    def _read(self) -> bytes | None:
        is_first = self.end_byte == 0
        line = self._file.readline(_MAX_LINE_BYTES + 1)
        self.end_byte += len(line)
        if not line:
            raise StopIteration
        if len(line) > _MAX_LINE_BYTES and not line.endswith(b"\n"):
            while more := self._file.readline(_MAX_LINE_BYTES):
                self.end_byte += len(more)
                if more.endswith(b"\n"):
                    break
            return None
        return line.removeprefix(_BOM) if is_first else line


def _is_csv(path: Path, lines: _Lines) -> bool:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".jsonl", ".ndjson", ".json"):
        return suffix == ".csv"
    first = lines.peek()
    return bool(first) and not first.lstrip().startswith((b"{", b"["))


def _overlong() -> str:
    return f"expected a line of at most {_MAX_LINE_BYTES} bytes, got a longer one"


def _jsonl_rows(file: str, lines: _Lines) -> Iterator[Row | BadRow]:
    for line in lines:
        if line is not None and not line.strip():
            continue
        columns: dict[str, Any] = {}
        try:
            columns = _json_columns(line)
            error, conversation = "", conversation_of(columns)
        except InvalidInput as exc:
            error, conversation = str(exc), None
        row_id = _row_id(columns, file, lines.number)
        if conversation is None:
            yield BadRow(row_id, file, lines.number, lines.end_byte, error)
        else:
            yield Row(row_id, file, lines.number, lines.end_byte, conversation)


def _json_columns(line: bytes | None) -> dict[str, Any]:
    if line is None:
        raise InvalidInput(_overlong())
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidInput(f"not UTF-8: byte {exc.start + 1} of {len(line)} in the line") from exc
    columns = parse_json(text.rstrip("\r\n"))
    if not isinstance(columns, dict):
        raise InvalidInput(f"expected a JSON object in each line, got {type(columns).__name__}")
    return columns


def _csv_rows(file: str, lines: _Lines) -> Iterator[Row | BadRow]:
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
        conversation = None
        try:
            if not error:
                columns = _csv_columns(header, values)
                conversation = conversation_of(columns)
        except InvalidInput as exc:
            error = str(exc)
        row_id = _row_id(columns, file, before + 1)
        if conversation is None:
            yield BadRow(row_id, file, before + 1, lines.end_byte, error)
        else:
            yield Row(row_id, file, before + 1, lines.end_byte, conversation)


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


def _row_id(columns: dict[str, Any], file: str, line: int) -> Any:
    given = columns.get("id")
    return f"{file}:{line}" if given is None else given
