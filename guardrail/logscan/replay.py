"""Stored verdicts under other policies: what would be decided, and which decisions would flip. No model is asked.

::

    results ─▶ Replayer ─▶ a Ruling for each policy ─┬─▶ replay(): counts under one policy
                                                     └─▶ diff(): rows whose action two policies see differently

A decision depends on a score only through the thresholds that it reaches, and not at all on where a finding stands or
what its message says. So verdicts that are alike in everything a policy can see share a signature, and
``Policy.decide`` itself is asked once for each signature: a ruling is the action and the reasons that it gave.

The guard asks Code Shield only on rails where the policy treats findings. A replay does the same with what is stored:
code verdicts on a rail whose new rules pass every finding are left out. The other way round nothing can be made up:
rows that the new policy would have had examined, and that were not, are counted as ``without_code``.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

from guardrail.errors import InvalidInput
from guardrail.logscan.stored import at, id_of, read_results, replacing
from guardrail.policy import Policy
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Action, Decision, Rail, ReasonKind, Verdict
from guardrail.verdict_json import read_enum, read_verdict

__all__ = ["CODE_SHIELD", "Cause", "Diff", "Flip", "Replay", "Replayer", "Ruling", "Sample", "diff", "replay"]

CODE_SHIELD = "code-shield"
"""What Code Shield calls itself in its verdicts' source."""

# Signatures kept; details of failures can make many.
_MOST_SIGNATURES = 50_000

_FLOAT = frozenset({float})
_FLOAT_OR_NONE = frozenset({float, type(None)})


