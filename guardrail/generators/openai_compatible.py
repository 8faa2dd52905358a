"""A generator behind ``POST /v1/chat/completions``: vLLM, TGI, the llama.cpp server, Ollama, and OpenAI itself.

One request an attempt, whole (``generate``) or streamed (``stream``). What may pass by itself is tried again
(:mod:`guardrail.upstream`), a streamed one only before its first byte. Everything else, a timeout included, is a
``GenerationError``, whose words name the server and the status and never what was asked or answered.

A streamed answer is server-sent events, one line of JSON each, up to ``data: [DONE]`` or a chunk with a finish reason.
One that ends without either was cut off, and is an error.

Source: OpenAI API reference, "Create chat completion" and "Streaming"; HTML standard, 9.2.6 (event streams).
"""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any

from guardrail.errors import GenerationError, MissingExtra
from guardrail.generators import chat_messages
from guardrail.upstream import Attempts, Endpoint, pause, post
from guardrail.verdict import Conversation

try:
    import httpx
except ImportError as exc:
    raise MissingExtra("a generator behind HTTP needs httpx: pip install 'guardrail[upstream]'") from exc

__all__ = ["OpenAIGenerator"]

# An event holds a token or a few; one of this many bytes is none.
_LONGEST_LINE = 1024 * 1024


class OpenAIGenerator:
    """Asks a server of OpenAI's chat API; safe to use from many event loops.

    Args:
        base_url: The server, with or without ``/v1`` at its end.
        model: The model's name there.
        api_key: Sent as a bearer token; None: no token.
        timeout_s: How long one request may take, in seconds.
        retries: Requests after the first, where it failed in a way that may pass.
        backoff_s: Pause before the first of them; doubled each time.
        parameters: Further fields of the request, e.g. ``{"max_tokens": 512}``.

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
        parameters: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        self._endpoint = Endpoint.parse(base_url, "chat/completions")
        self._model = model
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._timeout_s = timeout_s
        self._retries = retries
        self._backoff_s = backoff_s
        self._parameters = dict(parameters)
        # A client's connections belong to the event loop that opened them.
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = (
            weakref.WeakKeyDictionary()
        )

    async def generate(self, conversation: Conversation, *, attempt: int, feedback: str | None) -> str:
        """Answers the conversation's last message.

        Args:
            conversation: Ends with the user's message; tool messages are sent without an id.
            attempt: From 1; the server is not told.
            feedback: Goes to the end of the user's message.

        Raises:
            GenerationError: If there is no answer.
        """
        body = self._body(conversation, feedback, is_streamed=False)
        response = await post(lambda: self._client().post(self._endpoint.url, json=body), self._attempts())
        return self._read(response)

    async def stream(self, conversation: Conversation, *, attempt: int, feedback: str | None) -> AsyncIterator[str]:
        """Answers the conversation's last message, in the pieces that the server gives.

        Args:
            conversation: As in :meth:`generate`.
            attempt: From 1; the server is not told.
            feedback: As in :meth:`generate`.

        Raises:
            GenerationError: If there is no answer, or it breaks off.
        """
        body = self._body(conversation, feedback, is_streamed=True)
        attempts = self._attempts()
        has_begun = False
        while True:
            failure: httpx.Response | httpx.RequestError
            try:
                async with self._client().stream("POST", self._endpoint.url, json=body) as response:
                    if response.status_code == httpx.codes.OK:
                        if response.headers.get("Content-Type", "").startswith("application/json"):
                            await response.aread()
                            yield self._read(response)  # from a server that does not stream
                            return
                        async for line in self._lines(response):
                            has_begun = True
                            text, is_last = self._read_event(line)
                            if text:
                                yield text
                            if is_last:
                                return
                        raise GenerationError(f"{self._endpoint.name} broke off: its answer has no end")
                    failure = response
            except httpx.RequestError as exc:
                if has_begun:
                    raise GenerationError(f"{self._endpoint.name} broke off ({type(exc).__name__})") from exc
                failure = exc
            await pause(attempts, failure)

    async def aclose(self) -> None:
        """Closes the connections of this event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    def _client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = httpx.AsyncClient(headers=self._headers, timeout=self._timeout_s)
        return client

    def _body(self, conversation: Conversation, feedback: str | None, *, is_streamed: bool) -> dict[str, object]:
        messages = chat_messages(conversation, feedback)
        return {**self._parameters, "model": self._model, "messages": messages, "stream": is_streamed}

    def _attempts(self) -> Attempts:
        return Attempts(
            self._endpoint.name, retries=self._retries, backoff_s=self._backoff_s, timeout_s=self._timeout_s
        )

    async def _lines(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """Gives the lines of an event stream; httpx's own lines also end at marks that JSON may hold."""
        rest = b""
        async for data in response.aiter_bytes():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield line.rstrip(b"\r")
            if len(rest) > _LONGEST_LINE:
                raise GenerationError(f"{self._endpoint.name} answered a line of more than {_LONGEST_LINE} bytes")
        yield rest

    def _read_event(self, line: bytes) -> tuple[str, bool]:
        """Returns the text of a line of an event stream, and whether it is the end of the answer."""
        if not line.startswith(b"data:"):
            return "", False
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return "", True
        try:
            chunk: Any = json.loads(data)
        except ValueError:
            raise GenerationError(
                f"{self._endpoint.name} answered an event of {len(data)} bytes that is not JSON; is it a chat API?"
            ) from None  # the cause would carry the text
        try:
            choices = chunk["choices"]
            choice = choices[0] if choices else {}
            content = (choice.get("delta") or {}).get("content")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise GenerationError(f"{self._endpoint.name} answered an event without choices[0].delta") from None
        if content is not None and not isinstance(content, str):
            raise GenerationError(
                f"expected text in choices[0].delta.content from {self._endpoint.name}, got {type(content).__name__}"
            )
        return content or "", choice.get("finish_reason") is not None

    def _read(self, response: httpx.Response) -> str:
        """Returns the text of an answer; what is wrong with it is said without quoting it."""
        try:
            answer: Any = response.json()
        except ValueError:
            raise GenerationError(
                f"{self._endpoint.name} answered {len(response.content)} bytes that are not JSON; is it a chat API?"
            ) from None  # the cause would carry the text
        try:
            content = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise GenerationError(f"{self._endpoint.name} answered without choices[0].message.content") from None
        if not isinstance(content, str):
            raise GenerationError(
                f"expected text in choices[0].message.content from {self._endpoint.name}, got {type(content).__name__}"
            )
        return content
