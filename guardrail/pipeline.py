"""The engine: every door asks it, so every door gets the same decision.

::

    guarded_exchange (sans-IO)        Guard (one judge, two drivers)
      CheckStep(conversation)    ──▶  classifiers ─▶ Verdicts ─▶ policy ─▶ Decision
      GenerateStep(conversation) ──▶  the caller's generator
      returns Exchange

``guarded_exchange`` holds the whole logic of check, generate, check, retry or block, and performs no I/O and reads no
clock: it yields steps and is sent their results. :meth:`Guard.run` and :meth:`Guard.arun` drive it.

This is the one place where a failure to judge becomes a verdict: an exception, a deadline, a missing or meaningless
result is ``UNVERIFIED``, and the policy alone says what that means.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import threading
import time
from collections.abc import Coroutine, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from guardrail import protocols
from guardrail.deadline import Deadline
from guardrail.errors import ClassificationError, DeadlineExceeded, GenerationError, GuardrailError
from guardrail.policy import Policy
from guardrail.stages import check_stage, surrounded
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import (
    Action,
    Attempt,
    Conversation,
    Decision,
    Exchange,
    Message,
    ReasonKind,
    Role,
    Source,
    Span,
    Timing,
    Verdict,
    unverified,
)

__all__ = ["CheckStep", "GenerateStep", "Guard", "Step", "feedback_for", "guarded_exchange", "require_text"]

logger = logging.getLogger("guardrail")

T = TypeVar("T")

# What a synchronous caller waits beyond the deadline for the engine's own answer, which says more than "no answer".
_SYNC_GRACE_S = 0.5
# A signal that comes just before Python's wait for a lock begins does not end that wait: Ctrl-C is noticed after this.
_NOTICE_S = 0.2
_MAX_FIXES = 8  # in what a generator is told


@dataclass(frozen=True, slots=True)
class CheckStep:
    """Asks the driver to judge a conversation's last message; the driver sends back its ``Decision``.

    Attributes:
        conversation: The message, and what was said before it.
        code_from: Code before this offset of the message has been scanned.
    """

    conversation: Conversation
    code_from: int = 0


@dataclass(frozen=True, slots=True)
class GenerateStep:
    """Asks the driver for an answer; the driver sends back its text, or throws ``DeadlineExceeded``.

    Attributes:
        conversation: Ends with the user's message.
        attempt: From 1.
        feedback: What was wrong before, by categories and CWEs; None at the first attempt.
    """

    conversation: Conversation
    attempt: int
    feedback: str | None


Step = CheckStep | GenerateStep


def guarded_exchange(conversation: Conversation, policy: Policy) -> Generator[Step, Any, Exchange]:
    """Checks the prompt, generates, checks the answer, and generates again or blocks as the policy says.

    Args:
        conversation: Ends with the user's message.
        policy: Gives the number of attempts and the block message.

    Yields:
        What the driver must do next.

    Returns:
        The exchange; its text may be shown.

    Raises:
        DeadlineExceeded: If the driver throws it before there was any attempt.
    """
    prompt_decision: Decision = yield CheckStep(conversation)
    if not prompt_decision.action.releases:
        return Exchange(policy.block_message, prompt_decision, prompt_decision, ())
    attempts: list[Attempt] = []
    feedback: str | None = None
    for number in range(1, policy.max_attempts + 1):
        try:
            text: str = yield GenerateStep(conversation, number, feedback)
        except DeadlineExceeded:
            if not attempts:
                raise
            break
        decision: Decision = yield CheckStep(conversation.then(Role.ASSISTANT, text))
        attempts.append(Attempt(number, text, decision, feedback))
        if decision.action.releases:
            return Exchange(text, decision, prompt_decision, tuple(attempts))
        if decision.action is Action.BLOCK:
            break
        feedback = feedback_for(decision)
    final = replace(attempts[-1].decision, action=Action.BLOCK)
    return Exchange(policy.block_message, final, prompt_decision, tuple(attempts))


def feedback_for(decision: Decision) -> str:
    """Returns what a generator is told about a rejected answer: categories, CWEs and fixes, never its text."""
    causes = [reason for reason in decision.reasons if reason.action is not Action.ALLOW]
    categories = [HazardCategory(reason.subject).title for reason in causes if reason.kind is ReasonKind.HAZARD]
    subjects = {reason.subject for reason in causes if reason.kind is ReasonKind.FINDING}
    weaknesses = sorted({subject.split()[0] for subject in subjects})
    parts = []
    if categories:
        parts.append(f"unsafe content ({', '.join(categories)})")
    if weaknesses:
        parts.append(f"insecure code ({', '.join(weaknesses)})")
    what = " and ".join(parts) or "content that could not be verified as safe"
    lines = [f"Your previous answer was rejected because it had {what}. Answer again without it."]
    fixes = {f.fix: f.cwe for f in decision.findings if f.fix and f"{f.cwe} {f.rule_id}" in subjects}
    lines += [f"- {cwe}: {fix}" for fix, cwe in list(fixes.items())[:_MAX_FIXES]]
    return "\n".join(lines)


class SyncGenerate(Protocol):
    """A synchronous generator function, as :meth:`Guard.run` calls it."""

    def __call__(self, conversation: Conversation, *, attempt: int, feedback: str | None) -> str:
        """Answers the conversation's last message."""
        ...


