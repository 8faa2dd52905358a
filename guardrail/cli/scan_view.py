"""What ``guardrail scan`` shows: progress while it runs, and the summary at its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from guardrail.cli.console import STYLES, err_console, say

if TYPE_CHECKING:
    from rich.console import Console

    from guardrail.logscan import Summary
    from guardrail.logscan.inputs import Input
    from guardrail.logscan.run import Chunk
    from guardrail.pipeline import Guard

__all__ = ["Progress", "progress_for", "show_summary", "summary_dict"]


class Progress:
    """Says nothing; what the other two are to the scan."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def tell(self, message: str) -> None:
        """Says something beside the progress."""

    def advance(self, chunk: Chunk, summary: Summary) -> None:
        """Takes note that a chunk is done."""

    def stop(self) -> None:
        """Ends the display."""


class _Lines(Progress):
    """A plain line every few seconds.

    Args:
        inputs: What is read.
        already: Rows that an earlier scan judged.
        every_s: How many seconds.
    """

    def __init__(self, inputs: Sequence[Input], already: int, every_s: float) -> None:
        self._extent = _Extent(inputs)
        self._already = already
        self._every_s = every_s
        self._started = self._last = time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first chunk was done, and how far it went

    def tell(self, message: str) -> None:
        say(message)

    def advance(self, chunk: Chunk, summary: Summary) -> None:
        now, done = time.monotonic(), self._extent.bytes_until(chunk)
        if self._first is None:
            self._first = now, done
        if now - self._last >= self._every_s:
            self._last = now
            say(_state(summary, self._already, now - self._started) + self._left(now, done))

    def _left(self, now: float, done: int) -> str:
        """How much is done, and how long the rest takes at the speed of this run; ``""`` where nobody knows."""
        total, (since, first) = self._extent.total, self._first or (now, done)
        if not total:
            return ""
        left = f", {_clock((total - done) * (now - since) / (done - first))} left" if done > first else ""
        return f", {done / total:.0%}{left}"


class _Extent:
    """How much there is to read.

    Args:
        inputs: What is read.

    Attributes:
        total: Bytes of all inputs; None where one has no known size, which leaves nothing to measure against.
    """

    def __init__(self, inputs: Sequence[Input]) -> None:
        self._before = [0]
        for one in inputs:
            self._before.append(self._before[-1] + (one.size or 0))
        self.total = self._before[-1] if all(one.size is not None for one in inputs) else None

    def bytes_until(self, chunk: Chunk) -> int:
        """Bytes of the inputs up to a chunk's end."""
        return self._before[chunk.input] + chunk.end_byte


class _Bar(Progress):
    """A bar over the bytes of the inputs, for a terminal.

    Args:
        inputs: What is read.
        already: Rows that an earlier scan judged.
        console: The terminal.
    """

    def __init__(self, inputs: Sequence[Input], already: int, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self._already = already
        self._started = time.monotonic()
        self._extent = _Extent(inputs)
        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[state]}"),
            console=console,
            transient=True,
            expand=True,
        )
        self._task = self._progress.add_task("", total=self._extent.total, state="first rows")
        self._progress.start()

    def tell(self, message: str) -> None:
        self._progress.console.print(message, markup=False, soft_wrap=True)

    def advance(self, chunk: Chunk, summary: Summary) -> None:
        state = _state(summary, self._already, time.monotonic() - self._started)
        self._progress.update(self._task, completed=self._extent.bytes_until(chunk), state=state)

    def stop(self) -> None:
        self._progress.stop()


def progress_for(inputs: Sequence[Input], *, already: int, is_quiet: bool, every_s: float) -> Progress:
    """Returns what shows the progress: nothing, a bar on a terminal, else lines."""
    console = err_console()
    if is_quiet:
        return Progress()
    if console.is_terminal and not console.is_dumb_terminal:
        return _Bar(inputs, already, console)
    return _Lines(inputs, already, every_s)


