"""``@guarded``: a generate function whose prompts and answers are checked.

Works on sync, async, generator and async-generator functions; generators release only checked text. The function's
first argument (after ``self``) is the prompt: a string, or OpenAI-style messages. When an answer is to be generated
again, a function with a ``feedback`` parameter is given the feedback there; for any other it is added to the user's
message.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from guardrail.assembly import default_guard
from guardrail.errors import Blocked, ConfigurationError, InvalidInput
from guardrail.pipeline import Guard
from guardrail.policy import Policy, load_policy
from guardrail.streaming import astream, stream
from guardrail.verdict import Conversation, Exchange, Message, Rail, Role

__all__ = ["guarded"]

F = TypeVar("F", bound=Callable[..., Any])

OnBlock = Literal["raise", "message"]


@overload
def guarded(function: F, /) -> F: ...


@overload
def guarded(
    *,
    guard: Guard | None = None,
    policy: Policy | str | Path | None = None,
    on_block: OnBlock = "raise",
    max_attempts: int | None = None,
) -> Callable[[F], F]: ...


def guarded(
    function: F | None = None,
    /,
    *,
    guard: Guard | None = None,
    policy: Policy | str | Path | None = None,
    on_block: OnBlock = "raise",
    max_attempts: int | None = None,
) -> F | Callable[[F], F]:
    """Guards a generate function.

    Args:
        function: A function from prompt to answer.
        guard: Judges; default: the one that the environment describes, built at the first call.
        policy: A policy, a preset's name or a file; default: the guard's own.
        on_block: ``"raise"`` raises :class:`~guardrail.errors.Blocked`; ``"message"`` returns the policy's block
            message (a generator yields it last).
        max_attempts: Generations for one prompt; default: the policy's.

    Raises:
        PolicyError: If the policy cannot be read.
        ConfigurationError: If ``on_block`` or ``max_attempts`` cannot be, or the function has no parameter for a
        prompt.
    """
    if on_block not in ("raise", "message"):
        raise ConfigurationError(f"on_block must be 'raise' or 'message', got {on_block!r}")
    if max_attempts is not None and max_attempts < 1:
        raise ConfigurationError(f"max_attempts must be at least 1, got {max_attempts}")
    chosen = load_policy(policy) if isinstance(policy, (str, Path)) else policy

    @functools.lru_cache(maxsize=1)
    def resolve() -> Guard:
        base = guard or default_guard()
        final = chosen or base.policy
        if max_attempts is not None:
            final = final.with_max_attempts(max_attempts)
        return base.with_policy(final)

    def decorate(function: F) -> F:
        call = _Call(function)
        if inspect.isasyncgenfunction(function):
            wrapper = _guard_async_generator(function, call, resolve, on_block)
        elif inspect.iscoroutinefunction(function):
            wrapper = _guard_coroutine(function, call, resolve, on_block)
        elif inspect.isgeneratorfunction(function):
            wrapper = _guard_generator(function, call, resolve, on_block)
        else:
            wrapper = _guard_function(function, call, resolve, on_block)
        return functools.wraps(function)(wrapper)  # type: ignore[return-value]  # same signature, checked answer

    return decorate if function is None else decorate(function)


class _Call:
    """Knows where a function takes its prompt, and how to give it feedback."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._signature = inspect.signature(function)
        names = [name for name, parameter in self._signature.parameters.items() if parameter.kind in _NAMED]
        if names and names[0] in ("self", "cls"):
            names = names[1:]
        if not names:
            raise ConfigurationError(f"{function.__qualname__} has no parameter for a prompt; @guarded needs one")
        self._prompt = names[0]
        self._takes_feedback = "feedback" in names[1:]

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[inspect.BoundArguments, Conversation]:
        """Returns the call's arguments, and the conversation that its prompt is."""
        bound = self._signature.bind(*args, **kwargs)
        if self._prompt not in bound.arguments:
            raise InvalidInput(f"expected a prompt in argument {self._prompt!r}, got none")
        return bound, _conversation(bound.arguments[self._prompt])

    def again(self, bound: inspect.BoundArguments, feedback: str | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments of one attempt."""
        if feedback is None:
            return bound.args, bound.kwargs
        attempt = inspect.BoundArguments(self._signature, bound.arguments.copy())
        if self._takes_feedback:
            attempt.arguments["feedback"] = feedback
        else:
            attempt.arguments[self._prompt] = _with_feedback(attempt.arguments[self._prompt], feedback)
        return attempt.args, attempt.kwargs


_NAMED = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)


def _conversation(prompt: Any) -> Conversation:
    if isinstance(prompt, Conversation):
        conversation = prompt
    elif isinstance(prompt, str):
        conversation = Conversation.of(prompt)
    elif isinstance(prompt, Sequence):
        conversation = Conversation(tuple(_message(item) for item in prompt))
    else:
        raise InvalidInput(f"expected a prompt of str or a list of messages, got {type(prompt).__name__}")
    if conversation.rail is not Rail.PROMPT:
        raise InvalidInput("expected the last message to be the user's, got the assistant's")
    return conversation


def _message(item: Any) -> Message:
    if isinstance(item, Message):
        return item
    if isinstance(item, Mapping) and isinstance(item.get("content"), str):
        try:
            return Message(Role(item.get("role")), item["content"])
        except ValueError as exc:
            raise InvalidInput(f"expected a role of {', '.join(role.value for role in Role)}") from exc
    raise InvalidInput("expected each message to be {'role': ..., 'content': <str>}")


def _with_feedback(prompt: Any, feedback: str) -> Any:
    if isinstance(prompt, str):
        return f"{prompt}\n\n{feedback}"
    if isinstance(prompt, Conversation):
        return Conversation((*prompt.messages[:-1], Message(Role.USER, f"{prompt.last.content}\n\n{feedback}")))
    *before, last = prompt
    if isinstance(last, Message):
        return [*before, Message(last.role, f"{last.content}\n\n{feedback}")]
    return [*before, {**last, "content": f"{last['content']}\n\n{feedback}"}]


def _released(exchange: Exchange, on_block: OnBlock) -> str:
    if exchange.is_blocked and on_block == "raise":
        raise Blocked(exchange.decision)
    return exchange.text


def _guard_function(
    function: Callable[..., Any], call: _Call, resolve: Callable[[], Guard], on_block: OnBlock
) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> str:
        bound, conversation = call.bind(args, kwargs)

        def generate(conversation: Conversation, *, attempt: int, feedback: str | None) -> str:
            again, keywords = call.again(bound, feedback)
            return function(*again, **keywords)  # type: ignore[no-any-return]  # the driver checks that it is text

        return _released(resolve().run(conversation, generate), on_block)

    return wrapper


class _FromCoroutine:
    """A :class:`~guardrail.protocols.Generator` around a coroutine function."""

    def __init__(self, function: Callable[..., Any], call: _Call, bound: inspect.BoundArguments) -> None:
        self._function, self._call, self._bound = function, call, bound

    async def generate(self, conversation: Conversation, *, attempt: int, feedback: str | None) -> str:
        again, keywords = self._call.again(self._bound, feedback)
        return await self._function(*again, **keywords)  # type: ignore[no-any-return]  # the driver checks it


def _guard_coroutine(
    function: Callable[..., Any], call: _Call, resolve: Callable[[], Guard], on_block: OnBlock
) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> str:
        bound, conversation = call.bind(args, kwargs)
        return _released(await resolve().arun(conversation, _FromCoroutine(function, call, bound)), on_block)

    return wrapper


def _guard_generator(
    function: Callable[..., Any], call: _Call, resolve: Callable[[], Guard], on_block: OnBlock
) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Iterator[str]:
        bound, conversation = call.bind(args, kwargs)

        def begin(_attempt: int, feedback: str | None) -> Iterator[str]:
            again, keywords = call.again(bound, feedback)
            return function(*again, **keywords)  # type: ignore[no-any-return]  # the driver checks its pieces

        guard = resolve()
        try:
            yield from stream(guard, conversation, begin)
        except Blocked:
            if on_block == "raise":
                raise
            yield guard.policy.block_message

    return wrapper


def _guard_async_generator(
    function: Callable[..., Any], call: _Call, resolve: Callable[[], Guard], on_block: OnBlock
) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncIterator[str]:
        bound, conversation = call.bind(args, kwargs)

        def begin(_attempt: int, feedback: str | None) -> AsyncIterator[str]:
            again, keywords = call.again(bound, feedback)
            return function(*again, **keywords)  # type: ignore[no-any-return]  # the driver checks its pieces

        guard = resolve()
        try:
            async for text in astream(guard, conversation, begin):
                yield text
        except Blocked:
            if on_block == "raise":
                raise
            yield guard.policy.block_message

    return wrapper
