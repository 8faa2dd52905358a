"""Protobuf <-> values, and the one table of errors and gRPC statuses.

Used by server and client alike, so it knows no engine: importing it loads grpc and protobuf, and no model.

Reading is total and never kinder than what was sent: an enum value that is missing or unknown becomes the strictest
one (``BLOCK``, ``UNVERIFIED``, ``ERROR``), so a message from a newer or a broken server is never read as allowed. A
category that this version does not know is left out; the action that follows from it stays.

Writing keeps everything that :class:`~guardrail.verdict.Decision` holds, in its order; scores are doubles and come back
bit for bit. Source of the statuses: the design's "Errors on the wire", also at the head of ``proto/guard.proto``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from guardrail.errors import (
    ConfigurationError,
    DeadlineExceeded,
    GenerationError,
    GuardrailError,
    InternalError,
    InvalidInput,
    MissingExtra,
    Overloaded,
    Unauthenticated,
    Unavailable,
)
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import (
    Action,
    Attempt,
    Confidence,
    Conversation,
    Decision,
    Exchange,
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

try:
    import grpc
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2
    from grpc_status import rpc_status

    from guardrail._pb import guard_pb2 as pb
except ImportError as exc:
    raise MissingExtra("talking gRPC needs grpcio and protobuf: pip install 'guardrail[client]'") from exc

__all__ = [
    "SENDABLE",
    "SERVICE",
    "CategoryInfo",
    "Problem",
    "ServerInfo",
    "conversation_from_wire",
    "conversation_to_wire",
    "decision_from_wire",
    "decision_to_wire",
    "error_from_problem",
    "exchange_from_wire",
    "exchange_to_wire",
    "problem_from_call",
    "problem_from_error",
    "problem_from_item",
    "require_id",
    "require_unicode",
    "server_info_from_wire",
    "server_info_to_wire",
]

SERVICE: str = pb.DESCRIPTOR.services_by_name["GuardService"].full_name

_DOMAIN = "guardrail"

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
_CATEGORIES = _EnumMap(HazardCategory, pb.HazardCategory, "HAZARD_CATEGORY", None)


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
    messages = []
    for index, message in enumerate(conversation.messages):
        content = require_unicode(message.content, f"message {index}")
        messages.append(pb.Message(role=_ROLES.to_wire(message.role), content=content))
    return messages


def conversation_from_wire(messages: Iterable[pb.Message], path: str = "") -> Conversation:
    """Reads a conversation.

    Raises:
        InvalidInput: If there is no message, a role is missing, or the last message cannot be judged.
    """
    read = []
    for index, message in enumerate(messages):
        role = _ROLES.find(message.role)
        if role is None:
            known = ", ".join(f"ROLE_{member.name}" for member in Role)
            raise InvalidInput(f"message {index} has no known role (number {int(message.role)}); give one of {known}")
        read.append(Message(role, message.content))
    return Conversation(tuple(read), path)


# Decisions


def _finding_to_wire(finding: Finding) -> pb.Finding:
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


def _finding_from_wire(finding: pb.Finding) -> Finding:
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


def _source_to_wire(source: Source) -> pb.Source:
    return pb.Source(model=source.model, revision=source.revision, template_hash=source.template_hash)


def _source_from_wire(source: pb.Source) -> Source:
    return Source(source.model, source.revision, source.template_hash)


def _verdict_to_wire(verdict: Verdict) -> pb.Verdict:
    return pb.Verdict(
        outcome=_OUTCOMES.to_wire(verdict.outcome),
        source=_source_to_wire(verdict.source),
        scores=[pb.CategoryScore(category=_CATEGORIES.to_wire(c), score=score) for c, score in verdict.scores.items()],
        categories=[_CATEGORIES.to_wire(category) for category in verdict.categories],
        unsafe_probability=verdict.unsafe_probability,
        findings=[_finding_to_wire(finding) for finding in verdict.findings],
        unscanned=verdict.unscanned,
        detail=verdict.detail,
        timing=pb.Timing(queue_ms=verdict.timing.queue_ms, compute_ms=verdict.timing.compute_ms),
    )


def _verdict_from_wire(verdict: pb.Verdict) -> Verdict:
    scores = {c: item.score for item in verdict.scores if (c := _CATEGORIES.find(item.category)) is not None}
    return Verdict(
        _OUTCOMES.from_wire(verdict.outcome),
        _source_from_wire(verdict.source),
        scores=scores,
        categories=tuple(c for number in verdict.categories if (c := _CATEGORIES.find(number)) is not None),
        unsafe_probability=_optional(verdict, "unsafe_probability"),
        findings=tuple(_finding_from_wire(finding) for finding in verdict.findings),
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
        _optional(reason, "score"),
        _optional(reason, "threshold"),
    )


def _optional(message: Any, name: str) -> Any:
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
        categories=[_CATEGORIES.to_wire(category) for category in decision.categories],
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


# Exchanges


def exchange_to_wire(exchange: Exchange, *, request_id: str, with_rejected_text: bool) -> pb.GenerateResponse:
    """Writes an exchange.

    Args:
        exchange: What came of it.
        request_id: The request's id.
        with_rejected_text: Whether the text of rejected attempts goes along.
    """
    return pb.GenerateResponse(
        request_id=request_id,
        text=exchange.text,
        is_blocked=exchange.is_blocked,
        decision=decision_to_wire(exchange.decision),
        prompt_decision=decision_to_wire(exchange.prompt_decision),
        attempts=[
            pb.Attempt(
                number=attempt.number,
                text=attempt.text if with_rejected_text or attempt.decision.action.releases else None,
                decision=decision_to_wire(attempt.decision),
                feedback=attempt.feedback,
            )
            for attempt in exchange.attempts
        ],
    )


def exchange_from_wire(response: pb.GenerateResponse) -> Exchange:
    """Reads an exchange; the text of attempts that was left out is ``""``."""
    decision = decision_from_wire(response.decision)
    # A block message is text that may be shown. Text under a decision that cannot be read is not known to be one.
    is_text_sound = decision.action.releases or response.is_blocked
    return Exchange(
        response.text if is_text_sound else "",
        decision,
        decision_from_wire(response.prompt_decision),
        tuple(
            Attempt(attempt.number, attempt.text, decision_from_wire(attempt.decision), _optional(attempt, "feedback"))
            for attempt in response.attempts
        ),
    )


# What a server is


@dataclass(frozen=True, slots=True)
class CategoryInfo:
    """A hazard category that a server knows, for people."""

    name: str
    title: str
    description: str


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server is.

    Attributes:
        version: Version of guardrail there.
        source: The hazard classifier.
        policy_name: Name of the policy.
        policy_hash: Hash of the policy's content.
        categories: The hazard categories that it knows.
        is_ready: Whether it answers the other calls.
        scans_code: Whether it examines code.
        generates: Whether it has a generator.
    """

    version: str
    source: Source
    policy_name: str
    policy_hash: str
    categories: tuple[CategoryInfo, ...]
    is_ready: bool
    scans_code: bool
    generates: bool


