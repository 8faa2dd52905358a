"""What runs the sans-IO streams: for callers with an event loop, for callers without, and for the sidecar."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

from guardrail.deadline import Deadline
from guardrail.errors import Blocked
from guardrail.pipeline import CheckStep, Guard, require_text
from guardrail.progress import Progress, PromptCheck, Release
from guardrail.protocols import Generator, Stage, StreamingGenerator
from guardrail.streaming.answer import PullStep, ReportStep, checked_answer
from guardrail.streaming.exchange import BeginStep, PromptStep, guarded_stream
from guardrail.streaming.feed import Pump
from guardrail.verdict import Conversation, Decision, Exchange, Message

__all__ = ["AsyncBegin", "Begin", "amoderate", "astream", "astream_exchange", "begin_with", "stream"]

Begin = Callable[[int, "str | None"], Iterator[str]]
"""Starts an attempt: its number and the feedback in, pieces of text out."""

AsyncBegin = Callable[[int, "str | None"], AsyncIterator[str]]


def stream(guard: Guard, conversation: Conversation, begin: Begin) -> Iterator[str]:
    """Yields the checked text of an answer that arrives in pieces.

    Args:
        guard: Judges the pieces.
        conversation: Ends with the user's message.
        begin: Starts an attempt; called in this thread.

    Raises:
        Blocked: If the prompt or the answer is blocked; what was yielded before was checked.
        DeadlineExceeded: If the time runs out.
        GenerationError: If a piece is not text.
    """
    deadline = Deadline(guard.policy.deadline_s)
    steps = guarded_stream(conversation, guard.policy)
    pieces: Iterator[str] = iter(())
    result: Any = None
    try:
        while True:
            step = steps.send(result)
            result = None
            if isinstance(step, CheckStep):
                result = guard.check(step.conversation, deadline_s=deadline.remaining_s, code_from=step.code_from)
            elif isinstance(step, BeginStep):
                _close(pieces)
                pieces = iter(begin(step.attempt, step.feedback))
            elif isinstance(step, PullStep):
                piece = next(pieces, _END)
                result = None if piece is _END else require_text(piece)
                deadline.require()
            elif isinstance(step, ReportStep) and step.text:
                yield step.text
    except StopIteration as done:
        _raise_if_blocked(done.value)
    finally:
        _close(pieces)


async def astream(
    guard: Guard, conversation: Conversation, begin: AsyncBegin, *, prompt_check: PromptCheck = PromptCheck.FIRST
) -> AsyncIterator[str]:
    """Yields the checked text of an answer that arrives in pieces; :func:`stream` for event loops.

    Args:
        guard: Judges the pieces.
        conversation: Ends with the user's message.
        begin: Starts an attempt; its pieces are read in a task of their own, a little ahead.
        prompt_check: Whether the prompt is checked before the first generation, or beside it.

    Raises:
        Blocked: If the prompt or the answer is blocked; what was yielded before was checked.
        DeadlineExceeded: If the time runs out.
        GenerationError: If a piece is not text.
    """
    async with contextlib.aclosing(astream_exchange(guard, conversation, begin, prompt_check=prompt_check)) as running:
        async for part in running:
            if isinstance(part, str):
                yield part
            else:
                _raise_if_blocked(part)


async def astream_exchange(
    guard: Guard,
    conversation: Conversation,
    begin: AsyncBegin,
    *,
    prompt_check: PromptCheck = PromptCheck.FIRST,
    deadline_s: float | None = None,
) -> AsyncGenerator[str | Exchange, None]:
    """Yields the checked text of an answer that arrives in pieces, and in the end the exchange, blocked or not.

    Args:
        guard: Judges the pieces.
        conversation: Ends with the user's message.
        begin: Starts an attempt; its pieces are read in a task of their own, a little ahead.
        prompt_check: Whether the prompt is checked before the first generation, or beside it.
        deadline_s: For the whole exchange; least of this and the policy's deadline counts, in seconds.

    Raises:
        DeadlineExceeded: If the time runs out.
        GenerationError: If a piece is not text.
    """
    limit_s = guard.policy.deadline_s
    deadline = Deadline(limit_s if deadline_s is None else min(deadline_s, limit_s))
    steps = guarded_stream(conversation, guard.policy, prompt_check=prompt_check)
    pump: Pump | None = None
    prompt: asyncio.Task[Decision] | None = None
    is_prompt_told = False
    result: Any = None
    try:
        while True:
            try:
                step = steps.send(result)
            except StopIteration as done:
                yield done.value
                return
            result = None
            if isinstance(step, CheckStep):
                result = await guard.acheck(
                    step.conversation, deadline_s=deadline.remaining_s, code_from=step.code_from
                )
            elif isinstance(step, ReportStep):
                if step.text:
                    yield step.text
            elif isinstance(step, BeginStep):
                if pump is not None:
                    await pump.aclose()
                stage = guard.stage(Stage.GENERATION, attempt=step.attempt)
                pump = Pump(begin(step.attempt, step.feedback), stage=stage)
            elif isinstance(step, PromptStep):
                prompt = asyncio.create_task(guard.acheck(step.conversation, deadline_s=deadline.remaining_s))
            elif isinstance(step, PullStep):
                assert pump is not None
                if prompt is None or is_prompt_told:
                    result = await deadline.bound(pump.take())
                else:
                    result = await deadline.bound(_first(prompt, pump))
                    is_prompt_told = isinstance(result, Decision)
            else:
                assert prompt is not None
                is_prompt_told, result = True, await prompt
    finally:
        if prompt is not None:
            prompt.cancel()
        if pump is not None:
            await pump.aclose()


def begin_with(generator: Generator | StreamingGenerator, conversation: Conversation) -> AsyncBegin:
    """Returns what starts attempts of a generator: streamed where it can stream, else its whole answer as one piece.

    Args:
        generator: Answers.
        conversation: Ends with the user's message.
    """
    stream = getattr(generator, "stream", None)

    async def whole(attempt: int, feedback: str | None) -> AsyncIterator[str]:
        yield await generator.generate(conversation, attempt=attempt, feedback=feedback)

    def streamed(attempt: int, feedback: str | None) -> AsyncIterator[str]:
        assert stream is not None
        pieces: AsyncIterator[str] = stream(conversation, attempt=attempt, feedback=feedback)
        return pieces

    return whole if stream is None else streamed


async def _first(prompt: asyncio.Task[Decision], pump: Pump) -> Decision | str | None:
    """Waits for the decision on the prompt or the next text, whichever comes first."""
    if prompt.done():
        return prompt.result()
    taking = asyncio.ensure_future(pump.take())
    try:
        await asyncio.wait({prompt, taking}, return_when=asyncio.FIRST_COMPLETED)
        # Text that was taken would be lost; the decision stays.
        return taking.result() if taking.done() else prompt.result()
    finally:
        taking.cancel()


async def amoderate(
    guard: Guard,
    before: Sequence[Message],
    take: Callable[[], Awaitable[str | None]],
    *,
    path: str = "",
    release: Release = Release.CHECKED,
    stop_early: bool = False,
    limit_s: Callable[[], float | None] = lambda: None,
) -> AsyncGenerator[Progress, None]:
    """Judges an answer while it is written, and says how far it may be shown.

    Args:
        guard: Judges the pieces and the whole.
        before: The conversation that is answered; context, not judged.
        take: Gives what has been written since, waiting for some; None at the end.
        path: Where the exchange belongs.
        release: When text may be shown.
        stop_early: Whether to end at text that is not allowed.
        limit_s: Says how long the next check may take; least of this and the policy's deadline counts, in seconds.

    Yields:
        How far the answer has come; the last one has the decision.
    """
    steps = checked_answer(before, path=path, release=release, stop_early=stop_early)
    result: Any = None
    while True:
        try:
            step = steps.send(result)
        except StopIteration:
            return
        result = None
        if isinstance(step, CheckStep):
            result = await guard.acheck(step.conversation, deadline_s=limit_s(), code_from=step.code_from)
        elif isinstance(step, PullStep):
            result = await take()
        else:
            yield step.progress


_END = object()


def _raise_if_blocked(exchange: Exchange) -> None:
    if exchange.is_blocked:
        raise Blocked(exchange.decision)


def _close(pieces: Iterator[str]) -> None:
    close = getattr(pieces, "close", None)
    if close is not None:
        close()