def _state(summary: Summary, already: int, elapsed_s: float) -> str:
    from guardrail.verdict import Action

    rate = (summary.rows - already) / elapsed_s if elapsed_s > 0 else 0.0
    errors = f", {summary.errors} bad" if summary.errors else ""
    found = f"{summary.blocked:,} blocked, {summary.decisions[Action.FLAG]:,} flagged"
    return f"{summary.rows:,} rows, {rate:,.0f}/s, {found}{errors}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def summary_dict(summary: Summary, guard: Guard, *, repeats: int, rows: int, elapsed_s: float) -> dict[str, Any]:
    """Returns the summary as JSON values.

    Args:
        summary: Of all rows.
        guard: Who judged them.
        repeats: Rows of this run that were judged before.
        rows: Rows of this run.
        elapsed_s: How long this run took.
    """
    return {
        "schema": "guardrail.scan-summary/1",
        "model": {"model": guard.source.model, "revision": guard.source.revision},
        "policy": {"name": guard.policy.name, "hash": guard.policy.hash},
        **summary.to_dict(),
        "this_run": {"rows": rows, "repeats": repeats, "seconds": round(elapsed_s, 3)},
    }


def show_summary(
    summary: Summary, guard: Guard, console: Console, *, repeats: int, rows: int, elapsed_s: float
) -> None:
    """Prints the summary; the arguments are those of :func:`summary_dict`."""
    from rich import box
    from rich.table import Table

    from guardrail.taxonomy import HazardCategory
    from guardrail.verdict import Action

    decided = summary.rows - summary.errors
    code = "code examined" if guard.scans_code else "code not examined"
    console.print(f"judged by {guard.source}, {code}", markup=False, soft_wrap=True)
    console.print(f"policy {guard.policy.name} ({guard.policy.hash})", markup=False)

    def table(*columns: str) -> Table:
        made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        made.add_column(columns[0])
        for column in columns[1:]:
            made.add_column(column, justify="right")
        return made

    decisions = table("decision", "rows", "share")
    for action in Action:
        count = summary.decisions[action]
        share = f"{count / decided:.1%}" if decided else "-"
        decisions.add_row(action.value, f"{count:,}", share, style=STYLES[action.value] if count else "dim")
    console.print(decisions)
    if summary.categories:
        hazards = table("hazard category", "rows", "blocked")
        for category in HazardCategory:
            if summary.categories[category]:
                named, withheld = summary.categories[category], summary.withheld[category]
                hazards.add_row(category.title, f"{named:,}", f"{withheld:,}")
        console.print(hazards)
    if summary.weaknesses:
        weaknesses = table("weakness in code", "findings")
        for (cwe, severity), count in summary.weaknesses.most_common():
            weaknesses.add_row(f"{cwe} ({severity.value})", f"{count:,}")
        console.print(weaknesses)
    rate = rows / elapsed_s if elapsed_s > 0 else 0.0
    totals = table("total", "")
    totals.add_row("rows", f"{summary.rows:,}")
    if rows != summary.rows:
        totals.add_row("of them in this run", f"{rows:,}")
    if repeats:
        totals.add_row("judged once with an equal row", f"{repeats:,}")
    totals.add_row("blocked or to retry", f"{summary.block_rate:.1%}")
    totals.add_row("unverified", f"{summary.unverified:,}", style="yellow" if summary.unverified else None)
    if summary.unscanned:
        totals.add_row("with code in languages without rules", f"{summary.unscanned:,}", style="yellow")
    totals.add_row("bad rows", f"{summary.errors:,}", style="yellow" if summary.errors else None)
    if summary.empty:
        totals.add_row("chats without such a turn", f"{summary.empty:,}")
    totals.add_row("seconds", f"{elapsed_s:.1f}")
    totals.add_row("rows per second", f"{rate:,.0f}")
    console.print(totals)
