"""Enums, requests and decisions: protobuf <-> values.

Reading is total and never kinder than what was sent: an enum value that is missing or unknown becomes the strictest
one. See :mod:`guardrail.wire`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from typing import Any, Generic, TypeVar

from guardrail._pb import guard_pb2 as pb
from guardrail.errors import InvalidInput
from guardrail.progress import PromptCheck, Release
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import (
    Action,
    Confidence,
    Conversation,
    Decision,
    Finding,
    Message,
    Outcome,
    Rail,
    Reason,
    ReasonKind,
    Role,
    Severity,
    Source,
    Span,
    Timing,
    Verdict,
)

__all__ = [
    "CATEGORIES",
    "PROMPT_CHECKS",
    "RELEASES",
    "conversation_from_wire",
    "conversation_to_wire",
    "decision_from_wire",
    "decision_to_wire",
    "finding_from_wire",
    "finding_to_wire",
    "messages_from_wire",
    "messages_to_wire",
    "optional",
    "require_id",
    "require_unicode",
    "source_from_wire",
    "source_to_wire",
]

E = TypeVar("E", bound=Enum)


class _EnumMap(Generic[E]):
    """Members of a value enum <-> numbers of its wire enum, which has the same names behind a prefix.

    Args:
        members: The value enum.
        wire: The wire enum.
        prefix: What protobuf's scoping puts before each name.
        unknown: What a missing or an unknown number is read as; None: nothing.
    """

    def __init__(self, members: type[E], wire: Any, prefix: str, unknown: E | None) -> None:
        self._numbers: dict[E, Any] = {member: wire.Value(f"{prefix}_{member.name}") for member in members}
        self._members: dict[int, E] = {number: member for member, number in self._numbers.items()}
        self._unknown = unknown

    def to_wire(self, member: E) -> Any:
        return self._numbers[member]

    def find(self, number: int) -> E | None:
        return self._members.get(number)

    def from_wire(self, number: int) -> E:
        member = self._members.get(number, self._unknown)
        assert member is not None  # only an enum with a strictest member is read this way
        return member


_ROLES = _EnumMap(Role, pb.Role, "ROLE", None)
_RAILS = _EnumMap(Rail, pb.Rail, "RAIL", Rail.RESPONSE)
_ACTIONS = _EnumMap(Action, pb.Action, "ACTION", Action.BLOCK)
_OUTCOMES = _EnumMap(Outcome, pb.Outcome, "OUTCOME", Outcome.UNVERIFIED)
_CONFIDENCES = _EnumMap(Confidence, pb.Confidence, "CONFIDENCE", Confidence.HIGH)
_SEVERITIES = _EnumMap(Severity, pb.Severity, "SEVERITY", Severity.ERROR)
CATEGORIES = _EnumMap(HazardCategory, pb.HazardCategory, "HAZARD_CATEGORY", None)
# Text of a stream that does not say is shown late rather than early, and a prompt is checked first.
RELEASES = _EnumMap(Release, pb.Release, "RELEASE", Release.CHECKED)
PROMPT_CHECKS = _EnumMap(PromptCheck, pb.PromptCheck, "PROMPT_CHECK", PromptCheck.FIRST)


# Requests


# Ids are written to logs and metadata: nothing in them may break a line.
_ID = re.compile(r"[ -~]{0,128}")


def require_id(value: str) -> str:
    """Returns an id that a client chose.

    Raises:
        InvalidInput: If it is too long or could not stand in a log line.
    """
    if _ID.fullmatch(value) is None:
        raise InvalidInput(f"expected an id of at most 128 printable ASCII characters, got {len(value)} characters")
    return value


def require_unicode(text: str, what: str) -> str:
    """Returns a text that can be written as UTF-8.

    Args:
        text: The text.
        what: What it is, for the error message.

    Raises:
        InvalidInput: If it holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise InvalidInput(
            f"{what} is not valid Unicode: lone surrogate at offset {exc.start}; decode the text with errors='replace'"
        ) from None  # the cause would carry the text
    return text


def conversation_to_wire(conversation: Conversation) -> list[pb.Message]:
    """Returns the messages of a conversation.

    Raises:
        InvalidInput: If a message cannot be written as UTF-8.
    """
    return messages_to_wire(conversation.messages)


def messages_to_wire(messages: Iterable[Message]) -> list[pb.Message]:
    """Returns messages, the last of which need not be one that can be judged.

    Raises:
        InvalidInput: If a message cannot be written as UTF-8.
    """
    written = []
    for index, message in enumerate(messages):
        content = require_unicode(message.content, f"message {index}")
        written.append(pb.Message(role=_ROLES.to_wire(message.role), content=content))
    return written


def conversation_from_wire(messages: Iterable[pb.Message], path: str = "") -> Conversation:
    """Reads a conversation.

    Raises:
        InvalidInput: If there is no message, a role is missing, or the last message cannot be judged.
    """
    return Conversation(messages_from_wire(messages), path)


