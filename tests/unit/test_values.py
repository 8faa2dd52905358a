"""The values and the taxonomy."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.errors import Blocked, InvalidInput
from guardrail.policy import Policy
from guardrail.taxonomy import LLAMA_GUARD_2, LLAMA_GUARD_3, HazardCategory
from guardrail.verdict import (
    CodeBlock,
    Conversation,
    Message,
    Outcome,
    Rail,
    Role,
    Source,
    Span,
    Verdict,
    riskiest,
    unverified,
)

SOURCE = Source("model", "1")


class TestTaxonomy:
    def test_there_are_eleven_categories_with_title_and_description(self) -> None:
        """Each has a name that policies can use and words for people."""
        assert len(HazardCategory) == 11
        assert len({category.title for category in HazardCategory}) == 11
        assert all(category.description.endswith(".") for category in HazardCategory)

    def test_llama_guard_2_codes_follow_its_model_card(self) -> None:
        """S1..S11, in the order of the card."""
        assert list(LLAMA_GUARD_2) == [f"S{n}" for n in range(1, 12)]
        assert LLAMA_GUARD_2["S9"] is HazardCategory.HATE
        assert LLAMA_GUARD_2["S5"] is HazardCategory.SPECIALIZED_ADVICE

    def test_the_same_code_means_something_else_to_llama_guard_3(self) -> None:
        """A code without its version would be read wrongly: S9 is hate in one and weapons in the other."""
        assert list(LLAMA_GUARD_3) == [f"S{n}" for n in range(1, 15)]
        assert LLAMA_GUARD_3["S9"] is HazardCategory.INDISCRIMINATE_WEAPONS
        assert set(LLAMA_GUARD_3.values()) - {None} == set(HazardCategory)


class TestConversation:
    def test_the_last_message_chooses_the_rail(self) -> None:
        """A user's message is a prompt, an assistant's a response."""
        assert Conversation.of("a").rail is Rail.PROMPT
        assert Conversation.of("a", role=Role.ASSISTANT, prompt="b").rail is Rail.RESPONSE

    @pytest.mark.parametrize("messages", [(), (Message(Role.SYSTEM, "x"),), (Message(Role.TOOL, "x"),)])
    def test_what_cannot_be_judged_is_refused(self, messages: tuple[Message, ...]) -> None:
        """No message, or a last one from neither user nor assistant."""
        with pytest.raises(InvalidInput):
            Conversation(messages)

    def test_a_user_message_answers_no_prompt(self) -> None:
        """A prompt beside a user's message is a mistake of the caller."""
        with pytest.raises(InvalidInput, match="role=assistant"):
            Conversation.of("a", prompt="b")


class TestCodeBlock:
    def test_places_in_the_code_are_places_in_the_message(self) -> None:
        """Lines and columns count from 1 and lead back through removed indentation."""
        message = "x\n  a\n  bc"
        block = CodeBlock("a\nbc", "python", Span(4, 10), (4, 8))
        assert message[block.message_offset(2, 2)] == "c"
        assert block.message_offset(99, 99) == 10

    def test_a_span_cannot_end_before_it_starts(self) -> None:
        """A broken span is refused where it is made."""
        with pytest.raises(ValueError, match="start <= end"):
            Span(2, 1)


verdicts = st.builds(
    lambda outcome, p, scores: Verdict(outcome, SOURCE, scores, tuple(scores), unsafe_probability=p),
    st.sampled_from(Outcome),
    st.floats(0, 1),
    st.dictionaries(st.sampled_from(HazardCategory), st.floats(0, 1)),
)


class TestRiskiest:
    @given(st.lists(verdicts, min_size=1, max_size=5))
    def test_no_window_is_worse_than_the_whole(self, windows: list[Verdict]) -> None:
        """The joined verdict is at least as risky as any window, in outcome, probability of its kind, and scores."""
        rank = {Outcome.SAFE: 0, Outcome.UNVERIFIED: 1, Outcome.UNSAFE: 2}
        whole = riskiest(windows)
        assert rank[whole.outcome] == max(rank[w.outcome] for w in windows)
        for window in windows:
            assert all(whole.scores[category] >= score for category, score in window.scores.items())
            assert set(window.categories) <= set(whole.categories)

    def test_a_part_that_was_not_judged_leaves_the_whole_unverified(self) -> None:
        """Safe windows do not vouch for one that was lost."""
        safe = Verdict(Outcome.SAFE, SOURCE, unsafe_probability=0.1)
        assert riskiest([safe, unverified(SOURCE, "lost"), safe]).outcome is Outcome.UNVERIFIED


def test_a_blocked_error_survives_a_process_boundary() -> None:
    """Worker pools pickle errors; the decision must arrive."""
    error = Blocked(Policy().decide(Rail.PROMPT, []))
    assert pickle.loads(pickle.dumps(error)).decision == error.decision