class Guard:
    """Judges messages under a policy; safe to use from many threads and event loops at once.

    Args:
        classifier: Judges hazards.
        policy: What verdicts mean.
        code_shield: Judges code blocks; without one, code is not examined.
        observers: Are told of every decision.
    """

    def __init__(
        self,
        classifier: protocols.HazardClassifier,
        *,
        policy: Policy,
        code_shield: protocols.HazardClassifier | None = None,
        observers: Sequence[protocols.Observer] = (),
    ) -> None:
        self.policy = policy
        # Asked for every message; a policy does not change.
        self._rails_with_code = frozenset(rail for rail, rules in policy.rails.items() if rules.scans_code)
        self._classifier = classifier
        self._code_shield = code_shield
        self._observers = tuple(observers)
        self._stage_observers = tuple(o for o in self._observers if isinstance(o, protocols.StageObserver))

    @property
    def source(self) -> Source:
        """The hazard classifier's model, revision and template hash."""
        return self._classifier.source

    @property
    def observers(self) -> tuple[protocols.Observer, ...]:
        """What is told of every decision."""
        return self._observers

    @property
    def scans_code(self) -> bool:
        """Whether code blocks are examined."""
        return self._code_shield is not None

    def for_code(self) -> Guard | None:
        """Returns a guard whose only judge is the code shield; None where code is not examined."""
        if self._code_shield is None:
            return None
        return Guard(self._code_shield, policy=self.policy, observers=self._observers)

    def with_policy(self, policy: Policy) -> Guard:
        """Returns a guard with the same classifiers under another policy."""
        return Guard(self._classifier, policy=policy, code_shield=self._code_shield, observers=self._observers)

    def with_observers(self, observers: Sequence[protocols.Observer]) -> Guard:
        """Returns a guard with the same classifiers and policy that tells these observers."""
        return Guard(self._classifier, policy=self.policy, code_shield=self._code_shield, observers=observers)

    def stage(self, stage: protocols.Stage, **attributes: int) -> AbstractContextManager[object]:
        """Surrounds a stage for the observers that see stages; for drivers of exchanges.

        Args:
            stage: Which one.
            **attributes: Its numbers; see :class:`~guardrail.protocols.StageObserver`.
        """
        if not self._stage_observers:
            return contextlib.nullcontext()
        return surrounded(self._stage_observers, stage, attributes)

    def start(self) -> None:
        """Starts in the background what makes later answers come sooner; of no use to a program that checks once."""
        for part in (self._classifier, self._code_shield):
            start = getattr(part, "start", None)
            if start is not None:
                start()

    def close(self) -> None:
        """Frees what the classifiers hold: threads, weights."""
        for part in (self._classifier, self._code_shield):
            close = getattr(part, "close", None)
            if close is not None:
                close()

    async def acheck(
        self, conversation: Conversation, *, deadline_s: float | None = None, code_from: int = 0
    ) -> Decision:
        """Judges the last message of a conversation.

        Args:
            conversation: The last message is judged, those before it are context.
            deadline_s: Least of this and the policy's deadline counts, in seconds.
            code_from: Code before this offset of the message is not scanned; hazards are judged all the same.

        Returns:
            The decision. A failure to judge is a decision too, as the policy says; it is never an exception.
        """
        return (await self.acheck_many([conversation], deadline_s=deadline_s, code_from=code_from))[0]

    async def acheck_many(
        self, conversations: Sequence[Conversation], *, deadline_s: float | None = None, code_from: int = 0
    ) -> list[Decision]:
        """Judges the last message of each conversation; decision i belongs to conversation i.

        Args:
            conversations: Each is judged for itself.
            deadline_s: For all of them together; least of this and the policy's deadline, which counts once for each
                message, in seconds.
            code_from: As in :meth:`acheck`, for each of them.
        """
        deadline = self._deadline(deadline_s, checks=len(conversations))
        with self.stage(check_stage(conversations), messages=len(conversations)):
            return await self._decide_many(conversations, deadline, code_from)

    async def _decide_many(
        self, conversations: Sequence[Conversation], deadline: Deadline, code_from: int
    ) -> list[Decision]:
        # Hazards of all messages, and code where the policy asks for it; each verdict knows the message it is about.
        unreadable = {i: detail for i, c in enumerate(conversations) if (detail := _unreadable(c))}
        readable = [i for i in range(len(conversations)) if i not in unreadable]
        rails = [conversation.rail for conversation in conversations]
        jobs = [self._judge(self._classifier, [conversations[i] for i in readable], deadline)]
        with_code = [i for i in readable if rails[i] in self._rails_with_code] if self._code_shield is not None else []
        if self._code_shield is not None and with_code:
            jobs.append(self._judge_code(self._code_shield, [conversations[i] for i in with_code], deadline, code_from))
        verdicts: list[list[Verdict]] = [[] for _ in conversations]
        for i, detail in unreadable.items():
            verdicts[i].append(unverified(self._classifier.source, detail))
        # A task for each is for two judges side by side; most messages have one.
        results = [await jobs[0]] if len(jobs) == 1 else await asyncio.gather(*jobs)
        for indices, judged in zip((readable, with_code), results, strict=False):
            for i, verdict in zip(indices, judged, strict=True):
                verdicts[i].append(verdict)
        decide = self.policy.decide
        decisions = [
            decide(rail, judged, path=conversation.path)
            for conversation, rail, judged in zip(conversations, rails, verdicts, strict=True)
        ]
        if self._observers:
            for decision in decisions:
                self._notify(decision)
        return decisions

    def check(self, conversation: Conversation, *, deadline_s: float | None = None, code_from: int = 0) -> Decision:
        """Judges the last message of a conversation; :meth:`acheck` for callers without an event loop."""
        return self.check_many([conversation], deadline_s=deadline_s, code_from=code_from)[0]

    def check_many(
        self, conversations: Sequence[Conversation], *, deadline_s: float | None = None, code_from: int = 0
    ) -> list[Decision]:
        """Judges the last message of each conversation; :meth:`acheck_many` for callers without an event loop."""
        limit_s = self._limit_s(deadline_s, checks=len(conversations))
        try:
            work = self.acheck_many(conversations, deadline_s=limit_s, code_from=code_from)
            return _portal.call(work, limit_s + _SYNC_GRACE_S)
        except concurrent.futures.TimeoutError:
            # A classifier blocks the engine's event loop; nobody else is left to say so.
            lost = unverified(self._classifier.source, f"no answer within {limit_s:g} s")
            decisions = [self.policy.decide(c.rail, [lost], path=c.path) for c in conversations]
            for decision in decisions:
                self._notify(decision)
            return decisions

    async def arun(
        self, conversation: Conversation, generator: protocols.Generator, *, deadline_s: float | None = None
    ) -> Exchange:
        """Runs a guarded exchange.

        Args:
            conversation: Ends with the user's message.
            generator: Answers it.
            deadline_s: For the whole exchange; least of this and the policy's deadline counts, in seconds.

        Raises:
            GenerationError: If the generator does not return text.
            DeadlineExceeded: If the time runs out before the first answer.
            Exception: Whatever the generator itself raises.
        """
        deadline = self._deadline(deadline_s)
        exchange = guarded_exchange(conversation, self.policy)
        try:
            step = next(exchange)
            while True:
                result: Decision | str
                if isinstance(step, CheckStep):
                    result = await self.acheck(step.conversation, deadline_s=deadline.remaining_s)
                else:
                    try:
                        with self.stage(protocols.Stage.GENERATION, attempt=step.attempt):
                            generating = generator.generate(
                                step.conversation, attempt=step.attempt, feedback=step.feedback
                            )
                            result = require_text(await deadline.bound(generating))
                    except DeadlineExceeded as exc:
                        step = exchange.throw(exc)
                        continue
                step = exchange.send(result)
        except StopIteration as done:
            return _exchange(done)

    def run(self, conversation: Conversation, generate: SyncGenerate, *, deadline_s: float | None = None) -> Exchange:
        """Runs a guarded exchange around a synchronous function, called in this thread.

        A synchronous function cannot be interrupted: an answer that comes after the deadline is not released.

        Args:
            conversation: Ends with the user's message.
            generate: Answers it.
            deadline_s: For the whole exchange; least of this and the policy's deadline counts, in seconds.

        Raises:
            GenerationError: If the function does not return text.
            DeadlineExceeded: If the time runs out before the first answer.
            Exception: Whatever the function itself raises.
        """
        deadline = self._deadline(deadline_s)
        exchange = guarded_exchange(conversation, self.policy)
        try:
            step = next(exchange)
            while True:
                result: Decision | str
                if isinstance(step, CheckStep):
                    result = self.check(step.conversation, deadline_s=deadline.remaining_s)
                else:
                    with self.stage(protocols.Stage.GENERATION, attempt=step.attempt):
                        result = require_text(generate(step.conversation, attempt=step.attempt, feedback=step.feedback))
                    try:
                        deadline.require()
                    except DeadlineExceeded as exc:
                        step = exchange.throw(exc)
                        continue
                step = exchange.send(result)
        except StopIteration as done:
            return _exchange(done)

    async def _judge_code(
        self,
        code_shield: protocols.HazardClassifier,
        conversations: Sequence[Conversation],
        deadline: Deadline,
        code_from: int,
    ) -> list[Verdict]:
        """Asks the code shield about what stands behind an offset; spans count from the start of the message."""
        if not conversations:
            return []
        if code_from == 0:
            with self.stage(protocols.Stage.CODE_SCAN, messages=len(conversations)):
                return await self._judge(code_shield, conversations, deadline)
        rests = [
            Conversation((*c.messages[:-1], Message(c.last.role, c.last.content[code_from:])), c.path)
            for c in conversations
        ]
        with self.stage(protocols.Stage.CODE_SCAN, messages=len(rests)):
            return [_moved(verdict, code_from) for verdict in await self._judge(code_shield, rests, deadline)]

    async def _judge(
        self, classifier: protocols.HazardClassifier, conversations: Sequence[Conversation], deadline: Deadline
    ) -> list[Verdict]:
        """Asks one classifier; verdict i belongs to conversation i, and what failed is ``UNVERIFIED``."""
        if not conversations:
            return []
        started = time.monotonic()
        try:
            verdicts = await deadline.bound(classifier.classify(conversations))
            if len(verdicts) != len(conversations):
                raise ClassificationError(f"expected {len(conversations)} verdicts, got {len(verdicts)}")
            return [_sound(verdict, classifier.source) for verdict in verdicts]
        except DeadlineExceeded:
            detail = f"no answer within {deadline.limit_s:.3g} s"
        except Exception as exc:
            if len(conversations) > 1:  # One message must not cost its neighbours their answer.
                middle = len(conversations) // 2
                halves = (conversations[:middle], conversations[middle:])
                return [v for half in halves for v in await self._judge(classifier, half, deadline)]
            # A message of our own holds no text; anybody else's may.
            detail = f"{type(exc).__name__}: {exc}" if isinstance(exc, GuardrailError) else type(exc).__name__
            logger.warning("%s gave no answer: %s", classifier.source, detail)
        timing = Timing(compute_ms=(time.monotonic() - started) * 1000)
        return [unverified(classifier.source, detail, timing=timing) for _ in conversations]

    def _deadline(self, deadline_s: float | None, *, checks: int = 1) -> Deadline:
        return Deadline(self._limit_s(deadline_s, checks=checks))

    def _limit_s(self, deadline_s: float | None, *, checks: int) -> float:
        """The policy's deadline is that of one check; a batch of n has the time that n checks in a row would have."""
        limit_s = self.policy.deadline_s * max(checks, 1)
        return limit_s if deadline_s is None else min(deadline_s, limit_s)

    def _notify(self, decision: Decision) -> None:
        for observer in self._observers:
            try:
                observer.decided(decision)
            except Exception as exc:
                logger.warning("observer %s raised %s", type(observer).__name__, type(exc).__name__)


