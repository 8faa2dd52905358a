"""``guardrail rules list | test | explain``: the rules that code is scanned with."""

from __future__ import annotations

import asyncio
import json
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardrail.cli.console import ExitCode, err_console, out_console, say_error, visible
from guardrail.cli.scan_code import RulesOption, load_rulebook, read_language
from guardrail.errors import ConfigurationError, InvalidInput

if TYPE_CHECKING:
    from guardrail.shield.cases import Case, Failure
    from guardrail.shield.rulebook import Rule, Rulebook

__all__ = ["app"]

# All cases of the package take half a minute.
_LIMIT_S = 600.0

app = typer.Typer(help="List, test and explain the rules for code.", no_args_is_help=True)


@app.command("list")
def list_rules(
    language: Annotated[str | None, typer.Option("--language", metavar="NAME", help="Only those for it.")] = None,
    rules: RulesOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """List the rules: id, weakness, severity, confidence, languages."""
    chosen = list(_rulebook(rules).rules.values())
    if language is not None:
        name = read_language(language)
        chosen = [rule for rule in chosen if name in rule.languages]
    if as_json:
        typer.echo(json.dumps([_values(rule) for rule in chosen], indent=2))
        return
    rows = [
        (rule.id, rule.cwe, rule.severity.value, rule.confidence.value, ", ".join(sorted(rule.languages)))
        for rule in chosen
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
    console = out_console()
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        console.print("  ".join([*cells, row[-1]]), markup=False, soft_wrap=True)
    console.print(f"{len(rows)} rules", style="dim")


@app.command("test")
def run_tests(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Rules of your own; without, those of the package.")
    ] = None,
) -> None:
    """Check that semgrep can read each rule, and run each against its cases. Exits with 1 where one fails."""
    from guardrail.config import load_settings
    from guardrail.shield.cases import load_cases
    from guardrail.shield.install import find_semgrep
    from guardrail.shield.rulebook import RULES, Rulebook
    from guardrail.shield.validate import find_faults, read_folder

    settings = load_settings()
    rulebook = read_folder(folder) if folder is not None else Rulebook.load(RULES)
    core = find_semgrep(settings.semgrep)
    console = out_console()
    with err_console().status("testing"):
        faults = find_faults(rulebook.rules.values(), core)
        for fault in faults:
            console.print(visible(str(fault)), markup=False, soft_wrap=True)
        # One rule that semgrep cannot read would end the run of its language.
        wrong = {fault.rule.id for fault in faults}
        cases = [case for case in load_cases(rulebook.rules.values()) if case.rule.id not in wrong]
        usable = [rule for rule in rulebook.rules.values() if rule.id not in wrong]
        failures = _run(Rulebook(usable, rulebook.digest), cases, settings.semgrep) if cases else []
    for failure in failures:
        console.print(visible(str(failure)), markup=False, soft_wrap=True)
    summary = f"{len(rulebook.rules):,} rules, {len(cases):,} cases"
    if faults or failures:
        say_error(f"{summary}: {len(wrong):,} rules that cannot be used, {len(failures):,} cases that are not kept")
        raise typer.Exit(ExitCode.FAILED)
    console.print(f"{summary}: all kept", style="green")


def _run(rulebook: Rulebook, cases: list[Case], semgrep: str | None) -> list[Failure]:
    from guardrail.shield.cases import run_cases
    from guardrail.shield.semgrep import SemgrepScanner

    scanner = SemgrepScanner(executable=semgrep, rules=rulebook, timeout_s=_LIMIT_S, every_rule=True)
    return asyncio.run(run_cases(cases, scanner))


@app.command("explain")
def explain(
    rule_id: Annotated[str, typer.Argument(metavar="ID", help="E.g. python.sql-injection.")],
    rules: RulesOption = None,
) -> None:
    """Say what a rule finds, what to do instead, and show its cases."""
    from guardrail.shield.cases import load_cases

    rulebook = _rulebook(rules)
    rule = rulebook.rules.get(rule_id)
    if rule is None:
        near = get_close_matches(rule_id, rulebook.rules, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else "; guardrail rules list names them all"
        raise InvalidInput(f"no rule is called {rule_id!r}{hint}")
    console = out_console()
    console.print(rule.id, style="bold", soft_wrap=True)
    number = rule.cwe.removeprefix("CWE-")
    rows = {
        "message": rule.message,
        "fix": rule.fix,
        "weakness": f"{rule.cwe}, https://cwe.mitre.org/data/definitions/{number}.html",
        "OWASP": rule.owasp,
        "severity": rule.severity.value,
        "confidence": rule.confidence.value,
        "languages": ", ".join(sorted(rule.languages)),
        "file": str(rule.path),
    }
    for name, value in rows.items():
        if value:
            console.print(f"{name:<11}{visible(value)}", markup=False, soft_wrap=True)
    try:
        beside = [other for other in rulebook.rules.values() if other.path == rule.path]
        cases = [case for case in load_cases(beside) if case.rule is rule]
    except ConfigurationError as exc:  # a rule of the user's may have none
        console.print(f"cases      none: {exc}", markup=False, soft_wrap=True)
        return
    for must_match, title in ((True, "it finds"), (False, "it does not find")):
        console.print(f"\n{title}:", style="bold")
        for case in cases:
            if case.must_match is must_match:
                lines = case.code.rstrip("\n").split("\n")
                text = "\n".join(f"    {visible(line.expandtabs(4))}" for line in lines)
                console.print(f"{text}\n", markup=False, soft_wrap=True)


def _rulebook(rules: Path | None) -> Rulebook:
    from guardrail.config import load_settings

    return load_rulebook(load_settings(rules=str(rules) if rules is not None else None))


def _values(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "cwe": rule.cwe,
        "owasp": rule.owasp,
        "severity": rule.severity.value,
        "confidence": rule.confidence.value,
        "languages": sorted(rule.languages),
        "message": rule.message,
        "fix": rule.fix,
        "file": str(rule.path),
    }
