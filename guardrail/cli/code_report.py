"""The views of a scan of code: text for people, JSON for programs, SARIF for code hosts.

Only the text view holds code, the line of each finding: what it prints is made harmless to a terminal first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from guardrail.cli.console import visible

if TYPE_CHECKING:
    from guardrail.shield.files import NotScanned
    from guardrail.shield.filescan import FileFinding, FileScan
    from guardrail.shield.rulebook import Rule

__all__ = ["as_json", "as_sarif", "show_findings", "show_summary"]

_STYLES = {"info": "cyan", "warning": "yellow", "error": "bold red"}
_WIDEST = 160
_TAB = "    "


def as_json(scan: FileScan, findings: Sequence[FileFinding], rules: Mapping[str, Rule], revision: str) -> str:
    """Returns one JSON object: what was found, what was not scanned, and the numbers of the summary."""
    values = {
        "revision": revision,
        "findings": [_finding(each, rules) for each in findings],
        "not_scanned": [
            {"path": each.path, "line": each.line or None, "why": each.why.value, "detail": each.detail}
            for each in scan.not_scanned
        ],
        "summary": {
            "files": scan.files,
            "blocks": dict(sorted(scan.blocks.items())),
            "findings": _by_severity(scan.findings),
            "not_scanned": dict(sorted(Counter(each.why.value for each in scan.not_scanned).items())),
        },
    }
    return json.dumps(values, indent=2) + "\n"


def _finding(each: FileFinding, rules: Mapping[str, Rule]) -> dict[str, Any]:
    finding = each.finding
    return {
        "path": each.path,
        "line": finding.line,
        "column": finding.column,
        "end_line": each.end_line,
        "end_column": each.end_column,
        "rule_id": finding.rule_id,
        "cwe": finding.cwe,
        "owasp": rules[finding.rule_id].owasp,
        "severity": finding.severity.value,
        "confidence": finding.confidence.value,
        "language": finding.language,
        "message": finding.message,
        "fix": finding.fix,
    }


def as_sarif(scan: FileScan, findings: Sequence[FileFinding], rules: Mapping[str, Rule], revision: str) -> str:
    """Returns a SARIF log."""
    from guardrail.shield.sarif import Place, to_sarif

    results = [(each.path, each.finding, Place(each.end_line, each.end_column, each.source_line)) for each in findings]
    log = to_sarif(results, rules, revision=revision, not_scanned=scan.not_scanned)
    return json.dumps(log, indent=2) + "\n"


# -- text


def show_findings(console: Console, findings: Sequence[FileFinding], failed: Sequence[NotScanned]) -> None:
    """Prints each finding as ``path:line:column: severity CWE rule``, with its line of code and what to do instead."""
    for each in findings:
        finding = each.finding
        style = _STYLES[finding.severity.value]
        head = Text.assemble(
            (f"{visible(each.path)}:{finding.line}:{finding.column}", "bold"),
            ": ",
            (finding.severity.value, style),
            f" {finding.cwe} {finding.rule_id} ({finding.confidence.value} confidence)",
        )
        _print(console, head)
        _print(console, Text(f"    {visible(finding.message)}"))
        for line, line_style in _excerpt(each):
            _print(console, Text(line, line_style or style))
        if finding.fix:
            _print(console, Text.assemble(("    fix: ", "green"), visible(finding.fix)))
        _print(console, Text())
    for skipped in failed:
        place = f"{visible(skipped.path)}:{skipped.line}" if skipped.line else visible(skipped.path)
        _print(console, Text.assemble((place, "bold"), ": ", ("not scanned to its end", "bold red")))
        _print(console, Text(f"    {visible(skipped.detail)}"))


def _excerpt(each: FileFinding) -> Iterator[tuple[str, str]]:
    """Yields the code line and the carets below what was found; of a long line, the part around it."""
    line, finding = each.source_line, each.finding
    start = finding.column - 1
    end = each.end_column - 1 if each.end_line == finding.line else len(line)
    first = max(0, start - _WIDEST // 2) if len(line) > _WIDEST else 0
    last = min(len(line), first + _WIDEST)
    before, within = _printable(line[first:start]), _printable(line[start : min(end, last)])
    after = _printable(line[min(end, last) : last])
    number = str(finding.line)
    yield f"    {number} | {before}{within}{after}", "default"
    yield f"    {' ' * len(number)} | {' ' * cell_len(before)}{'^' * max(1, cell_len(within))}", ""


def _printable(text: str) -> str:
    return _TAB.join(visible(part) for part in text.split("\t"))


def show_summary(console: Console, scan: FileScan, shown: int, revision: str) -> None:
    """Prints what was scanned, what was found, and what was not scanned and why."""
    languages = ", ".join(f"{name} {count:,}" for name, count in scan.blocks.most_common())
    _print(console, Text(f"scanned: {scan.files:,} files{f' ({languages})' if languages else ''}, {revision}"))
    counts = _by_severity(scan.findings)
    found = Text("found: ")
    for severity in ("error", "warning", "info"):
        count = counts[severity]
        found.append(f"{severity} {count:,}", _STYLES[severity] if count else "dim")
        found.append(", " if severity != "info" else "")
    hidden = len(scan.findings) - shown
    if hidden:
        found.append(f" ({hidden:,} below --severity not shown)")
    _print(console, found)
    if scan.not_scanned:
        kinds = Counter(_kind(each) for each in scan.not_scanned)
        words = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())
        _print(console, Text(f"not scanned: {words}", "yellow"))


def _kind(each: NotScanned) -> str:
    """What the summary counts it under; folders count once, whatever is in them."""
    from guardrail.shield.files import Why

    if each.why is Why.FAILED:
        return "not to their end"
    if each.why is Why.NO_RULES:
        return each.detail.replace("there are ", "")
    return f"{each.why.value} folders" if each.path.endswith("/") else f"{each.why.value} files"


def _by_severity(findings: Sequence[FileFinding]) -> dict[str, int]:
    counts = Counter(each.finding.severity.value for each in findings)
    return {severity: counts[severity] for severity in ("error", "warning", "info")}


def _print(console: Console, text: Text) -> None:
    """Lines are never wrapped, so that they can be searched for and compared."""
    console.print(text, soft_wrap=True)
