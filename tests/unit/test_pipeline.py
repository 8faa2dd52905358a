"""The engine: could-not-check is never safe; retry, feedback and blocking; sync and async give the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.deadline import Deadline
from guardrail.errors import ClassificationError, DeadlineExceeded, GenerationError
from guardrail.pipeline import CheckStep, GenerateStep, Guard, feedback_for, guarded_exchange
from guardrail.policy import Policy, load_policy, parse_policy
from guardrail.taxonomy import HazardCategory
from guardrail.testing import (
    FailingClassifier,
    HangingClassifier,
    KeywordClassifier,
    RecordingObserver,
    ScriptedGenerator,
)
from guardrail.verdict import (
    Action,
    Conversation,
    Decision,
    Finding,
    Outcome,
    Rail,
    Role,
    Severity,
    Source,
    Span,
    Verdict,
)

DEFAULT = load_policy("default")
WORDS = {"grumble": HazardCategory.HATE, "gossip": HazardCategory.PRIVACY}
SOURCE = Source("model", "1")


def guard(policy: Policy = DEFAULT, **options: Any) -> Guard:
    return Guard(KeywordClassifier(WORDS), policy=policy, **options)


class Scripted:
    """A classifier that answers with whatever it was given."""

    source = SOURCE

    def __init__(self, answer: Callable[[Sequence[Conversation]], Any]) -> None:
        self._answer = answer
        self.seen: list[list[str]] = []

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        self.seen.append([c.last.content for c in conversations])
        return self._answer(conversations)


def safe(probability: Any = 0.1, **scores: float) -> Verdict:
    return Verdict(
        Outcome.SAFE, SOURCE, {HazardCategory(k): v for k, v in scores.items()}, unsafe_probability=probability
    )


NONSENSE: dict[str, Callable[[Sequence[Conversation]], Any]] = {
    "nothing": lambda conversations: [],
    "too many": lambda conversations: [safe()] * (len(conversations) + 1),
    "None": lambda conversations: None,
    "no verdicts": lambda conversations: ["safe"] * len(conversations),
    "not a number": lambda conversations: [safe(float("nan"))] * len(conversations),
    "not a number among others": lambda conversations: [safe(0.1, hate=float("nan"), privacy=0.2)] * len(conversations),
    "not a number, and another": lambda conversations: [safe(0.1, hate=float("nan"), privacy=2.0)] * len(conversations),
    "a probability of 2": lambda conversations: [safe(2.0)] * len(conversations),
    "a negative score": lambda conversations: [safe(0.1, hate=-1.0)] * len(conversations),
    "an infinite score": lambda conversations: [safe(0.1, hate=float("inf"))] * len(conversations),
    "a number as text": lambda conversations: [safe("0.1")] * len(conversations),
}


class TestCouldNotCheckIsNeverSafe:
    @pytest.mark.parametrize("answer", NONSENSE.values(), ids=list(NONSENSE))
    def test_nonsense_is_unverified_and_blocked(self, answer: Callable[[Sequence[Conversation]], Any]) -> None:
        """A result that means nothing is no result."""
        decision = Guard(Scripted(answer), policy=DEFAULT).check(Conversation.of("hello"))
        assert (decision.outcome, decision.action) == (Outcome.UNVERIFIED, Action.BLOCK)

    @pytest.mark.parametrize("error", [ClassificationError("no answer"), RuntimeError("secret words"), KeyError("x")])
    def test_an_exception_is_unverified_and_blocked(self, error: Exception) -> None:
        """Whatever a classifier raises, the caller gets a decision."""
        decision = Guard(FailingClassifier(error), policy=DEFAULT).check(Conversation.of("hello"))
        assert (decision.outcome, decision.action) == (Outcome.UNVERIFIED, Action.BLOCK)

    def test_a_third_partys_message_goes_nowhere(self, caplog: pytest.LogCaptureFixture) -> None:
        """Others put a user's text into their messages; neither the decision nor the log repeats it."""
        decision = Guard(FailingClassifier(RuntimeError("secret words")), policy=DEFAULT).check(Conversation.of("x"))
        assert "RuntimeError" in decision.verdicts[0].detail
        assert "secret" not in str(decision.to_dict()) + caplog.text

    def test_a_classifier_that_hangs_is_unverified(self) -> None:
        """The deadline answers for it, and the guard goes on."""
        hanging = Guard(HangingClassifier(), policy=DEFAULT)
        decision = hanging.check(Conversation.of("hello"), deadline_s=0.05)
        assert (decision.outcome, decision.action) == (Outcome.UNVERIFIED, Action.BLOCK)
        assert "0.05 s" in decision.verdicts[0].detail
        assert guard().check(Conversation.of("hello")).action is Action.ALLOW

    def test_a_classifier_that_blocks_the_event_loop_is_unverified(self) -> None:
        """A synchronous caller gets its decision even when the engine's own loop is stuck."""

        def block(conversations: Sequence[Conversation]) -> list[Verdict]:
            time.sleep(1.2)
            return [safe() for _ in conversations]

        decision = Guard(Scripted(block), policy=DEFAULT).check(Conversation.of("hello"), deadline_s=0.05)
        assert (decision.outcome, decision.action) == (Outcome.UNVERIFIED, Action.BLOCK)

    async def test_work_that_ignores_its_cancellation_is_left_behind(self) -> None:
        """Nobody waits for ever, not even for code that swallows the cancel."""

        async def stubborn() -> None:
            while True:
                try:
                    await asyncio.sleep(0.2)
                    return
                except asyncio.CancelledError:
                    continue

        with pytest.raises(DeadlineExceeded):
            await Deadline(0.01).bound(stubborn())

    @pytest.mark.parametrize("text", ["", "  \n\t", "a\ud800b"])
    def test_text_that_cannot_be_judged_is_unverified(self, text: str) -> None:
        """An empty message and one that is not Unicode give a classifier nothing to read."""
        decision = guard().check(Conversation.of(text))
        assert (decision.outcome, decision.action) == (Outcome.UNVERIFIED, Action.BLOCK)

    def test_a_failing_message_costs_its_neighbours_nothing(self) -> None:
        """A batch that fails is judged in halves: one is unverified, the others have their answer, in order."""
        failing = Guard(FailingClassifier(RuntimeError(), on="bad"), policy=DEFAULT)
        texts = ["a", "b", "bad", "c", "d"]
        decisions = failing.check_many([Conversation.of(text) for text in texts])
        assert [d.action for d in decisions] == [Action.BLOCK if text == "bad" else Action.ALLOW for text in texts]

    def test_the_policy_alone_may_allow_what_is_unverified(self) -> None:
        """Fail-open exists, in words, and the outcome still says unverified."""
        monitor = Guard(FailingClassifier(RuntimeError()), policy=load_policy("monitor"))
        decision = monitor.check(Conversation.of("hello"))
        assert (decision.outcome, decision.action) == (Outcome.UNVERIFIED, Action.FLAG)

    def test_code_that_could_not_be_scanned_is_unverified(self) -> None:
        """The code classifier's failure counts like any other."""
        shielded = guard(code_shield=FailingClassifier(RuntimeError()))
        decision = shielded.check(Conversation.of("hello", role=Role.ASSISTANT))
        assert (decision.outcome, decision.action) == (Outcome.UNVERIFIED, Action.BLOCK)