@dataclass(frozen=True, slots=True)
class Cause:
    """What a decision can be about: a hazard category, a CWE, a text unsafe as such, code or text not judged.

    Attributes:
        kind: What sort of cause it is.
        subject: The category, the CWE, or the kind itself where there is nothing more to say.
    """

    kind: ReasonKind
    subject: str


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a policy makes of a row, without scores.

    Attributes:
        action: What is decided.
        rail: Which rail was judged.
        asks: The strictest action that each cause asks for.
        without_code: Whether the policy would have had the code examined, and nothing stored says that it was.
    """

    action: Action
    rail: Rail
    asks: Mapping[Cause, Action]
    without_code: bool


class Replayer:
    """Decides stored rows again.

    Args:
        policies: Each row gets a ruling of each.
        today: For suppressions that end; None means the day it is, in UTC.
    """

    def __init__(self, *policies: Policy, today: date | None = None) -> None:
        self._policies = policies
        self._today = today or datetime.now(timezone.utc).date()
        self._edges = {rail.value: _Edges(rail, policies) for rail in Rail}
        self._kept: dict[Any, tuple[Ruling, ...]] = {}

    def rulings(self, row: Mapping[str, Any]) -> tuple[Ruling, ...]:
        """Returns the ruling of each policy; none for a bad row, of which nothing was judged.

        Raises:
            InvalidInput: If the row holds no verdicts that can be read.
        """
        if row["decision"] is None:
            return ()
        try:
            signature = self._edges[row["rail"]].signature(row["verdicts"])
            known = self._kept.get(signature)
        except (KeyError, TypeError, AttributeError):
            return self._rule(row)  # Odd, which is not yet wrong; if it is, this says how.
        if known is None:
            known = self._rule(row)
            if len(self._kept) >= _MOST_SIGNATURES:
                self._kept.clear()
            self._kept[signature] = known
        return known

    def decide(self, row: Mapping[str, Any], policy: Policy) -> Decision:
        """Returns one policy's decision in full, scores and all.

        Raises:
            InvalidInput: If the row holds no verdicts that can be read.
        """
        rail, verdicts = _read(row)
        return policy.decide(rail, _asked(rail, verdicts, policy), today=self._today)

    def _rule(self, row: Mapping[str, Any]) -> tuple[Ruling, ...]:
        rail, verdicts = _read(row)
        has_code = any(verdict.source.model == CODE_SHIELD for verdict in verdicts)
        return tuple(
            _ruling(
                policy.decide(rail, _asked(rail, verdicts, policy), today=self._today),
                without_code=policy.rails[rail].scans_code and not has_code,
            )
            for policy in self._policies
        )


def replay(
    paths: Iterable[str | Path], policy: Policy, *, output: str | Path | None = None, today: date | None = None
) -> Replay:
    """Decides the rows of result files again, under one policy.

    Args:
        paths: What ``guardrail scan --output`` wrote.
        policy: Decides.
        output: Where the rows go with their new decisions, other keys and verdicts kept; None keeps the counts alone.
        today: For suppressions that end; None means the day it is, in UTC.

    Raises:
        ConfigurationError: If a file cannot be read or created.
        GuardrailError: If the output cannot be completed.
        InvalidInput: If a row cannot be read as a result; the message gives the place.
    """
    replayer, counts = Replayer(policy, today=today), Replay(policy)
    with nullcontext() if output is None else replacing(output) as file:
        for _, _, row, rulings in _ruled(paths, replayer):
            counts.add(row, rulings[0] if rulings else None)
            if file is not None:
                new = {**row, **replayer.decide(row, policy).to_dict(), "verdicts": row["verdicts"]} if rulings else row
                # A lone surrogate in an id goes out as the \udXXX escape that it came in as.
                file.write(json.dumps(new, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
    return counts


def diff(paths: Iterable[str | Path], old: Policy, new: Policy, *, samples: int = 5, today: date | None = None) -> Diff:
    """Compares what two policies make of the rows of result files.

    Args:
        paths: What ``guardrail scan --output`` wrote.
        old: The one policy.
        new: The other.
        samples: Rows to name for each change, at most.
        today: For suppressions that end; None means the day it is, in UTC.

    Raises:
        ConfigurationError: If a file cannot be read.
        InvalidInput: If a row cannot be read as a result; the message gives the place.
    """
    replayer, found = Replayer(old, new, today=today), Diff(old, new, samples)
    for path, number, row, rulings in _ruled(paths, replayer):
        found.add(path, number, row, rulings)
    return found


def _ruled(
    paths: Iterable[str | Path], replayer: Replayer
) -> Iterator[tuple[str, int, dict[str, Any], tuple[Ruling, ...]]]:
    for path in map(str, paths):
        for number, row in read_results(path):
            try:
                rulings = replayer.rulings(row)
            except InvalidInput as exc:
                raise InvalidInput(f"{path}:{number}: {exc}") from exc
            yield path, number, row, rulings


class _Edges:
    """Where a rail's scores begin to matter to any of the policies; what lies between two edges is all the same."""

    def __init__(self, rail: Rail, policies: Sequence[Policy]) -> None:
        # Below 0 and above 1 are no scores: they get signatures of their own, and are refused when they are read.
        limits = {0.0, math.ulp(0.0), math.nextafter(1.0, 2.0)}
        rules = [policy.rails[rail] for policy in policies]
        self._rail = rail
        self._scores = {c.value: sorted(limits | {rule.rule(c).threshold for rule in rules}) for c in HazardCategory}
        # A named category takes the probability for its own score, so every category's edges are edges here.
        every = {edge for edges in self._scores.values() for edge in edges}
        self._of_names: dict[tuple[str, ...], list[list[float]]] = {}
        self._unsafe = sorted(every | {rule.unsafe.threshold for rule in rules})

    def signature(self, verdicts: Sequence[Mapping[str, Any]]) -> Any:
        """What a policy can see of verdicts, as a key; errors of any sort mean that they are to be read with care."""
        parts: list[Any] = [self._rail]
        for verdict in verdicts:
            scores, unsafe = verdict["scores"], verdict["unsafe_probability"]
            names = tuple(scores)
            edges = self._of_names.get(names)
            if edges is None:
                edges = self._of_names[names] = [self._scores[name] for name in names]
            if not _FLOAT.issuperset(map(type, scores.values())) or type(unsafe) not in _FLOAT_OR_NONE:
                raise TypeError("True would pass for 1.0")
            findings = verdict["findings"]
            parts += (
                names,
                tuple(map(bisect_right, edges, scores.values())),
                unsafe if unsafe is None else bisect_right(self._unsafe, unsafe),
                verdict["outcome"],
                verdict["model"] == CODE_SHIELD,
                tuple(verdict["categories"]),
                tuple([(f["rule_id"], f["cwe"], f["severity"], f["confidence"]) for f in findings]) if findings else (),
                tuple(verdict["unscanned"]),
            )
        return tuple(parts)


