"""The chat backend that is a server of OpenAI's API: the request goes on as it came, and of the answer only text back.

::

    ChatRequest ─▶ {its parameters, our model, its messages + feedback} ─▶ POST /v1/chat/completions
    text        ◀─ choices[0].message.content, or the deltas of server-sent events

The model is the operator's: a caller cannot choose another one. The caller's credentials end here; the upstream gets
the operator's. What may pass by itself is tried again (:mod:`guardrail.upstream`), a stream only before its first
event. Anything in an answer that is not text, a tool call above all, makes it no answer: it could not be checked.
Reasoning and other fields that servers add are dropped.

Source: OpenAI API reference, "Create chat completion"; WHATWG HTML, 9.2.6 (event streams).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from guardrail.errors import GenerationError, MissingExtra
from guardrail.serving.http.answers import encode
from guardrail.serving.http.backends import Usage
from guardrail.serving.http.requests import ChatRequest
from guardrail.upstream import Attempts, Endpoint, pause, post
from guardrail.verdict import Conversation

try:
    import httpx
except ImportError as exc:
    raise MissingExtra("an upstream behind HTTP needs httpx: pip install 'guardrail[upstream]'") from exc

__all__ = ["ChatUpstream"]

_FINISHES = ("stop", "length", "content_filter")
_UNCHECKED = ("tool_calls", "function_call", "audio")


class ChatUpstream:
    """Passes chat requests on to a server of OpenAI's chat API; belongs to one event loop.

    Args:
        base_url: The server, with or without ``/v1`` at its end.
        model: The model's name there.
        api_key: Sent as a bearer token; None: no token.
        timeout_s: How long one request, or the next event of a stream, may take, in seconds.
        retries: Requests after the first, where it failed in a way that may pass.
        backoff_s: Pause before the first of them; doubled each time.

    Raises:
        ConfigurationError: If the URL is not one of http or https.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 2,
        backoff_s: float = 0.25,
    ) -> None:
        self.model = model
        self._endpoint = Endpoint.parse(base_url, "chat/completions")
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout_s = timeout_s
        self._retries = retries
        self._backoff_s = backoff_s
        self._client: httpx.AsyncClient | None = None

    def open(self, request: ChatRequest) -> UpstreamSession:
        """Returns what answers one request."""
        return UpstreamSession(self, request)

    async def aclose(self) -> None:
        """Closes the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    @property
    def name(self) -> str:
        """The server's host and port, for people."""
        return self._endpoint.name

    async def post(self, body: Mapping[str, Any]) -> bytes:
        """Sends a request; returns the body of its answer.

        Raises:
            GenerationError: If there is none.
        """
        response = await post(
            lambda: self._open_client().post(self._endpoint.url, content=encode(body)), self._attempts()
        )
        return response.content

    async def events(self, body: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """Sends a request; yields the data of each event of its answer.

        Raises:
            GenerationError: If there is no answer, or the connection is lost in the middle of it.
        """
        attempts = self._attempts()
        has_begun = False
        while True:
            failure: httpx.Response | httpx.RequestError
            try:
                request = self._open_client().stream("POST", self._endpoint.url, content=encode(body))
                async with request as response:
                    if response.status_code == httpx.codes.OK:
                        has_begun = True
                        async for line in _lines(response):
                            if line.startswith(b"data:"):
                                yield line[5:].strip()
                        return
                    failure = response
            except httpx.RequestError as exc:
                if has_begun:
                    raise GenerationError(
                        f"{self.name} broke off its answer: the connection failed ({type(exc).__name__})"
                    ) from exc
                failure = exc
            await pause(attempts, failure)

    def _attempts(self) -> Attempts:
        return Attempts(self.name, retries=self._retries, backoff_s=self._backoff_s, timeout_s=self._timeout_s)

    def _open_client(self) -> httpx.AsyncClient:
        if self._client is None:
            # How many requests there are at one time is the gate's to say.
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
            self._client = httpx.AsyncClient(headers=self._headers, timeout=self._timeout_s, limits=limits)
        return self._client


class UpstreamSession:
    """Answers one request through an upstream; see :class:`guardrail.serving.http.backends.ChatSession`."""

    def __init__(self, upstream: ChatUpstream, request: ChatRequest) -> None:
        self.finish_reason = "stop"
        self.usage: Usage | None = None
        self._usage_before: Usage | None = None
        self._upstream = upstream
        self._request = request

    async def generate(self, conversation: Conversation, *, attempt: int, feedback: str | None) -> str:
        """Answers the request's conversation as a whole."""
        self._usage_before = self.usage
        answer = self._parse(await self._upstream.post(self._body(feedback)))
        try:
            choice = answer["choices"][0]
            message = choice["message"]
            text = self._text(message)
        except (KeyError, IndexError, TypeError, AttributeError):
            raise self._error("answered without choices[0].message") from None
        if text is None:
            raise self._error("answered without text in choices[0].message.content")
        self._take_note(choice, answer)
        return text

    async def stream(self, conversation: Conversation, *, attempt: int, feedback: str | None) -> AsyncIterator[str]:
        """Answers the request's conversation in pieces."""
        has_ended = False
        self._usage_before = self.usage
        body = {**self._body(feedback), "stream": True}
        if self._request.includes_usage:
            body["stream_options"] = {"include_usage": True}
        async with contextlib.aclosing(self._upstream.events(body)) as events:
            async for data in events:
                if data == b"[DONE]":
                    has_ended = True
                    break
                chunk = self._parse(data)
                if not isinstance(chunk, dict) or chunk.get("error"):
                    raise self._error("ended its answer with an error")
                try:
                    choice: Any = next(iter(chunk.get("choices") or ()), {})
                    text = self._text(choice.get("delta") or {})
                except (TypeError, AttributeError):
                    raise self._error("sent an event without choices[0].delta") from None
                self._take_note(choice, chunk)
                has_ended = has_ended or isinstance(choice.get("finish_reason"), str)
                if text:
                    yield text
        if not has_ended:
            raise self._error("broke off its answer: its end did not come")

    def _body(self, feedback: str | None) -> dict[str, Any]:
        messages = [dict(message) for message in self._request.messages]
        if feedback is not None:
            messages[-1]["content"] += f"\n\n{feedback}"
        return {**self._request.parameters, "model": self._upstream.model, "messages": messages, "stream": False}

    def _parse(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise self._error(f"answered {len(data)} bytes that are not JSON; is it a chat API?") from None

    def _text(self, message: Mapping[str, Any]) -> str | None:
        """Returns the text of a message or a delta. A refusal is text like any other: it is checked and shown."""
        for name in _UNCHECKED:
            if message.get(name):
                raise self._error(f"answered with {name}, which cannot be checked")
        text = message.get("content")
        if text is None:
            text = message.get("refusal")
        if text is not None and not isinstance(text, str):
            raise self._error(f"answered with content that is not text but {type(text).__name__}")
        return text

    def _take_note(self, choice: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        finish = choice.get("finish_reason")
        if isinstance(finish, str):
            self.finish_reason = finish if finish in _FINISHES else "stop"
        usage = answer.get("usage")
        if isinstance(usage, dict):
            counts = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
            # Some servers count in every event, each time all that there was of the attempt.
            self.usage = (self._usage_before or Usage()) + Usage(*(n if isinstance(n, int) else 0 for n in counts))

    def _error(self, problem: str) -> GenerationError:
        return GenerationError(f"{self._upstream.name} {problem}")


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yields the lines of a body; httpx's own splitting takes U+2028 in a text for the end of one."""
    rest = b""
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line
    yield rest
