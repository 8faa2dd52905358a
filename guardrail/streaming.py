"""The guarded exchange for an answer that arrives in pieces: only checked text is released.

::

    answer so far   |-- released --|-- checked next --|-- held: sentence or code block not complete --|
                    0       checked_through       boundary

A piece is checked when a sentence, a line or a code block is complete, together with up to ``LOOKBACK`` code points of
what came before it. At the end the whole text is checked once more, so a stream ends with the decision that the whole
text would have had. Like :func:`~guardrail.pipeline.guarded_exchange` this is sans-IO, with two drivers.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

from guardrail.deadline import Deadline
from guardrail.errors import Blocked
from guardrail.extraction import extract_code_blocks
from guardrail.pipeline import CheckStep, Guard, feedback_for, require_text
from guardrail.policy import Policy
from guardrail.verdict import Action, Attempt, Conversation, Decision, Exchange, Role

__all__ = ["BeginStep", "PullStep", "ReleaseStep", "StreamStep", "astream", "guarded_stream", "stream"]

LOOKBACK = 1000
"""Code points of released text that are judged again with the next piece, so that a sentence has its context."""

# A check costs a model call: very short sentences wait for their neighbours.
_LEAST_PIECE = 40
# Text without an end of sentence is cut at a space after so many code points.
_LONGEST_PIECE = 600

_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]?(?=\s)|\n")  # noqa: RUF001 - full-width marks end sentences too


@dataclass(frozen=True, slots=True)
class BeginStep:
    """Asks the driver to start generating; it sends back nothing."""

    conversation: Conversation
    attempt: int
    feedback: str | None


@dataclass(frozen=True, slots=True)
class PullStep:
    """Asks the driver for the next piece; it sends back text, or None at the end."""


@dataclass(frozen=True, slots=True)
class ReleaseStep:
    """Tells the driver that this text may be shown."""

    text: str


StreamStep = CheckStep | BeginStep | PullStep | ReleaseStep


def guarded_stream(conversation: Conversation, policy: Policy) -> Generator[StreamStep, Any, Exchange]:
    """Checks the prompt, then each piece of the answer before it is released, then the whole answer.

    An answer is generated again only while nothing of it was released; after that, unsafe text ends the stream.

    Args:
        conversation: Ends with the user's message.
        policy: Gives the number of attempts and the block message.

    Yields:
        What the driver must do next.

    Returns:
        The exchange. Where it is blocked, its text is the block message, whatever was released before.
    """
    prompt_decision: Decision = yield CheckStep(conversation)
    if not prompt_decision.action.releases:
        return Exchange(policy.block_message, prompt_decision, prompt_decision, ())
    attempts: list[Attempt] = []
    feedback: str | None = None
    for number in range(1, policy.max_attempts + 1):
        yield BeginStep(conversation, number, feedback)
        text, released, decision = yield from _answer(conversation)
        attempts.append(Attempt(number, text, decision, feedback))
        if decision.action.releases:
            return Exchange(text, decision, prompt_decision, tuple(attempts))
        if decision.action is Action.BLOCK or released:
            break
        feedback = feedback_for(decision)
    final = replace(attempts[-1].decision, action=Action.BLOCK)
    return Exchange(policy.block_message, final, prompt_decision, tuple(attempts))


def _answer(conversation: Conversation) -> Generator[StreamStep, Any, tuple[str, bool, Decision]]:
    """Runs one attempt; returns its text, whether any of it was released, and the decision that ended it."""
    text = ""
    checked_through = 0
    boundaries = [0]  # All stand outside code blocks, so a check may start at any of them.
    while True:
        piece: str | None = yield PullStep()
        if piece is None:
            break
        text += piece
        boundary = _boundary(text, checked_through)
        if boundary <= checked_through:
            continue
        start = next(b for b in boundaries if b >= checked_through - LOOKBACK)
        decision: Decision = yield CheckStep(conversation.then(Role.ASSISTANT, text[start:boundary]))
        if not decision.action.releases:
            return text, checked_through > 0, decision
        yield ReleaseStep(text[checked_through:boundary])
        checked_through = boundary
        boundaries = [b for b in boundaries if b >= start] + [boundary]
    decision = yield CheckStep(conversation.then(Role.ASSISTANT, text))
    if decision.action.releases and checked_through < len(text):
        yield ReleaseStep(text[checked_through:])
    return text, checked_through > 0, decision


def _boundary(text: str, checked_through: int) -> int:
    """Returns how far the text can be checked now: the end of its last complete sentence outside an open code block."""
    limit = len(text)
    blocks = extract_code_blocks(text[checked_through:])
    if blocks and not text[checked_through + blocks[-1].span.end :].strip():
        # The block may go on: hold from the line before it, which is the fence where there is one.
        block_start = checked_through + blocks[-1].span.start
        limit = text.rfind("\n", checked_through, max(block_start - 1, checked_through)) + 1
    if limit - checked_through < _LEAST_PIECE:
        return checked_through
    ends = [match.end() for match in _SENTENCE_END.finditer(text, checked_through, limit)]
    if ends:
        boundary = ends[-1]
    elif limit - checked_through >= _LONGEST_PIECE:
        boundary = max(text.rfind(" ", checked_through, limit) + 1, checked_through)
    else:
        return checked_through
    # White space alone cannot be judged: it waits for the words after it.
    return boundary if text[checked_through:boundary].strip() else checked_through


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
                result = guard.check(step.conversation, deadline_s=deadline.remaining_s)
            elif isinstance(step, BeginStep):
                _close(pieces)
                pieces = iter(begin(step.attempt, step.feedback))
            elif isinstance(step, PullStep):
                result = _piece(next(pieces, _END))
                deadline.require()
            else:
                yield step.text
    except StopIteration as done:
        _raise_if_blocked(done.value)
    finally:
        _close(pieces)


async def astream(guard: Guard, conversation: Conversation, begin: AsyncBegin) -> AsyncIterator[str]:
    """Yields the checked text of an answer that arrives in pieces; :func:`stream` for event loops.

    Args:
        guard: Judges the pieces.
        conversation: Ends with the user's message.
        begin: Starts an attempt.

    Raises:
        Blocked: If the prompt or the answer is blocked; what was yielded before was checked.
        DeadlineExceeded: If the time runs out.
        GenerationError: If a piece is not text.
    """
    deadline = Deadline(guard.policy.deadline_s)
    steps = guarded_stream(conversation, guard.policy)
    pieces: AsyncIterator[str] | None = None
    result: Any = None
    try:
        while True:
            try:
                step = steps.send(result)
            except StopIteration as done:
                _raise_if_blocked(done.value)
                return
            result = None
            if isinstance(step, CheckStep):
                result = await guard.acheck(step.conversation, deadline_s=deadline.remaining_s)
            elif isinstance(step, BeginStep):
                await _aclose(pieces)
                pieces = begin(step.attempt, step.feedback)
            elif isinstance(step, PullStep):
                assert pieces is not None
                result = _piece(await deadline.bound(_next(pieces)))
            else:
                yield step.text
    finally:
        await _aclose(pieces)


_END = object()


async def _next(pieces: AsyncIterator[str]) -> object:
    # StopAsyncIteration cannot leave a task, so the end is a value.
    try:
        return await pieces.__anext__()
    except StopAsyncIteration:
        return _END


def _piece(value: object) -> str | None:
    return None if value is _END else require_text(value)


def _raise_if_blocked(exchange: Exchange) -> None:
    if exchange.is_blocked:
        raise Blocked(exchange.decision)


def _close(pieces: Iterator[str]) -> None:
    close = getattr(pieces, "close", None)
    if close is not None:
        close()


async def _aclose(pieces: AsyncIterator[str] | None) -> None:
    close = getattr(pieces, "aclose", None)
    if close is not None:
        # A generator that ignored its cancellation is still running and cannot be closed.
        with contextlib.suppress(RuntimeError):
            await close()
