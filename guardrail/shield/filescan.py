"""Scan the code of files: ``SourceFile`` values -> findings with their places in the files, and what was not scanned.

Files go to the scanner in chunks, two at a time, which is as many processes as it runs; memory holds those alone.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TypeAlias

from guardrail.errors import ScanError
from guardrail.protocols import CodeScanner
from guardrail.shield import PartialScan
from guardrail.shield.files import NotScanned, SourceFile, Why
from guardrail.verdict import CodeBlock, Finding

__all__ = ["FileFinding", "FileScan", "scan_sources"]

_CHUNK_BLOCKS, _CHUNK_CHARS = 64, 500_000
_CHUNKS_AT_ONCE = 2

_Chunk: TypeAlias = "list[tuple[SourceFile, CodeBlock]]"


@dataclass(frozen=True, slots=True)
class FileFinding:
    """A finding in a file.

    Attributes:
        path: The file, as the user would write it.
        finding: Its line, column and span are those of the file, not of the code block.
        end_line: Line of its end, from 1.
        end_column: Column behind its end, from 1, in code points.
        source_line: The file's line that it starts in.
    """

    path: str
    finding: Finding
    end_line: int
    end_column: int
    source_line: str


@dataclass
class FileScan:
    """What a scan found, in order of the files.

    Attributes:
        findings: In order of their places.
        not_scanned: What was left out, and what could not be scanned to its end (``Why.FAILED``).
        files: How many files were scanned, those without code in them included.
        blocks: How many code blocks they held, by language.
    """

    findings: list[FileFinding] = field(default_factory=list)
    not_scanned: list[NotScanned] = field(default_factory=list)
    files: int = 0
    blocks: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> list[NotScanned]:
        """What was to be scanned, and could not be to its end."""
        return [each for each in self.not_scanned if each.why is Why.FAILED]


async def scan_sources(found: Iterable[SourceFile | NotScanned], scanner: CodeScanner) -> FileScan:
    """Scans files.

    Args:
        found: Files, and what is known not to be scanned.
        scanner: Has rules for the languages of the files' blocks.

    Raises:
        ScanError: If the scanner answers for another number of blocks.
    """
    scan = FileScan()
    pending: deque[tuple[_Chunk, asyncio.Task[list[list[Finding] | ScanError]]]] = deque()
    try:
        for chunk in _chunks(found, scan):
            if len(pending) == _CHUNKS_AT_ONCE:
                await _take(scan, pending)
            pending.append((chunk, asyncio.create_task(_scan(scanner, chunk))))
        while pending:
            await _take(scan, pending)
    finally:
        for _, task in pending:
            task.cancel()
    return scan


async def _scan(scanner: CodeScanner, chunk: _Chunk) -> list[list[Finding] | ScanError]:
    return list(await scanner.scan([block for _, block in chunk]))


async def _take(scan: FileScan, pending: deque[tuple[_Chunk, asyncio.Task[list[list[Finding] | ScanError]]]]) -> None:
    """Adds what was found in the chunk that was sent first."""
    chunk, task = pending[0]
    results = await task
    pending.popleft()
    if len(results) != len(chunk):
        raise ScanError(f"expected results for {len(chunk)} blocks, got {len(results)}")
    pairs = zip(chunk, results, strict=True)
    for _, group in groupby(pairs, key=lambda pair: id(pair[0][0])):
        _add(scan, [(file, block, result) for (file, block), result in group])


def _chunks(found: Iterable[SourceFile | NotScanned], scan: FileScan) -> Iterator[_Chunk]:
    """Yields the blocks of whole files; counts what passes by."""
    chunk: _Chunk = []
    size = 0
    for each in found:
        if isinstance(each, NotScanned):
            scan.not_scanned.append(each)
            continue
        scan.files += 1
        scan.blocks.update(block.language or "" for block in each.blocks)
        chunk += [(each, block) for block in each.blocks]
        size += sum(len(block.code) for block in each.blocks)
        if len(chunk) >= _CHUNK_BLOCKS or size >= _CHUNK_CHARS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _add(scan: FileScan, results: list[tuple[SourceFile, CodeBlock, list[Finding] | ScanError]]) -> None:
    """Adds what was found in one file."""
    file = results[0][0]
    starts = [0]
    while (end := file.text.find("\n", starts[-1])) >= 0:
        starts.append(end + 1)
    for _, block, result in results:
        findings: Iterable[Finding] = ()
        if isinstance(result, ScanError):
            is_all = block.span.start == 0 and block.span.end == len(file.text)
            line = 0 if is_all else _place(starts, block.span.start)[0]
            scan.not_scanned.append(NotScanned(file.path, Why.FAILED, str(result), line))
            findings = result.findings if isinstance(result, PartialScan) else ()
        else:
            findings = result
        for finding in findings:
            line, column = _place(starts, finding.span.start)
            end_line, end_column = _place(starts, finding.span.end)
            text = file.text[starts[line - 1] :].split("\n", 1)[0].rstrip("\r")
            placed = replace(finding, line=line, column=column)
            scan.findings.append(FileFinding(file.path, placed, end_line, end_column, text))


def _place(starts: list[int], offset: int) -> tuple[int, int]:
    line = bisect_right(starts, offset)
    return line, offset - starts[line - 1] + 1