def messages_from_wire(messages: Iterable[pb.Message]) -> tuple[Message, ...]:
    """Reads messages, the last of which need not be one that can be judged.

    Raises:
        InvalidInput: If a role is missing.
    """
    read = []
    for index, message in enumerate(messages):
        role = _ROLES.find(message.role)
        if role is None:
            known = ", ".join(f"ROLE_{member.name}" for member in Role)
            raise InvalidInput(f"message {index} has no known role (number {int(message.role)}); give one of {known}")
        read.append(Message(role, message.content))
    return tuple(read)


# Decisions


def finding_to_wire(finding: Finding) -> pb.Finding:
    return pb.Finding(
        rule_id=finding.rule_id,
        cwe=finding.cwe,
        severity=_SEVERITIES.to_wire(finding.severity),
        span=pb.Span(start=finding.span.start, end=finding.span.end),
        line=finding.line,
        column=finding.column,
        language=finding.language,
        message=finding.message,
        confidence=_CONFIDENCES.to_wire(finding.confidence),
        fix=finding.fix,
    )


def finding_from_wire(finding: pb.Finding) -> Finding:
    start = finding.span.start
    return Finding(
        finding.rule_id,
        finding.cwe,
        _SEVERITIES.from_wire(finding.severity),
        Span(start, max(start, finding.span.end)),
        finding.line,
        finding.column,
        finding.language,
        finding.message,
        _CONFIDENCES.from_wire(finding.confidence),
        finding.fix,
    )


def source_to_wire(source: Source) -> pb.Source:
    return pb.Source(model=source.model, revision=source.revision, template_hash=source.template_hash)


def source_from_wire(source: pb.Source) -> Source:
    return Source(source.model, source.revision, source.template_hash)


def _verdict_to_wire(verdict: Verdict) -> pb.Verdict:
    written = pb.Verdict(
        outcome=_OUTCOMES.to_wire(verdict.outcome),
        source=source_to_wire(verdict.source),
        categories=[CATEGORIES.to_wire(category) for category in verdict.categories],
        unsafe_probability=verdict.unsafe_probability,
        findings=[finding_to_wire(finding) for finding in verdict.findings],
        unscanned=verdict.unscanned,
        detail=verdict.detail,
        timing=pb.Timing(queue_ms=verdict.timing.queue_ms, compute_ms=verdict.timing.compute_ms),
    )
    # In place: messages that are given to a constructor are copied, which takes twice the time for all eleven.
    add = written.scores.add
    for category, score in verdict.scores.items():
        add(category=CATEGORIES.to_wire(category), score=score)
    return written


def _verdict_from_wire(verdict: pb.Verdict) -> Verdict:
    scores = {c: item.score for item in verdict.scores if (c := CATEGORIES.find(item.category)) is not None}
    return Verdict(
        _OUTCOMES.from_wire(verdict.outcome),
        source_from_wire(verdict.source),
        scores=scores,
        categories=tuple(c for number in verdict.categories if (c := CATEGORIES.find(number)) is not None),
        unsafe_probability=optional(verdict, "unsafe_probability"),
        findings=tuple(finding_from_wire(finding) for finding in verdict.findings),
        unscanned=tuple(verdict.unscanned),
        detail=verdict.detail,
        timing=Timing(verdict.timing.queue_ms, verdict.timing.compute_ms),
    )


def _reason_to_wire(reason: Reason) -> pb.Reason:
    return pb.Reason(
        action=_ACTIONS.to_wire(reason.action),
        kind=reason.kind.value,
        subject=reason.subject,
        score=reason.score,
        threshold=reason.threshold,
    )


def _reason_from_wire(reason: pb.Reason) -> Reason:
    known = reason.kind in {kind.value for kind in ReasonKind}
    return Reason(
        _ACTIONS.from_wire(reason.action),
        ReasonKind(reason.kind) if known else ReasonKind.UNVERIFIED,
        reason.subject,
        optional(reason, "score"),
        optional(reason, "threshold"),
    )


def optional(message: Any, name: str) -> Any:
    """The value of an ``optional`` field, None where it is absent."""
    return getattr(message, name) if message.HasField(name) else None


def decision_to_wire(decision: Decision) -> pb.Decision:
    """Writes a decision whole, with what follows from its verdicts for clients in other languages."""
    return pb.Decision(
        action=_ACTIONS.to_wire(decision.action),
        rail=_RAILS.to_wire(decision.rail),
        verdicts=[_verdict_to_wire(verdict) for verdict in decision.verdicts],
        reasons=[_reason_to_wire(reason) for reason in decision.reasons],
        policy=pb.PolicyInfo(name=decision.policy_name, hash=decision.policy_hash),
        outcome=_OUTCOMES.to_wire(decision.outcome),
        categories=[CATEGORIES.to_wire(category) for category in decision.categories],
    )


def decision_from_wire(decision: pb.Decision) -> Decision:
    """Reads a decision; what is missing or unknown is read as not allowed."""
    return Decision(
        _ACTIONS.from_wire(decision.action),
        _RAILS.from_wire(decision.rail),
        tuple(_verdict_from_wire(verdict) for verdict in decision.verdicts),
        tuple(_reason_from_wire(reason) for reason in decision.reasons),
        decision.policy.name,
        decision.policy.hash,
    )
