"""What all methods share: bytes that are no message, ids, and errors that become statuses of wire's table.

A stream that ends while its client still writes is first read to the client's own end, for a moment at most: trailers
close the stream under the client's writes, and grpc.aio's client then takes the write that failed for the status
(INTERNAL, "Internal error from Core") and reads no further. It would miss the true status, and answers on their way.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from guardrail import wire
from guardrail.deadline import Deadline
from guardrail.errors import DeadlineExceeded, GuardrailError, InternalError, InvalidInput
from guardrail.telemetry.logs import bind_request_id

__all__ = [
    "Requests",
    "reader",
    "reporting",
    "reporting_stream",
    "request_id",
    "sendable",
    "taken",
    "well_formed",
]

logger = logging.getLogger("guardrail.server")

# How long a stream that has ended is read on. Less than a stopping server leaves to answers on their way out.
_HEARING_OUT_S = 0.2


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
            await _abort(context, exc)

    return handle


def reporting_stream(method: Callable[[Requests, Any], Awaitable[None]]) -> Callable[[Any, Any], Awaitable[None]]:
    """Returns the same for a method that reads a stream; its client is heard out before the stream ends."""

    async def handle(_requests: Any, context: Any) -> None:
        requests = Requests(context)
        error: Exception | None = None
        try:
            await method(requests, context)
        except Exception as exc:
            error = exc
        try:
            await requests.hear_out()
        except asyncio.CancelledError:
            if error is not None:
                raise
            return  # the client has all its answers, and left before the end
        finally:
            requests.close()
        if error is not None:
            await _abort(context, error)

    return handle


async def _abort(context: Any, error: Exception) -> NoReturn:
    await context.abort_with_status(wire.problem_from_error(sendable(error)).to_status())
    raise AssertionError("abort_with_status returned")


class Requests:
    """What the client of a stream writes.

    Args:
        context: Of the call.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._reading: asyncio.Future[Any] | None = None

    async def read(self) -> Any:
        """Reads the next message, or EOF; where that is cancelled, the message is lost."""
        return await self._context.read()

    def reading(self) -> asyncio.Future[Any]:
        """Returns the next message, or EOF, to be waited for; until it has come it is the same one."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.ensure_future(self._context.read())
        return self._reading

    async def hear_out(self) -> None:
        """Reads and drops what comes until the client has ended its side, for a moment at most."""
        deadline = Deadline(_HEARING_OUT_S)
        while time_s := deadline.remaining_s:
            reading = self.reading()
            await asyncio.wait({reading}, timeout=time_s)
            # Where a read was cancelled grpc still has it, and this one gives EOF at once.
            if not reading.done() or reading.cancelled() or reading.exception() or reading.result() is grpc.aio.EOF:
                return

    def close(self) -> None:
        """Reads no more."""
        if self._reading is not None:
            self._reading.cancel()  # does nothing to a message that has come


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
