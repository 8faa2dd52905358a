"""The guarded exchange for an answer that arrives in pieces: prompt, attempts, and the checked text of one. Sans-IO.

An answer is generated again only while nothing of it was released. With ``PromptCheck.PARALLEL`` the prompt's check
runs beside the first generation; its decision comes from the driver as soon as it is there, and is awaited before
anything is released, rejected or given as feedback.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

from guardrail.pipeline import CheckStep, feedback_for
from guardrail.policy import Policy
from guardrail.progress import PromptCheck
from guardrail.streaming.answer import Answer, AnswerStep, PullStep, ReportStep, checked_answer
from guardrail.verdict import Action, Attempt, Conversation, Decision, Exchange

__all__ = ["AwaitPromptStep", "BeginStep", "PromptStep", "StreamStep", "guarded_stream"]


@dataclass(frozen=True, slots=True)
class BeginStep:
    """Asks the driver to start generating; it sends back nothing."""

    conversation: Conversation
    attempt: int
    feedback: str | None


@dataclass(frozen=True, slots=True)
class PromptStep:
    """Asks the driver to start the check of the prompt; it sends back nothing.

    From then on the driver answers a ``PullStep`` with the prompt's ``Decision``, once, where that comes first.
    """

    conversation: Conversation


@dataclass(frozen=True, slots=True)
class AwaitPromptStep:
    """Asks the driver for the decision on the prompt, which it has not sent yet."""


StreamStep = AnswerStep | BeginStep | PromptStep | AwaitPromptStep


def guarded_stream(
    conversation: Conversation, policy: Policy, *, prompt_check: PromptCheck = PromptCheck.FIRST
) -> Generator[StreamStep, Any, Exchange]:
    """Checks the prompt, then each piece of the answer before it is released, then the whole answer.

    An answer is generated again only while nothing of it was released; after that, unsafe text ends the stream.

    Args:
        conversation: Ends with the user's message.
        policy: Gives the number of attempts and the block message.
        prompt_check: Whether the prompt is checked before the first generation, or beside it.

    Yields:
        What the driver must do next.

    Returns:
        The exchange. Where it is blocked, its text is the block message, whatever was released before.
    """
    prompt_decision: Decision | None = None
    if prompt_check is PromptCheck.FIRST:
        prompt_decision = yield CheckStep(conversation)
        if not prompt_decision.action.releases:
            return Exchange(policy.block_message, prompt_decision, prompt_decision, ())
    else:
        yield PromptStep(conversation)
    attempts: list[Attempt] = []
    feedback: str | None = None
    for number in range(1, policy.max_attempts + 1):
        yield BeginStep(conversation, number, feedback)
        steps = checked_answer(conversation.messages, path=conversation.path, stop_early=True)
        answer: Answer | None
        if prompt_decision is None:
            prompt_decision, answer = yield from _beside_prompt(steps)
            if answer is None:
                return Exchange(policy.block_message, prompt_decision, prompt_decision, ())
        else:
            answer = yield from steps
        attempts.append(Attempt(number, answer.text, answer.decision, feedback))
        if answer.decision.action.releases:
            return Exchange(answer.text, answer.decision, prompt_decision, tuple(attempts))
        if answer.decision.action is Action.BLOCK or answer.is_released:
            break
        feedback = feedback_for(answer.decision)
    assert prompt_decision is not None  # there is at least one attempt
    final = replace(attempts[-1].decision, action=Action.BLOCK)
    return Exchange(policy.block_message, final, prompt_decision, tuple(attempts))


def _beside_prompt(
    steps: Generator[AnswerStep, Any, Answer],
) -> Generator[StreamStep, Any, tuple[Decision, Answer | None]]:
    """Runs an answer while the prompt is checked; returns the prompt's decision, and no answer where it is blocked."""
    prompt_decision: Decision | None = None
    result: Any = None
    while True:
        try:
            step = steps.send(result)
        except StopIteration as done:
            # An answer that is over has reported its end, and before a report the prompt is awaited.
            assert prompt_decision is not None
            return prompt_decision, done.value
        if isinstance(step, ReportStep) and prompt_decision is None:
            prompt_decision = yield AwaitPromptStep()
            if not prompt_decision.action.releases:
                return prompt_decision, None
        result = yield step
        while isinstance(step, PullStep) and isinstance(result, Decision):
            prompt_decision = result
            if not prompt_decision.action.releases:
                return prompt_decision, None
            result = yield step
