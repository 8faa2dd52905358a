"""``guardrail scan``: judges chat logs, row by row, and goes on where it was stopped."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from guardrail.cli.console import (
    ExitCode,
    ModelOption,
    PolicyOption,
    build_guard,
    err_console,
    out_console,
    say,
    say_error,
)
from guardrail.errors import InvalidInput
from guardrail.page import counted

if TYPE_CHECKING:
    from guardrail.logscan import Layout, Summary
    from guardrail.logscan.inputs import Input
    from guardrail.logscan.ledger import Ledger
    from guardrail.logscan.ledger import Progress as Done
    from guardrail.logscan.run import LineWriter
    from guardrail.pipeline import Guard

__all__ = ["scan"]

_LINE_EVERY_S = 5.0


def scan(
    files: Annotated[
        list[str],
        typer.Argument(help="JSON Lines, CSV, Parquet: files, folders, patterns, URLs, or -.", metavar="FILE..."),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE|-",
            help="Write each row's result: .jsonl, .jsonl.gz, .parquet, - for stdout; for Ray a folder.",
        ),
    ] = None,
    turns: Annotated[
        Literal["last", "all", "assistant"], typer.Option("--turns", help="Which messages of a chat are judged.")
    ] = "last",
    text_field: Annotated[
        str | None, typer.Option("--text-field", metavar="COLUMN", help="The column to judge; default: found by name.")
    ] = None,
    role: Annotated[
        Literal["user", "assistant"] | None, typer.Option("--role", help="Who wrote the column that is judged.")
    ] = None,
    keep_fields: Annotated[
        str, typer.Option("--keep-fields", metavar="A,B", help="Columns that go into the results as they are.")
    ] = "",
    errors: Annotated[
        str | None, typer.Option("--errors", metavar="FILE", help="Write place and reason of each bad row.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad row, with 2.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a scan that was stopped.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Start over, though one was stopped.")] = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="Where it runs: here, or on a Ray cluster.")
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address", metavar="ADDRESS", help="The cluster; default: one on this machine.", envvar="RAY_ADDRESS"
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Actors on Ray.", show_default="one a GPU, else one a core")
    ] = None,
    shard_lines: Annotated[
        int, typer.Option("--shard-lines", min=1, metavar="N", help="Lines of the log that a Ray worker takes at once.")
    ] = 20_000,
    policy: PolicyOption = None,
    model: ModelOption = None,
    max_block_rate: Annotated[
        float | None,
        typer.Option("--max-block-rate", min=0.0, max=1.0, help="Exit with 3 if a larger share of rows is blocked."),
    ] = None,
    allow_unjudged: Annotated[
        bool, typer.Option("--allow-unjudged", help="Exit with 0 though some rows could not be judged, not with 4.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")] = False,
) -> None:
    """Judge the rows of chat logs: of each its last message, or every turn.

    A row holds messages, or conversations, or prompt and response, or text (and role), or the column you name.
    """
    from guardrail.logscan import Layout, Turns
    from guardrail.logscan.inputs import find_inputs
    from guardrail.verdict import Role

    if resume and restart:
        raise InvalidInput("--resume goes on and --restart starts over: give one of them")
    if as_json and output == "-":
        raise InvalidInput("--json and --output - both want standard output: write the results to a file")
    layout = Layout(
        turns=Turns(turns),
        text_field=text_field,
        role=Role(role) if role is not None else None,
        keep=tuple(name.strip() for name in keep_fields.split(",") if name.strip()),
    )
    inputs = find_inputs(files)
    _require_apart(inputs, output, errors)
    guard = build_guard(model=model, policy=policy)
    started = time.monotonic()
    if engine == "ray":
        from guardrail.cli.scan_cluster import scan_on_ray

        if output in (None, "-") or strict:
            raise InvalidInput("--engine ray needs --output FOLDER, and has no --strict: shards have no first bad row")
        summary, repeats, already = scan_on_ray(
            inputs,
            layout,
            guard,
            str(output),
            errors,
            model=model,
            workers=workers,
            address=ray_address,
            shard_lines=shard_lines,
            resume=resume,
            restart=restart,
            is_quiet=quiet,
        )
        figures = {"repeats": repeats, "rows": summary.rows - already, "elapsed_s": time.monotonic() - started}
        _report(summary, guard, figures, output=output, as_json=as_json, is_quiet=quiet)
        _exit(summary, max_block_rate, allow_unjudged=allow_unjudged)
        return
    ledger = _ledger_for(output, inputs, guard, layout, errors=errors, is_strict=strict)
    done = _where_to_start(ledger, inputs, resume=resume, restart=restart)
    already = done.summary.rows if done is not None else 0
    summary, repeats = _scan(
        inputs, layout, guard, output, errors, ledger=ledger, done=done, is_strict=strict, is_quiet=quiet
    )
    figures = {"repeats": repeats, "rows": summary.rows - already, "elapsed_s": time.monotonic() - started}
    _report(summary, guard, figures, output=output, as_json=as_json, is_quiet=quiet)
    _exit(summary, max_block_rate, allow_unjudged=allow_unjudged)


def _require_apart(inputs: Sequence[Input], output: str | None, errors: str | None) -> None:
    """Nothing that is written may be what is read."""
    written = {option: path for option, path in (("--output", output), ("--errors", errors)) if path not in (None, "-")}
    for option, path in written.items():
        for one in inputs:
            if os.path.isfile(one.target) and os.path.exists(str(path)) and os.path.samefile(one.target, str(path)):
                raise InvalidInput(f"{option} {path} is one of the files to scan")
    if len(written) == 2 and os.path.realpath(str(output)) == os.path.realpath(str(errors)):
        raise InvalidInput("--output and --errors name the same file")


def _ledger_for(
    output: str | None, inputs: Sequence[Input], guard: Guard, layout: Layout, *, errors: str | None, is_strict: bool
) -> Ledger | None:
    from guardrail.logscan.ledger import Ledger, manifest_of

    if output in (None, "-") or (os.path.exists(str(output)) and not os.path.isfile(str(output))):
        return None
    return Ledger(str(output), manifest_of(guard, inputs, layout, errors=errors, is_strict=is_strict))


def _where_to_start(ledger: Ledger | None, inputs: Sequence[Input], *, resume: bool, restart: bool) -> Done | None:
    """How far an earlier scan came; None for the first row."""
    if not resume:
        if ledger is not None and not restart:
            ledger.require_none()
        return None
    if ledger is None:
        raise InvalidInput("--resume needs --output FILE: it goes on with the results that are there")
    if streams := [one.name for one in inputs if not one.can_be_read_again]:
        raise InvalidInput(f"--resume cannot work: nothing says whether {streams[0]} is what it was")
    return ledger.resume()


def _scan(
    inputs: Sequence[Input],
    layout: Layout,
    guard: Guard,
    output: str | None,
    errors: str | None,
    *,
    ledger: Ledger | None,
    done: Done | None,
    is_strict: bool,
    is_quiet: bool,
) -> tuple[Summary, int]:
    """Runs the scan to its end; returns the counts, and how many rows needed no judgement of their own."""
    from guardrail.cli.scan_view import progress_for
    from guardrail.logscan.engine import Judge
    from guardrail.logscan.run import Pace, Sink, read_chunks, run
    from guardrail.logscan.writer import AppendFile

    if ledger is not None and done is not None and done.is_at_end and not ledger.has_partial:
        ledger.end("complete", done)
        return done.summary, 0
    judge, pace, told = Judge(guard), Pace(), [""]
    with ExitStack() as stack:
        writer = _open_writer(output, stack, keep_bytes=done.output_bytes if done is not None else 0)
        bad_rows = None
        if errors is not None:
            bad_rows = AppendFile(Path(errors), done.error_bytes if done is not None else 0)
            stack.callback(bad_rows.close)
        if ledger is not None and done is None:
            ledger.begin()
        already = done.summary.rows if done is not None else 0
        progress = stack.enter_context(progress_for(inputs, already=already, is_quiet=is_quiet, every_s=_LINE_EVERY_S))
        if already:
            progress.tell(f"going on after {counted(already, 'row')}")

        def tell_layout(file: str, words: str) -> None:
            if words != told[0]:
                progress.tell(f"{file}: reads {words}")
                told[0] = words

        sink = Sink(
            writer,
            errors=bad_rows,
            ledger=ledger,
            start=done,
            advance=lambda chunk: progress.advance(chunk, sink.summary),
        )
        if done is None or not done.is_at_end:
            chunks = read_chunks(inputs, layout, pace, start=done, is_strict=is_strict, tell_layout=tell_layout)
            try:
                run(chunks, judge, sink, pace)
            except KeyboardInterrupt:
                progress.stop()
                at = sink.commit()
                if ledger is not None:
                    ledger.end("interrupted", at)
                say_error(_interrupted(sink.summary, writer, ledger, inputs))
                raise typer.Exit(ExitCode.INTERRUPTED) from None
            except InvalidInput:  # a strict scan's first bad row: what came before it is kept
                sink.commit()
                raise
        last = sink.commit(is_at_end=True)
        if writer is not None:
            writer.commit()
        if ledger is not None:
            ledger.end("complete", last)
    return sink.summary, judge.repeats


def _interrupted(summary: Summary, writer: _Writer | None, ledger: Ledger | None, inputs: Sequence[Input]) -> str:
    message = f"interrupted after {counted(summary.rows, 'row')}"
    if ledger is None or writer is None:
        return message
    message += f"; their results are in {writer.writing_to}"
    if all(one.can_be_read_again for one in inputs):
        message += "; the same command with --resume goes on"
    return message


class _Stdout:
    """Writes results to standard output."""

    writing_to = Path("-")

    def write(self, lines: bytes) -> None:
        sys.stdout.buffer.write(lines)
        sys.stdout.buffer.flush()

    def sync(self) -> int:
        sys.stdout.buffer.flush()
        return 0

    def commit(self) -> None:
        """Nothing is left to do."""


if TYPE_CHECKING:
    from guardrail.logscan import ResultWriter

    _Writer = _Stdout | ResultWriter
    _: type[LineWriter] = _Stdout


def _open_writer(output: str | None, stack: ExitStack, *, keep_bytes: int) -> _Writer | None:
    from guardrail.logscan import ResultWriter

    if output is None:
        return None
    return _Stdout() if output == "-" else stack.enter_context(ResultWriter(output, keep_bytes))


def _report(
    summary: Summary, guard: Guard, figures: dict[str, float], *, output: str | None, as_json: bool, is_quiet: bool
) -> None:
    from guardrail.cli.scan_view import show_summary, summary_dict

    if as_json:
        made = summary_dict(summary, guard, **figures)  # type: ignore[arg-type]
        sys.stdout.write(json.dumps({**made, "output": output}) + "\n")
    elif not is_quiet:
        console = err_console() if output == "-" else out_console()
        show_summary(summary, guard, console, **figures)  # type: ignore[arg-type]
    if not is_quiet and output not in (None, "-"):
        say(f"results: {output}")


def _exit(summary: Summary, max_block_rate: float | None, *, allow_unjudged: bool) -> None:
    for row in summary.first_errors:
        say(f"bad row {row.file}:{row.line}: {row.error}", style="yellow")
    if summary.errors > len(summary.first_errors):
        more = summary.errors - len(summary.first_errors)
        say(f"and {counted(more, 'more bad row')}; --errors and --output list them all", style="yellow")
    if not summary.rows:
        say("there was no row in any file: nothing was judged", style="yellow")
    if max_block_rate is not None and summary.block_rate > max_block_rate:
        say_error(f"block rate {summary.block_rate:.4f} is above --max-block-rate {max_block_rate:g}")
        raise typer.Exit(ExitCode.BLOCKED)
    if summary.unjudged and not allow_unjudged:
        say_error(f"{summary.unjudged:,} of {summary.rows:,} rows could not be judged; --allow-unjudged accepts that")
        raise typer.Exit(ExitCode.UNJUDGED)
