"""What all methods share: bytes that are no message, ids, and errors that become statuses of wire's table."""

from __future__ import annotations

import asyncio
import logging
import traceback
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message import DecodeError

from guardrail import wire
from guardrail.errors import DeadlineExceeded, GuardrailError, InternalError, InvalidInput
from guardrail.telemetry.logs import bind_request_id

__all__ = ["reader", "reporting", "request_id", "sendable", "taken", "well_formed"]

logger = logging.getLogger("guardrail.server")


class _Malformed:
    """Stands for bytes that are not the message that the method takes."""


_MALFORMED = _Malformed()


def reader(message: Any) -> Callable[[bytes], Any]:
    """Returns what reads bytes as a message; bytes that are none become ``_MALFORMED``, for the method to refuse."""

    def read(data: bytes) -> Any:
        try:
            return message.FromString(data)
        except (DecodeError, UnicodeDecodeError):
            return _MALFORMED

    return read


def well_formed(request: Any) -> Any:
    """Returns a message that could be read.

    Raises:
        InvalidInput: If its bytes were none.
    """
    if isinstance(request, _Malformed):
        raise InvalidInput(
            "the bytes are not the message that this method takes, or a string in it is not UTF-8; "
            "send what a stub made from proto/guard.proto sends"
        )
    return request


def request_id(request: Any) -> str:
    """Returns the id that the client chose, or a new one."""
    own_id = wire.require_id(request.request_id) or uuid.uuid4().hex
    bind_request_id(own_id)
    return own_id


def reporting(method: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    """Returns a method that ends the call with a status where the given one raises."""

    async def handle(request: Any, context: Any) -> Any:
        try:
            return await method(well_formed(request), context)
        except Exception as exc:
            status = wire.problem_from_error(sendable(exc)).to_status()
        await context.abort_with_status(status)
        raise AssertionError("abort_with_status returned")

    return handle


async def taken(writing: Awaitable[None], patience_s: float) -> None:
    """Waits until a client has taken an answer of a stream.

    Raises:
        DeadlineExceeded: If it does not.
    """
    try:
        await asyncio.wait_for(writing, patience_s)
    except asyncio.TimeoutError:
        raise DeadlineExceeded(f"the client took no answer for {patience_s:g} s; read while you write") from None


def sendable(error: Exception) -> GuardrailError:
    """Returns an error that has a status; any other one is logged by its type and place, and gets an id instead."""
    if isinstance(error, wire.SENDABLE):
        return error
    error_id = uuid.uuid4().hex[:12]
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"
    # The error's own words may hold a user's text.
    logger.error("internal error %s: %s at %s", error_id, type(error).__name__, place)
    return InternalError(f"internal error {error_id}; the server's log says more")
