"""``guardrail eval FILE... | diff | cascade``: measures a classifier on labelled rows."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from guardrail.cli.console import ExitCode, PolicyOption, err_console, out_console, say, say_error, visible
from guardrail.errors import ConfigurationError, InvalidInput

if TYPE_CHECKING:
    from rich.table import Table

    from guardrail.config import Settings
    from guardrail.evaluation import CascadeChoice, Comparison, LabelledSet, Report, SetComparison

__all__ = ["app"]

# As many bad rows are named; the rest is counted.
_MOST_NAMED = 20


class _Group(TyperGroup):
    """Takes ``eval FILE...`` as ``eval run FILE...``; a file that is called like a command is ``./diff``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # typer's versions have contexts of their own
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        return list(super().parse_args(ctx, args))


app = typer.Typer(
    cls=_Group, help="Measure a classifier on labelled rows: guardrail eval FILE...", no_args_is_help=True
)

JsonOption = Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Write the report as JSON.")]


@app.command("run")
def run(
    files: Annotated[list[Path], typer.Argument(help="Labelled JSON Lines.", metavar="FILE...")],
    classifier: Annotated[
        str | None,
        typer.Option(
            "--classifier",
            metavar="NAME",
            help="auto, embedded, llama-guard-2, llama-guard-3, cascade, or a plug-in's name.",
            show_default="auto",
        ),
    ] = None,
    json_path: JsonOption = None,
    html_path: Annotated[
        Path | None, typer.Option("--html", metavar="PAGE", help="Write the report as one HTML page.")
    ] = None,
    target_fpr: Annotated[
        float | None,
        typer.Option("--target-fpr", min=0.0, max=1.0, help="Also choose a threshold on these rows that keeps it."),
    ] = None,
    policy: PolicyOption = None,
    latency_messages: Annotated[
        int, typer.Option("--latency-messages", min=0, help="Time so many single messages; 0 for none.")
    ] = 200,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at bad rows instead of leaving them out.")] = False,
    allow_unjudged: Annotated[
        bool, typer.Option("--allow-unjudged", help="Exit with 0 though some rows could not be judged, not with 4.")
    ] = False,
) -> None:
    """Judge labelled rows and print how right the classifier is: guardrail eval FILE... for short.

    A row holds text and unsafe (true, false, null), and perhaps role, prompt, categories, id, lang, source.
    """
    from guardrail.config import load_settings
    from guardrail.evaluation import render_page

    _require_writable([json_path, html_path], files)
    sets = _read(files, strict=strict)
    report = _evaluate(
        sets, load_settings(model=classifier, policy=policy), target_fpr=target_fpr, latency_messages=latency_messages
    )
    _show(report)
    if json_path is not None:
        _write(json_path, json.dumps(report.to_dict(), indent=1) + "\n")
    if html_path is not None:
        _write(html_path, render_page(report))
    if report.overall.unverified_rows and not allow_unjudged:
        say_error(
            f"{report.overall.unverified_rows:,} of {len(report.overall.rows):,} rows could not be judged and are in "
            "no figure; --allow-unjudged accepts that"
        )
        raise typer.Exit(ExitCode.UNJUDGED)


@app.command("diff")
def diff(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="A report of guardrail eval --json.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="Another, of the same files.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on one line.")] = False,
) -> None:
    """Compare two reports, set by set, over the rows that both judged."""
    from guardrail.evaluation import compare, load_run

    found = compare(load_run(before), load_run(after))
    if as_json:
        typer.echo(json.dumps(_comparison_dict(found)))
    else:
        _show_comparison(found, before, after)


@app.command("cascade")
def cascade(
    embedded: Annotated[Path, typer.Argument(metavar="EMBEDDED.json", help="A report of the embedded model.")],
    guard: Annotated[Path, typer.Argument(metavar="GUARD.json", help="A report of the guard model on the same files.")],
    miss_budget: Annotated[
        float,
        typer.Option(
            "--miss-budget",
            min=0.0,
            max=1.0,
            help="The largest share of what the guard calls unsafe that may pass without it; of safe, be flagged.",
        ),
    ] = 0.01,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on one line.")] = False,
) -> None:
    """Choose a cascade's thresholds from two reports, and print how many calls of the guard they save."""
    from guardrail.evaluation import choose_cascade, load_run

    choice = choose_cascade(load_run(embedded), load_run(guard), miss_budget=miss_budget)
    if as_json:
        typer.echo(json.dumps(_choice_dict(choice)))
    else:
        _show_choice(choice)


