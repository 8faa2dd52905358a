"""``guardrail policy validate | show``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardrail.cli.console import out_console
from guardrail.errors import InvalidInput
from guardrail.verdict import Confidence, Severity

if TYPE_CHECKING:
    from guardrail.policy import Policy, RailPolicy, Rule
    from guardrail.suppression import Suppression

__all__ = ["app"]

app = typer.Typer(help="Check and show policies.", no_args_is_help=True)


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
