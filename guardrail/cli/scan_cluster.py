"""``guardrail scan --engine ray``: the same scan in shards, on a cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from guardrail.cli.console import ExitCode, say, say_error
from guardrail.errors import InvalidInput

if TYPE_CHECKING:
    from guardrail.logscan import Layout, Summary
    from guardrail.logscan.inputs import Input
    from guardrail.pipeline import Guard

__all__ = ["scan_on_ray"]

_LINE_EVERY_S = 5.0


def scan_on_ray(
    inputs: Sequence[Input],
    layout: Layout,
    guard: Guard,
    output: str,
    errors: str | None,
    *,
    model: str | None,
    workers: int | None,
    address: str | None,
    shard_lines: int,
    resume: bool,
    restart: bool,
    is_quiet: bool,
) -> tuple[Summary, int, int]:
    """Runs the scan to its end; returns its counts, the rows without a judgement of their own, and the rows before."""
    from guardrail.assembly import build_guard
    from guardrail.config import load_settings
    from guardrail.logscan.cluster import Work, judge_on_ray, require_ray
    from guardrail.logscan.ledger import manifest_of
    from guardrail.logscan.shards import ShardFolder, plan
    from guardrail.logscan.summary import Summary

    require_ray()
    if streams := [one.name for one in inputs if not one.can_be_read_again]:
        raise InvalidInput(f"--engine ray reads files that all workers see, and {streams[0]} is none")
    manifest = manifest_of(guard, inputs, layout, errors=errors, is_strict=False)
    manifest["options"]["shard_lines"] = shard_lines
    folder = ShardFolder(output, with_errors=errors is not None)
    folder.begin(manifest, resume=resume, restart=restart)
    shards = plan(inputs, shard_lines)
    done = folder.done(shards) if resume else {}
    already = sum(one.summary.rows for one in done.values())
    if done and not is_quiet:
        say(f"going on after {len(done):,} of {len(shards):,} shards, {already:,} rows")
    make_guard = partial(build_guard, load_settings(model=model), policy=guard.policy)
    work = Work(inputs, layout, folder, make_guard, guard.policy.hash, str(guard.source))
    left = [shard for shard in shards if shard.number not in done]
    told = time.monotonic()
    try:
        for one in judge_on_ray(left, work, workers=workers, address=address) if left else ():
            done[one.number] = one
            if not is_quiet and time.monotonic() - told >= _LINE_EVERY_S:
                told = time.monotonic()
                say(f"{len(done):,} of {len(shards):,} shards, {sum(d.summary.rows for d in done.values()):,} rows")
    except KeyboardInterrupt:
        say_error(f"interrupted after {len(done)} of {len(shards)} shards; the same command with --resume goes on")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    summary = Summary()
    for shard in shards:
        summary.merge(done[shard.number].summary)
    if errors is not None:
        folder.gather_errors(shards, Path(errors))
    folder.end(manifest, "complete", summary)
    return summary, sum(one.repeats for one in done.values()), already
