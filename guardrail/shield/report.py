"""What semgrep said of files -> what is known of the code in them.

*A run that scanned nothing must never read as clean*: a file's code is verified only when semgrep says that it scanned
the file, its canary was found behind the code, and nothing was lost in parsing.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardrail.errors import ScanError
from guardrail.shield.rulebook import CANARY_RULE, Rule
from guardrail.shield.targets import Target, encode

__all__ = ["Hit", "Match", "Result", "Run", "is_scrap", "judge", "read_report"]


@dataclass(frozen=True, slots=True)
class Match:
    """A rule that matched in a file: offsets are bytes of the file."""

    rule_id: str
    start: int
    end: int
    message: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule that matched in a block: offsets are code points of the block's code."""

    rule_id: str
    start: int
    end: int
    message: str


@dataclass(frozen=True)
class Result:
    """What is known of one block's code.

    Attributes:
        hits: What matched.
        failure: Why the code is not verified; empty where it is.
        is_whole: Whether nothing at all was lost in parsing.
    """

    hits: tuple[Hit, ...] = ()
    failure: str = ""
    is_whole: bool = True


@dataclass
class Run:
    """What semgrep reported, by file name; a file that is nowhere in it was lost.

    Attributes:
        scanned: The files that semgrep says it scanned.
        matches: What matched in them, canaries included.
        losses: What parsing lost, or what else kept semgrep from doing all it was asked.
        scraps: Files of which parsing lost too little to hold a weakness.
        exhausted: Files on which a rule ran out of time or memory.
        failed: Why a file's run as a whole gave nothing.
    """

    scanned: set[str] = field(default_factory=set)
    matches: dict[str, list[Match]] = field(default_factory=dict)
    losses: dict[str, str] = field(default_factory=dict)
    scraps: set[str] = field(default_factory=set)
    exhausted: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)

    def __or__(self, other: Run) -> Run:
        return Run(
            self.scanned | other.scanned,
            self.matches | other.matches,
            self.losses | other.losses,
            self.scraps | other.scraps,
            self.exhausted | other.exhausted,
            self.failed | other.failed,
        )


def judge(run: Run, target: Target, code: str, rules: Mapping[str, Rule]) -> Result:
    """Turns what a run reported on one file into hits in the code, and says whether the code was verified.

    Args:
        run: The run.
        target: The file.
        code: The block's code; the target's body has as many code points.
        rules: The rules that may have matched.

    Raises:
        ScanError: If semgrep names a rule that it was not given.
    """
    if target.name in run.failed:
        return Result(failure=run.failed[target.name], is_whole=False)
    place = offsets(encode(target.text))
    shift, end = len(target.prefix), len(target.prefix) + len(code)
    hits: set[Hit] = set()
    has_canary = False
    for match in run.matches.get(target.name, []):
        start, stop = place(match.start), place(match.end)
        if match.rule_id.startswith(CANARY_RULE):
            # Only a canary after the code counts: the code may contain the word, too.
            has_canary |= start >= end
        elif match.rule_id not in rules:
            raise ScanError("semgrep reported a rule that it was not given")
        elif shift <= start < end:
            hits.add(Hit(match.rule_id, start - shift, min(stop, end) - shift, match.message))
    if target.name not in run.scanned:
        failure = "semgrep did not scan it"
    elif target.name in run.losses:
        failure = run.losses[target.name]
    elif not target.proves:
        failure = "part of its code may have been read as a string"
    else:
        failure = "" if has_canary else "semgrep did not reach its end"
    is_whole = not failure and target.name not in run.scraps
    return Result(tuple(sorted(hits, key=in_order)), failure, is_whole)


def in_order(hit: Hit) -> tuple[int, int, str]:
    return hit.start, hit.end, hit.rule_id


def read_report(output: bytes, targets: Sequence[Target]) -> Run:
    """Reads the JSON report of ``semgrep scan`` over some files.

    Raises:
        ScanError: If it is none, semgrep skipped rules, scanned nothing, or reports an error of no file.
    """
    try:
        report = json.loads(output)
        if report.get("skipped_rules"):
            raise ScanError(f"semgrep skipped {len(report['skipped_rules'])} rules; expected none")
        by_name = {target.name: target for target in targets}
        run = Run(scanned={Path(path).name for path in report["paths"]["scanned"]} & set(by_name))
        for result in report["results"]:
            run.matches.setdefault(Path(result["path"]).name, []).append(
                Match(
                    result["check_id"],
                    result["start"]["offset"],
                    result["end"]["offset"],
                    str(result["extra"]["message"]).strip(),
                )
            )
        for error in report["errors"]:
            name = Path(error.get("path") or "").name
            if name not in by_name:
                raise ScanError(f"semgrep reported an error of kind {_kind(error)!r} outside the scanned files")
            if _is_harmless(error, by_name[name]):
                run.scraps.add(name)
            else:
                run.losses[name] = f"semgrep reported {_kind(error)!r}"
            if _kind(error) in _EXHAUSTED:
                run.exhausted.add(name)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ScanError(f"expected a JSON report from semgrep, got {len(output)} bytes that are not one") from exc
    if not run.scanned:
        raise ScanError(f"semgrep reported that it scanned 0 of {len(targets)} files")
    return run


_EXHAUSTED = ("Timeout", "Out of memory", "OutOfMemory", "Stack overflow", "StackOverflow")


def _kind(error: dict[str, Any]) -> str:
    kind = error.get("type")
    return str(kind[0] if isinstance(kind, list) and kind else kind)[:40]


def _is_harmless(error: dict[str, Any], target: Target) -> bool:
    """Whether all that the parser dropped are scraps."""
    spans = error.get("spans")
    if _kind(error) != "PartialParsing" or not spans or len(spans) > 4:
        return False
    lines = target.text.split("\n")
    for span in spans:
        first, last = span["start"]["line"] - 1, span["end"]["line"] - 1
        if last != first or not 0 <= first < len(lines):
            return False
        dropped = encode(lines[first])[span["start"]["col"] - 1 : span["end"]["col"] - 1]
        if not is_scrap(dropped.decode("utf-8", "replace")):
            return False
    return True


def is_scrap(dropped: str) -> bool:
    """Whether text that a parser dropped is too little to hold a weakness.

    It holds no call, no assignment, no string, and nothing of an object: ``{{ __html: html }}`` in JSX is one.
    """
    text = dropped.rstrip().removesuffix("{")  # what it opens was not dropped
    return len(dropped) <= 30 and "\n" not in dropped and not any(char in "(={:+`$%@&*\"'\\" for char in text)


def offsets(data: bytes) -> Callable[[int], int]:
    """Returns a function from byte offsets to code-point offsets; semgrep counts bytes."""
    if data.isascii():
        return int
    inner = [i for i, byte in enumerate(data) if byte & 0xC0 == 0x80]
    return lambda offset: offset - bisect_right(inner, offset - 1)