class TestCheckMany:
    @given(st.lists(st.sampled_from(["hello", "grumble", "", "gossip"]), max_size=12))
    def test_decision_i_belongs_to_conversation_i(self, texts: list[str]) -> None:
        """Judged together or apart, a message gets the same decision."""
        engine = guard()
        together = engine.check_many([Conversation.of(text) for text in texts])
        assert together == [engine.check(Conversation.of(text)) for text in texts]

    def test_code_is_examined_only_where_the_policy_asks(self) -> None:
        """The default policy has no use for code findings on prompts, so nothing is scanned there."""
        shield = Scripted(lambda conversations: [safe() for _ in conversations])
        engine = guard(code_shield=shield)
        engine.check_many([Conversation.of("ask"), Conversation.of("answer", role=Role.ASSISTANT)])
        assert shield.seen == [["answer"]]

    async def test_sync_and_async_decide_alike(self) -> None:
        """One engine, two drivers."""
        engine = guard()
        for text in ("hello", "grumble", ""):
            conversation = Conversation.of(text)
            assert await engine.acheck(conversation) == await asyncio.to_thread(engine.check, conversation)

    def test_observers_see_every_decision_and_cannot_stop_it(self) -> None:
        """Telemetry that raises is telemetry that failed, not a check that failed."""

        class Broken:
            def decided(self, decision: Decision) -> None:
                raise RuntimeError

        seen = RecordingObserver()
        engine = guard(observers=[Broken(), seen])
        assert seen.decisions == []
        assert engine.check(Conversation.of("hello")).action is Action.ALLOW
        assert len(seen.decisions) == 1


def run_both(engine: Guard, answers: Sequence[Any]) -> tuple[Any, ScriptedGenerator]:
    """Runs the exchange through both drivers, checks that they agree, and returns the outcome."""
    conversation = Conversation.of("hello")
    script = ScriptedGenerator(answers)

    def generate(conversation: Conversation, *, attempt: int, feedback: str | None) -> str:
        return asyncio.run(again.generate(conversation, attempt=attempt, feedback=feedback))

    again = ScriptedGenerator(answers)
    from_async = asyncio.run(engine.arun(conversation, script))
    assert from_async == engine.run(conversation, generate)
    assert script.calls == again.calls
    return from_async, script


