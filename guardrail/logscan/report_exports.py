"""Results for other programs: every row as CSV, the findings as SARIF. Neither holds a text of the log.

CSV is RFC 4180 in UTF-8. A cell that a spreadsheet would take for a formula begins with an apostrophe (OWASP, "CSV
Injection"). SARIF has a result for each finding, at the log's file and line that its row came from: a code host then
shows it in the log, and the place in the answer's code is in the result's message.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

from guardrail.logscan.report import is_unverified, time_of
from guardrail.logscan.stored import id_of, log_place
from guardrail.shield.rulebook import Rule
from guardrail.shield.sarif import to_sarif
from guardrail.verdict import Finding
from guardrail.verdict_json import read_finding

__all__ = ["MOST_SARIF_RESULTS", "CsvWriter", "SarifCollector"]

MOST_SARIF_RESULTS = 25_000
"""What GitHub's code scanning takes of one run (docs.github.com, "SARIF support for code scanning")."""

_COLUMNS = (
    "file", "line", "turn", "id", "time", "rail", "decision", "outcome", "unverified", "unsafe_probability",
    "top_category", "top_score", "categories", "cwes", "rules", "reasons", "policy", "error",
)  # fmt: skip


class CsvWriter:
    """Writes rows as CSV.

    Args:
        file: Where they go.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._line = io.StringIO()
        self._csv = csv.writer(self._line)
        self._write(_COLUMNS)

    def add(self, path: str, number: int, row: Mapping[str, Any]) -> None:
        """Writes one row that a report has counted.

        Args:
            path: The file of results; stands for the log's where that is not known.
            number: The row's line in it.
            row: The row.
        """
        file, line = log_place(row) or (path, number)
        when = time_of(row)
        time = "" if when is None else datetime.fromtimestamp(when, timezone.utc).isoformat()
        turn = row.get("turn")
        place = (_cell(file), line, turn if isinstance(turn, int) else "", _cell(id_of(row)), time)
        if row["decision"] is None:
            judged = ("", "", row["outcome"], "yes")
            empty = [""] * (len(_COLUMNS) - len(place) - len(judged) - 1)
            self._write((*place, *judged, *empty, _cell(row["error"])))
            return
        scores: dict[str, float] = row["scores"]
        top = max(scores, key=lambda name: scores[name], default="")
        self._write(
            (
                *place,
                row["rail"],
                row["decision"],
                row["outcome"],
                "yes" if is_unverified(row) else "no",
                "" if row["unsafe_probability"] is None else row["unsafe_probability"],
                top,
                scores.get(top, ""),
                " ".join(row["categories"]),
                " ".join(dict.fromkeys(finding["cwe"] for finding in row["findings"])),
                _cell(" ".join(dict.fromkeys(finding["rule_id"] for finding in row["findings"]))),
                _cell("; ".join(f"{reason['action']}: {reason['subject']}" for reason in row["reasons"])),
                _cell(f"{row['policy']['name']}@{row['policy']['hash']}"),
                "",
            )
        )

    def _write(self, cells: tuple[Any, ...]) -> None:
        self._csv.writerow(cells)
        # A lone surrogate of an id cannot be written.
        self._file.write(self._line.getvalue().encode("utf-8", "backslashreplace"))
        self._line.seek(0)
        self._line.truncate()


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


class SarifCollector:
    """Collects findings for a SARIF log.

    Attributes:
        left_out: Findings beyond ``MOST_SARIF_RESULTS``.
    """

    def __init__(self) -> None:
        self._results: list[tuple[str, Finding]] = []
        self._rules: dict[str, Rule] = {}
        self._revisions: dict[str, None] = {}
        self.left_out = 0

    def add(self, path: str, number: int, row: Mapping[str, Any]) -> None:
        """Takes the findings of one row that a report has counted.

        Args:
            path: The file of results; stands for the log's where that is not known.
            number: The row's line in it.
            row: The row.

        Raises:
            InvalidInput: If a finding cannot be read.
        """
        if row["decision"] is None:
            return
        for verdict in row["verdicts"]:
            for index, values in enumerate(verdict["findings"]):
                if len(self._results) >= MOST_SARIF_RESULTS:
                    self.left_out += 1
                    continue
                finding = read_finding(values, f"findings[{index}]")
                self._revisions.setdefault(str(verdict["revision"]))
                self._rules.setdefault(finding.rule_id, _rule(finding))
                self._results.append((*_placed(finding, log_place(row) or (path, number)),))

    def to_dict(self) -> dict[str, Any]:
        """Returns the SARIF log as JSON values."""
        return to_sarif(self._results, self._rules, revision=", ".join(self._revisions))


def _placed(finding: Finding, place: tuple[str, int]) -> tuple[str, Finding]:
    file, line = place
    where = f"Line {finding.line}, column {finding.column} of a {finding.language} block: {finding.message}"
    return file, replace(finding, line=line, column=1, message=where)


def _rule(finding: Finding) -> Rule:
    """The rule as its findings tell of it; the rules of the day of the scan may be others than today's."""
    return Rule(
        finding.rule_id,
        frozenset({finding.language}),
        finding.cwe,
        "",
        finding.severity,
        finding.confidence,
        finding.message,
        finding.fix,
        {},
        Path(),
    )