def _read(row: Mapping[str, Any]) -> tuple[Rail, list[Verdict]]:
    rail = read_enum(Rail, row.get("rail"), "rail")
    verdicts = row.get("verdicts")
    if not isinstance(verdicts, list):
        raise InvalidInput(f"verdicts: expected a list, got {type(verdicts).__name__}")
    return rail, [read_verdict(values, f"verdicts[{number}]") for number, values in enumerate(verdicts)]


def _asked(rail: Rail, verdicts: list[Verdict], policy: Policy) -> list[Verdict]:
    """The verdicts that a guard with this policy would have asked for."""
    if policy.rails[rail].scans_code:
        return verdicts
    # With no other verdict it was the code alone that was to be judged, and that is then the whole answer.
    return [verdict for verdict in verdicts if verdict.source.model != CODE_SHIELD] or verdicts


def _ruling(decision: Decision, *, without_code: bool) -> Ruling:
    asks: dict[Cause, Action] = {}
    for reason in decision.reasons:  # strictest first
        subject = reason.subject
        if reason.kind is ReasonKind.FINDING:
            subject = subject.partition(" ")[0]
        elif reason.kind is not ReasonKind.HAZARD:
            subject = reason.kind.value
        asks.setdefault(Cause(reason.kind, subject), reason.action)
    return Ruling(decision.action, decision.rail, asks, without_code)


@dataclass(slots=True)
class Replay:
    """Counts of rows under one policy.

    Attributes:
        policy: Whose decisions these are.
        rows: All rows, the bad ones included.
        bad_rows: Rows that could not be read from the log: nothing is decided about them.
        changed: Rows whose stored decision was another.
        without_code: Rows whose code the policy would have had examined, and that was not.
        decisions: (rail, action) -> rows.
        asks: (cause, action that it asks for) -> rows.
    """

    policy: Policy
    rows: int = 0
    bad_rows: int = 0
    changed: int = 0
    without_code: int = 0
    decisions: Counter[tuple[Rail, Action]] = field(default_factory=Counter)
    asks: Counter[tuple[Cause, Action]] = field(default_factory=Counter)

    def add(self, row: Mapping[str, Any], ruling: Ruling | None) -> None:
        """Counts one row; without a ruling it is a bad one."""
        self.rows += 1
        if ruling is None:
            self.bad_rows += 1
            return
        self.changed += row["decision"] != ruling.action.value
        self.without_code += ruling.without_code
        self.decisions[ruling.rail, ruling.action] += 1
        for ask in ruling.asks.items():
            self.asks[ask] += 1

    def total(self, action: Action) -> int:
        """Rows of both rails with an action."""
        return sum(self.decisions[rail, action] for rail in Rail)

    @property
    def causes(self) -> list[Cause]:
        """What asked for anything, in the order that people read it."""
        return _ordered({cause for cause, _ in self.asks})

    def to_dict(self) -> dict[str, Any]:
        """Returns the counts as JSON values."""
        return {
            "schema": "guardrail.replay/1",
            "policy": {"name": self.policy.name, "hash": self.policy.hash},
            "rows": self.rows,
            "bad_rows": self.bad_rows,
            "changed": self.changed,
            "without_code": self.without_code,
            "decisions": {action.value: self.total(action) for action in Action},
            "rails": {rail.value: {action.value: self.decisions[rail, action] for action in Action} for rail in Rail},
            "causes": [
                {
                    "kind": cause.kind.value,
                    "subject": cause.subject,
                    **{action.value: self.asks[cause, action] for action in Action},
                }
                for cause in self.causes
            ],
        }


@dataclass(frozen=True, slots=True)
class Sample:
    """Where to look for a row.

    Attributes:
        place: ``file:line`` of the log, or of the results where they do not say.
        id: The row's id, shortened.
    """

    place: str
    id: str


@dataclass(slots=True)
class Flip:
    """Rows that go the same way.

    Attributes:
        rows: How many.
        samples: The first few.
    """

    rows: int = 0
    samples: list[Sample] = field(default_factory=list)

    def add(self, sample: Sample, most: int) -> None:
        """Counts a row, and keeps it among the samples while there are fewer than ``most``."""
        self.rows += 1
        if len(self.samples) < most:
            self.samples.append(sample)

    def to_dict(self) -> dict[str, Any]:
        """Returns the flip as JSON values."""
        return {"rows": self.rows, "samples": [{"place": one.place, "id": one.id} for one in self.samples]}