def server_info_to_wire(info: ServerInfo) -> pb.GetServerInfoResponse:
    """Writes what a server is."""
    return pb.GetServerInfoResponse(
        version=info.version,
        source=_source_to_wire(info.source),
        policy=pb.PolicyInfo(name=info.policy_name, hash=info.policy_hash),
        categories=[
            pb.CategoryInfo(
                category=_CATEGORIES.to_wire(HazardCategory(category.name)),
                name=category.name,
                title=category.title,
                description=category.description,
            )
            for category in info.categories
        ],
        ready=info.is_ready,
        scans_code=info.scans_code,
        generates=info.generates,
    )


def server_info_from_wire(response: pb.GetServerInfoResponse) -> ServerInfo:
    """Reads what a server is."""
    return ServerInfo(
        version=response.version,
        source=_source_from_wire(response.source),
        policy_name=response.policy.name,
        policy_hash=response.policy.hash,
        categories=tuple(CategoryInfo(c.name, c.title, c.description) for c in response.categories),
        is_ready=response.ready,
        scans_code=response.scans_code,
        generates=response.generates,
    )


# Errors

# The one table. A reason tells apart errors that share a status; the first row of a status is how it is read where a
# peer gives no reason.
_TABLE: Sequence[tuple[type[GuardrailError], grpc.StatusCode, str]] = (
    (InvalidInput, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT"),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    (Unavailable, grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE"),
    (GenerationError, grpc.StatusCode.UNAVAILABLE, "GENERATION_FAILED"),
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    (ConfigurationError, grpc.StatusCode.UNIMPLEMENTED, "NOT_CONFIGURED"),
    (InternalError, grpc.StatusCode.INTERNAL, "INTERNAL"),
)

