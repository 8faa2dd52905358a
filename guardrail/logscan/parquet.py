"""Parquet in and out, the one file that imports pyarrow for it.

In: the columns that a scan looks at, a batch of a row group at a time. Out: results as columns, converted from JSON
Lines when the scan is complete, because a Parquet file cannot be continued where it was cut off.

Columns of results: ``id`` (text; JSON where it is not), ``file``, ``line``, ``turn``, ``hash``, ``decision``,
``outcome``, ``rail``, ``categories`` (list of text), ``unsafe_probability``, ``scores`` (map of category to score),
``error``; and as JSON, for what is deeper: ``findings``, ``reasons``, ``policy``, ``verdicts``, ``fields``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guardrail.errors import GuardrailError, InvalidInput, MissingExtra
from guardrail.logscan.inputs import Stream
from guardrail.logscan.rows import COLUMNS, Layout

__all__ = ["count_rows", "read_batches", "require_pyarrow", "results_from_parquet", "results_to_parquet"]

_BATCH_ROWS = 1024
_OUT_ROWS = 8192
_JSON_COLUMNS = ("findings", "reasons", "policy", "verdicts", "fields")


def require_pyarrow() -> Any:
    """Returns pyarrow.

    Raises:
        MissingExtra: If it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as exc:
        raise MissingExtra("Parquet needs pyarrow: pip install 'guardrail[batch]'") from exc
    return pyarrow


def read_batches(
    stream: Stream, layout: Layout, *, after_row: int = 0
) -> Iterator[tuple[int, float, list[dict[str, Any]]]]:
    """Reads rows: number of the batch's first row, from 1; the share of the rows that is read with it; the rows.

    Args:
        stream: The open file.
        layout: Says which columns are needed.
        after_row: Row groups that end before or at this row are not read.

    Raises:
        InvalidInput: If the file is no Parquet, is damaged, or cannot be read in any order.
    """
    pa = require_pyarrow()
    if not stream.is_plain:
        raise InvalidInput("Parquet is read from a file that can seek: not from a pipe, and not compressed again")
    try:
        file = pa.parquet.ParquetFile(stream.file, pre_buffer=False)
        wanted = {*COLUMNS, *layout.keep, *([layout.text_field] if layout.text_field is not None else [])}
        names = [name for name in file.schema_arrow.names if name in wanted]
        total, first = file.metadata.num_rows, 1
        if not names:  # no rows of no columns: each is one in which nothing is to judge
            names = file.schema_arrow.names[:1]
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if first + count - 1 > after_row:
                number = first
                for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=names):
                    rows = [{name: _plain(value) for name, value in row.items()} for row in batch.to_pylist()]
                    yield number, (number + len(rows) - 1) / total, rows
                    number += len(rows)
            first += count
    except (pa.ArrowException, OSError) as exc:
        if isinstance(exc, OSError) and exc.errno is not None:
            raise
        raise InvalidInput("not Parquet, or damaged: nothing from here on could be read") from exc


def count_rows(stream: Stream) -> int:
    """Returns how many rows a file says it has; 0 for one that cannot be read, as its reader will say."""
    pa = require_pyarrow()
    try:
        return int(pa.parquet.ParquetFile(stream.file, pre_buffer=False).metadata.num_rows) if stream.is_plain else 0
    except pa.ArrowException:
        return 0


def results_from_parquet(path: str | Path) -> Iterator[dict[str, Any]]:
    """Reads results that :func:`results_to_parquet` wrote, as the scan's JSON says them.

    An id that is not text comes back as its JSON text.

    Raises:
        InvalidInput: If the file is damaged, or holds something else.
        OSError: If it cannot be opened or read.
    """
    pa = require_pyarrow()
    try:
        with pa.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                for columns in batch.to_pylist():
                    yield _result(columns)
    except (pa.ArrowException, KeyError, ValueError) as exc:
        raise InvalidInput(f"{path}: not the results of a scan, or damaged") from exc


def _result(columns: dict[str, Any]) -> dict[str, Any]:
    # What is null in JSON, and not left out there.
    null = {"decision", "turn", "hash", *(() if columns["decision"] is None else ("unsafe_probability",))}
    result = {name: value for name, value in columns.items() if value is not None or name in null}
    for name in _JSON_COLUMNS:
        if name in result:
            result[name] = json.loads(result[name])
    if "scores" in result:
        result["scores"] = dict(result["scores"])
    return result


def results_to_parquet(lines: Path, target: Path) -> None:
    """Converts results.

    Args:
        lines: JSON Lines, as the scan wrote them.
        target: Is replaced.

    Raises:
        GuardrailError: If the file cannot be written.
    """
    pa = require_pyarrow()
    text, number = pa.string(), pa.int64()
    schema = pa.schema(
        [
            *((name, text) for name in ("id", "file")),
            ("line", number),
            ("turn", pa.int32()),
            *((name, text) for name in ("hash", "decision", "outcome", "rail")),
            ("categories", pa.list_(text)),
            ("unsafe_probability", pa.float64()),
            ("scores", pa.map_(text, pa.float64())),
            ("error", text),
            *((name, text) for name in _JSON_COLUMNS),
        ]
    )
    try:
        with open(lines, "rb") as file, pa.parquet.ParquetWriter(target, schema, compression="zstd") as writer:
            rows: list[dict[str, Any]] = []
            for line in file:
                rows.append(_columns(json.loads(line)))
                if len(rows) == _OUT_ROWS:
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                    rows = []
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    except OSError as exc:
        raise GuardrailError(f"cannot write {target}: {exc.strerror or exc}; {lines} holds the results") from exc


def _columns(result: dict[str, Any]) -> dict[str, Any]:
    columns = dict(result)
    if not isinstance(columns["id"], str):
        columns["id"] = _json(columns["id"])
    # Arrow's text is UTF-8, which has no lone surrogates; an id of JSON can.
    columns["id"] = columns["id"].encode("utf-8", "backslashreplace").decode()
    if "scores" in columns:
        columns["scores"] = list(columns["scores"].items())
    for name in _JSON_COLUMNS:
        if name in columns:
            columns[name] = _json(columns[name])
    return columns


def _json(value: Any) -> str:
    return json.dumps(value)


def _plain(value: Any) -> Any:
    """What JSON can say of a cell: times and numbers that it does not know become text, and a NaN nothing."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, bytes):  # Old writers do not mark text as such.
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    return str(value)
