"""Protobuf <-> values, and the one table of errors and gRPC statuses.

Used by server and client alike, so it knows no engine: importing it loads grpc and protobuf, and no model.

::

    values     enums, requests, decisions
    answers    exchanges, progress of streams, what a server is
    problems   errors <-> statuses

Reading is total and never kinder than what was sent: an enum value that is missing or unknown becomes the strictest
one (``BLOCK``, ``UNVERIFIED``, ``ERROR``), so a message from a newer or a broken server is never read as allowed. A
category that this version does not know is left out; the action that follows from it stays.

Writing keeps everything that :class:`~guardrail.verdict.Decision` holds, in its order; scores are doubles and come back
bit for bit. Source of the statuses: the design's "Errors on the wire", also at the head of ``proto/guard.proto``.
"""

from __future__ import annotations

from guardrail.errors import MissingExtra

try:
    from google.rpc import status_pb2  # noqa: F401 - named here, since all of them come with one extra
    from grpc_status import rpc_status  # noqa: F401

    from guardrail._pb import guard_pb2 as pb
except ImportError as exc:
    raise MissingExtra("talking gRPC needs grpcio and protobuf: pip install 'guardrail[client]'") from exc

from guardrail.wire.answers import (
    CategoryInfo,
    ServerInfo,
    exchange_from_wire,
    exchange_to_wire,
    progress_from_wire,
    progress_to_wire,
    server_info_from_wire,
    server_info_to_wire,
)
from guardrail.wire.problems import (
    SENDABLE,
    Problem,
    error_from_problem,
    problem_from_call,
    problem_from_error,
    problem_from_item,
)
from guardrail.wire.values import (
    PROMPT_CHECKS,
    RELEASES,
    conversation_from_wire,
    conversation_to_wire,
    decision_from_wire,
    decision_to_wire,
    messages_from_wire,
    messages_to_wire,
    require_id,
    require_unicode,
)

__all__ = [
    "FRAME_BYTES",
    "GROUP_BYTES",
    "PROMPT_CHECKS",
    "RELEASES",
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
    "messages_from_wire",
    "messages_to_wire",
    "problem_from_call",
    "problem_from_error",
    "problem_from_item",
    "progress_from_wire",
    "progress_to_wire",
    "require_id",
    "require_unicode",
    "server_info_from_wire",
    "server_info_to_wire",
]

SERVICE: str = pb.DESCRIPTOR.services_by_name["GuardService"].full_name

GROUP_BYTES = "guardrail-group-bytes"
"""Initial metadata of ``CheckBatch``: how long a message with a group of items may be; absent where none is taken."""

FRAME_BYTES = 6
"""What protobuf puts before an item of a group, at most: a tag of one byte and a length."""
