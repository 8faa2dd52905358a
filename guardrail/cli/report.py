"""``guardrail report``: what a scan found, as one HTML page, CSV, SARIF and JSON."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardrail.cli.console import say
from guardrail.errors import InvalidInput

if TYPE_CHECKING:
    from guardrail.logscan.report import Report
    from guardrail.logscan.report_exports import SarifCollector
    from guardrail.logscan.report_samples import Chooser

__all__ = ["report"]


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS...", help="What `guardrail scan --output` wrote: JSON Lines, plain or gzipped."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the HTML page here.")
    ] = None,
    texts: Annotated[
        list[Path] | None,
        typer.Option("--texts", metavar="LOG", help="Join texts from this log, JSON Lines; may be given again."),
    ] = None,
    no_text: Annotated[
        bool, typer.Option("--no-text", help="Leave texts out, whatever --texts says; so it is without --texts.")
    ] = False,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write every row as CSV.")] = None,
    sarif: Annotated[Path | None, typer.Option("--sarif", metavar="FILE", help="Write the findings as SARIF.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            metavar="NAME|FILE",
            help="The policy that was used, for its thresholds.",
            show_default="the preset that was used, if one was",
        ),
    ] = None,
    title: Annotated[str, typer.Option("--title", help="Title of the page.")] = "Log scan",
    rows: Annotated[int, typer.Option("--rows", min=0, max=2000, help="Rows in the page's table.")] = 2000,
) -> None:
    """Make a page of a scan's results to read and pass on; it needs no network and holds no text unless asked."""
    from guardrail.logscan.page import render_page
    from guardrail.logscan.report import Report, policy_of
    from guardrail.logscan.report_exports import SarifCollector
    from guardrail.logscan.report_samples import Chooser, join_texts
    from guardrail.logscan.stored import replacing
    from guardrail.policy import load_policy

    outputs = [path for path in (output, csv, sarif, as_json) if path is not None]
    _require_sound(results, outputs)
    given = None if policy is None else load_policy(policy)
    figures, chooser = Report(), Chooser(rows)
    findings = SarifCollector() if sarif is not None else None
    _read(results, figures, chooser, findings, csv)
    used = policy_of(figures, given)
    if output is not None:
        samples = chooser.chosen()
        if texts and not no_text:
            lacking = sum(sample.action is not None for sample in samples) - join_texts(samples, texts)
            if lacking:
                say(
                    f"{lacking:,} of {len(samples):,} rows in the page have no text: "
                    "their lines are not in --texts, or are not what was judged",
                    style="yellow",
                )
        with replacing(output) as file:
            file.write(render_page(figures, samples, chooser.seen, policy=used, title=title).encode())
    for path, values in ((as_json, figures.to_dict()), (sarif, findings.to_dict() if findings else None)):
        if path is not None:
            with replacing(path) as file:
                file.write(json.dumps(values, indent=2).encode() + b"\n")
    if findings is not None and findings.left_out:
        say(f"{findings.left_out:,} findings are not in {sarif}: code hosts take no more of one run", style="yellow")
    if not figures.rows:
        say("there was no row in any file: the report is empty", style="yellow")
    say(f"{figures.rows:,} rows: {', '.join(map(str, outputs))}")


def _require_sound(results: list[Path], outputs: list[Path]) -> None:
    if not outputs:
        raise InvalidInput("name what to write: --output report.html, --csv, --sarif or --json")
    for place, path in enumerate(outputs):
        if path in outputs[:place]:
            raise InvalidInput(f"{path} is named for two outputs")
        if any(path.exists() and one.exists() and path.samefile(one) for one in results):
            raise InvalidInput(f"{path} is one of the results to read")


def _read(
    results: list[Path], figures: Report, chooser: Chooser, findings: SarifCollector | None, csv: Path | None
) -> None:
    from guardrail.logscan.report_exports import CsvWriter
    from guardrail.logscan.stored import read_results, replacing

    with ExitStack() as stack:
        writer = CsvWriter(stack.enter_context(replacing(csv))) if csv is not None else None
        for path in map(str, results):
            for number, row in read_results(path):
                try:
                    figures.add(row)
                    chooser.add(path, number, row)
                    if findings is not None:
                        findings.add(path, number, row)
                    if writer is not None:
                        writer.add(path, number, row)
                except InvalidInput as exc:
                    raise InvalidInput(f"{path}:{number}: {exc}") from exc
