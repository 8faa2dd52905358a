"""The cascade: who is asked, who decides, and what happens when the guard fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail import assembly
from guardrail.config import Settings, load_settings
from guardrail.errors import ClassificationError, ConfigurationError, Unavailable
from guardrail.models.cascade import CascadeCalls, CascadeClassifier
from guardrail.models.embedded import EmbeddedClassifier
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.taxonomy import GuardVersion, HazardCategory
from guardrail.testing import FailingClassifier, KeywordClassifier
from guardrail.verdict import Conversation, Outcome, Source, Timing, Verdict


class ScoreClassifier:
    """Reads its probability from the text; unsafe from one half on."""

    source = Source("scores", "1")

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        return [self._judge(float(conversation.last.content.split()[0])) for conversation in conversations]

    def _judge(self, p: float) -> Verdict:
        outcome = Outcome.UNSAFE if p >= 0.5 else Outcome.SAFE
        return Verdict(outcome, self.source, unsafe_probability=p, timing=Timing(1.0, 2.0), detail="window note")


class RecordingGuard(KeywordClassifier):
    """Keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__({"badword": HazardCategory.HATE})
        self.asked: list[str] = []
        self.closed = False

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        self.asked += [conversation.last.content for conversation in conversations]
        return await super().classify(conversations)

    def close(self) -> None:
        self.closed = True


def texts(*contents: str) -> list[Conversation]:
    return [Conversation.of(content) for content in contents]


class TestClassify:
    async def test_only_unsure_texts_go_to_the_guard(self) -> None:
        """Below ``low`` and above ``high`` the first stage decides; both thresholds themselves are unsure."""
        guard = RecordingGuard()
        cascade = CascadeClassifier(ScoreClassifier(), guard, low=0.2, high=0.8)
        verdicts = await cascade.classify(
            texts("0.19 badword", "0.2 badword", "0.4 fine", "0.6 fine", "0.8 badword", "0.81 fine")
        )
        assert guard.asked == ["0.2 badword", "0.4 fine", "0.6 fine", "0.8 badword"]
        assert [verdict.outcome.value for verdict in verdicts] == ["safe", "unsafe", "safe", "safe", "unsafe", "unsafe"]
        assert cascade.calls == CascadeCalls(judged=6, asked=4)
        assert cascade.calls.saved == 2

    async def test_a_text_that_was_not_read_goes_to_the_guard(self) -> None:
        """Whatever score it has: it is none."""

        class Unread(ScoreClassifier):
            def _judge(self, p: float) -> Verdict:
                return replace(super()._judge(p), outcome=Outcome.UNVERIFIED)

        guard = RecordingGuard()
        verdicts = await CascadeClassifier(Unread(), guard, low=0.2, high=0.8).classify(
            texts("0.01 badword", "0.9 fine")
        )
        assert guard.asked == ["0.01 badword", "0.9 fine"]
        assert [verdict.outcome.value for verdict in verdicts] == ["unsafe", "safe"]
        assert "could not read it" in verdicts[0].detail

    async def test_a_verdict_says_which_stage_decided(self) -> None:
        """The source is the one that decided; the detail names both, and keeps what the stage itself noted."""
        cascade = CascadeClassifier(ScoreClassifier(), RecordingGuard(), low=0.2, high=0.8)
        first, unsure, last = await cascade.classify(texts("0.1", "0.5", "0.9"))
        assert first.source == last.source == ScoreClassifier.source
        assert (
            first.detail == "cascade: scores@1 decided, below 0.2; keyword-classifier@test was not asked; window note"
        )
        assert "above 0.8" in last.detail
        assert unsure.source == KeywordClassifier.source
        assert unsure.detail == "cascade: keyword-classifier@test decided; scores@1 was unsure at 0.500"
        assert unsure.timing == Timing(1.0, 2.0)

    async def test_a_failing_guard_raises(self) -> None:
        """An unsure text never gets the first stage's verdict instead; sure ones do not need the guard."""
        cascade = CascadeClassifier(ScoreClassifier(), FailingClassifier(Unavailable("lost")), low=0.2, high=0.8)
        with pytest.raises(Unavailable):
            await cascade.classify(texts("0.1", "0.4"))
        assert cascade.calls == CascadeCalls(0, 0)
        assert [verdict.outcome for verdict in await cascade.classify(texts("0.1"))] == [Outcome.SAFE]

    def test_in_the_pipeline_a_failing_guard_is_unverified(self) -> None:
        """The unsure text alone loses its answer; its neighbours keep theirs."""
        cascade = CascadeClassifier(ScoreClassifier(), FailingClassifier(Unavailable("lost")), low=0.2, high=0.8)
        decisions = Guard(cascade, policy=load_policy("default")).check_many(texts("0.1", "0.4", "0.9"))
        assert [decision.outcome.value for decision in decisions] == ["safe", "unverified", "unsafe"]

    async def test_a_first_stage_without_a_probability_is_an_error(self) -> None:
        """No number is neither sure nor unsure."""

        class Mute(ScoreClassifier):
            def _judge(self, p: float) -> Verdict:
                return Verdict(Outcome.SAFE, self.source)

        with pytest.raises(ClassificationError, match="unsafe_probability"):
            await CascadeClassifier(Mute(), RecordingGuard(), low=0.2, high=0.8).classify(texts("0.1"))
        with pytest.raises(ClassificationError, match="unsafe_probability"):
            await CascadeClassifier(ScoreClassifier(), RecordingGuard(), low=0.2, high=0.8).classify(texts("nan"))

    async def test_a_guard_that_loses_an_answer_is_an_error(self) -> None:
        """A missing verdict is no verdict of a neighbour."""

        class Losing(RecordingGuard):
            async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
                return (await super().classify(conversations))[:-1]

        cascade = CascadeClassifier(ScoreClassifier(), Losing(), low=0.2, high=0.8)
        with pytest.raises(ClassificationError, match="expected 2 verdicts, got 1"):
            await cascade.classify(texts("0.4", "0.6"))

    @given(st.lists(st.integers(0, 100).map(lambda n: n / 100), max_size=20), st.integers(0, 50), st.integers(50, 100))
    def test_each_text_keeps_its_own_verdict(self, scores: list[float], low: int, high: int) -> None:
        """Whatever the mixture, a verdict is that of the stage its own score chose, in order."""
        cascade = CascadeClassifier(ScoreClassifier(), RecordingGuard(), low=low / 100, high=high / 100)
        guard = Guard(cascade, policy=load_policy("default"))
        decisions = guard.check_many(texts(*(f"{score}" for score in scores)))
        for score, decision in zip(scores, decisions, strict=True):
            is_unsure = low / 100 <= score <= high / 100
            expected = Outcome.SAFE if is_unsure or score < 0.5 else Outcome.UNSAFE
            assert (decision.outcome, "unsure" in decision.verdicts[0].detail) == (expected, is_unsure)

    @pytest.mark.parametrize(("low", "high"), [(-0.1, 0.9), (0.6, 0.9), (0.1, 0.4), (0.1, 1.1), (float("nan"), 0.9)])
    def test_thresholds_stay_on_their_side_of_one_half(self, low: float, high: float) -> None:
        """A threshold beyond one half would turn the first stage's own verdict round."""
        with pytest.raises(ConfigurationError, match=r"0 <= low <= 0\.5 <= high <= 1"):
            CascadeClassifier(ScoreClassifier(), RecordingGuard(), low=low, high=high)

    def test_it_names_both_models_and_closes_them(self) -> None:
        """The source tells two cascades with other thresholds apart; closing reaches whoever can be closed."""
        guard = RecordingGuard()
        cascade = CascadeClassifier(ScoreClassifier(), guard, low=0.2, high=0.8)
        assert str(cascade.source) == "cascade of scores@1 and keyword-classifier@test@0.2..0.8"
        cascade.close()
        assert guard.closed


