"""Results of a scan read back: JSON Lines, plain or gzipped, or Parquet, a row at a time.

A row is the ``dict`` that the scan wrote, decoded and no more: what replays or reports it reads the fields it needs.
Keys that are not known stay where they are. A line that is no result stops the reading, with its place: an answer about
half of a file would look like one about all of it.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from pydantic_core import from_json

from guardrail.errors import ConfigurationError, GuardrailError, InvalidInput

__all__ = ["at", "id_of", "log_place", "open_lines", "read_results", "replacing"]

_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_PARQUET = b"PAR1"

# Ids come from the log: long enough to find a row by, too short to be a text.
_ID_CHARS = 80


def read_results(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads a file of results, in order; each with its line number, from 1.

    Args:
        path: What ``guardrail scan --output`` wrote.

    Raises:
        ConfigurationError: If the file cannot be opened or read.
        InvalidInput: If a line is no result; the message gives the place.
    """
    if Path(path).is_dir():
        raise InvalidInput(f"{path} is a folder: name the files in it, e.g. {Path(path) / '*.parquet'}")
    if _is_parquet(path):
        from guardrail.logscan.parquet import results_from_parquet

        try:
            yield from enumerate(results_from_parquet(path), start=1)
        except OSError as exc:
            raise ConfigurationError(f"cannot read {path}: {exc.strerror or exc}") from exc
        return
    for number, line in open_lines(path):
        if line.isspace():
            continue
        try:
            row = _decode(line)
        except (ValueError, RecursionError) as exc:
            raise InvalidInput(
                f"{path}:{number}: not a result: not JSON; if the scan was interrupted, this is where it ended"
            ) from exc
        if not isinstance(row, dict) or "decision" not in row or "id" not in row:
            raise InvalidInput(f"{path}:{number}: not a result: expected an object with id and decision, got another")
        yield number, row


def _is_parquet(path: str | Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(_PARQUET)) == _PARQUET
    except OSError as exc:
        raise ConfigurationError(f"cannot read {path}: {exc.strerror or exc}") from exc


def open_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Reads a file's lines with their numbers, from 1; a gzipped one is known by its first bytes.

    Raises:
        ConfigurationError: If the file cannot be opened or read.
        InvalidInput: If it is a Parquet file.
    """
    try:
        with open(path, "rb") as file:
            head = file.peek(len(_PARQUET))[: len(_PARQUET)]
            if head.startswith(_PARQUET):
                raise InvalidInput(f"{path}: expected JSON Lines, plain or gzipped, got Parquet")
            lines = gzip.GzipFile(fileobj=file) if head.startswith(_GZIP) else file
            for number, line in enumerate(lines, start=1):
                yield number, line.removeprefix(_BOM) if number == 1 else line
    except (EOFError, zlib.error) as exc:
        raise ConfigurationError(f"cannot read {path}: the gzip stream ends too soon or is damaged") from exc
    except OSError as exc:
        raise ConfigurationError(f"cannot read {path}: {exc.strerror or exc}") from exc


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a file that takes its name when it is complete; gzipped where the name ends in ``.gz``.

    What is not a regular file, e.g. ``/dev/stdout``, is written directly.

    Raises:
        ConfigurationError: If the file cannot be created.
        GuardrailError: If it cannot be completed, e.g. because the disk is full.
    """
    target = Path(os.path.realpath(path))
    is_replaced = target.is_file() or not target.exists()
    writing_to = target.with_name(target.name + ".partial") if is_replaced else target
    try:
        raw = open(writing_to, "wb")  # noqa: SIM115  closed below, before it gets its name
    except OSError as exc:
        raise ConfigurationError(f"cannot write {writing_to}: {exc.strerror}") from exc
    try:
        with raw:
            if target.suffix == ".gz":
                # Without name and time, so that equal results are equal bytes.
                with gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as file:
                    yield file  # type: ignore[misc]
            else:
                yield raw
        if is_replaced:
            os.replace(writing_to, target)
    except OSError as exc:
        raise GuardrailError(f"cannot write {writing_to}: {exc.strerror}") from exc


def id_of(row: Mapping[str, Any]) -> str:
    """A row's id for people: shortened, whatever JSON value it is."""
    given = row["id"]
    text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    return text if len(text) <= _ID_CHARS else text[: _ID_CHARS - 1] + "…"


def log_place(row: Mapping[str, Any]) -> tuple[str, int] | None:
    """File and line of the log that a row came from; None where the result does not say."""
    file, line = row.get("file"), row.get("line")
    if isinstance(file, str) and type(line) is int and line > 0:
        return file, line
    if not isinstance(row["id"], str):
        return None
    # A row without an id of its own is called after its place.
    file, _, digits = row["id"].rpartition(":")
    return (file, int(digits)) if file and digits.isascii() and digits.isdigit() and len(digits) < 16 else None


def at(path: str | Path, number: int, row: Mapping[str, Any]) -> str:
    """Where to look for a row: ``file:line`` of the log, or of the results where those do not say."""
    file, line = log_place(row) or (path, number)
    return f"{file}:{line}"


def _decode(line: bytes) -> Any:
    try:
        # Pydantic's own parser: on lines of 1.6 kB three times as fast as the json module.
        return from_json(line, allow_inf_nan=False)
    except ValueError:
        # It refuses lone surrogates, which an id may hold; what is really no JSON fails again.
        return json.loads(line, parse_constant=_no_constant)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
