"""Scan code blocks with semgrep's command line: code blocks -> findings, one process for all blocks of a call.

Semgrep fails quietly: it skips files it thinks minified, too large or ignored; it drops what its parsers do not
understand; it exits 0 having looked at nothing. *A run that scanned nothing must never read as clean*, so a block is
verified only when all of this holds:

1. the report names its file under ``paths.scanned``, and no timeout, crash or other error names it;
2. the canary was found: a call written after the block, in the block's language, that an extra rule always matches;
3. nothing was lost in parsing: no ``PartialParsing``, or only spans that cannot hold a weakness (a stray ``}``, a
   bare word; no call, no assignment, no operator that builds a string).

A block that fails is repaired and scanned once more in a second run with all its variants: brackets closed at the end
and opened at the start, ``...`` lines and prompts blanked, another dialect (TypeScript, C++). The first variant that
passes counts. Repairs keep the text of the block; they add around it, or blank characters one for one. What still
fails becomes a :class:`~guardrail.shield.PartialScan` with the findings of the part that was understood.

Source of the behaviour: semgrep 1.182.0, measured; ``tests/integration/test_semgrep.py`` holds the facts.
``--experimental`` (the native front end) takes 0.16 s where the Python front end takes 2.0 s for the same report.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from guardrail.errors import MissingExtra, ScanError
from guardrail.shield import PartialScan
from guardrail.shield.rulebook import RULES, load_rules
from guardrail.shield.targets import LANGUAGES, Target, encode, make_targets
from guardrail.verdict import CodeBlock, Finding, Severity, Span

__all__ = ["SemgrepScanner"]

_CANARY_RULE = "guardrail.canary"
_CACHE_SIZE = 4096
# A block takes about 2 ms beside others; a log scan sends hundreds at once.
_BLOCK_S = 0.1
_FILE_TIMEOUT_S = 5  # one rule on one file; semgrep's own default

_SEVERITY = {"INFO": Severity.INFO, "WARNING": Severity.WARNING, "ERROR": Severity.ERROR}


@dataclass(frozen=True)
class _Hit:
    """A rule hit relative to its block: offsets are code points of the block's code."""

    rule_id: str
    cwe: str
    severity: Severity
    start: int
    end: int
    message: str


@dataclass(frozen=True)
class _Result:
    """What is known of one block's code; ``failure`` is empty where it was verified."""

    hits: tuple[_Hit, ...] = ()
    failure: str = ""


