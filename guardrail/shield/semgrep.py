"""Scan code blocks with semgrep: code blocks -> findings, or why a block was not read to its end.

Semgrep fails quietly: it skips files, drops what its parsers do not understand, exits 0 having looked at nothing. *A
run that scanned nothing must never read as clean*, so a block is verified only when semgrep says that it scanned it,
the canary written behind it was found, and nothing was lost in parsing (:mod:`guardrail.shield.report`).

A block is scanned as a parser says that it will be understood (:mod:`guardrail.shield.likely`), then in its other
variants (:mod:`guardrail.shield.targets`); the first one that passes counts, and what any reading before it found is
kept: a repair may not talk a finding away. What still fails becomes a :class:`~guardrail.shield.PartialScan` with the
findings of the part that was understood.

From the second call on there are two shorter ways. A block in which no rule can match (:mod:`guardrail.shield.gate`) is
done; a few blocks at a time go to processes that keep running (:mod:`guardrail.shield.warm`). Both are started in the
background; until they are there, and for whatever they cannot do, a process is started for the call
(:mod:`guardrail.shield.oneshot`). All ways give the same result for the same code.

::

    blocks ─▶ remembered? ─▶ gate ─▶ warm ─▶ processes for many blocks ─▶ results
                                      └─ too long, or took too long ─▶ the slow lane: one process, one block

A block that is long or slow has a lane of its own and a few seconds in it, so that code which was written to hold up a
scanner holds up its own message alone: what is not understood by then is unverified, with what was found so far.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import Any

from guardrail.errors import ScanError
from guardrail.shield import PartialScan, TooSlow
from guardrail.shield.gate import Gate
from guardrail.shield.install import find_semgrep, read_version
from guardrail.shield.jobs import Job, grouped, like, long_ones
from guardrail.shield.oneshot import scan_files
from guardrail.shield.report import Hit, Result, Run, in_order, judge
from guardrail.shield.rulebook import RULES, Rule, Rulebook
from guardrail.shield.targets import Target, encode, likeliest_dialect, plain_text
from guardrail.shield.warm import MAX_BYTES, Worker, Workers
from guardrail.verdict import CodeBlock, Finding, Span

__all__ = ["SemgrepScanner"]

logger = logging.getLogger(__name__)

_CACHE_SIZE = 4096
_THREADS = 8  # they mostly wait for semgrep processes, of which there are few
_SLOW_S = 5.0  # of the slow lane, for a block of a few lines
_SLOW_CHARS_S = 20_000  # each so many characters of it have a second more
_MOST_FINDINGS = 500  # of a block; a block with more is not worth reading on
_FEW_BLOCKS = 16  # more of them are put in order of their rules and share the workers
_CORES = min(2, os.cpu_count() or 1)  # that are used
_LANES = 3  # one more than cores are used: while semgrep works for one, the next one is made ready
_ROUNDS = ((0, 1), (1, 4), (4, None))  # how many of a block's files are scanned together
_ONE_ROUND = ((0, None),)  # of a block of which a warm semgrep understood none
# A block takes about 2 ms beside others; a log scan sends hundreds at once.
_BLOCK_S = 0.1


class SemgrepScanner:
    """Scans code blocks with semgrep; implements ``CodeScanner``.

    Safe to use from any thread and any event loop; beside the workers at most five semgrep processes run at a time.

    Args:
        executable: A ``semgrep`` command, or a folder that ``pip install --target`` filled; None looks for the
            installed package, then on ``PATH``.
        rules: The rules; None for those of this package.
        timeout_s: Seconds for one call of :meth:`scan`, waiting for its turn included; each block adds a tenth of one.
            Below the 30 s of the default policy, so that one block out of time is not a whole check out of time.
        workers: Semgrep processes that are kept running, 100 MB each, and one more in reserve; None means one a core,
            at most two; 0 means none.
        every_rule: Whether a finding is kept where a weightier one names the same weakness at the same place.

    Raises:
        MissingExtra: If semgrep is not installed.
    """

    def __init__(
        self,
        *,
        executable: str | None = None,
        rules: Rulebook | None = None,
        timeout_s: float = 20.0,
        workers: int | None = None,
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
        self._size = _CORES if workers is None else workers
        self._pool = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="guardrail-semgrep")
        self._runs = ThreadPoolExecutor(max_workers=_LANES, thread_name_prefix="guardrail-semgrep-run")
        self._slow = ThreadPoolExecutor(max_workers=_CORES, thread_name_prefix="guardrail-semgrep-slow")
        self._calls = 0  # guarded by _lock
        self._gate: Gate | None = None
        self._workers: Workers | None = None
        self._warming: threading.Thread | None = None  # guarded by _lock

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
        deadline = time.monotonic() + self._timeout_s + _BLOCK_S * len(blocks)
        cancelled = threading.Event()
        keys = [(block.language or "", hashlib.sha256(encode(block.code)).hexdigest()) for block in blocks]
        results, missing = self._look_up(keys, blocks)
        try:
            if missing:
                results |= self._take(list(missing), await self._examine([*missing.values()], deadline, cancelled))
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return [self._for_block(block, results[key]) for key, block in zip(keys, blocks, strict=True)]

    def start(self, *, wait_s: float = 0.0) -> bool:
        """Starts what makes scans short, in the background; more calls only wait.

        Args:
            wait_s: How long to wait for it.

        Returns:
            Whether it is there.
        """
        deadline = time.monotonic() + wait_s
        self._start_warming().join(wait_s)
        workers = self._workers
        return workers is not None and workers.wait_until_ready(max(0.0, deadline - time.monotonic()))

    def _start_warming(self) -> threading.Thread:
        with self._lock:
            if self._warming is None:
                self._warming = threading.Thread(target=self._warm_up, name="guardrail-semgrep-warm-up", daemon=True)
                self._warming.start()
            return self._warming

    def close(self) -> None:
        """Ends the processes that are kept running; scans that come after it start their own."""
        with self._lock:
            self._size = 0
            workers, self._workers = self._workers, None
        if workers is not None:
            workers.close()

    def _warm_up(self) -> None:
        try:
            self._gate = Gate.load(self._core, self._rulebook)
        except ScanError as exc:
            logger.warning("every block goes through semgrep: %s", exc)
            return
        with self._lock:
            if self._size:
                self._workers = Workers(self._core, self._rulebook, size=self._size)

    async def _examine(self, blocks: list[CodeBlock], deadline: float, cancelled: threading.Event) -> list[Job]:
        """Scans code; long blocks of many beside the others, on one core, and on all once those are done."""
        jobs = [Job(block, f"a{i}x") for i, block in enumerate(blocks)]
        if len(jobs) > _FEW_BLOCKS:
            await self._in_pool(self._pass_gate, jobs, deadline)
            places = iter(long_ones(jobs))
            beside = asyncio.create_task(self._scan_long(jobs, places, deadline, cancelled))
            try:
                await self._in_pool(self._scan_quick, jobs, deadline, cancelled)
                await self._scan_on_all_cores(jobs, places, deadline, cancelled)
                await beside
            finally:
                beside.cancel()
        else:
            await self._in_pool(self._scan_few, jobs, deadline, cancelled)
        if left := long_ones(jobs):
            await self._scan_on_all_cores(jobs, iter(left), deadline, cancelled)
        return jobs

    async def _in_pool(self, work: Callable[..., None], *args: Any) -> None:
        await asyncio.wrap_future(self._pool.submit(work, *args))

    async def _scan_on_all_cores(
        self, jobs: list[Job], places: Iterator[int], deadline: float, cancelled: threading.Event
    ) -> None:
        """Has the blocks at some places scanned in the slow lane, as many at a time as there are cores."""
        lanes = [asyncio.create_task(self._scan_long(jobs, places, deadline, cancelled)) for _ in range(_CORES)]
        try:
            await asyncio.gather(*lanes)
        finally:
            for lane in lanes:
                lane.cancel()

    async def _scan_long(
        self, jobs: list[Job], places: Iterator[int], deadline: float, cancelled: threading.Event
    ) -> None:
        """Has the blocks at some places scanned in the slow lane, one after the other, so that callers take turns.

        Those who share an iterator share the work. At the deadline a block is unverified, with what was found so far.
        """
        for i in places:
            job = jobs[i]
            scan = self._slow.submit(self._scan_slow, job, deadline, cancelled)
            await asyncio.wait([asyncio.wrap_future(scan)], timeout=max(0.0, deadline - time.monotonic()))
            if scan.done():
                scan.result()
                continue
            scan.cancel()
            # A job of its own: the scan may still write to the other.
            jobs[i] = Job(job.block, job.stem, hits=set(job.hits), is_done=True, is_lost=True)

    def _look_up(
        self, keys: Sequence[tuple[str, str]], blocks: Sequence[CodeBlock]
    ) -> tuple[dict[tuple[str, str], Result], dict[tuple[str, str], CodeBlock]]:
        """Returns the results that are known, and one block for each that is not."""
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
            self._calls += bool(missing)
            is_first = self._calls <= 1
        if missing and not is_first:  # a program that scans once has no use for it
            self.start()
        return results, missing

    def _take(self, keys: Sequence[tuple[str, str]], jobs: Sequence[Job]) -> dict[tuple[str, str], Result]:
        """Returns the results of jobs, and remembers those that would be the same next time."""
        results = {
            key: Result(tuple(sorted(job.hits, key=in_order)), job.failure) for key, job in zip(keys, jobs, strict=True)
        }
        with self._lock:
            self._cache.update((key, results[key]) for key, job in zip(keys, jobs, strict=True) if not job.is_lost)
            while len(self._cache) > _CACHE_SIZE:
                self._cache.popitem(last=False)
        return results

    # -- everything below runs in a thread of a pool

    def _scan_few(self, jobs: list[Job], deadline: float, cancelled: threading.Event) -> None:
        self._pass_gate(jobs, deadline)
        self._scan_quick(jobs, deadline, cancelled)

    def _pass_gate(self, jobs: list[Job], deadline: float) -> None:
        """Has those done in which no rule can match, and tells the long from the others."""
        if len(jobs) > _FEW_BLOCKS:
            self._start_warming().join(max(0.0, deadline - time.monotonic()))  # the gate saves more than it costs
        for job in jobs:
            job.rule_ids = self._candidates(job.block)
            if job.rule_ids == []:
                job.pass_as(set())
            else:
                job.is_slow = len(encode(job.code)) > MAX_BYTES

    def _scan_quick(self, jobs: list[Job], deadline: float, cancelled: threading.Event) -> None:
        """Scans what is not long; what proves slow is left undone."""
        left = [job for job in jobs if not job.is_done and not job.is_slow]
        if len(left) <= _FEW_BLOCKS:
            self._scan_all_warm([left], deadline, cancelled)
        else:
            groups = iter([list(group) for _, group in groupby(sorted(left, key=like), key=like)])
            lane = partial(self._scan_all_warm, groups, deadline, cancelled, is_patient=True)
            lanes = [self._runs.submit(lane) for _ in range(_LANES)]
            for done in lanes:
                done.result()
        self._scan_apart([job for job in left if not job.is_done and not job.is_slow], deadline, cancelled)
        for job in left:
            self._excuse(job, deadline)
            job.is_done |= not job.is_slow

    def _scan_all_warm(
        self, groups: Iterable[list[Job]], deadline: float, cancelled: threading.Event, *, is_patient: bool = False
    ) -> None:
        """Scans groups of blocks one after the other; threads that share an iterator share the work."""
        for group in groups:
            for job in group:
                if not cancelled.is_set():
                    self._scan_warm(job, deadline, is_patient=is_patient)

    def _excuse(self, job: Job, deadline: float) -> None:
        """Clears a block that was not understood, and in which no rule can match however it reads."""
        if job.failure and not job.is_lost and job.rule_ids is None and self._is_beyond_rules(job.block, deadline):
            job.pass_as(set())

    def _scan_slow(self, job: Job, deadline: float, cancelled: threading.Event) -> None:
        """Scans one block by itself, within its time."""
        limit = min(deadline, time.monotonic() + _SLOW_S + len(job.code) / _SLOW_CHARS_S)
        job.choose_targets()
        for first, last in _ROUNDS:
            targets = job.targets[first:last]
            if not targets or job.is_done:
                continue
            try:
                run = self._run_files([job], targets, limit, cancelled)
            except TooSlow as exc:
                job.give_up(str(exc))
                break
            job.take(run, targets, self._rulebook.rules)
        self._excuse(job, deadline)

    def _is_beyond_rules(self, block: CodeBlock, deadline: float) -> bool:
        """Tells of a block that was not understood what the gate would have told before, had it been there."""
        self._start_warming().join(max(0.0, deadline - time.monotonic()))
        return self._candidates(block) == []

    def _candidates(self, block: CodeBlock) -> list[str] | None:
        """Returns the rules that can match a block; None while that cannot be told."""
        gate = self._gate
        return None if gate is None else sorted(gate.candidates(*plain_text(block)))

    def _scan_warm(self, job: Job, deadline: float, *, is_patient: bool = False) -> None:
        """Scans a block's files in turn until one is read as a whole; they are made while the rules load.

        Leaves the job undone where none was, unless a parser has told that none would be. A file that takes too long
        is slow in each of its forms: the rest is for the slow lane.
        """
        workers = self._workers
        if workers is None or job.rule_ids is None:
            return
        try:
            with workers.lease(likeliest_dialect(job.block), job.rule_ids, is_patient=is_patient) as worker:
                if worker is not None:
                    job.choose_targets()
                    self._read_whole(job, worker, deadline)
        except TooSlow:
            job.is_slow = True
        except ScanError:
            return  # the worker is replaced, and a process is started for the block

    def _read_whole(self, job: Job, worker: Worker, deadline: float) -> None:
        hits: set[Hit] = set()
        for target in job.targets:
            if len(encode(target.text)) > MAX_BYTES or time.monotonic() > deadline:
                return
            result = judge(worker.scan(target, job.rule_ids or ()), target, job.code, self._rulebook.rules)
            hits.update(result.hits)
            if result.is_whole:
                job.pass_as(hits)
                return
        job.is_tried = True
        if job.is_told:
            job.fail(hits)

    def _scan_apart(self, jobs: Sequence[Job], deadline: float, cancelled: threading.Event) -> None:
        """Scans blocks with processes of their own: all as they stand, then variants of those that are left.

        Of a group that took too long, each block is tried by itself; what held up the others is for the slow lane.
        """
        for job in jobs:
            job.choose_targets()
        fresh, tried = [job for job in jobs if not job.is_tried], [job for job in jobs if job.is_tried]
        for some, rounds in ((tried, _ONE_ROUND), (fresh, _ROUNDS)):
            for first, last in rounds:
                self._scan_round(some, first, last, deadline, cancelled)

    def _scan_round(
        self, jobs: Sequence[Job], first: int, last: int | None, deadline: float, cancelled: threading.Event
    ) -> None:
        left = [job for job in jobs if not job.is_done and not job.is_slow and job.targets[first:last]]
        groups = list(grouped(left))
        runs = [self._runs.submit(self._run_group, group, first, last, deadline, cancelled) for group in groups]
        for group, run in zip(groups, (run.result() for run in runs), strict=True):
            for job in group:
                if run is None:
                    self._scan_warm(job, deadline)
                    job.is_slow = not job.is_done
                else:
                    job.take(run, job.targets[first:last], self._rulebook.rules)

    def _run_group(
        self, group: Sequence[Job], first: int, last: int | None, deadline: float, cancelled: threading.Event
    ) -> Run | None:
        try:
            return self._run_files(group, [t for job in group for t in job.targets[first:last]], deadline, cancelled)
        except TooSlow:
            return None

    def _run_files(
        self, jobs: Sequence[Job], targets: Sequence[Target], deadline: float, cancelled: threading.Event
    ) -> Run:
        known = [job.rule_ids for job in jobs if job.rule_ids is not None]
        only = frozenset[str]().union(*known) if len(known) == len(jobs) else None
        return scan_files(self._core, self._rulebook, targets, only=only, deadline=deadline, cancelled=cancelled)

    def _for_block(self, block: CodeBlock, result: Result) -> list[Finding] | ScanError:
        findings = list(self._findings(block, result.hits[: 2 * _MOST_FINDINGS]))  # two rules often name one place
        failure = result.failure
        if not failure and (len(result.hits) > 2 * _MOST_FINDINGS or len(findings) > _MOST_FINDINGS):
            failure = f"it has more than {_MOST_FINDINGS} findings; the first are given"
        findings = findings[:_MOST_FINDINGS]
        if not failure:
            return findings
        return PartialScan(f"a block of {len(block.code)} characters ({block.language}): {failure}", findings)

    def _findings(self, block: CodeBlock, hits: Sequence[Hit]) -> Iterator[Finding]:
        starts = [0]
        for text in block.code.split("\n"):
            starts.append(starts[-1] + len(text) + 1)
        places = [(hit, self._rulebook.rules[hit.rule_id], *_line_column(starts, hit.start)) for hit in hits]
        rivals: dict[tuple[int, str], list[tuple[Hit, Rule]]] = {}
        for hit, rule, line, _ in places:
            rivals.setdefault((line, rule.cwe), []).append((hit, rule))
        told: set[tuple[str, int]] = set()
        for hit, rule, line, column in places:
            # Two readings of a block may end one match at two places.
            if (rule.id, hit.start) in told:
                continue
            told.add((rule.id, hit.start))
            # The weightiest of the rules that name one weakness at one place speaks for it.
            if not self._every_rule and any(
                their.rank > rule.rank and hit.start < other.end and other.start < hit.end
                for other, their in rivals[line, rule.cwe]
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
