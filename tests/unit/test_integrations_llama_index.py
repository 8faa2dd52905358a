"""The LlamaIndex adapter: questions are judged before anything is retrieved, answers before they are shown."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from guardrail.errors import Blocked, InvalidInput
from guardrail.integrations.llama_index import guarded_query_engine
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.taxonomy import HazardCategory
from guardrail.testing import KeywordClassifier

pytest.importorskip("llama_index.core", reason="needs guardrail[llama-index]")

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from pydantic import BaseModel

GUARD = Guard(KeywordClassifier({"grumble": HazardCategory.HATE}), policy=load_policy("default"))
MESSAGE = GUARD.policy.block_message

SAFE = "Bread rises because of yeast. That takes an hour in a warm kitchen."
LATE = "Bread rises because of yeast, and this takes an hour. Then I grumble about it. The end."
SOURCES = [NodeWithScore(node=TextNode(text="Of bread."), score=0.5)]


class FakeEngine(BaseQueryEngine):
    """Gives its answers in order, whole or a word at a time, and keeps what it was asked."""

    def __init__(self, *answers: Any, streams: bool = False) -> None:
        super().__init__(callback_manager=None)
        self.asked: list[QueryBundle] = []
        self._answers = answers
        self._streams = streams

    def _get_prompt_modules(self) -> dict[str, Any]:
        return {}

    def _next(self, query: QueryBundle) -> Any:
        self.asked.append(query)
        return self._answers[len(self.asked) - 1]

    def _query(self, query_bundle: QueryBundle) -> Any:
        answer = self._next(query_bundle)
        if isinstance(answer, str) and self._streams:
            return StreamingResponse((f"{word} " for word in answer.split(" ")), SOURCES)
        return Response(answer, SOURCES) if isinstance(answer, str) else answer

    async def _aquery(self, query_bundle: QueryBundle) -> Any:
        answer = self._next(query_bundle)
        if isinstance(answer, str) and self._streams:
            return AsyncStreamingResponse(words(answer), SOURCES)
        return Response(answer, SOURCES) if isinstance(answer, str) else answer


async def words(answer: str) -> AsyncIterator[str]:
    for word in answer.split(" "):
        yield f"{word} "


async def query(engine: Any, question: Any) -> str:
    return str(engine.query(question)).rstrip()


async def aquery(engine: Any, question: Any) -> str:
    response = await engine.aquery(question)
    if isinstance(response, AsyncStreamingResponse):
        return "".join([piece async for piece in response.async_response_gen()]).rstrip()
    return str(response).rstrip()


@pytest.mark.parametrize("read", [query, aquery])
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streams"])
@pytest.mark.parametrize("streaming", [False, True], ids=["read whole", "read as a stream"])
class TestEveryWayToRead:
    async def test_a_safe_exchange_passes_unchanged(self, read: Any, streams: bool, streaming: bool) -> None:
        """The caller gets the engine's own answer to his own question."""
        inner = FakeEngine(SAFE, streams=streams)
        assert await read(guarded_query_engine(inner, streaming=streaming, guard=GUARD), "Why bread?") == SAFE
        assert [bundle.query_str for bundle in inner.asked] == ["Why bread?"]

    async def test_a_blocked_question_retrieves_nothing(self, read: Any, streams: bool, streaming: bool) -> None:
        """It is refused before the engine is asked."""
        inner = FakeEngine(SAFE, streams=streams)
        with pytest.raises(Blocked):
            await read(guarded_query_engine(inner, streaming=streaming, guard=GUARD), "I grumble")
        assert inner.asked == []

    async def test_a_block_can_be_a_message(self, read: Any, streams: bool, streaming: bool) -> None:
        """``on_block="message"`` shows the policy's words, and nothing of the answer."""
        inner = FakeEngine(*["I grumble."] * 9, streams=streams)
        engine = guarded_query_engine(inner, streaming=streaming, guard=GUARD, on_block="message")
        assert await read(engine, "hello") == MESSAGE

    async def test_an_engine_that_is_asked_again_retrieves_by_the_question_alone(
        self, read: Any, streams: bool, streaming: bool
    ) -> None:
        """The feedback is for the model: it would pull documents about hate into the context."""
        inner = FakeEngine("I grumble.", SAFE, streams=streams)
        assert await read(guarded_query_engine(inner, streaming=streaming, guard=GUARD), "Why bread?") == SAFE
        assert "Hate" in inner.asked[1].query_str
        assert inner.asked[1].embedding_strs == ["Why bread?"]


class TestResponses:
    def test_a_released_answer_keeps_its_sources(self) -> None:
        """It is the engine's own response."""
        assert guarded_query_engine(FakeEngine(SAFE), guard=GUARD).query("hello").source_nodes == SOURCES

    def test_a_blocked_answer_has_none(self) -> None:
        """The message stands alone."""
        engine = guarded_query_engine(FakeEngine(*["I grumble."] * 9), guard=GUARD, on_block="message")
        assert engine.query("hello").source_nodes == []

    def test_a_stream_has_its_sources_once_it_has_begun(self) -> None:
        """They belong to the answer that is being read."""
        response = guarded_query_engine(FakeEngine(SAFE, streams=True), streaming=True, guard=GUARD).query("hello")
        assert str(response).rstrip() == SAFE
        assert response.source_nodes == SOURCES

    def test_only_checked_text_is_released(self) -> None:
        """What was yielded before the block holds nothing of the sentence that was refused."""
        response = guarded_query_engine(FakeEngine(LATE, streams=True), streaming=True, guard=GUARD).query("hello")
        released: list[str] = []
        with pytest.raises(Blocked):
            collect(response.response_gen, released)
        assert "".join(released) == "Bread rises because of yeast, and this takes an hour."

    async def test_structured_answers_are_judged_as_their_json(self) -> None:
        """No kind of response passes by."""

        class Mood(BaseModel):
            words: str

        given = PydanticResponse(Mood(words="I grumble"))
        with pytest.raises(Blocked):
            guarded_query_engine(FakeEngine(*[given] * 9), guard=GUARD).query("hello")
        with pytest.raises(Blocked):
            await guarded_query_engine(FakeEngine(*[given] * 9), guard=GUARD).aquery("hello")

    def test_an_image_is_the_callers_error(self) -> None:
        """What cannot be judged is refused."""
        with pytest.raises(InvalidInput, match="image"):
            guarded_query_engine(FakeEngine(SAFE), guard=GUARD).query(QueryBundle("hello", image_path="x.png"))

    def test_prompts_of_the_engine_can_still_be_set(self) -> None:
        """The wrapper does not hide the engine from LlamaIndex."""
        inner = FakeEngine(SAFE)
        assert guarded_query_engine(inner, guard=GUARD)._get_prompt_modules() == {"engine": inner}


def collect(pieces: Iterator[str], into: list[str]) -> None:
    for piece in pieces:
        into.append(piece)