def _exchange(done: StopIteration) -> Exchange:
    assert isinstance(done.value, Exchange)
    return done.value


def require_text(answer: object) -> str:
    """Returns what a generator answered, or raises ``GenerationError`` where it is not text."""
    if not isinstance(answer, str):
        raise GenerationError(f"expected the generator to give str, got {type(answer).__name__}")
    return answer


def _unreadable(conversation: Conversation) -> str | None:
    """Says why there is nothing that a classifier could judge, or None."""
    text = conversation.messages[-1].content
    if not text or text.isspace():
        return "the message is empty: there is nothing to judge"
    for message in conversation.messages:
        if message.content.isascii():  # known without a look at the text
            continue
        try:
            message.content.encode()
        except UnicodeEncodeError as exc:
            return f"the {message.role.value} message is not valid Unicode: lone surrogate at offset {exc.start}"
    return None


def _moved(verdict: Verdict, offset: int) -> Verdict:
    """Returns a verdict whose findings stand so much further in the text."""
    if not verdict.findings:
        return verdict
    spans = [Span(finding.span.start + offset, finding.span.end + offset) for finding in verdict.findings]
    moved = (replace(finding, span=span) for finding, span in zip(verdict.findings, spans, strict=True))
    return replace(verdict, findings=tuple(moved))


