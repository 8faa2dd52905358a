"""``@guarded`` on the four kinds of functions."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from guardrail.decorator import guarded
from guardrail.errors import Blocked, ConfigurationError, InvalidInput, PolicyError
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.taxonomy import HazardCategory
from guardrail.testing import KeywordClassifier
from guardrail.verdict import Conversation, Message, Role

GUARD = Guard(KeywordClassifier({"grumble": HazardCategory.HATE}), policy=load_policy("default"))
MESSAGE = GUARD.policy.block_message

Call = Callable[[str], Any]


def make(kind: str, answer: str, **options: Any) -> Callable[[str], Any]:
    """Makes a guarded function of one kind that gives one answer, as a function that collects it in an await."""
    if kind == "function":

        @guarded(guard=GUARD, **options)
        def function(prompt: str) -> str:
            return answer

        async def call(prompt: str) -> str:
            return function(prompt)

    elif kind == "coroutine":

        @guarded(guard=GUARD, **options)
        async def coroutine(prompt: str) -> str:
            return answer

        call = coroutine

    elif kind == "generator":

        @guarded(guard=GUARD, **options)
        def generator(prompt: str) -> Iterator[str]:
            yield from (answer[:3], answer[3:])

        async def call(prompt: str) -> str:
            return "".join(generator(prompt))

    else:

        @guarded(guard=GUARD, **options)
        async def async_generator(prompt: str) -> AsyncIterator[str]:
            yield answer[:3]
            yield answer[3:]

        async def call(prompt: str) -> str:
            return "".join([piece async for piece in async_generator(prompt)])

    return call


@pytest.mark.parametrize("kind", ["function", "coroutine", "generator", "async generator"])
class TestEveryKind:
    async def test_a_safe_exchange_passes_unchanged(self, kind: str) -> None:
        """The caller gets the function's own answer."""
        assert await make(kind, "A fine answer.")("hello") == "A fine answer."

    async def test_a_blocked_prompt_raises(self, kind: str) -> None:
        """By default nobody can take the block message for an answer."""
        with pytest.raises(Blocked) as caught:
            await make(kind, "fine")("I grumble")
        assert caught.value.decision.categories == (HazardCategory.HATE,)

    async def test_a_blocked_answer_raises(self, kind: str) -> None:
        """Unsafe text does not leave the function."""
        with pytest.raises(Blocked):
            await make(kind, "I grumble.")("hello")

    async def test_a_block_can_be_a_message(self, kind: str) -> None:
        """``on_block="message"`` shows the policy's words, and nothing of the answer."""
        assert await make(kind, "I grumble.", on_block="message")("hello") == MESSAGE

    async def test_a_call_without_a_prompt_is_the_callers_error(self, kind: str) -> None:
        """A wrong type is told, not guessed at."""
        with pytest.raises(InvalidInput):
            await make(kind, "fine")(7)  # type: ignore[arg-type]


class TestRetry:
    def test_feedback_goes_to_the_parameter_that_asks_for_it(self) -> None:
        """The prompt stays as it was."""
        seen: list[tuple[str, str | None]] = []

        @guarded(guard=GUARD)
        def chat(prompt: str, feedback: str | None = None) -> str:
            seen.append((prompt, feedback))
            return "fine" if feedback else "I grumble"

        assert chat("hello") == "fine"
        assert [prompt for prompt, _ in seen] == ["hello", "hello"]
        assert "Hate" in (seen[1][1] or "")

    @pytest.mark.parametrize(
        "prompt",
        [
            "hello",
            [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}],
            [Message(Role.USER, "hello")],
            Conversation.of("hello"),
        ],
    )
    def test_feedback_is_added_to_the_users_message_otherwise(self, prompt: Any) -> None:
        """Any kind of prompt carries it, and the caller's own list is left alone."""
        seen: list[Any] = []

        @guarded(guard=GUARD)
        def chat(prompt: Any) -> str:
            seen.append(prompt)
            return "fine" if len(seen) > 1 else "I grumble"

        before = repr(prompt)
        assert chat(prompt) == "fine"
        assert "Answer again" in str(seen[1])
        assert repr(prompt) == before
        assert type(seen[1]) is type(seen[0])

    def test_max_attempts_bounds_the_generations(self) -> None:
        """``max_attempts=1`` never generates twice."""
        calls: list[str] = []

        @guarded(guard=GUARD, max_attempts=1, on_block="message")
        def chat(prompt: str) -> str:
            calls.append(prompt)
            return "I grumble"

        assert chat("hello") == MESSAGE
        assert len(calls) == 1


class TestShape:
    def test_the_function_keeps_its_face(self) -> None:
        """Name, docstring and signature are the function's own."""

        @guarded(guard=GUARD)
        def chat(prompt: str, *, temperature: float = 0.5) -> str:
            """Answers."""
            return f"{temperature}"

        assert (chat.__name__, chat.__doc__) == ("chat", "Answers.")
        assert list(inspect.signature(chat).parameters) == ["prompt", "temperature"]
        assert chat("hello", temperature=1.0) == "1.0"
        assert chat(prompt="hello") == "0.5"

    def test_methods_work(self) -> None:
        """The prompt is the first argument after ``self``."""

        class Bot:
            name = "bot"

            @guarded(guard=GUARD)
            def chat(self, prompt: str) -> str:
                return self.name

        assert Bot().chat("hello") == "bot"

    def test_a_policy_by_name_replaces_the_guards_own(self) -> None:
        """``monitor`` flags and lets pass."""

        @guarded(guard=GUARD, policy="monitor")
        def chat(prompt: str) -> str:
            return "I grumble"

        assert chat("hello") == "I grumble"

    def test_mistakes_are_told_when_decorating(self) -> None:
        """Not at the first call, in front of a user."""
        with pytest.raises(PolicyError):
            guarded(policy="no-such-policy")
        with pytest.raises(ConfigurationError):
            guarded(on_block="ignore")  # type: ignore[call-overload]
        with pytest.raises(ConfigurationError):
            guarded(max_attempts=0)
        with pytest.raises(ConfigurationError):

            @guarded(guard=GUARD)
            def chat() -> str:
                return ""

    def test_the_last_message_must_be_the_users(self) -> None:
        """There is nothing to answer otherwise."""

        @guarded(guard=GUARD)
        def chat(messages: list[dict[str, str]]) -> str:
            return "fine"

        with pytest.raises(InvalidInput, match="user's"):
            chat([{"role": "assistant", "content": "hello"}])
        with pytest.raises(InvalidInput, match="role of"):
            chat([{"role": "owner", "content": "hello"}])
