"""Lines of logs and of results go through a quick parser, and through ``json`` where that one gives up: both agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.errors import InvalidInput
from guardrail.logscan import BadRow, read_rows
from guardrail.logscan.rows import parse_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=6),  # lone surrogates too
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)

# Of which lines are made that are nearly JSON.
PIECES = [
    *(b"{", b"}", b"[", b"]", b":", b",", b'"a"', b'"', b"\\", b" ", b"\n", b"\xff", b"\xc3\xa9", b"\xed\xa0\x80"),
    *(b"1", b"-0", b"01", b"1e400", b"123456789012345678901234567890", b"0.1", b"NaN", b"Infinity", b"-Infinity"),
    *(b"null", b"true", b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\u0000"', b'{"a":1,"a":2}', b"\xef\xbb\xbf", b"\0"),
]


def no_constant(name: str) -> NoReturn:
    raise ValueError(name)


@given(VALUES, st.booleans())
def test_what_json_wrote_comes_back(value: Any, is_ascii: bool) -> None:
    """Huge numbers to their last digit, and lone surrogates, which come as escapes."""
    line = json.dumps(value, ensure_ascii=is_ascii).encode("utf-8", "backslashreplace")
    read = parse_json(line + b"\r\n")
    assert repr(read) == repr(json.loads(line))


@given(st.binary(max_size=12) | st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join))
def test_any_line_is_what_json_says_or_an_error_of_ours(line: bytes) -> None:
    """What is no JSON raises the one error that makes a bad row; the rest is what ``json`` reads."""
    try:
        expected = json.loads(line.decode("utf-8"), parse_constant=no_constant)
    except ValueError:
        with pytest.raises(InvalidInput):
            parse_json(line)
    else:
        assert repr(parse_json(line)) == repr(expected)


@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=6).map(b"".join), max_size=6))
def test_every_line_that_is_not_blank_is_a_row(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    """Good or bad, each is there once, in order, with its number and the place where it ends."""
    content = b"\n".join([b'{"text": "first"}', *(line.replace(b"\n", b" ") for line in lines), b'{"text": "last"}'])
    path = tmp_path_factory.mktemp("logs") / "log.jsonl"
    path.write_bytes(content)
    rows = list(read_rows(path))
    given_lines = content.split(b"\n")
    assert [row.line for row in rows] == [n for n, line in enumerate(given_lines, start=1) if line.strip()]
    for row in rows:
        assert row.end_byte == min(len(b"\n".join(given_lines[: row.line])) + 1, len(content))
        assert isinstance(row, BadRow) or row.line in (1, len(given_lines))
    assert Path(rows[0].file) == path