@dataclass
class _Run:
    """What one semgrep process reported, by file name; a file that is in neither was lost."""

    scanned: set[str] = field(default_factory=set)
    hits: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    errors: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class SemgrepScanner:
    """Scans code blocks with the semgrep command line; implements ``CodeScanner``.

    Safe to use from any thread and any event loop; at most two semgrep processes run at a time.

    Args:
        executable: The semgrep command; None looks beside ``sys.executable``, then on ``PATH``.
        rules: Folder with one folder of rules a language; None for the rules of this package.
        timeout_s: Seconds for one call of :meth:`scan`, waiting for its turn included; each block adds a tenth of one.
    """

    def __init__(self, *, executable: str | None = None, rules: Path | None = None, timeout_s: float = 30.0) -> None:
        self._executable = executable or _find_executable()
        self._timeout_s = timeout_s
        self._rules, digest = load_rules(rules or RULES)
        named = {language for rule in self._rules for language in rule["languages"]}
        self.languages = frozenset(n for n, language in LANGUAGES.items() if n != "tsx" and language.rules in named)
        self.rules_hash = digest
        self._revision: str | None = None
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[str, str], _Result] = OrderedDict()  # guarded by _lock
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="guardrail-semgrep")

    @property
    def revision(self) -> str:
        """Hash of the rules and semgrep's version, e.g. ``"rules-1f0c9a3b2d4e+semgrep-1.182.0"``."""
        if self._revision is None:
            self._revision = f"rules-{self.rules_hash[:12]}+semgrep-{_version(self._executable)}"
        return self._revision

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
        results: dict[tuple[str, str], _Result] = {}
        missing: dict[tuple[str, str], CodeBlock] = {}
        with self._lock:
            for key, block in zip(keys, blocks, strict=True):
                if key in self._cache:
                    self._cache.move_to_end(key)
                    results[key] = self._cache[key]
                elif block.language not in self.languages:
                    results[key] = _Result(failure="there are no rules for its language")
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
        return [_for_block(block, results[key]) for key, block in zip(keys, blocks, strict=True)]

    def _examine(
        self, blocks: list[CodeBlock], deadline: float, cancelled: threading.Event
    ) -> tuple[list[_Result], list[bool]]:
        """Scans code, then the variants of what failed; also says which results would be the same next time."""
        first = [make_targets(block, f"a{i}x") for i, block in enumerate(blocks)]
        run = self._run([targets[0] for targets in first], deadline, cancelled)
        results = [_judge(run, targets[0], blocks[i].code) for i, targets in enumerate(first)]
        again = [i for i, result in enumerate(results) if result.failure and first[i][0].name not in run.failed]
        variants = [target for i in again for target in first[i][1:]]
        retry = self._run(variants, deadline, cancelled) if variants else _Run()
        for i in again:
            # What any reading of the block found is kept: a repair may not talk a finding away.
            hits, failure = set(results[i].hits), results[i].failure
            for target in first[i][1:]:
                result = _judge(retry, target, blocks[i].code)
                hits.update(result.hits)
                if not result.failure:
                    failure = ""
                    break
            results[i] = _Result(tuple(sorted(hits, key=_place)), failure)
        lost = set(run.failed) | set(retry.failed)
        return results, [not any(target.name in lost for target in targets) for targets in first]

    def _run(self, targets: list[Target], deadline: float, cancelled: threading.Event) -> _Run:
        """Runs semgrep over the targets; where a run fails, over each half, so that one block fails alone."""
        left = deadline - time.monotonic()
        try:
            return self._run_once(targets, left if len(targets) == 1 else left / 2, cancelled)
        except ScanError as error:
            if len(targets) == 1 or deadline - time.monotonic() <= 0.2 or cancelled.is_set():
                return _Run(failed={target.name: str(error) for target in targets})
        middle = len(targets) // 2
        # The first half may use half of the time that is left; the other gets the rest.
        half = time.monotonic() + (deadline - time.monotonic()) / 2
        left_run, right_run = (
            self._run(targets[:middle], half, cancelled),
            self._run(targets[middle:], deadline, cancelled),
        )
        return _Run(
            left_run.scanned | right_run.scanned,
            left_run.hits | right_run.hits,
            left_run.errors | right_run.errors,
            left_run.failed | right_run.failed,
        )

    def _run_once(self, targets: list[Target], timeout_s: float, cancelled: threading.Event) -> _Run:
        folder = Path(tempfile.mkdtemp(prefix="guardrail-scan-"))  # mode 0700
        try:
            source = folder / "code"
            source.mkdir()
            for target in targets:
                (source / target.name).write_bytes(encode(target.text))
            wanted = frozenset(LANGUAGES[target.language].rules for target in targets)
            (folder / "rules.json").write_text(json.dumps({"rules": self._rules_for(wanted)}), encoding="utf-8")
            return _read_report(self._call(folder, timeout_s, cancelled), targets)
        except OSError as exc:
            raise ScanError(f"expected to run {self._executable}, got {type(exc).__name__}: {exc.strerror}") from exc
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _rules_for(self, wanted: frozenset[str]) -> list[dict[str, Any]]:
        chosen = [
            {**rule, "languages": sorted(wanted.intersection(rule["languages"]))}
            for rule in self._rules
            if wanted.intersection(rule["languages"])
        ]
        # One canary rule a language: a pattern is parsed in the first language of its rule.
        chosen += [
            {
                "id": f"{_CANARY_RULE}.{language}",
                "languages": [language],
                "severity": "INFO",
                "message": "canary",
                "pattern": LANGUAGES[language].pattern,
            }
            for language in sorted(wanted)
        ]
        return chosen

    def _call(self, folder: Path, timeout_s: float, cancelled: threading.Event) -> bytes:
        if timeout_s <= 0 or cancelled.is_set():
            raise ScanError(f"semgrep had no time left of {self._timeout_s:g} s; raise timeout_s or scan fewer blocks")
        command = [
            *(self._executable, "scan", "--experimental", "--json", "--quiet", "--metrics=off"),
            *("--disable-version-check", "--disable-nosem", "--no-git-ignore", "--novcs", "--no-rewrite-rule-ids"),
            *("--no-exclude-binary-files", "--no-exclude-minified-files"),
            *(
                "--max-target-bytes",
                "0",
                "--timeout",
                str(_FILE_TIMEOUT_S),
                "-j",
                "1",
                "--config",
                "rules.json",
                "code",
            ),
        ]
        home = folder / "home"
        home.mkdir()
        environment = {
            "PATH": os.pathsep.join([str(Path(self._executable).parent), os.environ.get("PATH", os.defpath)]),
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home),
            "XDG_CACHE_HOME": str(home),
            "TMPDIR": str(home),
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "PYTHONUTF8": "1",
            "SEMGREP_SEND_METRICS": "off",
            "SEMGREP_ENABLE_VERSION_CHECK": "0",
            "SEMGREP_SETTINGS_FILE": str(home / "settings.yml"),
        }
        with (folder / "report.json").open("w+b") as report:
            process = subprocess.Popen(  # noqa: S603  # fixed arguments; the code travels in files
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=report,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                code = _wait(process, timeout_s, cancelled)
            finally:
                _kill_group(process)
            report.seek(0)
            output = report.read()
        # 0: done; 1: done with findings under --error, which is not used. Anything else: something was not done.
        if code != 0:
            raise ScanError(f"semgrep ended with status {code}; expected 0 from {self._executable}")
        return output


def _wait(process: subprocess.Popen[bytes], timeout_s: float, cancelled: threading.Event) -> int:
    limit = time.monotonic() + timeout_s
    pause = 0.005
    while (code := process.poll()) is None:
        if cancelled.is_set():
            raise ScanError("the scan was cancelled")
        if time.monotonic() > limit:
            raise ScanError(f"semgrep took longer than {timeout_s:.1f} s; raise timeout_s or scan less code")
        cancelled.wait(pause)
        pause = min(pause * 1.5, 0.05)
    return code


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _find_executable() -> str:
    beside = Path(sys.executable).parent / "semgrep"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("semgrep")
    if found is None:
        raise MissingExtra("scanning code needs semgrep: pip install 'guardrail[code]'")
    return found


def _version(executable: str) -> str:
    if Path(executable).parent == Path(sys.executable).parent:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version("semgrep")
    try:
        done = subprocess.run(  # noqa: S603  # the configured command
            [executable, "--version"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip().splitlines()[-1][:40] if done.stdout.strip() else "unknown"


# -- what is read


def _read_report(output: bytes, targets: list[Target]) -> _Run:
    try:
        report = json.loads(output)
        scanned, results, errors = report["paths"]["scanned"], report["results"], report["errors"]
        if report.get("skipped_rules"):
            raise ScanError(f"semgrep skipped {len(report['skipped_rules'])} rules; expected none")
        names = {target.name for target in targets}
        run = _Run(scanned={Path(path).name for path in scanned} & names)
        for result in results:
            run.hits.setdefault(Path(result["path"]).name, []).append(result)
        for error in errors:
            name = Path(error.get("path") or "").name
            if name not in names:
                raise ScanError(f"semgrep reported an error of kind {_kind(error)!r} outside the scanned files")
            run.errors.setdefault(name, []).append(error)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ScanError(f"expected a JSON report from semgrep, got {len(output)} bytes that are not one") from exc
    if not run.scanned:
        raise ScanError(f"semgrep reported that it scanned 0 of {len(targets)} files")
    return run


def _kind(error: dict[str, Any]) -> str:
    kind = error.get("type")
    return str(kind[0] if isinstance(kind, list) and kind else kind)[:40]


def _judge(run: _Run, target: Target, code: str) -> _Result:
    """Turns what a run reported on one file into hits in the code, and says whether the code was verified."""
    if target.name in run.failed:
        return _Result(failure=run.failed[target.name])
    raw = run.hits.get(target.name, [])
    data = encode(target.text)
    shift, end = len(target.prefix), len(target.prefix) + len(code)
    hits: set[_Hit] = set()
    has_canary = False
    try:
        place = _offsets(data)
        for result in raw:
            if result["check_id"].startswith(_CANARY_RULE):
                # Only a canary after the code counts: the code may contain the word, too.
                has_canary |= place(result["start"]["offset"]) >= end
                continue
            start, stop = place(result["start"]["offset"]), place(result["end"]["offset"])
            if shift <= start < end:
                extra = result["extra"]
                hits.add(
                    _Hit(
                        result["check_id"],
                        str(extra["metadata"]["cwe"]),
                        _SEVERITY[extra["severity"]],
                        start - shift,
                        min(stop, end) - shift,
                        str(extra["message"]).strip(),
                    )
                )
        failure = _failure(run, target, has_canary)
    except (KeyError, TypeError, ValueError) as exc:
        raise ScanError(f"expected findings in semgrep's report format, got {type(exc).__name__}") from exc
    return _Result(tuple(sorted(hits, key=_place)), failure)


def _failure(run: _Run, target: Target, has_canary: bool) -> str:
    if target.name not in run.scanned:
        return "semgrep did not scan it"
    lines = target.text.split("\n")
    for error in run.errors.get(target.name, []):
        kind = _kind(error)
        spans = error.get("spans") or [None]
        if kind != "PartialParsing" or len(spans) > 4 or not all(_is_harmless(lines, span) for span in spans):
            return f"semgrep reported {kind!r}"
    return "" if has_canary else "semgrep did not reach its end"


def _is_harmless(lines: list[str], span: dict[str, Any] | None) -> bool:
    """Whether the text that the parser dropped is too little to hold a weakness."""
    if span is None:
        return False
    first, last = span["start"]["line"] - 1, span["end"]["line"] - 1
    if last != first or not 0 <= first < len(lines):
        return False
    line = encode(lines[first])[span["start"]["col"] - 1 : span["end"]["col"] - 1]
    return len(line) <= 30 and not any(char in b"(=+`$%@&*\"'\\" for char in line)


def _offsets(data: bytes) -> Any:
    """Returns a function from byte offsets to code-point offsets; semgrep counts bytes."""
    if data.isascii():
        return int
    inner = [i for i, byte in enumerate(data) if byte & 0xC0 == 0x80]
    return lambda offset: offset - bisect_right(inner, offset - 1)


def _place(hit: _Hit) -> tuple[int, int, str]:
    return hit.start, hit.end, hit.rule_id


def _for_block(block: CodeBlock, result: _Result) -> list[Finding] | ScanError:
    findings = list(_findings(block, result.hits))
    if not result.failure:
        return findings
    return PartialScan(f"a block of {len(block.code)} characters ({block.language}): {result.failure}", findings)


def _findings(block: CodeBlock, hits: Iterable[_Hit]) -> Iterable[Finding]:
    starts = [0]
    for text in block.code.split("\n"):
        starts.append(starts[-1] + len(text) + 1)
    for hit in hits:
        line, column = _line_column(starts, hit.start)
        start = block.message_offset(line, column)
        end = block.message_offset(*_line_column(starts, hit.end))
        yield Finding(
            hit.rule_id,
            hit.cwe,
            hit.severity,
            Span(start, max(start, end)),
            line,
            column,
            block.language or "",
            hit.message,
        )


def _line_column(starts: list[int], offset: int) -> tuple[int, int]:
    line = min(bisect_right(starts, offset), len(starts) - 1)
    return line, offset - starts[line - 1] + 1
