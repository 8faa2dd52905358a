"""Llama Guard reads its model strictly, and judges every character of a message that is longer than the window."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.errors import ClassificationError, CompletionError
from guardrail.llama_guard import LlamaGuard
from guardrail.taxonomy import GuardVersion, HazardCategory
from guardrail.verdict import Assessment, Conversation, GuardPrompt, Message, Outcome, Role, Source, Timing

SAFE = Assessment(0.01, {}, "safe")


class WordModel:
    """A guard model whose tokens are words, and whose answer is a function of the prompt."""

    source = Source("word-model", "abc123")
    special_tokens = ("<|eot_id|>",)

    def __init__(
        self,
        answer: Callable[[str], Assessment],
        *,
        max_prompt_tokens: int = 10_000,
        version: GuardVersion = GuardVersion.LLAMA_GUARD_2,
    ) -> None:
        self.version = version
        self.max_prompt_tokens = max_prompt_tokens
        self.prompts: list[GuardPrompt] = []
        self.is_closed = False
        self._answer = answer

    def apply_template(self, messages: list[dict[str, str]]) -> str:
        names = {"user": "User", "assistant": "Agent"}
        turns = "".join(f"{names[m['role']]}: {m['content'].strip()}\n\n" for m in messages)
        return f"<BEGIN CONVERSATION>\n\n{turns}<END CONVERSATION>\n\nAssess {names[messages[-1]['role']]}."

    def count_tokens(self, prompt: GuardPrompt) -> int:
        return sum(len(segment.text.split()) for segment in prompt.segments)

    def split(self, text: str, *, max_tokens: int, overlap: int) -> list[str]:
        words = text.split()
        step = max_tokens - overlap
        return [" ".join(words[at : at + max_tokens]) for at in range(0, max(len(words) - overlap, 1), step)]

    async def assess(self, prompts: Sequence[GuardPrompt]) -> list[Assessment]:
        self.prompts += prompts
        return [self._answer("".join(segment.text for segment in prompt.segments)) for prompt in prompts]

    def close(self) -> None:
        self.is_closed = True


def always(*, p: float = 0.01, completion: str = "safe", **scores: float) -> Callable[[str], Assessment]:
    return lambda _: Assessment(p, scores, completion)


def on_word(word: str) -> Callable[[str], Assessment]:
    return lambda prompt: Assessment(0.9, {"S9": 0.8}, "unsafe\nS9") if word in prompt else SAFE


class TestReading:
    async def test_codes_become_categories_with_scores_and_origin(self) -> None:
        """A verdict names categories riskiest first, scores them, and says where it came from."""
        guard = LlamaGuard(WordModel(always(p=0.97, completion="\n\nunsafe\nS1,S9", S1=0.6, S9=0.9, S2=0.1)))
        (verdict,) = await guard.classify([Conversation.of("x")])
        assert verdict.outcome is Outcome.UNSAFE
        assert verdict.categories == (HazardCategory.HATE, HazardCategory.VIOLENT_CRIMES)
        assert verdict.scores[HazardCategory.HATE] == 0.9
        assert verdict.scores[HazardCategory.NON_VIOLENT_CRIMES] == 0.1
        assert verdict.unsafe_probability == 0.97
        assert (verdict.source.model, verdict.source.revision) == ("word-model", "abc123")
        assert verdict.source == guard.source
        assert len(guard.source.template_hash) == 16

    async def test_verdict_i_belongs_to_conversation_i(self) -> None:
        """Order is kept, windows included."""
        guard = LlamaGuard(WordModel(on_word("bad"), max_prompt_tokens=40))
        texts = ["fine", "bad", "word " * 100, "word " * 60 + "bad", "fine"]
        verdicts = await guard.classify([Conversation.of(text) for text in texts])
        assert [verdict.outcome is Outcome.UNSAFE for verdict in verdicts] == ["bad" in text for text in texts]
        assert await guard.classify([]) == []

    @pytest.mark.parametrize(
        ("p", "completion", "outcome"),
        [
            (0.5, "safe", Outcome.UNSAFE),
            (0.49, "safe", Outcome.SAFE),
            (0.2, "unsafe\nS9", Outcome.UNSAFE),
            (0.9, "unsafe\nS9", Outcome.UNSAFE),
        ],
    )
    async def test_the_riskier_of_probability_and_completion_counts(
        self, p: float, completion: str, outcome: Outcome
    ) -> None:
        """Either is enough for unsafe, and a disagreement is told."""
        (verdict,) = await LlamaGuard(WordModel(always(p=p, completion=completion))).classify([Conversation.of("x")])
        assert verdict.outcome is outcome
        assert bool(verdict.detail) == ((p >= 0.5) != (completion != "safe"))

    async def test_a_code_outside_the_eleven_is_unsafe_and_told_with_its_version(self) -> None:
        """Llama Guard 3's S14 has no category here; the message is unsafe all the same."""
        answer = always(p=0.8, completion="unsafe\nS14,S1", S14=0.8, S1=0.5)
        guard = LlamaGuard(WordModel(answer, version=GuardVersion.LLAMA_GUARD_3))
        (verdict,) = await guard.classify([Conversation.of("x")])
        assert verdict.outcome is Outcome.UNSAFE
        assert verdict.categories == (HazardCategory.VIOLENT_CRIMES,)
        assert dict(verdict.scores) == {HazardCategory.VIOLENT_CRIMES: 0.5}
        assert "llama-guard-3 S14" in verdict.detail

    async def test_a_code_means_what_its_version_says(self) -> None:
        """S9 is hate for Llama Guard 2 and weapons for Llama Guard 3."""
        named = {}
        for version in GuardVersion:
            guard = LlamaGuard(WordModel(always(p=0.9, completion="unsafe\nS9", S9=0.9), version=version))
            named[version] = (await guard.classify([Conversation.of("x")]))[0].categories
        assert named[GuardVersion.LLAMA_GUARD_2] == (HazardCategory.HATE,)
        assert named[GuardVersion.LLAMA_GUARD_3] == (HazardCategory.INDISCRIMINATE_WEAPONS,)

    @pytest.mark.parametrize("completion", ["", "unsafe", "I cannot", "unsafe\nS12", "unsafe\nS1,S…", "safe\nS1"])
    async def test_a_completion_outside_the_grammar_is_an_error(self, completion: str) -> None:
        """An unreadable answer is no answer, however low its probability."""
        with pytest.raises(CompletionError):
            await LlamaGuard(WordModel(always(completion=completion))).classify([Conversation.of("x")])

    @pytest.mark.parametrize("number", [math.nan, math.inf, -0.1, 1.1])
    async def test_a_number_that_is_no_probability_is_an_error(self, number: float) -> None:
        """NaN compares as neither safe nor unsafe; it is an error, as a probability and as a score."""
        for answer in (always(p=number), always(p=0.9, completion="unsafe\nS1", S1=number)):
            with pytest.raises(ClassificationError):
                await LlamaGuard(WordModel(answer)).classify([Conversation.of("x")])

    async def test_a_score_for_an_unknown_code_is_an_error(self) -> None:
        """A code that the version does not have says that model and table do not belong together."""
        with pytest.raises(ClassificationError):
            await LlamaGuard(WordModel(always(S12=0.1))).classify([Conversation.of("x")])

    @pytest.mark.parametrize("count", [0, 1, 3])
    async def test_a_wrong_number_of_assessments_is_an_error(self, count: int) -> None:
        """No conversation is given another's verdict, or none."""

        class Miscounting(WordModel):
            async def assess(self, prompts: Sequence[GuardPrompt]) -> list[Assessment]:
                return [SAFE] * count

        with pytest.raises(ClassificationError, match=f"expected 2 assessments, got {count}"):
            await LlamaGuard(Miscounting(always())).classify([Conversation.of("x"), Conversation.of("y")])

    async def test_a_lone_surrogate_is_an_error_that_does_not_hold_the_text(self) -> None:
        """What is no text cannot be judged; the error names the place, not the message."""
        conversation = Conversation.of("answer", role=Role.ASSISTANT, prompt="secret \ud800 word")
        with pytest.raises(ClassificationError, match=r"message 1 of 2 .* offset 7") as caught:
            await LlamaGuard(WordModel(always())).classify([conversation])
        assert "secret" not in str(caught.value)

    async def test_close_closes_the_model(self) -> None:
        """A classifier that is closed gives back what its model holds."""
        model = WordModel(always())
        LlamaGuard(model).close()
        assert model.is_closed


