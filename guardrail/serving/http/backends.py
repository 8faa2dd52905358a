"""What answers chat requests: the seam, and the one for a generator that knows nothing of HTTP.

A backend opens a session for each request. The session is what a guarded exchange takes as its generator, and says
afterwards how its last attempt ended and how many tokens all of them took.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from guardrail.protocols import Generator, StreamingGenerator
from guardrail.serving.http.requests import ChatRequest
from guardrail.streaming import begin_with
from guardrail.verdict import Conversation

__all__ = ["ChatBackend", "ChatSession", "GeneratorBackend", "Usage"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of all attempts, as the upstream counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)


class ChatSession(StreamingGenerator, Protocol):
    """Answers one request, attempt by attempt.

    Attributes:
        finish_reason: How the last attempt ended: ``stop``, ``length`` or ``content_filter``.
        usage: None where nobody counted.
    """

    finish_reason: str
    usage: Usage | None


class ChatBackend(Protocol):
    """Answers chat requests."""

    @property
    def model(self) -> str:
        """The model's name, as responses give it."""
        ...

    def open(self, request: ChatRequest) -> ChatSession:
        """Returns what answers one request."""
        ...

    async def aclose(self) -> None:
        """Frees what it holds."""
        ...


class GeneratorBackend:
    """Lets the sidecar's generator answer; the request's parameters are not applied.

    Args:
        generator: Stays the caller's, who closes it.
        model: What responses call it.
    """

    def __init__(self, generator: Generator, *, model: str = "guardrail-generator") -> None:
        self.model = model
        self._generator = generator

    def open(self, request: ChatRequest) -> ChatSession:
        """Returns what answers one request."""
        return _GeneratorSession(self._generator)

    async def aclose(self) -> None:
        """Holds nothing of its own."""


class _GeneratorSession:
    finish_reason = "stop"
    usage: Usage | None = None

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    async def generate(self, conversation: Conversation, *, attempt: int, feedback: str | None) -> str:
        return await self._generator.generate(conversation, attempt=attempt, feedback=feedback)

    def stream(self, conversation: Conversation, *, attempt: int, feedback: str | None) -> AsyncIterator[str]:
        return begin_with(self._generator, conversation)(attempt, feedback)