class TestSettings:
    def test_the_settings_build_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """GUARDRAIL_MODEL=cascade is the embedded model before the guard that the settings name."""
        asked: list[GuardVersion] = []

        def fake(version: GuardVersion) -> object:
            asked.append(version)
            return lambda settings: RecordingGuard()

        monkeypatch.setattr(assembly, "_llama_guard", fake)
        monkeypatch.setenv("GUARDRAIL_MODEL", "cascade")
        monkeypatch.setenv("GUARDRAIL_CASCADE_LOW", "0.25")
        monkeypatch.setenv("GUARDRAIL_CASCADE_HIGH", "0.75")
        monkeypatch.setenv("GUARDRAIL_CASCADE_GUARD", "llama-guard-3")
        cascade = assembly.build_classifier(load_settings())
        assert isinstance(cascade, CascadeClassifier)
        assert isinstance(cascade._first, EmbeddedClassifier)
        assert asked == [GuardVersion.LLAMA_GUARD_3]
        assert cascade.source.revision == "0.25..0.75"
        cascade.close()

    @pytest.mark.parametrize("setting", ["cascade_low", "cascade_high", "cascade_guard"])
    def test_a_setting_that_cannot_work_is_named(self, setting: str) -> None:
        """A threshold outside its half, or an unknown guard, is refused with the setting's name."""
        value = {"cascade_low": 0.7, "cascade_high": 0.2, "cascade_guard": "embedded"}[setting]
        with pytest.raises(ConfigurationError, match=f"GUARDRAIL_{setting.upper()}"):
            load_settings(**{setting: value})

    def test_it_is_one_of_the_known_models(self) -> None:
        """A typo's error lists it."""
        with pytest.raises(ConfigurationError, match="cascade"):
            assembly.build_classifier(Settings(model="casacde"))