@dataclass(slots=True)
class Diff:
    """Which decisions flip between two policies, and over what.

    Attributes:
        old: The one policy.
        new: The other.
        most_samples: Rows to name for each flip.
        rows: All rows, the bad ones included.
        bad_rows: Rows about which nothing is decided.
        without_code: Rows whose code either policy would have had examined, and that was not.
        flips: (old action, new action) -> rows that go this way.
        causes: (cause, what it asked for, what it asks for now) -> flipped rows in which it changed its mind; None
            where it asked for nothing.
    """

    old: Policy
    new: Policy
    most_samples: int = 5
    rows: int = 0
    bad_rows: int = 0
    without_code: int = 0
    flips: dict[tuple[Action, Action], Flip] = field(default_factory=dict)
    causes: dict[tuple[Cause, Action | None, Action | None], Flip] = field(default_factory=dict)

    def add(self, path: str, number: int, row: Mapping[str, Any], rulings: Sequence[Ruling]) -> None:
        """Counts one row.

        Args:
            path: The file of results.
            number: The row's line in it.
            row: The row.
            rulings: The old policy's and the new one's; none for a bad row.
        """
        self.rows += 1
        if not rulings:
            self.bad_rows += 1
            return
        old, new = rulings
        self.without_code += old.without_code or new.without_code
        if old.action is new.action:
            return
        sample = Sample(at(path, number, row), id_of(row))
        self.flips.setdefault((old.action, new.action), Flip()).add(sample, self.most_samples)
        for cause in old.asks.keys() | new.asks.keys():
            before, after = old.asks.get(cause), new.asks.get(cause)
            if (before or Action.ALLOW) is not (after or Action.ALLOW):
                self.causes.setdefault((cause, before, after), Flip()).add(sample, self.most_samples)

    @property
    def flipped(self) -> int:
        """Rows with another action."""
        return sum(flip.rows for flip in self.flips.values())

    def by_cause(self) -> list[tuple[Cause, Action | None, Action | None, Flip]]:
        """The causes in the order that people read them, the most frequent change of each first."""
        place = {cause: index for index, cause in enumerate(_ordered({cause for cause, _, _ in self.causes}))}
        lines = [(cause, before, after, flip) for (cause, before, after), flip in self.causes.items()]
        return sorted(lines, key=lambda line: (place[line[0]], -line[3].rows, str(line[1]), str(line[2])))

    def by_action(self) -> list[tuple[Action, Action, Flip]]:
        """The flips, those to the strictest action first."""
        lines = [(before, after, flip) for (before, after), flip in self.flips.items()]
        return sorted(lines, key=lambda line: (-line[1].strictness, -line[0].strictness))

    def to_dict(self) -> dict[str, Any]:
        """Returns the counts and samples as JSON values."""
        return {
            "schema": "guardrail.policy-diff/1",
            "old": {"name": self.old.name, "hash": self.old.hash},
            "new": {"name": self.new.name, "hash": self.new.hash},
            "rows": self.rows,
            "bad_rows": self.bad_rows,
            "without_code": self.without_code,
            "flipped": self.flipped,
            "flips": [
                {"old": before.value, "new": after.value, **flip.to_dict()} for before, after, flip in self.by_action()
            ],
            "causes": [
                {
                    "kind": cause.kind.value,
                    "subject": cause.subject,
                    "old": before.value if before else None,
                    "new": after.value if after else None,
                    **flip.to_dict(),
                }
                for cause, before, after, flip in self.by_cause()
            ],
        }


def _ordered(causes: set[Cause]) -> list[Cause]:
    """Causes as people read them: categories as the taxonomy has them, then CWEs by number, then the rest."""
    kinds = list(ReasonKind)
    categories = [category.value for category in HazardCategory]

    def key(cause: Cause) -> tuple[int, int]:
        within = 0
        if cause.kind is ReasonKind.HAZARD:
            within = categories.index(cause.subject)
        elif cause.kind is ReasonKind.FINDING:
            within = int(cause.subject.removeprefix("CWE-"))
        return kinds.index(cause.kind), within

    return sorted(causes, key=key)
