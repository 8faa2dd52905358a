"""A server of OpenAI's chat API on a free port of this machine, which answers what it was told to."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass
class Reply:
    """One scripted answer.

    Attributes:
        text: What is answered; streamed in words.
        finish_reason: None: a stream breaks off without one.
        extra: Further fields of the message, or of a stream's first delta.
        status: Anything but 200 is answered as an error that repeats the request, as careless servers do.
        waits_after: Pieces after which nothing more comes until ``may_go_on``; None: all come.
        may_go_on: Set by the test; nobody else does.
    """

    text: str = ""
    finish_reason: str | None = "stop"
    extra: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    waits_after: int | None = None
    may_go_on: asyncio.Event = field(default_factory=asyncio.Event)


class FakeUpstream:
    """Answers with the replies in their order, and keeps what it was asked.

    Attributes:
        url: Where it listens.
        replies: Still to come.
        bodies: Of the requests, from JSON.
        headers: Of the requests.
        waiting: How many requests are in the middle of an answer that does not go on.
    """

    def __init__(self, *replies: Reply | str) -> None:
        self.url = ""
        self.replies = [reply if isinstance(reply, Reply) else Reply(reply) for reply in replies]
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.waiting = 0

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        reply = self.replies.pop(0)
        if reply.status != 200:
            return JSONResponse({"error": {"message": json.dumps(body)}}, status_code=reply.status)
        if body["stream"]:
            return StreamingResponse(self._events(reply, body), media_type="text/event-stream")
        if reply.waits_after is not None:
            await self._wait(reply, request)
        message = {"role": "assistant", "content": reply.text, **reply.extra}
        choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
        return JSONResponse({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 5}})

    async def _events(self, reply: Reply, body: dict[str, Any]) -> AsyncIterator[bytes]:
        yield b": a comment\n\n"
        yield _event({"role": "assistant", "content": "", **reply.extra})
        for number, word in enumerate(reply.text.split(" ")):
            if number == reply.waits_after:
                await self._wait(reply)
            yield _event({"content": f"{' ' if number else ''}{word}"})
        if reply.finish_reason is None:
            return
        yield _event({}, reply.finish_reason)
        if body.get("stream_options", {}).get("include_usage"):
            usage = {"prompt_tokens": 7, "completion_tokens": 5}
            yield b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"

    async def _wait(self, reply: Reply, request: Request | None = None) -> None:
        """Waits until the answer may go on; a client that goes ends a stream by itself, and a whole answer here."""
        self.waiting += 1
        try:
            while not reply.may_go_on.is_set():
                if request is not None and await request.is_disconnected():
                    return
                await asyncio.sleep(0.01)
        finally:
            self.waiting -= 1


def _event(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    chunk = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def fake_upstream(*replies: Reply | str) -> AsyncIterator[FakeUpstream]:
    """Runs one on this event loop until the test is done with it."""
    upstream = FakeUpstream(*replies)
    app = Starlette(routes=[Route("/v1/chat/completions", upstream.answer, methods=["POST"])])
    options: dict[str, Any] = {"log_config": None, "lifespan": "off", "timeout_graceful_shutdown": 1}
    server = _Server(uvicorn.Config(app, port=0, http="h11", ws="none", **options))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.005)
    upstream.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield upstream
    finally:
        server.should_exit = True
        await serving
