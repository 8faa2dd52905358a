"""Scan code blocks with semgrep: code blocks -> findings, or why a block was not read to its end.

Semgrep fails quietly: it skips files, drops what its parsers do not understand, exits 0 having looked at nothing. *A
run that scanned nothing must never read as clean*, so a block is verified only when semgrep says that it scanned it,
the canary written behind it was found, and nothing was lost in parsing (:mod:`guardrail.shield.report`).

A block that fails is scanned once more with its variants (:mod:`guardrail.shield.targets`); the first one that passes
counts, and what any reading of the block found is kept: a repair may not talk a finding away. What still fails becomes
a :class:`~guardrail.shield.PartialScan` with the findings of the part that was understood.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from guardrail.errors import ScanError
from guardrail.shield import PartialScan
from guardrail.shield.install import find_semgrep, read_version
from guardrail.shield.oneshot import scan_files
from guardrail.shield.report import Hit, Result, Run, in_order, judge
from guardrail.shield.rulebook import RULES, Rulebook
from guardrail.shield.targets import Target, encode, make_targets
from guardrail.verdict import CodeBlock, Finding, Span

__all__ = ["SemgrepScanner"]

_CACHE_SIZE = 4096
# A block takes about 2 ms beside others; a log scan sends hundreds at once.
_BLOCK_S = 0.1


class SemgrepScanner:
    """Scans code blocks with semgrep; implements ``CodeScanner``.

    Safe to use from any thread and any event loop; at most two semgrep processes run at a time.

    Args:
        executable: A ``semgrep`` command, or a folder that ``pip install --target`` filled; None looks for the
            installed package, then on ``PATH``.
        rules: The rules; None for those of this package.
        timeout_s: Seconds for one call of :meth:`scan`, waiting for its turn included; each block adds a tenth of one.
        every_rule: Whether a finding is kept where a weightier one names the same weakness at the same place.

    Raises:
        MissingExtra: If semgrep is not installed.
    """

    def __init__(
        self,
        *,
        executable: str | None = None,
        rules: Rulebook | None = None,
        timeout_s: float = 30.0,
        every_rule: bool = False,
    ) -> None:
        self._core = find_semgrep(executable)
        self._version: str | None = None
        self._timeout_s = timeout_s
        self._every_rule = every_rule
        self._rulebook = rules or Rulebook.load(RULES)
        self.languages = self._rulebook.languages
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[str, str], Result] = OrderedDict()  # guarded by _lock
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="guardrail-semgrep")

    @property
    def revision(self) -> str:
        """Hash of the rules and semgrep's version, e.g. ``"rules-1f0c9a3b2d4e+semgrep-1.182.0"``."""
        if self._version is None:
            self._version = read_version(self._core)
        return f"rules-{self._rulebook.digest[:12]}+semgrep-{self._version}"

    async def scan(self, blocks: Sequence[CodeBlock]) -> list[list[Finding] | ScanError]:
        """Examines each block; result i belongs to block i.

        Args:
            blocks: Blocks with a language of :attr:`languages`; any other gets a ``ScanError``.

        Returns:
            For each block its findings in order of place, or why it was not scanned to its end.
        """
        if not blocks:
            return []
        cancelled = threading.Event()
        limit_s = self._timeout_s + _BLOCK_S * len(blocks)
        future = self._pool.submit(self._scan_blocking, list(blocks), time.monotonic() + limit_s, cancelled)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    # -- everything below runs in a thread of the pool

    def _scan_blocking(
        self, blocks: list[CodeBlock], deadline: float, cancelled: threading.Event
    ) -> list[list[Finding] | ScanError]:
        keys = [(block.language or "", hashlib.sha256(encode(block.code)).hexdigest()) for block in blocks]
        results: dict[tuple[str, str], Result] = {}
        missing: dict[tuple[str, str], CodeBlock] = {}
        with self._lock:
            for key, block in zip(keys, blocks, strict=True):
                if key in self._cache:
                    self._cache.move_to_end(key)
                    results[key] = self._cache[key]
                elif block.language not in self.languages:
                    results[key] = Result(failure="there are no rules for its language")
                else:
                    missing[key] = block
        if missing:
            fresh, lasting = self._examine(list(missing.values()), deadline, cancelled)
            with self._lock:
                for key, result, is_lasting in zip(missing, fresh, lasting, strict=True):
                    results[key] = result
                    if is_lasting:
                        self._cache[key] = result
                while len(self._cache) > _CACHE_SIZE:
                    self._cache.popitem(last=False)
        return [self._for_block(block, results[key]) for key, block in zip(keys, blocks, strict=True)]

    def _examine(
        self, blocks: list[CodeBlock], deadline: float, cancelled: threading.Event
    ) -> tuple[list[Result], list[bool]]:
        """Scans code, then the variants of what failed; also says which results would be the same next time."""
        rules = self._rulebook.rules
        first = [make_targets(block, f"a{i}x") for i, block in enumerate(blocks)]
        run = self._run([targets[0] for targets in first], deadline, cancelled)
        results = [judge(run, targets[0], blocks[i].code, rules) for i, targets in enumerate(first)]
        again = [i for i, result in enumerate(results) if result.failure and first[i][0].name not in run.failed]
        variants = [target for i in again for target in first[i][1:]]
        retry = self._run(variants, deadline, cancelled) if variants else Run()
        for i in again:
            # What any reading of the block found is kept: a repair may not talk a finding away.
            hits, failure = set(results[i].hits), results[i].failure
            for target in first[i][1:]:
                result = judge(retry, target, blocks[i].code, rules)
                hits.update(result.hits)
                if not result.failure:
                    failure = ""
                    break
            results[i] = Result(tuple(sorted(hits, key=in_order)), failure)
        lost = set(run.failed) | set(retry.failed)
        return results, [not any(target.name in lost for target in targets) for targets in first]

    def _run(self, targets: Sequence[Target], deadline: float, cancelled: threading.Event) -> Run:
        return scan_files(self._core, self._rulebook, targets, deadline=deadline, cancelled=cancelled)

    def _for_block(self, block: CodeBlock, result: Result) -> list[Finding] | ScanError:
        findings = list(self._findings(block, result.hits))
        if not result.failure:
            return findings
        return PartialScan(f"a block of {len(block.code)} characters ({block.language}): {result.failure}", findings)

    def _findings(self, block: CodeBlock, hits: Sequence[Hit]) -> Iterable[Finding]:
        starts = [0]
        for text in block.code.split("\n"):
            starts.append(starts[-1] + len(text) + 1)
        places = [(hit, self._rulebook.rules[hit.rule_id], *_line_column(starts, hit.start)) for hit in hits]
        for hit, rule, line, column in places:
            # The weightiest of the rules that name one weakness at one place speaks for it.
            if not self._every_rule and any(
                on == line and hit.start < other.end and other.start < hit.end and their.cwe == rule.cwe
                for other, their, on, _ in places
                if their.rank > rule.rank
            ):
                continue
            start = block.message_offset(line, column)
            end = block.message_offset(*_line_column(starts, hit.end))
            yield Finding(
                rule.id,
                rule.cwe,
                rule.severity,
                Span(start, max(start, end)),
                line,
                column,
                block.language or "",
                hit.message,
                rule.confidence,
                rule.fix,
            )


def _line_column(starts: list[int], offset: int) -> tuple[int, int]:
    line = min(bisect_right(starts, offset), len(starts) - 1)
    return line, offset - starts[line - 1] + 1
