"""What surrounds the work on a request: its body within limits, its end when the client goes, what has been sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from guardrail.deadline import Deadline
from guardrail.errors import DeadlineExceeded, MissingExtra
from guardrail.serving.http.answers import encode
from guardrail.serving.http.problems import Refused
from guardrail.telemetry import RequestRecord

try:
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.types import Message, Receive, Scope, Send
except ImportError as exc:
    raise MissingExtra("the HTTP door needs starlette and uvicorn: pip install 'guardrail[http]'") from exc

__all__ = ["ClientGone", "Endpoint", "Reply", "read_body", "unless_gone"]

T = TypeVar("T")

# A body that is too long is read on so far, in multiples of the limit: a client that still writes sees no answer.
_READ_ON = 4


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Reply:
    """The way back to the client; an ASGI ``send`` that knows what has been sent.

    Args:
        send: The server's.
        record: Gets the status; its id goes into a header.

    Attributes:
        record: What is known of the request.
        has_begun: Whether the status has been sent.
        has_ended: Whether all has been sent.
    """

    def __init__(self, send: Send, record: RequestRecord) -> None:
        self.record = record
        self.has_begun = False
        self.has_ended = False
        self._send = send

    async def __call__(self, message: Message) -> None:
        """Sends a message of ASGI."""
        if message["type"] == "http.response.start":
            self.has_begun = True
            self.record.status = str(message["status"])
            own = (b"x-request-id", self.record.request_id.encode("latin-1"))
            message = {**message, "headers": [*message["headers"], own]}
        elif not message.get("more_body", False):
            self.has_ended = True
        await self._send(message)

    async def send_json(
        self, values: Mapping[str, Any], *, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        """Sends a whole answer."""
        media_type = "application/json"
        await self._send_whole(Response(encode(values), status_code=status, headers=headers, media_type=media_type))

    async def send_text(self, body: bytes, *, media_type: str) -> None:
        """Sends a whole answer that is not JSON."""
        await self._send_whole(Response(body, media_type=media_type))

    async def _send_whole(self, response: Response) -> None:
        await self({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await self({"type": "http.response.body", "body": response.body})

    async def begin_stream(self) -> None:
        """Sends the head of a stream of server-sent events."""
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            # nginx would keep events back until its buffer is full.
            (b"x-accel-buffering", b"no"),
        ]
        await self({"type": "http.response.start", "status": 200, "headers": headers})

    async def put(self, data: bytes, *, patience_s: float, is_last: bool = False) -> None:
        """Sends a part of a stream.

        Raises:
            ClientGone: If the client does not read it in time; it would hold its place for ever.
        """
        sending = self({"type": "http.response.body", "body": data, "more_body": not is_last})
        try:
            await asyncio.wait_for(sending, patience_s)
        except asyncio.TimeoutError:
            raise ClientGone from None


class Endpoint:
    """A method as an ASGI application: for a route, which would take a plain function as something else."""

    def __init__(self, handle: Callable[[Request, Reply], Awaitable[None]]) -> None:
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        assert isinstance(send, Reply)  # the application's own
        await self._handle(Request(scope, receive), send)


async def read_body(request: Request, *, limit: int, deadline: Deadline) -> bytes:
    """Reads a body of JSON.

    Args:
        request: Whose body.
        limit: The most bytes.
        deadline: Until when.

    Raises:
        Refused: If it is something else, too long, or does not come in time.
        ClientGone: If the client goes before its end.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "unsupported_media_type", "expected a body with 'Content-Type: application/json'")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "unsupported_encoding", "expected a body without Content-Encoding; send it as it is")
    try:
        return await deadline.bound(_read(request, limit))
    except DeadlineExceeded:
        raise Refused(408, "body_timeout", f"the body did not come within {deadline.limit_s:g} s") from None
    except ClientDisconnect:
        raise ClientGone from None


async def _read(request: Request, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size <= limit:
            parts.append(part)
        else:
            parts.clear()
            if size > _READ_ON * limit:
                break
    if size > limit:
        raise Refused(413, "body_too_large", f"the body is longer than {limit} bytes, the most that this server takes")
    return b"".join(parts)


async def unless_gone(receive: Receive, reply: Reply, work: Coroutine[Any, Any, T]) -> T:
    """Awaits work while the client waits for its reply; cancelled work has ended when this returns.

    Raises:
        ClientGone: If the client goes first.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done() and not reply.has_ended:  # the end of a reply looks like a client that goes
            raise ClientGone
        return await working
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})
            if not working.cancelled():
                working.exception()  # nobody waits for it, and asyncio would log its words


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
