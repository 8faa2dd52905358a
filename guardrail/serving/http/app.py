"""The routes of the HTTP door, and who may ask.

::

    POST /v1/chat/completions   a guarded exchange, whole or as server-sent events
    POST /v1/moderations        decisions about texts
    GET  /v1/models             what answers
    GET  /metrics               Prometheus' text format
    GET  /healthz, /readyz      200 while the process lives; while it takes requests

A request is answered once: by its result, or by its error's row of the table. Work whose client has gone is cancelled
and its place is free at once. Everything here is owned by one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import Mapping

from guardrail import wire
from guardrail.deadline import Deadline
from guardrail.errors import ConfigurationError, InvalidInput, MissingExtra, Unauthenticated, Unavailable
from guardrail.pipeline import Guard
from guardrail.serving.admission import Gate
from guardrail.serving.calls import sendable
from guardrail.serving.http.answers import DONE, event, models_to_dict, moderation_to_dict
from guardrail.serving.http.asgi import ClientGone, Endpoint, Reply, read_body, unless_gone
from guardrail.serving.http.backends import ChatBackend
from guardrail.serving.http.chat import Completions
from guardrail.serving.http.options import HttpOptions
from guardrail.serving.http.problems import Refused, problem_of
from guardrail.serving.http.requests import read_json, read_moderation
from guardrail.serving.live import LiveGuard
from guardrail.serving.security import Authenticator
from guardrail.serving.turns import tokens_of
from guardrail.telemetry import RequestRecord, Telemetry
from guardrail.verdict import Conversation, Decision

try:
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.routing import Route, Router
    from starlette.types import Receive, Scope, Send
except ImportError as exc:
    raise MissingExtra("the HTTP door needs starlette and uvicorn: pip install 'guardrail[http]'") from exc

__all__ = ["HttpApp"]

_OPEN_PATHS = ("/healthz", "/readyz")
# How long a client may take to read the error that ends its stream.
_LAST_WORDS_S = 1.0
_PROBES = (*_OPEN_PATHS, "/metrics")
# What nobody waits for has no status; nginx logs it as this.
_CLIENT_GONE = "499"


class HttpApp:
    """The door as an ASGI application.

    Args:
        live: Judges.
        gate: Lets requests in.
        chat: Answers chat requests; None: they end as 501.
        options: How much to take on.
        telemetry: Is told of every request.
        authenticator: Decides who may ask.
    """

    def __init__(
        self,
        live: LiveGuard,
        gate: Gate,
        chat: ChatBackend | None,
        options: HttpOptions,
        *,
        telemetry: Telemetry,
        authenticator: Authenticator,
    ) -> None:
        self._live = live
        self._gate = gate
        self._chat = chat
        self._options = options
        self._telemetry = telemetry
        self._authenticator = authenticator
        completions = Completions(live, gate, chat, max_body_bytes=options.max_body_bytes)
        routes = [
            Route("/v1/chat/completions", Endpoint(completions.handle), methods=["POST"]),
            Route("/v1/moderations", Endpoint(self._moderate), methods=["POST"]),
            Route("/v1/models", Endpoint(self._models), methods=["GET"]),
            Route("/metrics", Endpoint(self._metrics), methods=["GET"]),
            Route("/healthz", Endpoint(self._healthz), methods=["GET"]),
            Route("/readyz", Endpoint(self._readyz), methods=["GET"]),
        ]
        self._paths = frozenset(route.path for route in routes)
        self._router = Router(routes, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            return
        headers = _headers(scope)
        path: str = scope["path"]
        record = RequestRecord(
            "http", path if path in self._paths else "other", _request_id(headers), is_probe=path in _PROBES
        )
        reply = Reply(send, record)
        scope["app"] = self  # with it the router raises for a path or a method that it does not know
        with self._telemetry.request(record, headers):
            try:
                self._admit(path, headers)
                await self._router(scope, receive, reply)
            except asyncio.CancelledError:
                # The server stops and has waited long enough; nothing comes after this.
                await self._report(Unavailable("the server is stopping; try again later"), reply)
            except Exception as exc:
                await self._report(exc, reply)

    def _admit(self, path: str, headers: Mapping[str, str]) -> None:
        """Lets a request in, or raises; probes need no credentials."""
        if path in _OPEN_PATHS:
            return
        if self._authenticator.asks:
            if not self._authenticator.is_allowed(headers.get("authorization")):
                raise Unauthenticated("expected 'Authorization: Bearer TOKEN' with a token that this server knows")
        elif "origin" in headers:
            # A page in a browser on this machine reaches loopback too, and nothing else would keep it out.
            raise Refused(403, "browser_refused", "a server without a token takes no requests from browsers")

    async def _report(self, error: Exception, reply: Reply) -> None:
        """Ends a request with its error; one that nobody waits for has none."""
        if isinstance(error, ClientGone):
            reply.record.status = _CLIENT_GONE
            return
        if isinstance(error, HTTPException):
            known = ", ".join(sorted(self._paths))
            error = Refused(error.status_code, "unknown_method", f"there is no such method; known paths are {known}")
        problem = problem_of(sendable(error))
        if not reply.has_begun:
            await reply.send_json(problem.to_dict(), status=problem.status, headers=problem.headers)
            return
        # A stream's status is sent already, so its error is its last event; clients look for the field "error".
        reply.record.status = str(problem.status)
        last = event(problem.to_dict()) + DONE
        with contextlib.suppress(ClientGone):
            await reply.put(last, patience_s=_LAST_WORDS_S, is_last=True)

    async def _moderate(self, request: Request, reply: Reply) -> None:
        guard = self._live.guard
        deadline = Deadline(guard.policy.deadline_s)
        values = read_json(await read_body(request, limit=self._options.max_body_bytes, deadline=deadline))
        conversations = read_moderation(values, max_inputs=self._options.max_inputs)
        async with self._gate.call():
            decisions = await unless_gone(request.receive, reply, self._judge(guard, conversations, deadline))
        reply.record.action = max((d.action for d in decisions), key=lambda action: action.strictness).value
        body = moderation_to_dict(decisions, request_id=reply.record.request_id, model=str(guard.source))
        await reply.send_json(body)

    async def _judge(self, guard: Guard, conversations: list[Conversation], deadline: Deadline) -> list[Decision]:
        tokens = tokens_of(message.content for c in conversations for message in c.messages)
        async with self._gate.slot(tokens=tokens, limit_s=deadline.remaining_s):
            return await guard.acheck_many(conversations, deadline_s=deadline.remaining_s)

    async def _models(self, _request: Request, reply: Reply) -> None:
        await reply.send_json(models_to_dict(None if self._chat is None else self._chat.model))

    async def _metrics(self, _request: Request, reply: Reply) -> None:
        if self._telemetry.metrics is None:
            raise ConfigurationError("this server keeps no metrics: pip install 'guardrail[metrics]'")
        body, media_type = self._telemetry.metrics.render()
        await reply.send_text(body, media_type=media_type)

    async def _healthz(self, _request: Request, reply: Reply) -> None:
        await reply.send_json({"status": "alive"})

    async def _readyz(self, _request: Request, reply: Reply) -> None:
        if self._gate.is_open:
            await reply.send_json({"status": "ready"})
        else:
            state = "stopping" if self._gate.closing.is_set() else "not ready"
            await reply.send_json({"status": state}, status=503)


def _headers(scope: Scope) -> dict[str, str]:
    """Returns the request's headers; one that is given twice says nothing that can be relied on."""
    names = Counter(name for name, _ in scope["headers"])
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"] if names[name] == 1}


def _request_id(headers: Mapping[str, str]) -> str:
    """Returns the caller's id where it may stand in a log line, else a new one."""
    try:
        return wire.require_id(headers.get("x-request-id", "")) or uuid.uuid4().hex
    except InvalidInput:
        return uuid.uuid4().hex