def _sound(verdict: Verdict, source: Source) -> Verdict:
    """Returns the verdict, or ``UNVERIFIED`` where its numbers mean nothing."""
    if not isinstance(verdict, Verdict):
        return unverified(source, f"expected a Verdict, got {type(verdict).__name__}")
    numbers = [*verdict.scores.values()]
    if verdict.unsafe_probability is not None:
        numbers.append(verdict.unsafe_probability)
    for number in numbers:
        if not (isinstance(number, (int, float)) and 0.0 <= number <= 1.0):
            return unverified(source, "expected scores in 0..1")
    return verdict


class _Portal:
    """One event loop in a thread of its own, for callers that have none; started by the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        # A forked child has the object and not the thread.
        os.register_at_fork(after_in_child=self._forget)

    def call(self, work: Coroutine[Any, Any, T], limit_s: float) -> T:
        """Runs a coroutine to its end.

        Raises:
            TimeoutError: If it has not ended after ``limit_s`` seconds.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._running_loop())
        until = time.monotonic() + limit_s
        try:
            while True:
                left_s = until - time.monotonic()
                try:
                    return future.result(min(left_s, _NOTICE_S))
                except concurrent.futures.TimeoutError:
                    if future.done():
                        return future.result()
                    if left_s <= _NOTICE_S:
                        raise
        finally:
            future.cancel()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="guardrail-engine", daemon=True).start()
            return self._loop

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._loop = None


_portal = _Portal()