def _require_writable(outputs: Sequence[Path | None], files: Sequence[Path]) -> None:
    """Nothing is judged before the results are known to have a place."""
    given = [path for path in outputs if path is not None]
    for path in given:
        if path.is_dir():
            raise InvalidInput(f"{path} is a folder; name a file in it")
        if not path.absolute().parent.is_dir():
            raise InvalidInput(f"there is no folder {path.absolute().parent} to write {path.name} to")
        if any(file.exists() and path.exists() and file.samefile(path) for file in files):
            raise InvalidInput(f"{path} is one of the files to read")
    if len({path.absolute() for path in given}) < len(given):
        raise InvalidInput("--json and --html name the same file")


def _read(files: Sequence[Path], *, strict: bool) -> list[LabelledSet]:
    from guardrail.evaluation import read_sets

    try:
        sets = read_sets(files)
    except OSError as exc:
        raise InvalidInput(f"cannot read {exc.filename}: {exc.strerror}") from exc
    bad = [row for one in sets for row in one.bad_rows]
    for row in bad[:_MOST_NAMED]:
        say(f"bad row {row.file}:{row.line}: {row.error}", style="yellow")
    if len(bad) > _MOST_NAMED:
        say(f"and {len(bad) - _MOST_NAMED:,} more bad rows", style="yellow")
    if bad and strict:
        raise InvalidInput(f"{len(bad):,} bad rows; without --strict they are left out")
    if not any(one.rows for one in sets):
        raise InvalidInput("there is no row to judge in any file")
    return sets


def _evaluate(
    sets: Sequence[LabelledSet], settings: Settings, *, target_fpr: float | None, latency_messages: int
) -> Report:
    from rich.progress import Progress

    from guardrail import assembly
    from guardrail.evaluation import evaluate
    from guardrail.policy import load_policy

    policy = load_policy(settings.policy)
    classifier = assembly.build_classifier(settings)
    console = err_console()
    total = sum(len(one.rows) for one in sets)
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("judging", total=total)
            return asyncio.run(
                evaluate(
                    classifier,
                    sets,
                    name=settings.model,
                    policy=policy,
                    target_fpr=target_fpr,
                    latency_messages=latency_messages,
                    on_progress=lambda rows: progress.advance(task, rows),
                )
            )
    finally:
        close = getattr(classifier, "close", None)
        if close is not None:
            close()


