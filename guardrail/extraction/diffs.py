r"""Read the new code out of a unified diff: for each file the added and the context lines, with their places.

The form is that of ``diff -u`` and ``git diff`` (https://www.gnu.org/software/diffutils/manual/html_node/Detailed-Unified.html).
Models write it loosely: counts that are wrong, no header, context without its space, ``+ x`` for ``+x``. In a block
that is labelled a diff all of that is read; as it stands in a message a diff needs its two file lines and a hunk, and
its counts say where it ends.

The language is that of the file's name, else what the code looks like, else ``diff``: data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from guardrail.language import LANGUAGES, canonical_language, guess_language
from guardrail.verdict import CodeBlock, Span

__all__ = ["find_diffs", "new_code"]

_RAW_START = re.compile(r"^--- [^\r\n]*\r?\n\+\+\+ [^\r\n]*\r?\n(?=@@ -\d)", re.MULTILINE)
_HUNK = re.compile(r"@@ -\d{1,9}(?:,(\d{1,9}))? \+\d{1,9}(?:,(\d{1,9}))? @@")
_HEADERS = (
    *("diff --git ", "index ", "new file mode ", "deleted file mode ", "old mode ", "new mode ", "similarity index "),
    *("rename from ", "rename to ", "Binary files ", "Index: ", "==="),
)
_LINE = re.compile(r"([^\r\n]*)(\r\n|\r|\n|\Z)")


@dataclass
class _File:
    """The new lines of one file: ``lines`` with ``starts``, their places in the message."""

    name: str = ""
    lines: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)


def new_code(block: CodeBlock) -> list[CodeBlock]:
    """Returns the new code of a block that is a diff: one block a file; none where nothing is new."""
    return _blocks(_split(block.code.split("\n"), list(block.line_starts)), block.span.end)


def find_diffs(text: str, fences: list[tuple[int, int]]) -> list[CodeBlock]:
    """Finds diffs that stand in a message without a fence.

    Args:
        text: The message.
        fences: Places of fenced code, in order: a diff neither starts inside one nor goes on past its start.

    Returns:
        One block a file.
    """
    if "@@ -" not in text or "+++ " not in text:
        return []
    found: list[CodeBlock] = []
    end = index = 0
    for match in _RAW_START.finditer(text):
        start = match.start()
        while index < len(fences) and fences[index][1] <= start:
            index += 1
        limit = fences[index][0] if index < len(fences) else len(text)
        if start < end or start >= limit:
            continue
        lines, starts, end = _raw_lines(text, start, limit)
        found += _blocks(_split(lines, starts), end)
    return found


def _raw_lines(text: str, start: int, limit: int) -> tuple[list[str], list[int], int]:
    """Returns the lines of the diff that starts here, with their places, and where it ends."""
    lines: list[str] = []
    starts: list[int] = []
    old = new = 0
    pos = end = start
    while pos < limit:
        match = _LINE.match(text, pos)
        assert match is not None
        line = match[1]
        hunk = _HUNK.match(line)
        if hunk is not None:
            old, new = (1 if count is None else int(count) for count in hunk.groups())
        elif old > 0 or new > 0:
            if line[:1] not in ("", " ", "+", "-", "\\"):
                break
            old -= line[:1] in ("", " ", "-")
            new -= line[:1] in ("", " ", "+")
        elif not line.startswith((*_HEADERS, "--- ", "+++ ", "\\ ")):
            break
        lines.append(line)
        starts.append(pos)
        end = match.end(1)
        pos = match.end()
    return lines, starts, end


def _split(lines: list[str], starts: list[int]) -> list[_File]:
    """Sorts the lines of a diff by their files; old lines and headers are dropped."""
    files = [_File()]
    for i, (line, start) in enumerate(zip(lines, starts, strict=True)):
        if line.startswith("--- ") and i + 1 < len(lines) and lines[i + 1].startswith("+++ "):
            files.append(_File(_name(line)))
        elif line.startswith("+++ ") and i and lines[i - 1].startswith("--- "):
            name = _name(line)
            files[-1].name = name if name != "/dev/null" else files[-1].name
        elif not line.startswith(("-", "\\", "@@ ", *_HEADERS)):
            kept = line[:1] in ("+", " ")
            files[-1].lines.append(line[1:] if kept else line)
            files[-1].starts.append(start + kept)
    return files


def _name(line: str) -> str:
    return line[4:].split("\t")[0].strip().removeprefix("a/").removeprefix("b/")


def _blocks(files: list[_File], end: int) -> list[CodeBlock]:
    files = [file for file in files if any(line.strip() for line in file.lines)]
    blocks = []
    for i, file in enumerate(files):
        lines, starts = file.lines, file.starts
        if all(line[:1] in ("", " ") for line in lines):  # "+ x" for "+x"
            starts = [start + (line[:1] == " ") for line, start in zip(lines, starts, strict=True)]
            lines = [line[1:] for line in lines]
        code = "\n".join(lines)
        # The last one reaches to the end of the diff: what is still being written is one block with it.
        stop = end if i == len(files) - 1 else starts[-1] + len(lines[-1])
        language = _language(file.name) or guess_language(code) or "diff"
        blocks.append(CodeBlock(code, language, Span(starts[0], max(stop, starts[0])), tuple(starts)))
    return blocks


def _language(path: str) -> str | None:
    name = path.rpartition("/")[2].lower()
    if name.startswith(("dockerfile", "containerfile")):
        return "dockerfile"
    language = canonical_language(name.rpartition(".")[2]) if "." in name else None
    return language if language in LANGUAGES else None
