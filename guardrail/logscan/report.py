"""What a scan found, counted from its stored results in one pass: the figures that the page, the JSON and people read.

::

    results ─▶ build_report ─┬─▶ Report (counts alone, no text)
                             └─▶ samples (report_samples), exports (report_exports), each row as it passes by

The decisions are the stored ones: what another policy would say is ``replay``'s to tell. A policy is asked for its
thresholds only, and only one that made the decisions.

Times are read from the first of the fields in ``TIME_FIELDS`` that a row has, among those the scan kept or beside them:
ISO 8601, without a zone in UTC, or seconds, milliseconds or microseconds since 1970. They are counted by the hour.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from guardrail.errors import InvalidInput
from guardrail.policy import PRESETS, Policy, load_policy
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Action, Outcome, Rail, ReasonKind, Severity

__all__ = ["BINS", "TIME_FIELDS", "Report", "Weakness", "is_unverified", "policy_of", "time_of"]

BINS = 20
"""Bars of a score histogram, of equal width over 0..1."""

TIME_FIELDS = ("timestamp", "created_at", "created", "time", "datetime", "date", "ts")

# Details of failures and messages about bad rows may hold numbers of their own: so many different ones are kept.
_MOST_DETAILS = 1000
_DETAIL_CHARS = 160

_SEVERITIES = [severity.value for severity in Severity]
_CATEGORIES = frozenset(category.value for category in HazardCategory)
_HAZARD = ReasonKind.HAZARD.value


@dataclass(slots=True)
class Weakness:
    """Findings of one rule, weakness or language.

    Attributes:
        findings: How many.
        rows: Rows that have one.
        severities: Severity -> findings.
        about: What a rule's findings say; ``""`` for weaknesses and languages.
        cwe: A rule's weakness.
    """

    findings: int = 0
    rows: int = 0
    severities: Counter[str] = field(default_factory=Counter)
    about: str = ""
    cwe: str = ""

    @property
    def worst(self) -> str:
        """The highest severity among the findings."""
        return max(self.severities, key=_SEVERITIES.index)

    def to_dict(self) -> dict[str, Any]:
        """Returns the counts as JSON values."""
        severities = {name: self.severities[name] for name in _SEVERITIES}
        about = {"cwe": self.cwe, "message": self.about} if self.cwe else {}
        return {"findings": self.findings, "rows": self.rows, **severities, **about}


@dataclass(slots=True)
class Report:
    """Counts of stored results; rows are those of the results, each turn of a chat one.

    Attributes:
        rows: All rows, the bad ones included.
        decisions: (rail, action) -> rows.
        policies: (name, hash) of a policy -> rows it decided.
        judges: Model or rules, with revision -> rows it judged.
        bad_rows: Why a row could not be read from the log -> rows.
        unverified: Rows with a decision in which a judge gave no answer.
        failures: Why there was no answer -> verdicts.
        unscanned: Language of code that no rule could examine -> rows.
        categories: Category that a judge names -> rows.
        asked: (category, action) -> rows in which its score reached the threshold of a rule with that action.
        thresholds: (rail, category) -> thresholds that scores reached.
        histograms: Category, or ``"unsafe"`` -> rows by score, in ``BINS`` bins.
        weaknesses: CWE -> findings.
        languages: Language of the code -> findings.
        rules: Rule -> findings.
        hours: (hours since 1970, action; ``""`` for bad rows) -> rows.
        without_time: Rows without a time that could be read.
    """

    rows: int = 0
    decisions: Counter[tuple[str, str]] = field(default_factory=Counter)
    policies: Counter[tuple[str, str]] = field(default_factory=Counter)
    judges: Counter[str] = field(default_factory=Counter)
    bad_rows: Counter[str] = field(default_factory=Counter)
    unverified: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    unscanned: Counter[str] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    thresholds: dict[tuple[str, str], set[float]] = field(default_factory=dict)
    histograms: dict[str, list[int]] = field(default_factory=dict)
    weaknesses: dict[str, Weakness] = field(default_factory=dict)
    languages: dict[str, Weakness] = field(default_factory=dict)
    rules: dict[str, Weakness] = field(default_factory=dict)
    hours: Counter[tuple[int, str]] = field(default_factory=Counter)
    without_time: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Counts one row.

        Raises:
            InvalidInput: If it is no result; the message says what is wrong with it.
        """
        try:
            self._add(row)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as exc:
            name = f" {exc.args[0]}" if isinstance(exc, KeyError) and exc.args[0] in _FIELDS else ""
            raise InvalidInput(
                f"not a result of guardrail scan: a field{name} is missing or is not what it was"
            ) from exc

    def _add(self, row: Mapping[str, Any]) -> None:
        action = row["decision"]
        when = time_of(row)
        if when is None:
            self.without_time += 1
        else:
            self.hours[int(when // 3600), action or ""] += 1
        self.rows += 1
        if action is None:
            _count(self.bad_rows, row["error"])
            return
        self.decisions[Rail(row["rail"]).value, Action(action).value] += 1
        self.policies[row["policy"]["name"], row["policy"]["hash"]] += 1
        self.unverified += is_unverified(row)
        unscanned: set[str] = set()
        for verdict in row["verdicts"]:
            self.judges[f"{verdict['model']}@{verdict['revision']}"] += 1
            if verdict["unscanned"]:
                unscanned.update(verdict["unscanned"])
            elif verdict["outcome"] == Outcome.UNVERIFIED.value:
                _count(self.failures, verdict["detail"] or "no answer")
        self.unscanned.update(unscanned)
        self._add_scores(row)
        if row["findings"]:
            self._add_findings(row["findings"])

    def _add_scores(self, row: Mapping[str, Any]) -> None:
        for category in row["categories"]:
            self.categories[HazardCategory(category).value] += 1
        for reason in row["reasons"]:
            if reason["kind"] == _HAZARD:
                self.asked[reason["subject"], reason["action"]] += 1
                self.thresholds.setdefault((row["rail"], reason["subject"]), set()).add(float(reason["threshold"]))
        if row["unsafe_probability"] is not None:
            self._bins("unsafe")[min(int(row["unsafe_probability"] * BINS), BINS - 1)] += 1
        for name, score in row["scores"].items():
            self._bins(name)[min(int(score * BINS), BINS - 1)] += 1

    def _bins(self, name: str) -> list[int]:
        bins = self.histograms.get(name)
        if bins is None:
            if name not in _CATEGORIES and name != "unsafe":
                raise ValueError("not a category")
            bins = self.histograms[name] = [0] * BINS
        return bins

    def _add_findings(self, findings: list[Mapping[str, Any]]) -> None:
        seen: set[int] = set()
        for finding in findings:
            severity = Severity(finding["severity"]).value
            for group, name in (
                (self.weaknesses, finding["cwe"]),
                (self.languages, finding["language"]),
                (self.rules, finding["rule_id"]),
            ):
                entry = group.setdefault(str(name), Weakness())
                entry.findings += 1
                entry.severities[severity] += 1
                if id(entry) not in seen:
                    seen.add(id(entry))
                    entry.rows += 1
            entry.cwe, entry.about = str(finding["cwe"]), str(finding["message"])

    @property
    def bad(self) -> int:
        """Rows that could not be read from the log."""
        return self.bad_rows.total()

    def total(self, action: Action) -> int:
        """Rows of both rails with an action."""
        return sum(self.decisions[rail.value, action.value] for rail in Rail)

    @property
    def times(self) -> tuple[datetime, datetime] | None:
        """The first and the last hour that a row is of; None where no row has a time."""
        if not self.hours:
            return None
        hours = [hour for hour, _ in self.hours]
        first, last = (datetime.fromtimestamp(hour * 3600, timezone.utc) for hour in (min(hours), max(hours)))
        return first, last

    def to_dict(self) -> dict[str, Any]:
        """Returns the counts as JSON values."""
        by_hour: dict[int, dict[str, int]] = {}
        for (hour, action), rows in sorted(self.hours.items()):
            by_hour.setdefault(hour, {})[action or "bad_row"] = rows
        return {
            "schema": "guardrail.report/1",
            "rows": self.rows,
            "bad_rows": {"rows": self.bad, "why": dict(self.bad_rows.most_common())},
            "policies": [{"name": n, "hash": h, "rows": rows} for (n, h), rows in self.policies.most_common()],
            "judges": dict(self.judges.most_common()),
            "decisions": {action.value: self.total(action) for action in Action},
            "rails": {rail.value: {a.value: self.decisions[rail.value, a.value] for a in Action} for rail in Rail},
            "unverified": {"rows": self.unverified, "why": dict(self.failures.most_common())},
            "unscanned": dict(self.unscanned.most_common()),
            "categories": {
                category.value: {
                    "named": self.categories[category.value],
                    **{action.value: self.asked[category.value, action.value] for action in Action},
                }
                for category in HazardCategory
            },
            "weaknesses": _dicts(self.weaknesses),
            "languages": _dicts(self.languages),
            "rules": _dicts(self.rules),
            "histograms": {"bins": BINS, **self.histograms},
            "hours": [
                {"hour": datetime.fromtimestamp(hour * 3600, timezone.utc).isoformat(), **rows}
                for hour, rows in by_hour.items()
            ],
            "without_time": self.without_time,
        }


_FIELDS = frozenset(
    ("error", "rail", "policy", "verdicts", "findings", "categories", "reasons", "scores", "unsafe_probability")
)


def is_unverified(row: Mapping[str, Any]) -> bool:
    """Whether a judge that was asked for a row gave no answer; code without rules is counted apart."""
    verdicts = row["verdicts"]
    return not verdicts or any(
        verdict["outcome"] == Outcome.UNVERIFIED.value and not verdict["unscanned"] for verdict in verdicts
    )


def policy_of(report: Report, given: Policy | None) -> Policy | None:
    """Returns the policy whose thresholds belong to the stored decisions; None where it cannot be known.

    Args:
        report: Of the results.
        given: What the caller says it is; None looks among the presets.

    Raises:
        InvalidInput: If the given policy decided none of the rows.
    """
    hashes = {policy_hash for _, policy_hash in report.policies}
    if given is not None:
        if hashes and given.hash not in hashes:
            raise InvalidInput(
                f"policy {given.name} ({given.hash}) did not make these decisions, {_names(report)} did; "
                "decide them again first: guardrail policy replay RESULTS --policy ... --output NEW"
            )
        return given
    if len(hashes) != 1:
        return None
    return next((preset for name in PRESETS if (preset := load_policy(name)).hash in hashes), None)


def time_of(row: Mapping[str, Any]) -> float | None:
    """Returns when a row was said, in seconds since 1970; None where it does not say or cannot be read."""
    kept = row.get("fields")
    for place in (kept, row):
        if isinstance(place, dict):
            for name in TIME_FIELDS:
                value = place.get(name)
                if value is not None:
                    return _seconds(value)
    return None


def _seconds(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            try:
                # Python 3.10 reads no Z.
                when = datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith(("Z", "z")) else value)
            except ValueError:
                return None
            value = (when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp()
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    for unit in (1.0, 1e3, 1e6):
        # From 1990 to 2100; the ranges of the units lie far apart.
        if 631_152_000 <= value / unit < 4_102_444_800:
            return float(value / unit)
    return None


def _count(counter: Counter[str], why: str) -> None:
    text = why[:_DETAIL_CHARS]
    counter[text if text in counter or len(counter) < _MOST_DETAILS else "other reasons"] += 1


def _dicts(group: Mapping[str, Weakness]) -> dict[str, Any]:
    return {name: entry.to_dict() for name, entry in sorted(group.items(), key=lambda item: -item[1].findings)}


def _names(report: Report) -> str:
    return " and ".join(f"{name} ({policy_hash})" for name, policy_hash in report.policies)