def _write(path: Path, text: str) -> None:
    """Replaces the file at once, so that no reader meets half of it."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, "utf-8")
        os.replace(partial, path)
    except OSError as exc:
        raise ConfigurationError(f"cannot write {path}: {exc.strerror}") from exc
    say(f"written: {path}")


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        made.add_column(column, justify="right")
    return made


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


_DECIDED = ("recall", "fpr", "f1")
_RANKED = ("auprc", "auroc", "ece", "brier")


def _numbers(values: Mapping[str, float | None], names: Sequence[str]) -> list[str]:
    return [_number(values[name]) for name in names]


def _show(report: Report) -> None:
    console = out_console()
    console.print(f"{report.classifier}: {report.source}", markup=False, soft_wrap=True)
    # Two tables: one would be wider than a terminal of 80 columns.
    decided = _table("set", "rows", "unsafe", "unverified", "recall", "FPR", "F1", "category")
    ranked = _table("set", "AUPRC", "AUROC", "ECE", "Brier")
    for one in (*report.sets, report.overall):
        style = "bold" if one is report.overall else None
        counts = (f"{one.figures.rows:,}", f"{one.figures.unsafe:,}", f"{one.unverified_rows:,}")
        shares = _numbers(one.figures.to_dict(), _DECIDED)
        decided.add_row(visible(one.name), *counts, *shares, _number(one.top1), style=style)
        ranked.add_row(visible(one.name), *_numbers(one.figures.to_dict(), _RANKED), style=style)
    decided.add_row("mean of sets", "", "", "", *_numbers(report.macro, _DECIDED), "")
    ranked.add_row("mean of sets", *_numbers(report.macro, _RANKED))
    console.print(decided)
    console.print(ranked)
    if report.operating is not None:
        _show_operating(report)
    if report.overall.categories:
        categories = _table("category", "unsafe rows", "recall", "category right")
        for category, found in report.overall.categories.items():
            categories.add_row(category.title, f"{found.rows:,}", _number(found.recall), _number(found.top1))
        console.print(categories)
    if len(report.decided_by) > 1:
        stages = _table("decided by", "rows")
        for name, count in report.decided_by.items():
            stages.add_row(name, f"{count:,}")
        console.print(stages)
    speed = report.speed
    if speed.latency is not None:
        one_by_one = f"p50 {speed.latency.p50_ms:,.1f} ms, p99 {speed.latency.p99_ms:,.1f} ms"
        console.print(f"one message at a time: {one_by_one} ({speed.latency.messages:,} messages)", markup=False)
    if speed.texts_per_s is not None:
        console.print(f"in batches of {speed.batch_size}: {speed.texts_per_s:,.1f} texts/s", markup=False)
    if report.overall.bad_rows:
        say(f"{report.overall.bad_rows:,} bad rows left out", style="yellow")
    if report.overall.unlabelled:
        say(f"{report.overall.unlabelled:,} rows without a label: judged, and in no figure", style="yellow")


def _show_operating(report: Report) -> None:
    console = out_console()
    assert report.operating is not None
    threshold, target = report.operating.threshold, report.operating.target_fpr
    if threshold is None:
        console.print(f"no threshold of these rows keeps a false-positive rate of {target:g}", markup=False)
        return
    console.print(
        f"at threshold {threshold:.6g}, chosen on these very rows for a false-positive rate of {target:g} over all of "
        "them (kinder than on other rows):",
        markup=False,
        soft_wrap=True,
    )
    made = _table("set", "rows", "unsafe", "recall", "FPR", "F1")
    for one in (*report.sets, report.overall):
        found = one.figures_at(threshold)
        shares = _numbers(found.to_dict(), _DECIDED)
        made.add_row(visible(one.name), f"{found.rows:,}", f"{found.unsafe:,}", *shares)
    console.print(made)


def _show_comparison(found: Comparison, before: Path, after: Path) -> None:
    console = out_console()
    console.print(f"from {before} to {after}, over the rows that both judged", markup=False, soft_wrap=True)
    made = _table("set", "rows", "recall", "FPR", "F1", "AUPRC", "AUROC", "ECE", "fixed", "broken", "p")
    for one in (*found.sets, found.overall):
        moved = [_moved(getattr(one.before, n), getattr(one.after, n)) for n in _MOVING]
        made.add_row(
            visible(one.name), f"{one.before.rows:,}", *moved, f"{one.fixed:,}", f"{one.broken:,}", f"{one.p:.3g}"
        )
    console.print(made)
    console.print("fixed: wrong before, right after; broken: the other way; p: exact McNemar test", style="dim")
    alone = found.overall.only_before + found.overall.only_after
    for count, what in ((alone, "in one run alone"), (found.overall.unjudged, "without a label or a verdict in both")):
        if count:
            say(f"{count:,} rows {what} were left out", style="yellow")
    for name in (*found.only_before, *found.only_after):
        say(f"set {visible(name)} is in one run alone and was left out", style="yellow")


_MOVING = ("recall", "fpr", "f1", "auprc", "auroc", "ece")


def _moved(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "-"
    return f"{after:.3f}\n{after - before:+.3f}"


def _comparison_dict(found: Comparison) -> dict[str, Any]:
    def values(one: SetComparison) -> dict[str, Any]:
        return {
            "name": one.name,
            "before": one.before.to_dict(),
            "after": one.after.to_dict(),
            "only_before": one.only_before,
            "only_after": one.only_after,
            "unjudged": one.unjudged,
            "fixed": one.fixed,
            "broken": one.broken,
            "p": one.p,
        }

    return {
        "schema": "guardrail.evaluation-diff/1",
        "sets": [values(one) for one in found.sets],
        "overall": values(found.overall),
        "sets_only_before": list(found.only_before),
        "sets_only_after": list(found.only_after),
    }


def _choice_dict(choice: CascadeChoice) -> dict[str, Any]:
    return {
        "schema": "guardrail.evaluation-cascade/1",
        "low": choice.low,
        "high": choice.high,
        "miss_budget": choice.budget,
        "rows": choice.rows,
        "guard_unsafe": choice.guard_unsafe,
        "passed": choice.passed,
        "guard_safe": choice.guard_safe,
        "flagged": choice.flagged,
        "saved": choice.saved,
        "saved_share": choice.saved_share,
    }


def _show_choice(choice: CascadeChoice) -> None:
    def share(part: int, whole: int) -> str:
        return f"{part:,} of {whole:,}" + (f" ({part / whole:.2%})" if whole else "")

    made = _table(f"chosen on {choice.rows:,} rows, budget {choice.budget:g}", "")
    made.add_row("unsafe for the guard, passed without it", share(choice.passed, choice.guard_unsafe))
    made.add_row("safe for the guard, flagged without it", share(choice.flagged, choice.guard_safe))
    made.add_row("calls of the guard saved", share(choice.saved, choice.rows))
    console = out_console()
    console.print(made)
    typer.echo(f"GUARDRAIL_CASCADE_LOW={choice.low:g}\nGUARDRAIL_CASCADE_HIGH={choice.high:g}")
    console.print("Chosen on these very rows: the shares are kinder than on other rows.", style="dim")
