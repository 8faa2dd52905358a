r"""Read the code cells of a Jupyter notebook: its JSON -> one block of code with the place of each line.

The form is nbformat 4 (https://nbformat.readthedocs.io): ``cells``, each with ``cell_type`` and ``source``, which is a
string or a list of them; the language is that of the metadata, else Python. The JSON is read by a scanner that keeps
places, stands any depth, and gives what it has where the text ends early.

The cells are one program and become one block. A line of a magic (``%x``, ``!x``) becomes a comment of the same length;
shell commands (``!x``, ``%%bash`` cells) are a block of bash, and ``%%html`` and its like one of their language. A line
starts at its first character in the JSON string; after an escape in it columns are too small by what the escape is
longer.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate

from guardrail.language import LANGUAGES, canonical_language
from guardrail.verdict import CodeBlock, Span

__all__ = ["notebook_code"]

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}:,]', re.DOTALL)
_BREAK = re.compile(r"\\(.)|\r\n|\r|\n", re.DOTALL)
_MAGIC = re.compile(r"([ \t]*)([!%])(?=[\w%!(./~-])")
_CELL_MAGIC = re.compile(r"%%(?:script +)?(\w+)")
_PATH_DEPTH = 4  # cells / number / source / number


@dataclass
class _Cell:
    """A cell as it is read; lines with their offsets in the JSON."""

    kind: str = ""
    lines: list[tuple[str, int]] = field(default_factory=list)
    is_open: bool = False  # the last line had no line end, so the next string goes on with it


@dataclass
class _Code:
    """Lines of one language from any number of cells."""

    lines: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    def add(self, line: str, start: int) -> None:
        self.lines.append(line)
        self.starts.append(start)


def notebook_code(block: CodeBlock) -> list[CodeBlock] | None:
    """Returns the code of a notebook.

    Args:
        block: Its JSON.

    Returns:
        A block for each language, in order of their first lines; None where the JSON is no notebook with code.
    """
    cells, language = _read(block.code)
    codes: dict[str, _Code] = {}
    for cell in cells:
        if cell.kind == "code":
            _sort(cell, language, codes)
    offsets = [0, *accumulate(len(line) + 1 for line in block.code.split("\n"))]

    def place(offset: int) -> int:
        line = bisect_right(offsets, offset) - 1
        return min(block.line_starts[min(line, len(block.line_starts) - 1)] + offset - offsets[line], block.span.end)

    blocks = []
    for name, code in codes.items():
        if any(line.strip() for line in code.lines):
            starts = tuple(place(start) for start in code.starts)
            blocks.append(CodeBlock("\n".join(code.lines), name, Span(starts[0], block.span.end), starts))
    blocks.sort(key=lambda found: found.span.start)
    return blocks or None


def _sort(cell: _Cell, language: str, codes: dict[str, _Code]) -> None:
    """Puts a cell's lines to the code of their languages."""
    first = _CELL_MAGIC.match(cell.lines[0][0]) if cell.lines else None
    named = canonical_language(first[1]) if first else None
    if named in LANGUAGES and named != language:
        code = codes.setdefault(named, _Code())
        for line, start in cell.lines[1:]:
            code.add(line, start)
        return
    code = codes.setdefault(language, _Code())
    for line, start in cell.lines:
        magic = _MAGIC.match(line)
        if magic is None:
            code.add(line, start)
            continue
        code.add(f"{magic[1]}#{line[magic.end() :]}", start)
        if magic[2] == "!":
            codes.setdefault("bash", _Code()).add(line[magic.end() :], start + magic.end())


def _read(text: str) -> tuple[list[_Cell], str]:
    """Returns the cells of a notebook, and its language."""
    cells: list[_Cell] = []
    language = "python"
    path: list[str | int] = []  # for each open object its key, for each open list the number of the element
    wants_key = False
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark in "{[":
            path.append("" if mark == "{" else 0)
            wants_key = mark == "{"
            if len(path) == 3 and path[0] == "cells" and mark == "{":
                cells.append(_Cell())
        elif mark in "}]":
            if path:
                path.pop()
            wants_key = False
        elif mark == ",":
            if path and isinstance(path[-1], int):
                path[-1] += 1
            wants_key = bool(path) and isinstance(path[-1], str)
        elif mark == ":":
            wants_key = False
        elif len(path) <= _PATH_DEPTH and path:
            if wants_key:
                path[-1] = mark[1:-1]
            elif cells and path[0] == "cells" and len(path) in (3, 4) and path[2] == "source":
                _add_source(cells[-1], text, token.start() + 1, token.end() - mark[1:].endswith('"'))
            elif cells and path[0] == "cells" and len(path) == 3 and path[2] == "cell_type":
                cells[-1].kind = mark[1:-1]
            elif path in (["metadata", "kernelspec", "language"], ["metadata", "language_info", "name"]):
                language = canonical_language(mark[1:-1]) or language
    return cells, language


def _add_source(cell: _Cell, text: str, start: int, end: int) -> None:
    """Adds the lines of a JSON string, which stands at these offsets."""
    at = start
    for found in _BREAK.finditer(text, start, end):
        if found[1] is None or found[1] == "n":
            _add_line(cell, text[at : found.start()], at)
            cell.is_open = False
            at = found.end()
    if at < end:
        _add_line(cell, text[at:end], at)
        cell.is_open = True


def _add_line(cell: _Cell, raw: str, start: int) -> None:
    line = raw
    if "\\" in raw:
        try:
            line = json.loads(f'"{raw}"', strict=False).replace("\n", " ").replace("\r", "")
        except ValueError:
            line = raw
    if cell.is_open:
        before, first = cell.lines.pop()
        line, start = before + line, first
    cell.lines.append((line, start))
