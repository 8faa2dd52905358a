"""LangChain: a chat model whose prompts and answers are checked, whole or in pieces.

::

    messages ─▶ guarded_chat_model ─▶ @guarded ─▶ the model, without the run's callbacks
                 only checked text ◀─────────────┘

The inner model runs apart from the run's callbacks: ``astream_events`` and LangGraph's ``messages`` mode would show its
text before it was checked. The outer one has no cache: an answer from it would pass the check by.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrail.decorator import OnBlock, guarded
from guardrail.errors import GenerationError, InvalidInput, MissingExtra
from guardrail.pipeline import Guard
from guardrail.policy import Policy
from guardrail.verdict import Conversation, Message, Role

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.runnables import Runnable

__all__ = ["guarded_chat_model"]

_ROLES = {"system": Role.SYSTEM, "human": Role.USER, "ai": Role.ASSISTANT, "tool": Role.TOOL, "function": Role.TOOL}


def guarded_chat_model(
    model: Runnable[Any, Any],
    *,
    guard: Guard | None = None,
    policy: Policy | str | Path | None = None,
    on_block: OnBlock = "raise",
    max_attempts: int | None = None,
) -> BaseChatModel:
    """Wraps a chat model; the other arguments are those of :func:`~guardrail.decorator.guarded`.

    Text alone is judged and released: reasoning and other blocks of an answer are dropped.

    Args:
        model: A chat model, or what ``bind``, ``with_retry`` and ``with_fallbacks`` make of one.

    Returns:
        A chat model that raises ``Blocked``, ``InvalidInput`` for a message that is not text, and ``GenerationError``
        for an answer that calls tools.

    Raises:
        MissingExtra: If langchain-core is not installed.
    """
    check = guarded(guard=guard, policy=policy, on_block=on_block, max_attempts=max_attempts)
    model_class: type[BaseChatModel] = _model_class()
    return model_class(inner=model, check=check)


@functools.cache
def _model_class() -> Any:
    try:
        from langchain_core.language_models import BaseChatModel
        from langchain_core.messages import AIMessage, AIMessageChunk
        from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
    except ImportError as exc:
        raise MissingExtra("the LangChain adapter needs langchain-core: pip install 'guardrail[langchain]'") from exc

    def result(text: str, given: list[Any]) -> Any:
        usage = given[-1].usage_metadata if given and given[-1].text == text else None
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content=text, usage_metadata=usage))])

    class GuardedChatModel(BaseChatModel):  # type: ignore[misc]  # langchain-core need not be installed
        inner: Any
        check: Any
        cache: Any = False

        @property
        def _llm_type(self) -> str:
            return "guardrail"

        def _generate(self, messages: list[Any], stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
            given: list[Any] = []

            def answer(prompt: Conversation, feedback: str | None = None) -> str:
                given.append(self.inner.invoke(_again(messages, feedback), {"callbacks": []}, stop=stop, **kwargs))
                return _answer_text(given[-1])

            return result(self.check(answer)(_conversation(messages)), given)

        async def _agenerate(self, messages: list[Any], stop: Any = None, run_manager: Any = None, **kw: Any) -> Any:
            given: list[Any] = []

            async def answer(prompt: Conversation, feedback: str | None = None) -> str:
                given.append(await self.inner.ainvoke(_again(messages, feedback), {"callbacks": []}, stop=stop, **kw))
                return _answer_text(given[-1])

            return result(await self.check(answer)(_conversation(messages)), given)

        def _stream(
            self, messages: list[Any], stop: Any = None, run_manager: Any = None, **kwargs: Any
        ) -> Iterator[Any]:
            def pieces(prompt: Conversation, feedback: str | None = None) -> Iterator[str]:
                for chunk in self.inner.stream(_again(messages, feedback), {"callbacks": []}, stop=stop, **kwargs):
                    yield _answer_text(chunk)

            for text in self.check(pieces)(_conversation(messages)):
                yield ChatGenerationChunk(message=AIMessageChunk(content=text))

        async def _astream(
            self, messages: list[Any], stop: Any = None, run_manager: Any = None, **kw: Any
        ) -> AsyncIterator[Any]:
            async def pieces(prompt: Conversation, feedback: str | None = None) -> AsyncIterator[str]:
                async for chunk in self.inner.astream(_again(messages, feedback), {"callbacks": []}, stop=stop, **kw):
                    yield _answer_text(chunk)

            async for text in self.check(pieces)(_conversation(messages)):
                yield ChatGenerationChunk(message=AIMessageChunk(content=text))

    return GuardedChatModel


def _conversation(messages: Sequence[Any]) -> Conversation:
    return Conversation(tuple(Message(_role(message), _text(message)) for message in messages))


def _role(message: Any) -> Role:
    role = _ROLES.get(message.type.removesuffix("MessageChunk").lower())
    if role is None:
        raise InvalidInput(f"expected messages of type {', '.join(_ROLES)}, got {type(message).__name__}")
    return role


def _text(message: Any) -> str:
    blocks = [] if isinstance(message.content, str) else message.content
    kinds = sorted({block.get("type", "?") for block in blocks if isinstance(block, dict)} - {"text"})
    if kinds and _role(message) is not Role.ASSISTANT:
        raise InvalidInput(f"only text can be judged, got a message with {', '.join(kinds)}")
    return str(message.text)


def _again(messages: Sequence[Any], feedback: str | None) -> list[Any]:
    """The messages of one attempt; the last one is the user's, or the decorator would have refused it."""
    if feedback is None:
        return list(messages)
    return [*messages[:-1], messages[-1].model_copy(update={"content": f"{messages[-1].text}\n\n{feedback}"})]


def _answer_text(message: Any) -> str:
    if getattr(message, "tool_calls", None) or getattr(message, "tool_call_chunks", None):
        raise GenerationError("expected an answer in text, got a tool call, which guardrail cannot judge")
    return str(message.text)
