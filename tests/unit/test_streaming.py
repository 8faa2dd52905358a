"""Streams release only checked text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.errors import Blocked, DeadlineExceeded, GenerationError
from guardrail.pipeline import CheckStep, Guard
from guardrail.policy import load_policy, parse_policy
from guardrail.streaming import BeginStep, PullStep, ReportStep, astream, guarded_stream, stream
from guardrail.taxonomy import HazardCategory
from guardrail.testing import KeywordClassifier
from guardrail.verdict import Action, Conversation, Exchange, Outcome, Role, Verdict

POLICY = load_policy("default")
GUARD = Guard(KeywordClassifier({"grumble": HazardCategory.HATE}), policy=POLICY)
ASK = Conversation.of("hello")

SAFE = "This is the first sentence of a long answer. Here is a second one that says a little more.\n"
CODE = "```python\nfor i in range(10):\n    print(i)\n\n\nprint('done. Really.')\n```\n"


def drive(pieces: Sequence[str], *more: Sequence[str]) -> tuple[list[tuple[str, int]], Exchange]:
    """Runs the sans-IO stream; returns each release with how far the text had come, and the exchange."""
    scripts = iter([pieces, *more])
    steps = guarded_stream(ASK, POLICY)
    releases: list[tuple[str, int]] = []
    checked: list[str] = []
    source: Iterator[str] = iter(())
    come, result = 0, None
    try:
        while True:
            step = steps.send(result)
            result = None
            if isinstance(step, CheckStep):
                checked.append(step.conversation.last.content)
                result = GUARD.check(step.conversation, code_from=step.code_from)
            elif isinstance(step, BeginStep):
                source, come = iter(next(scripts)), 0
            elif isinstance(step, PullStep):
                result = next(source, None)
                come += len(result or "")
            elif isinstance(step, ReportStep) and step.text:
                assert checked[-1].endswith(step.text), "released text is the end of what was checked last"
                releases.append((step.text, come))
    except StopIteration as done:
        return releases, done.value


@st.composite
def chunked(draw: st.DrawFn) -> list[str]:
    parts = draw(st.lists(st.sampled_from([SAFE, CODE, "short. ", "word " * 200, "I grumble. ", "\n\n", "```\n"])))
    text = "".join(parts)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=20)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


class TestRelease:
    @settings(max_examples=150, deadline=None)
    @given(chunked())
    def test_only_checked_text_is_released_in_any_chunking(self, pieces: list[str]) -> None:
        """What comes out is a prefix of what went in, was checked, and holds nothing unsafe."""
        text = "".join(pieces)
        releases, exchange = drive(pieces, pieces, pieces)
        released = "".join(piece for piece, _ in releases)
        assert text.startswith(released)
        assert "grumble" not in released
        if not exchange.is_blocked:
            assert released == exchange.text == text

    @settings(max_examples=100, deadline=None)
    @given(chunked())
    def test_a_stream_ends_with_the_decision_of_the_whole_text(self, pieces: list[str]) -> None:
        """However it was cut, a completed stream is judged as its whole text is."""
        text = "".join(pieces)
        _, exchange = drive(pieces, pieces, pieces)
        whole = GUARD.check(ASK.then(Role.ASSISTANT, text))
        assert exchange.is_blocked == (not whole.action.releases)

    def test_text_is_released_before_the_end(self) -> None:
        """The reader does not wait for the whole answer."""
        releases, _ = drive([SAFE, SAFE, SAFE])
        assert releases[0] == (SAFE, len(SAFE))

    def test_an_open_code_block_is_held(self) -> None:
        """Code is released when its fence has closed, not line by line."""
        opening, rest = CODE[:40], CODE[40:]
        releases, _ = drive([SAFE + opening, rest, SAFE])
        assert releases[0] == (SAFE, len(SAFE) + 40)

    def test_unsafe_text_after_a_release_ends_the_stream(self) -> None:
        """What was shown cannot be taken back, so there is no second attempt."""
        releases, exchange = drive([SAFE, "And now I grumble about everybody in this town. ", SAFE], [SAFE])
        assert [piece for piece, _ in releases] == [SAFE]
        assert (exchange.is_blocked, len(exchange.attempts)) == (True, 1)

    def test_unsafe_text_before_any_release_is_generated_again(self) -> None:
        """Nothing was shown, so another attempt can be made."""
        releases, exchange = drive(["I grumble about everybody in this whole town. "], [SAFE])
        assert "".join(piece for piece, _ in releases) == SAFE
        assert [a.decision.action for a in exchange.attempts] == [Action.RETRY, Action.ALLOW]

    def test_a_hazard_split_over_pieces_is_seen(self) -> None:
        """The whole text is checked at the end, with what pieces showed only in part."""
        policy = parse_policy("version: 1")

        class Pair(KeywordClassifier):
            async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
                texts = [c.last.content for c in conversations]
                return [
                    Verdict(
                        Outcome.UNSAFE if "first" in t and "third" in t else Outcome.SAFE,
                        self.source,
                        unsafe_probability=0.9 if "first" in t and "third" in t else 0.1,
                    )
                    for t in texts
                ]

        guard = Guard(Pair({}), policy=policy)
        filler = "Plain words that go on for a while, and then a stop. " * 40
        with pytest.raises(Blocked):
            list(stream(guard, ASK, lambda attempt, feedback: iter(["first part. ", filler, "third part."])))


class TestDrivers:
    def test_the_functions_own_generator_is_closed(self) -> None:
        """A blocked stream does not leave the generator running."""
        ended: list[str] = []

        def pieces() -> Iterator[str]:
            try:
                while True:
                    yield "I grumble about everybody in this whole town. "
            finally:
                ended.append("closed")

        with pytest.raises(Blocked):
            list(stream(GUARD, ASK, lambda attempt, feedback: pieces()))
        assert ended == ["closed"] * POLICY.max_attempts

    async def test_async_and_sync_release_the_same(self) -> None:
        """One sans-IO stream, two drivers; the async one may take several pieces at once."""
        text = [SAFE[:10], SAFE[10:], CODE, SAFE]

        async def pieces() -> AsyncIterator[str]:
            for piece in text:
                yield piece

        got = [piece async for piece in astream(GUARD, ASK, lambda attempt, feedback: pieces())]
        in_thread = await asyncio.to_thread(lambda: list(stream(GUARD, ASK, lambda a, f: iter(text))))
        assert "".join(got) == "".join(in_thread) == "".join(text)

    async def test_a_stream_that_stalls_ends_at_the_deadline(self) -> None:
        """The deadline holds between pieces, and the stalled generator is closed."""
        ended: list[str] = []

        async def pieces() -> AsyncIterator[str]:
            try:
                yield "word "
                await asyncio.Event().wait()
            finally:
                ended.append("closed")

        guard = GUARD.with_policy(parse_policy("version: 1\ndeadline_s: 0.1"))
        with pytest.raises(DeadlineExceeded):
            [piece async for piece in astream(guard, ASK, lambda attempt, feedback: pieces())]
        assert ended == ["closed"]

    @pytest.mark.parametrize("piece", [None, 3, b"bytes"])
    def test_a_piece_that_is_not_text_is_an_error(self, piece: object) -> None:
        """None is not the end of the stream, and bytes are not text."""
        with pytest.raises(GenerationError):
            list(stream(GUARD, ASK, lambda attempt, feedback: iter([piece])))  # type: ignore[list-item]
