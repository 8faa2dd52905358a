"""Copies of a guard model share the work, and none of it is lost with one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from guardrail.errors import ClassificationError, ConfigurationError, Unavailable
from guardrail.models.replicas import ReplicatedGuardModel
from guardrail.taxonomy import GuardVersion
from guardrail.verdict import Assessment, GuardPrompt, PromptSegment, Source


class Copy:
    """Answers with its prompt's text as completion; can be lost, held up, or wrong."""

    version = GuardVersion.LLAMA_GUARD_2
    special_tokens: tuple[str, ...] = ()
    max_prompt_tokens = 100

    def __init__(self, model: str = "m") -> None:
        self.source = Source(model, "1")
        self.is_alive = True
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.seen: list[str] = []

    async def assess(self, prompts: Sequence[GuardPrompt]) -> list[Assessment]:
        self.seen += [prompt.segments[0].text for prompt in prompts]
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [Assessment(0.1, {}, prompt.segments[0].text) for prompt in prompts]

    def apply_template(self, messages: list[dict[str, str]]) -> str:
        return str(messages)

    def count_tokens(self, prompt: GuardPrompt) -> int:
        return len(prompt.segments)

    def split(self, text: str, *, max_tokens: int, overlap: int) -> list[str]:
        return [text]

    def close(self) -> None:
        self.is_alive = False


def prompts(*texts: str) -> list[GuardPrompt]:
    return [GuardPrompt((PromptSegment(text, is_data=True),), "") for text in texts]


class TestReplicas:
    async def test_result_i_belongs_to_prompt_i_whoever_gives_it(self) -> None:
        """The copies share one call's prompts by their length, and the order is kept."""
        copies = [Copy(), Copy()]
        texts = ["a" * n for n in (50, 3, 4, 5, 60, 2)]
        results = await ReplicatedGuardModel(copies).assess(prompts(*texts))
        assert [result.completion for result in results] == texts
        assert all(copy.seen for copy in copies)

    async def test_a_busy_copy_is_left_alone(self) -> None:
        """The next prompt goes where the least is waiting."""
        busy, free = Copy(), Copy()
        busy.gate.clear()
        model = ReplicatedGuardModel([busy, free])
        long = asyncio.create_task(model.assess(prompts("x" * 100)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await model.assess(prompts("a"))
        await model.assess(prompts("b"))
        assert free.seen == ["a", "b"]
        busy.gate.set()
        await long

    async def test_what_waited_in_a_lost_copy_is_judged_by_another(self) -> None:
        """A copy that crashes takes no request with it."""
        lost, other = Copy(), Copy()
        lost.error, lost.is_alive = Unavailable("crashed"), True
        model = ReplicatedGuardModel([lost, other])
        lost.gate.clear()
        waiting = asyncio.create_task(model.assess(prompts("a")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        lost.is_alive = False
        lost.gate.set()
        assert [result.completion for result in await waiting] == ["a"]
        assert other.seen == ["a"]

    async def test_without_a_copy_left_there_is_an_error(self) -> None:
        """Nobody waits for a model that is gone."""
        model = ReplicatedGuardModel([Copy(), Copy()])
        model.close()
        with pytest.raises(Unavailable, match="none of 2"):
            await model.assess(prompts("a"))

    async def test_a_prompt_at_fault_is_not_tried_elsewhere(self) -> None:
        """An error of the request is the same on every copy."""
        first, second = Copy(), Copy()
        first.error = second.error = ClassificationError("no")
        with pytest.raises(ClassificationError):
            await ReplicatedGuardModel([first, second]).assess(prompts("a"))
        assert len(first.seen) + len(second.seen) == 1

    def test_copies_must_be_of_one_model(self) -> None:
        """Two models would give two answers to one text."""
        with pytest.raises(ConfigurationError):
            ReplicatedGuardModel([Copy("m"), Copy("n")])
        with pytest.raises(ConfigurationError):
            ReplicatedGuardModel([])