class TestExchange:
    def test_a_safe_answer_passes(self) -> None:
        """One attempt, its text, its decision."""
        exchange, script = run_both(guard(), ["fine"])
        assert (exchange.text, exchange.is_blocked, len(exchange.attempts)) == ("fine", False, 1)
        assert len(script.calls) == 1

    def test_an_unsafe_answer_is_generated_again_with_feedback(self) -> None:
        """The second attempt is told the category, and never the text."""
        exchange, script = run_both(guard(), ["I grumble", "fine"])
        assert exchange.text == "fine"
        assert [a.decision.action for a in exchange.attempts] == [Action.RETRY, Action.ALLOW]
        feedback = script.calls[1][2]
        assert feedback is not None
        assert "Hate" in feedback
        assert "grumble" not in feedback

    def test_attempts_are_bounded(self) -> None:
        """After the last attempt the answer is the block message, and every attempt is kept."""
        exchange, _ = run_both(guard(), ["grumble"] * 9)
        assert exchange.is_blocked
        assert exchange.decision.action is Action.BLOCK
        assert exchange.text == DEFAULT.block_message
        assert [a.number for a in exchange.attempts] == [1, 2, 3]

    def test_a_block_is_not_generated_again(self) -> None:
        """``block`` means now."""
        policy = parse_policy("version: 1\nrails: {response: {unsafe: {action: block}}}")
        exchange, script = run_both(guard(policy), ["grumble", "fine"])
        assert exchange.is_blocked
        assert len(script.calls) == 1

    def test_a_blocked_prompt_never_reaches_the_generator(self) -> None:
        """Nothing is generated for it."""
        script = ScriptedGenerator([])
        exchange = asyncio.run(guard().arun(Conversation.of("grumble"), script))
        assert exchange.is_blocked
        assert (script.calls, exchange.attempts) == ([], ())

    async def test_a_generator_that_hangs_ends_at_the_deadline(self) -> None:
        """The total deadline holds for the generator too."""

        class Hanging:
            async def generate(self, conversation: Conversation, *, attempt: int, feedback: str | None) -> str:
                await asyncio.Event().wait()
                return ""

        with pytest.raises(DeadlineExceeded):
            await guard().arun(Conversation.of("hello"), Hanging(), deadline_s=0.05)

    async def test_a_deadline_after_a_rejected_attempt_blocks(self) -> None:
        """What was rejected stays rejected, and its attempt is kept."""

        class Slow:
            async def generate(self, conversation: Conversation, *, attempt: int, feedback: str | None) -> str:
                if attempt > 1:
                    await asyncio.Event().wait()
                return "grumble"

        exchange = await guard().arun(Conversation.of("hello"), Slow(), deadline_s=0.2)
        assert exchange.is_blocked
        assert len(exchange.attempts) == 1

    def test_a_late_answer_is_not_released(self) -> None:
        """A synchronous function cannot be stopped, but what it says too late is not shown."""

        def slow(conversation: Conversation, *, attempt: int, feedback: str | None) -> str:
            time.sleep(0.1)
            return "fine"

        with pytest.raises(DeadlineExceeded):
            guard().run(Conversation.of("hello"), slow, deadline_s=0.05)

    async def test_an_answer_that_is_not_text_is_an_error(self) -> None:
        """Nothing but text can be checked."""
        with pytest.raises(GenerationError, match="int"):
            await guard().arun(Conversation.of("hello"), ScriptedGenerator([lambda: 3]))  # type: ignore[list-item,return-value]

    async def test_the_generators_own_exception_reaches_the_caller(self) -> None:
        """The caller's errors stay the caller's."""

        def broken() -> str:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await guard().arun(Conversation.of("hello"), ScriptedGenerator([broken]))

    def test_an_empty_answer_is_not_released(self) -> None:
        """There was nothing to judge, so nothing was judged."""
        exchange, _ = run_both(guard(), [""])
        assert exchange.is_blocked

    @given(st.lists(st.sampled_from(["fine", "grumble"]), min_size=3, max_size=3))
    def test_released_text_was_allowed(self, answers: list[str]) -> None:
        """Sans-IO: whatever comes, the text that comes out is an attempt whose decision releases it, or the message."""
        steps = guarded_exchange(Conversation.of("hello"), DEFAULT)
        engine, script = guard(), iter(answers)
        step = next(steps)
        try:
            while True:
                if isinstance(step, CheckStep):
                    step = steps.send(engine.check(step.conversation))
                else:
                    assert isinstance(step, GenerateStep)
                    step = steps.send(next(script))
        except StopIteration as done:
            exchange = done.value
        released = [a.text for a in exchange.attempts if a.decision.action.releases]
        assert exchange.text in released or exchange.is_blocked
        assert "grumble" not in exchange.text


def test_feedback_names_weaknesses_by_cwe_alone() -> None:
    """A finding's message may quote code; feedback does not."""
    finding = Finding("python.x", "CWE-78", Severity.ERROR, Span(0, 1), 1, 1, "python", "quotes the code")
    verdict = Verdict(Outcome.UNSAFE, SOURCE, findings=(finding,))
    decision = DEFAULT.decide(Conversation.of("x", role=Role.ASSISTANT).rail, [verdict])
    assert "CWE-78" in feedback_for(decision)
    assert "quotes" not in feedback_for(decision)
    mended = replace(verdict, findings=(replace(finding, fix="Pass a list of arguments."),))
    assert feedback_for(DEFAULT.decide(Rail.RESPONSE, [mended])).splitlines()[1:] == [
        "- CWE-78: Pass a list of arguments."
    ]