class TestFit:
    async def test_oldest_messages_are_left_out_first_and_the_verdict_says_how_many(self) -> None:
        """The newest message is whole; as much of the context stays as fits."""
        model = WordModel(always(), max_prompt_tokens=30)
        messages = [Message(Role.ASSISTANT if at % 2 else Role.USER, f"m{at} " + "word " * 5) for at in range(9)]
        (verdict,) = await LlamaGuard(model).classify([Conversation(tuple(messages))])
        (prompt,) = model.prompts
        kept = [segment.text.split()[0] for segment in prompt.segments if segment.is_data]
        assert kept == ["m7", "m8"] or kept == ["m6", "m7", "m8"]
        assert verdict.detail.startswith(f"{9 - len(kept)} older messages left out")
        assert model.count_tokens(prompt) <= 30

    @given(st.integers(1, 400), st.integers(1, 400), st.integers(34, 90))
    async def test_every_word_of_a_long_message_is_judged(self, count: int, at: int, window: int) -> None:
        """Wherever the one bad word stands, the riskiest window decides; no window exceeds the model's."""
        words = [f"w{number}" for number in range(count)]
        words[at % count] = "bad"
        model = WordModel(lambda p: on_word("bad")(p.replace("\n", " ")), max_prompt_tokens=window)
        (verdict,) = await LlamaGuard(model).classify([Conversation.of(" ".join(words))])
        assert verdict.outcome is Outcome.UNSAFE
        assert verdict.categories == (HazardCategory.HATE,)
        assert all(model.count_tokens(prompt) <= window for prompt in model.prompts)
        seen = {word for prompt in model.prompts for s in prompt.segments if s.is_data for word in s.text.split()}
        assert seen == set(words)
        assert ("overlapping windows" in verdict.detail) == (len(model.prompts) > 1)

    async def test_a_long_message_is_judged_without_its_context_and_the_verdict_says_so(self) -> None:
        """Where the newest message alone exceeds the window, nothing of the context can stand beside it."""
        model = WordModel(always(), max_prompt_tokens=40)
        conversation = Conversation.of("word " * 90, role=Role.ASSISTANT, prompt="a question")
        (verdict,) = await LlamaGuard(model).classify([conversation])
        assert verdict.detail.startswith("1 older message left out")
        assert f"judged in {len(model.prompts)} overlapping windows" in verdict.detail

    async def test_windows_that_come_out_too_long_are_cut_again(self) -> None:
        """A tokenizer can count more tokens in a window than in the same piece of the text; none goes out too long."""

        class Loose(WordModel):
            def split(self, text: str, *, max_tokens: int, overlap: int) -> list[str]:
                return super().split(text, max_tokens=max_tokens + 3, overlap=overlap)

        model = Loose(always(), max_prompt_tokens=40)
        await LlamaGuard(model).classify([Conversation.of("word " * 90)])
        assert max(model.count_tokens(prompt) for prompt in model.prompts) <= 40

    async def test_time_of_windows_that_shared_a_batch_counts_once(self) -> None:
        """A verdict's compute time is that of the batches it took part in."""
        model = WordModel(lambda _: Assessment(0.01, {}, "safe", Timing(1.0, 40.0)), max_prompt_tokens=40)
        (verdict,) = await LlamaGuard(model).classify([Conversation.of("word " * 90)])
        assert len(model.prompts) > 1
        assert verdict.timing == Timing(1.0, 40.0)

    async def test_a_window_without_room_for_a_message_is_an_error(self) -> None:
        """A model that cannot read a message beside its own prompt does not pretend to."""
        with pytest.raises(ClassificationError, match="reads 12 tokens"):
            await LlamaGuard(WordModel(always(), max_prompt_tokens=12)).classify([Conversation.of("word " * 50)])
