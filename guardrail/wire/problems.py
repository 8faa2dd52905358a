"""The one table of errors and gRPC statuses, both ways. Source: the design's "Errors on the wire"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from guardrail._pb import guard_pb2 as pb
from guardrail.errors import (
    ConfigurationError,
    DeadlineExceeded,
    GenerationError,
    GuardrailError,
    InternalError,
    InvalidInput,
    Overloaded,
    Unauthenticated,
    Unavailable,
)
from guardrail.wire.values import optional

__all__ = [
    "SENDABLE",
    "Problem",
    "error_from_problem",
    "problem_from_call",
    "problem_from_error",
    "problem_from_item",
]

_DOMAIN = "guardrail"

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
    return Problem(code, item.message, item.reason, optional(item, "retry_after_s"))


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
