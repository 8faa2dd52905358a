"""Labelled JSON Lines in, rows to judge out; UTF-8, one object a line.

::

    file ─▶ lines ─▶ columns ─▶ LabelledRow | BadRow

==============  ====================================================================================================
``text``        The message to judge; must be there and not be empty
``unsafe``      ``true``, ``false``, or ``null`` where nobody knows; must be there
``role``        Who wrote the text: ``user`` (default) or ``assistant``
``prompt``      The user message that an assistant's text answers, or ``null``
``categories``  A list of Llama Guard 2's codes (``S1`` to ``S11``) or names of categories (``hate``), or ``null``
``id``          A string or a whole number; default ``<set>:<line>``
``lang``        The text's language, kept as it is
``source``      Where the row comes from, kept as it is
==============  ====================================================================================================

``null`` counts as not there, and a column that the table does not know is not read. A row that does not fit is a
:class:`BadRow` with file and line; its error names what was expected, never the text. Blank lines are not rows.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.errors import InvalidInput
from guardrail.logscan.rows import conversation_of, parse_json
from guardrail.taxonomy import LLAMA_GUARD_2, HazardCategory
from guardrail.verdict import Conversation

__all__ = ["BadRow", "LabelledRow", "LabelledSet", "read_sets"]


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """A row that can be judged.

    Attributes:
        id: The row's own, or ``<set>:<line>``.
        line: Where it stands in the file, from 1.
        conversation: Its last message is judged.
        is_unsafe: The label; None where nobody knows.
        categories: What it is about if it is unsafe; empty where nobody said.
        lang: The text's language, ``""`` where nobody said.
        source: Where it comes from, ``""`` where nobody said.
    """

    id: str
    line: int
    conversation: Conversation
    is_unsafe: bool | None
    categories: tuple[HazardCategory, ...]
    lang: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is not one.

    Attributes:
        file: The file as it was given.
        line: From 1.
        error: What was expected and what came; never the row's text.
    """

    file: str
    line: int
    error: str


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """One file of labelled rows.

    Attributes:
        name: The file's name without its ending; with ``-2`` and so on where files share it.
        file: The file as it was given.
        sha256: Of its bytes, in hex.
        rows: Those that can be judged, in order.
        bad_rows: Those that cannot.
    """

    name: str
    file: str
    sha256: str
    rows: tuple[LabelledRow, ...]
    bad_rows: tuple[BadRow, ...]


def read_sets(paths: Sequence[str | Path]) -> list[LabelledSet]:
    """Reads labelled files, each into one set.

    Raises:
        OSError: If a file cannot be read.
    """
    sets: list[LabelledSet] = []
    names: set[str] = set()
    for path in paths:
        stem, number = Path(path).stem or "set", 1
        name = stem
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names.add(name)
        sets.append(_read_set(Path(path), name))
    return sets


def _read_set(path: Path, name: str) -> LabelledSet:
    data = path.read_bytes()
    rows: list[LabelledRow] = []
    bad: list[BadRow] = []
    for line, raw in _lines(data):
        try:
            rows.append(_row(_columns(raw), name, line))
        except InvalidInput as exc:
            bad.append(BadRow(str(path), line, str(exc)))
    return LabelledSet(name, str(path), hashlib.sha256(data).hexdigest(), tuple(rows), tuple(bad))


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    # Not splitlines(): a text may hold U+2028, and JSON Lines end with a line feed alone.
    for number, line in enumerate(io.BytesIO(data.removeprefix(b"\xef\xbb\xbf")), start=1):
        if line.strip():
            yield number, line


def _columns(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidInput(f"not UTF-8: byte {exc.start + 1} of {len(line)} in the line") from exc
    columns = parse_json(text.rstrip("\r\n"))
    if not isinstance(columns, dict):
        raise InvalidInput(f"expected a JSON object in each line, got {type(columns).__name__}")
    return columns


def _row(columns: Mapping[str, Any], name: str, line: int) -> LabelledRow:
    text = columns.get("text")
    if not isinstance(text, str) or not text.strip():
        got = "an empty one" if isinstance(text, str) else type(text).__name__
        raise InvalidInput(f"text: expected the text to judge, got {got}")
    if "unsafe" not in columns:
        raise InvalidInput("unsafe: expected true, false or null, got no such column")
    is_unsafe = columns["unsafe"]
    if is_unsafe is not None and not isinstance(is_unsafe, bool):
        raise InvalidInput(f"unsafe: expected true, false or null, got {type(is_unsafe).__name__}")
    conversation = conversation_of({key: columns.get(key) for key in ("text", "role", "prompt")})
    return LabelledRow(
        id=_id(columns.get("id"), name, line),
        line=line,
        conversation=conversation,
        is_unsafe=is_unsafe,
        categories=_categories(columns.get("categories")),
        lang=_word(columns, "lang"),
        source=_word(columns, "source"),
    )


def _id(value: Any, name: str, line: int) -> str:
    if value is None:
        return f"{name}:{line}"
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InvalidInput(f"id: expected a string or a whole number, got {type(value).__name__}")
    return str(value)


def _categories(value: Any) -> tuple[HazardCategory, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InvalidInput(f"categories: expected a list, got {type(value).__name__}")
    names = {category.value: category for category in HazardCategory}
    found: list[HazardCategory] = []
    for number, item in enumerate(value, start=1):
        # The model's name is part of the promise: Llama Guard 3 writes the same codes for other categories.
        category = (LLAMA_GUARD_2.get(item) or names.get(item)) if isinstance(item, str) else None
        if category is None:
            raise InvalidInput(
                f"categories: item {number} of {len(value)} is neither a code of Llama Guard 2 (S1 to S11) nor the "
                "name of a category"
            )
        found.append(category)
    return tuple(dict.fromkeys(found))


def _word(columns: Mapping[str, Any], name: str) -> str:
    value = columns.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidInput(f"{name}: expected a string, got {type(value).__name__}")
    return value
