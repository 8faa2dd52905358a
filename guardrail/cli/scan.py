"""``guardrail scan``: judges chat logs, row by row."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardrail.cli.console import (
    STYLES,
    ExitCode,
    ModelOption,
    PolicyOption,
    build_guard,
    err_console,
    out_console,
    say,
    say_error,
)
from guardrail.errors import ConfigurationError, InvalidInput

if TYPE_CHECKING:
    from rich.console import Console

    from guardrail.logscan import BadRow, ResultWriter, Row, ScanResult, Summary
    from guardrail.pipeline import Guard

__all__ = ["scan"]

_LINE_EVERY_S = 5.0


def scan(
    files: Annotated[list[Path], typer.Argument(help="JSON Lines or CSV files.", metavar="FILE...")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE|-", help="Write a JSON line for each row; - is stdout."),
    ] = None,
    policy: PolicyOption = None,
    model: ModelOption = None,
    max_block_rate: Annotated[
        float | None,
        typer.Option("--max-block-rate", min=0.0, max=1.0, help="Exit with 3 if a larger share of rows is blocked."),
    ] = None,
    allow_unjudged: Annotated[
        bool, typer.Option("--allow-unjudged", help="Exit with 0 though some rows could not be judged, not with 4.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")] = False,
) -> None:
    """Judge the last message of each row of chat logs.

    A row holds OpenAI-style messages, or prompt and response, or text (and role).
    """
    from guardrail.logscan import Summary

    _require_readable(files, output)
    guard = build_guard(model=model, policy=policy)
    summary = Summary()
    started = time.monotonic()
    with ExitStack() as stack:
        writer = _open_writer(output, stack)
        progress = stack.enter_context(_progress_for(files, summary, quiet=quiet))
        try:
            for result in _results(files, guard):
                if writer is not None:
                    writer.write(result)
                summary.add(result)
                progress.advance(result.row)
        except KeyboardInterrupt:
            progress.stop()
            kept = f"; their results are in {writer.writing_to}" if writer is not None and output != "-" else ""
            say_error(f"interrupted after {summary.rows} rows{kept}")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        if writer is not None:
            writer.commit()
    if not quiet:
        _show(summary, guard, time.monotonic() - started, err_console() if output == "-" else out_console())
        if output not in (None, "-"):
            say(f"results: {output}")
    _exit(summary, max_block_rate, allow_unjudged=allow_unjudged)


def _require_readable(files: list[Path], output: str | None) -> None:
    """Nothing is judged before all that was named is known to be there."""
    for file in files:
        if not file.exists():
            raise InvalidInput(f"there is no file {file}")
        if file.is_dir():
            raise InvalidInput(f"{file} is a folder; name the files in it, e.g. {file}/*.jsonl")
        if not os.access(file, os.R_OK):
            raise InvalidInput(f"{file} cannot be read: permission denied")
        if output not in (None, "-") and file.is_file() and Path(str(output)).exists() and file.samefile(str(output)):
            raise InvalidInput(f"--output {output} is one of the files to scan")


def _results(files: list[Path], guard: Guard) -> Iterator[ScanResult]:
    from guardrail.logscan import scan as scan_rows

    yield from scan_rows(_rows(files), guard)


def _rows(files: list[Path]) -> Iterator[Row | BadRow]:
    from guardrail.logscan import read_rows

    for file in files:
        try:
            yield from read_rows(file)
        except OSError as exc:
            raise ConfigurationError(f"cannot read {file}: {exc.strerror}") from exc


class _StdoutWriter:
    """Writes results to standard output."""

    writing_to = Path("-")

    def write(self, result: ScanResult) -> None:
        sys.stdout.buffer.write(result.to_json_line())

    def commit(self) -> None:
        sys.stdout.buffer.flush()


def _open_writer(output: str | None, stack: ExitStack) -> ResultWriter | _StdoutWriter | None:
    from guardrail.logscan import ResultWriter

    if output is None:
        return None
    return _StdoutWriter() if output == "-" else stack.enter_context(ResultWriter(output))


class _Progress:
    """Says nothing; what the other two are to the scan."""

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def advance(self, row: Row | BadRow) -> None:
        """Takes note that a row is done."""

    def stop(self) -> None:
        """Ends the display."""


class _Lines(_Progress):
    """A plain line every few seconds."""

    def __init__(self, summary: Summary) -> None:
        self._summary = summary
        self._started = self._last = time.monotonic()

    def advance(self, row: Row | BadRow) -> None:
        now = time.monotonic()
        if now - self._last >= _LINE_EVERY_S:
            self._last = now
            say(_state(self._summary, now - self._started))


class _Bar(_Progress):
    """A bar over the bytes of the files, for a terminal."""

    def __init__(self, files: list[Path], summary: Summary, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self._summary = summary
        self._started = time.monotonic()
        self._sizes = {str(file): file.stat().st_size for file in files}
        self._done_bytes = 0
        self._file = ""
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
        # A pipe has no size to measure against.
        total = sum(self._sizes.values()) if all(file.is_file() for file in files) else None
        self._task = self._progress.add_task("", total=total, state="first rows")
        self._progress.start()

    def advance(self, row: Row | BadRow) -> None:
        if row.file != self._file:
            self._done_bytes += self._sizes.get(self._file, 0)
            self._file = row.file
        state = _state(self._summary, time.monotonic() - self._started)
        self._progress.update(self._task, completed=self._done_bytes + row.end_byte, state=state)

    def stop(self) -> None:
        self._progress.stop()


def _progress_for(files: list[Path], summary: Summary, *, quiet: bool) -> _Progress:
    console = err_console()
    if quiet:
        return _Progress()
    if console.is_terminal and not console.is_dumb_terminal:
        return _Bar(files, summary, console)
    return _Lines(summary)


def _state(summary: Summary, elapsed_s: float) -> str:
    rate = summary.rows / elapsed_s if elapsed_s > 0 else 0.0
    errors = f", {summary.errors} bad" if summary.errors else ""
    return f"{summary.rows:,} rows, {rate:,.0f}/s, {summary.blocked:,} blocked{errors}"


def _show(summary: Summary, guard: Guard, elapsed_s: float, console: Console) -> None:
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
    rate = summary.rows / elapsed_s if elapsed_s > 0 else 0.0
    totals = table("total", "")
    totals.add_row("rows", f"{summary.rows:,}")
    totals.add_row("blocked or to retry", f"{summary.block_rate:.1%}")
    totals.add_row("unverified", f"{summary.unverified:,}", style="yellow" if summary.unverified else None)
    if summary.unscanned:
        totals.add_row("with code in languages without rules", f"{summary.unscanned:,}", style="yellow")
    totals.add_row("bad rows", f"{summary.errors:,}", style="yellow" if summary.errors else None)
    totals.add_row("seconds", f"{elapsed_s:.1f}")
    totals.add_row("rows per second", f"{rate:,.0f}")
    console.print(totals)


def _exit(summary: Summary, max_block_rate: float | None, *, allow_unjudged: bool) -> None:
    for row in summary.first_errors:
        say(f"bad row {row.file}:{row.line}: {row.error}", style="yellow")
    if summary.errors > len(summary.first_errors):
        say(
            f"and {summary.errors - len(summary.first_errors):,} more bad rows; --output lists them all", style="yellow"
        )
    if not summary.rows:
        say("there was no row in any file: nothing was judged", style="yellow")
    if max_block_rate is not None and summary.block_rate > max_block_rate:
        say_error(f"block rate {summary.block_rate:.4f} is above --max-block-rate {max_block_rate:g}")
        raise typer.Exit(ExitCode.BLOCKED)
    if summary.unjudged and not allow_unjudged:
        say_error(f"{summary.unjudged:,} of {summary.rows:,} rows could not be judged; --allow-unjudged accepts that")
        raise typer.Exit(ExitCode.UNJUDGED)
