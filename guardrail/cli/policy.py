"""``guardrail policy validate | show | replay | diff``."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardrail.cli.console import STYLES, out_console, say, visible
from guardrail.errors import InvalidInput
from guardrail.page import counted
from guardrail.verdict import Action, Confidence, Rail, ReasonKind, Severity

if TYPE_CHECKING:
    from rich.table import Table

    from guardrail.logscan.replay import Cause, Diff, Replay
    from guardrail.policy import Policy, RailPolicy, Rule
    from guardrail.suppression import Suppression

__all__ = ["app"]

app = typer.Typer(help="Check, show and compare policies.", no_args_is_help=True)

_ResultsArgument = Annotated[
    list[Path],
    typer.Argument(metavar="RESULTS...", help="What `guardrail scan --output` wrote: JSON Lines, plain or gzipped."),
]
_TodayOption = Annotated[
    str | None,
    typer.Option(
        "--today", metavar="YYYY-MM-DD", help="The day for suppressions that end.", show_default="today, in UTC"
    ),
]
_JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.command("validate")
def validate(path: Annotated[str, typer.Argument(metavar="FILE", help="A policy file.")]) -> None:
    """Check a policy file; exits with 2 and the line of each mistake if it is not a policy."""
    from guardrail.policy import load_policy

    policy = load_policy(path)
    out_console().print(f"{path}: valid, policy {policy.name} ({policy.hash})", markup=False, soft_wrap=True)


@app.command("show")
def show(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME|FILE", help="strict, default, monitor, or a file.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of policy files instead.")] = False,
) -> None:
    """Print a policy with every default filled in, as YAML that reads back as the same policy."""
    from guardrail.policy import load_policy, policy_schema

    if schema:
        typer.echo(json.dumps(policy_schema(), indent=2))
        return
    if name is None:
        raise InvalidInput("name a policy to show: strict, default, monitor, or a file; or give --schema")
    typer.echo(_as_yaml(load_policy(name)), nl=False)


@app.command("replay")
def replay(
    results: _ResultsArgument,
    policy: Annotated[str, typer.Option("--policy", metavar="NAME|FILE", help="The policy to decide by.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the rows with their new decisions; .gz compresses."),
    ] = None,
    today: _TodayOption = None,
    as_json: _JsonOption = False,
) -> None:
    """Decide stored results again under a policy, from the verdicts they hold; no model is asked."""
    from guardrail.logscan.replay import replay as replay_results
    from guardrail.policy import load_policy

    if output is not None and any(output.exists() and path.exists() and path.samefile(output) for path in results):
        raise InvalidInput(f"--output {output} is one of the results to read")
    counts = replay_results(results, load_policy(policy), output=output, today=_day(today))
    if as_json:
        typer.echo(json.dumps(counts.to_dict(), indent=2))
    else:
        _show_replay(counts)
    _warn(counts)


@app.command("diff")
def diff(
    results: _ResultsArgument,
    old: Annotated[str, typer.Option("--old", metavar="NAME|FILE", help="The policy to compare with.")],
    new: Annotated[str, typer.Option("--new", metavar="NAME|FILE", help="The policy to look at.")],
    samples: Annotated[int, typer.Option("--samples", min=0, max=1000, help="Rows to name for each change.")] = 5,
    today: _TodayOption = None,
    as_json: _JsonOption = False,
) -> None:
    """Show which decisions on stored results flip between two policies, and over what; names rows, never their text."""
    from guardrail.logscan.replay import diff as diff_results
    from guardrail.policy import load_policy

    found = diff_results(results, load_policy(old), load_policy(new), samples=samples, today=_day(today))
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _show_diff(found)
    _warn(found)


def _day(given: str | None) -> date | None:
    try:
        return None if given is None else date.fromisoformat(given)
    except ValueError as exc:
        raise InvalidInput("--today: expected a day such as 2027-01-31") from exc


def _show_replay(counts: Replay) -> None:
    console = out_console()
    policy = counts.policy
    console.print(f"policy {policy.name} ({policy.hash}), no model asked", markup=False, soft_wrap=True)
    decisions = _table("decision", *(rail.value for rail in Rail), "rows", "share")
    decided = counts.rows - counts.bad_rows
    for action in Action:
        rows = counts.total(action)
        rails = (f"{counts.decisions[rail, action]:,}" for rail in Rail)
        share = f"{rows / decided:.1%}" if decided else "-"
        decisions.add_row(action.value, *rails, f"{rows:,}", share, style=STYLES[action.value] if rows else "dim")
    console.print(decisions)
    causes = counts.causes
    if causes:
        asked = _table("asked for by", *(action.value for action in Action))
        for cause in causes:
            asked.add_row(_title(cause), *(f"{counts.asks[cause, action]:,}" for action in Action))
        console.print(asked)
    console.print(f"{counts.rows:,} rows; {counts.changed:,} decisions are not the stored ones", markup=False)


def _show_diff(found: Diff) -> None:
    console = out_console()
    for name, policy in (("old", found.old), ("new", found.new)):
        console.print(f"{name}  policy {policy.name} ({policy.hash})", markup=False, soft_wrap=True)
    decided = found.rows - found.bad_rows
    share = f", {found.flipped / decided:.1%}" if decided else ""
    console.print(f"{found.flipped:,} of {decided:,} decisions flip{share}", markup=False)
    if not found.flipped:
        return
    flips = _table("decision", "rows")
    for before, after, flip in found.by_action():
        flips.add_row(f"{before.value} → {after.value}", f"{flip.rows:,}", style=STYLES[after.value])
    console.print(flips)
    for cause, before_asked, after_asked, flip in found.by_cause():
        asked = " → ".join(action.value if action else "nothing" for action in (before_asked, after_asked))
        console.print(f"{_title(cause)}: {asked}, {flip.rows:,} rows", markup=False, soft_wrap=True)
        for sample in flip.samples:
            line = sample.place if sample.id == sample.place else f"{sample.place}  id {sample.id}"
            console.print(f"    {visible(line)}", markup=False, soft_wrap=True, style="dim")


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column(columns[0])
    for column in columns[1:]:
        made.add_column(column, justify="right")
    return made


def _title(cause: Cause) -> str:
    from guardrail.taxonomy import HazardCategory

    titles = {
        ReasonKind.UNSAFE: "unsafe without a category",
        ReasonKind.UNSCANNED: "code not examined",
        ReasonKind.UNVERIFIED: "no answer",
    }
    return (
        HazardCategory(cause.subject).title
        if cause.kind is ReasonKind.HAZARD
        else titles.get(cause.kind, cause.subject)
    )


def _warn(counts: Replay | Diff) -> None:
    if not counts.rows:
        say("there was no row in any file: nothing was decided", style="yellow")
    if counts.bad_rows:
        say(
            f"{counted(counts.bad_rows, 'row')} could not be read when scanned; nothing is decided of them",
            style="yellow",
        )
    if counts.without_code:
        say(
            f"{counts.without_code:,} rows hold no code verdict, and the policy would have their code examined: "
            "a new scan may decide more strictly",
            style="yellow",
        )


def _as_yaml(policy: Policy) -> str:
    import yaml

    values: dict[str, Any] = {
        "version": 1,
        "name": policy.name,
        "rails": {
            rail.value: {
                "unsafe": _rule(rules.unsafe),
                "categories": {category.value: _rule(rule) for category, rule in rules.categories.items()},
                "findings": {severity.value: _treatment(rules, severity) for severity in Severity},
            }
            for rail, rules in policy.rails.items()
        },
        "suppressions": [_suppression(suppression) for suppression in policy.suppressions],
        "on_unverified": policy.on_unverified.value,
        "on_unscanned_code": policy.on_unscanned_code.value,
        "max_attempts": policy.max_attempts,
        "deadline_s": policy.deadline_s,
        "block_message": policy.block_message,
    }
    body = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return f"# hash: {policy.hash}\n# A category that is not listed takes the rule `unsafe`.\n{body}"


def _rule(rule: Rule) -> dict[str, Any]:
    return {"action": rule.action.value, "threshold": rule.threshold}


def _treatment(rules: RailPolicy, severity: Severity) -> str | dict[str, str]:
    actions = {c.value: rules.treatment(severity, c).value for c in Confidence}
    return actions if len(set(actions.values())) > 1 else actions[Confidence.LOW.value]


def _suppression(suppression: Suppression) -> dict[str, Any]:
    return {name: value for name, value in asdict(suppression).items() if value}
