"""The LangChain adapter: what leaves the model has been checked, through every way that LangChain has to read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from guardrail.errors import Blocked, GenerationError, InvalidInput
from guardrail.integrations.langchain import guarded_chat_model
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.taxonomy import HazardCategory
from guardrail.testing import KeywordClassifier

pytest.importorskip("langchain_core", reason="needs guardrail[langchain]")

from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate

GUARD = Guard(KeywordClassifier({"grumble": HazardCategory.HATE}), policy=load_policy("default"))
MESSAGE = GUARD.policy.block_message

SAFE = "Bread rises because of yeast. That takes an hour in a warm kitchen."
LATE = "Bread rises because of yeast, and this takes an hour. Then I grumble about it. The end."


class FakeChatModel(BaseChatModel):
    """Gives its answers in order, a word a chunk, and keeps what it was asked."""

    answers: list[Any]
    asked: list[Any] = []  # noqa: RUF012 - pydantic copies it

    @property
    def _llm_type(self) -> str:
        return "fake"

    def _next(self, messages: list[Any]) -> AIMessage:
        self.asked.append(messages)
        answer = self.answers[len(self.asked) - 1]
        usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
        return answer if isinstance(answer, AIMessage) else AIMessage(answer, usage_metadata=usage)

    def _generate(self, messages: list[Any], stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._next(messages))])

    def _stream(
        self, messages: list[Any], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        for word in str(self._next(messages).text).split(" "):
            yield ChatGenerationChunk(message=AIMessageChunk(content=f"{word} "))


async def invoke(model: Any, prompt: Any) -> str:
    return str(model.invoke(prompt).text)


async def ainvoke(model: Any, prompt: Any) -> str:
    return str((await model.ainvoke(prompt)).text)


async def stream(model: Any, prompt: Any) -> str:
    return "".join(chunk.text for chunk in model.stream(prompt)).rstrip()


async def astream(model: Any, prompt: Any) -> str:
    return "".join([chunk.text async for chunk in model.astream(prompt)]).rstrip()


@pytest.mark.parametrize("read", [invoke, ainvoke, stream, astream])
class TestEveryWayToRead:
    async def test_a_safe_exchange_passes_unchanged(self, read: Any) -> None:
        """The caller gets the model's own answer, and the model the caller's own messages."""
        inner = FakeChatModel(answers=[SAFE])
        messages = [SystemMessage("Be kind."), HumanMessage("Why does bread rise?")]
        assert await read(guarded_chat_model(inner, guard=GUARD), messages) == SAFE
        assert [message.text for message in inner.asked[0]] == ["Be kind.", "Why does bread rise?"]

    async def test_a_blocked_prompt_never_reaches_the_model(self, read: Any) -> None:
        """It is refused before a token is generated."""
        inner = FakeChatModel(answers=[SAFE])
        with pytest.raises(Blocked):
            await read(guarded_chat_model(inner, guard=GUARD), "I grumble")
        assert inner.asked == []

    async def test_a_block_can_be_a_message(self, read: Any) -> None:
        """``on_block="message"`` ends with the policy's words, whatever was released before them."""
        model = guarded_chat_model(FakeChatModel(answers=["I grumble."] * 9), guard=GUARD, on_block="message")
        assert await read(model, "hello") == MESSAGE

    async def test_an_unsafe_answer_is_generated_again_with_feedback(self, read: Any) -> None:
        """The user's message carries what was wrong, and the caller's own list is left alone."""
        inner = FakeChatModel(answers=["I grumble.", SAFE])
        messages = [HumanMessage("hello")]
        assert await read(guarded_chat_model(inner, guard=GUARD), messages) == SAFE
        assert "Hate" in inner.asked[1][-1].text
        assert messages == [HumanMessage("hello")]


def collect(model: Any, into: list[str]) -> None:
    for chunk in model.stream("hello"):
        into.append(chunk.text)


class TestStreams:
    def test_only_checked_text_is_released(self) -> None:
        """What was yielded before the block holds nothing of the sentence that was refused."""
        released: list[str] = []
        with pytest.raises(Blocked):
            collect(guarded_chat_model(FakeChatModel(answers=[LATE]), guard=GUARD), released)
        assert "".join(released) == "Bread rises because of yeast, and this takes an hour."

    async def test_events_show_checked_text_alone(self) -> None:
        """Handlers of the run, as LangGraph and ``astream_events`` have them, never see the inner model's own text."""
        model = guarded_chat_model(FakeChatModel(answers=[LATE]), guard=GUARD, on_block="message")
        chain = ChatPromptTemplate.from_messages([("human", "{question}")]) | model
        seen = [event async for event in chain.astream_events({"question": "hello"}, version="v2")]
        tokens = "".join(e["data"]["chunk"].text for e in seen if e["event"] == "on_chat_model_stream")
        assert tokens == f"Bread rises because of yeast, and this takes an hour.{MESSAGE}"
        assert "grumble" not in repr(seen)

    async def test_a_chain_streams(self) -> None:
        """The adapter stands where any chat model stands, and its pieces pass through what follows."""
        model = guarded_chat_model(FakeChatModel(answers=[SAFE]), guard=GUARD)
        pieces = [piece async for piece in (model | StrOutputParser()).astream("hello")]
        assert "".join(pieces).rstrip() == SAFE


class TestWhatIsJudged:
    def test_a_released_answer_keeps_its_usage_and_loses_what_was_not_judged(self) -> None:
        """Reasoning is text that nobody checked: it does not leave."""
        content = [{"type": "reasoning", "reasoning": "I grumble"}, {"type": "text", "text": SAFE}]
        usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
        given = AIMessage(content, additional_kwargs={"reasoning_content": "I grumble"}, usage_metadata=usage)
        answer = guarded_chat_model(FakeChatModel(answers=[given]), guard=GUARD).invoke("hello")
        assert answer.content == SAFE
        assert answer.usage_metadata == usage
        assert "grumble" not in repr(answer)

    def test_a_tool_call_is_an_error(self) -> None:
        """Its arguments were not judged, so it is refused rather than passed by."""
        call = AIMessage("", tool_calls=[{"name": "search", "args": {"q": "I grumble"}, "id": "1"}])
        with pytest.raises(GenerationError, match="tool call"):
            guarded_chat_model(FakeChatModel(answers=[call]), guard=GUARD).invoke("hello")

    def test_an_image_is_the_callers_error(self) -> None:
        """What cannot be judged is refused, and the error names it."""
        image = HumanMessage([{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": {"url": "x"}}])
        with pytest.raises(InvalidInput, match="image_url"):
            guarded_chat_model(FakeChatModel(answers=[SAFE]), guard=GUARD).invoke([image])

    def test_the_last_message_must_be_the_users(self) -> None:
        """A tool's result alone is no prompt."""
        messages = [HumanMessage("hello"), ToolMessage("42", tool_call_id="1")]
        with pytest.raises(InvalidInput, match="user or assistant"):
            guarded_chat_model(FakeChatModel(answers=[SAFE]), guard=GUARD).invoke(messages)

    def test_a_cache_does_not_pass_the_check_by(self) -> None:
        """With LangChain's global cache on, the stricter of two guards still refuses what the other released."""
        set_llm_cache(InMemoryCache())
        try:
            lenient = Guard(KeywordClassifier({}), policy=GUARD.policy)
            inner = FakeChatModel(answers=["I grumble."] * 9)
            assert guarded_chat_model(inner, guard=lenient).invoke("hello").text == "I grumble."
            with pytest.raises(Blocked):
                guarded_chat_model(inner, guard=GUARD).invoke("hello")
        finally:
            set_llm_cache(None)