SENDABLE: tuple[type[GuardrailError], ...] = tuple(row[0] for row in _TABLE)
"""Errors that have a status of their own; any other one is a defect, which a client hears of as ``InternalError``."""

# Statuses that others on the way may give: a proxy, or grpc itself.
_FOREIGN: Mapping[grpc.StatusCode, type[GuardrailError]] = {
    grpc.StatusCode.OUT_OF_RANGE: InvalidInput,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.ABORTED: Unavailable,
    grpc.StatusCode.PERMISSION_DENIED: Unauthenticated,
    grpc.StatusCode.FAILED_PRECONDITION: ConfigurationError,
}

_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as it stands on the wire: a call's status, or the error of one item of a stream.

    Attributes:
        code: The status.
        message: What is wrong and what to do; never text of a message.
        reason: Which error it is; ``""`` where a peer does not say.
        retry_after_s: When to come back, in seconds; None where it is not known.
    """

    code: grpc.StatusCode
    message: str
    reason: str = ""
    retry_after_s: float | None = None

    def to_status(self) -> grpc.Status:
        """Returns the status that ends a call, with ``ErrorInfo`` and, if it helps to come back, ``RetryInfo``."""
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=self.reason, domain=_DOMAIN))
        if self.retry_after_s is not None:
            delay = Duration()
            delay.FromNanoseconds(round(self.retry_after_s * 1e9))
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        return rpc_status.to_status(status)

    def to_item(self) -> pb.ItemError:
        """Returns the error of one item of a stream."""
        return pb.ItemError(
            code=self.code.value[0], message=self.message, reason=self.reason, retry_after_s=self.retry_after_s
        )


def problem_from_error(error: GuardrailError) -> Problem:
    """Looks an error up in the table.

    Args:
        error: One of ``SENDABLE``.
    """
    for kind, code, reason in _TABLE:
        if isinstance(error, kind):
            retry_after_s = error.retry_after_s if isinstance(error, Overloaded) else None
            return Problem(code, str(error), reason, retry_after_s)
    raise TypeError(f"{type(error).__name__} has no status; turn it into InternalError first")


def error_from_problem(problem: Problem) -> GuardrailError:
    """Looks a problem up in the table, the other way round; what it does not know is an ``InternalError``."""
    kind: type[GuardrailError] | None = None
    for row_kind, code, reason in _TABLE:
        if code is problem.code and (reason == problem.reason or kind is None):
            kind = row_kind
    kind = kind or _FOREIGN.get(problem.code, InternalError)
    message = problem.message or problem.code.name
    if not problem.reason:
        message = f"{problem.code.name} from grpc: {message}"
    if kind is Overloaded:
        # grpc gives the same status to a message above its size limit, which no waiting makes smaller.
        if not problem.reason and "larger than max" in problem.message:
            return InvalidInput(message)
        return Overloaded(message, retry_after_s=1.0 if problem.retry_after_s is None else problem.retry_after_s)
    return kind(message)


def problem_from_item(item: pb.ItemError) -> Problem:
    """Reads the error of one item of a stream."""
    code = _CODES.get(item.code, grpc.StatusCode.UNKNOWN)
    return Problem(code, item.message, item.reason, _optional(item, "retry_after_s"))


def problem_from_call(call: Any) -> Problem:
    """Reads the status that ended a call.

    Args:
        call: A ``grpc.RpcError`` of the sync or the aio client.
    """
    reason, retry_after_s = "", None
    try:
        status = rpc_status.from_call(call)
    except (ValueError, DecodeError):  # details that do not fit the status say nothing about it
        status = None
    for detail in status.details if status is not None else ():
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == _DOMAIN:
            reason = info.reason
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return Problem(call.code(), call.details() or "", reason, retry_after_s)
