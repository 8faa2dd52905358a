"""The HTTP door's requests and answers as values: what is taken, what is refused, and in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from guardrail.errors import (
    ConfigurationError,
    DeadlineExceeded,
    GenerationError,
    GuardrailError,
    InternalError,
    InvalidInput,
    Overloaded,
    Unauthenticated,
    Unavailable,
)
from guardrail.serving.http.answers import Answer, event, moderation_to_dict
from guardrail.serving.http.backends import Usage
from guardrail.serving.http.problems import Refused, problem_of
from guardrail.serving.http.requests import read_chat, read_json, read_moderation
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import (
    Action,
    Conversation,
    Decision,
    Exchange,
    Message,
    Outcome,
    Rail,
    Reason,
    ReasonKind,
    Role,
    Source,
    Verdict,
)

MARK = "ZEBRA"
USER = {"role": "user", "content": MARK}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "any", "messages": [USER], **fields}


def decision(action: Action, *reasons: Reason) -> Decision:
    verdict = Verdict(Outcome.SAFE, Source("a-model"), {HazardCategory.HATE: 0.25})
    return Decision(action, Rail.RESPONSE, (verdict,), reasons, "default", "0" * 16)


class TestReadChat:
    def test_what_is_checked_is_what_is_sent(self) -> None:
        """Roles, texts and names, in their order; developer counts as system."""
        messages = [
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "ann"},
            {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "annotations": []},
            USER,
        ]
        request = read_chat(chat(messages=messages))
        assert request.conversation == Conversation(
            (
                Message(Role.SYSTEM, "Be kind."),
                Message(Role.USER, "a\nb"),
                Message(Role.ASSISTANT, "c"),
                Message(Role.USER, MARK),
            )
        )
        assert [message["content"] for message in request.messages] == ["Be kind.", "a\nb", "c", MARK]
        assert [message["role"] for message in request.messages] == ["developer", "user", "assistant", "user"]
        assert request.messages[1]["name"] == "ann"
        assert request.messages[2].keys() == {"role", "content"}

    def test_our_own_answers_may_come_back(self) -> None:
        """A client that keeps the message as it came, with our field, is understood."""
        answer = Answer("id", "m", 0).completion(
            Exchange("hello", decision(Action.ALLOW), decision(Action.ALLOW), ()), finish_reason="stop", usage=None
        )
        read_chat(chat(messages=[USER, answer["choices"][0]["message"], USER]))

    def test_parameters_are_passed_on_as_they_are(self) -> None:
        """Those that say how to generate; what is empty counts as not given."""
        parameters = {"temperature": 0.5, "stop": ["x"], "response_format": {"type": "json_object"}, "seed": 0}
        request = read_chat(chat(**parameters, tools=[], n=1, logprobs=False, modalities=["text"], user=None))
        assert request.parameters == parameters

    def test_streaming_and_usage(self) -> None:
        """Both are off unless asked for."""
        assert not read_chat(chat()).is_streamed
        request = read_chat(chat(stream=True, stream_options={"include_usage": True}))
        assert request.is_streamed
        assert request.includes_usage

    @pytest.mark.parametrize(
        "fields",
        [
            {"n": 2},
            {"n": "1"},
            {"tools": [{"type": "function", "function": {"name": MARK}}]},
            {"tool_choice": "none"},
            {"parallel_tool_calls": False},
            {"functions": [{"name": MARK}]},
            {"function_call": "auto"},
            {"logprobs": True},
            {"top_logprobs": 3},
            {"modalities": ["text", "audio"]},
            {"audio": {"voice": "alloy"}},
            {"prediction": {"type": "content", "content": MARK}},
            {"web_search_options": {}},
            {"echo": True},
            {MARK: 1},
            {"stream": "yes"},
            {"stream_options": {MARK: True}},
            {"stream_options": {"include_usage": "yes"}},
            {"messages": None},
            {"messages": MARK},
            {"messages": []},
            {"messages": [MARK]},
            {"messages": [{"role": MARK, "content": "a"}]},
            {"messages": [{"role": ["user"], "content": "a"}]},
            {"messages": [{"role": "user", "content": {"text": MARK}}]},
            {"messages": [{"role": "user", "content": 7}]},
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": MARK}}]}]},
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": MARK}}]}]},
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            {"messages": [{"role": "user", "content": [MARK]}]},
            {"messages": [{"role": "user", "content": "half a pair \ud800"}]},
            {"messages": [{**USER, "name": "a b"}]},
            {"messages": [{**USER, "cache_control": {}}]},
            {"messages": [USER, {"role": "assistant", "content": MARK}]},
            {"messages": [USER, {"role": "tool", "content": MARK, "tool_call_id": "1"}]},
            {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"id": MARK}]}, USER]},
            {"messages": [{"role": "assistant", "audio": {"id": MARK}}, USER]},
        ],
    )
    def test_what_could_pass_the_check_by_is_refused(self, fields: dict[str, Any]) -> None:
        """With what to do, and without a word of the request."""
        with pytest.raises(InvalidInput) as raised:
            read_chat(chat(**fields))
        assert MARK not in str(raised.value)


class TestReadJson:
    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b'"ZEBRA"', b"\xff{}", b'{"a": NaN}', b"[" * 99_999])
    def test_anything_but_an_object_is_refused(self, body: bytes) -> None:
        """Without quoting it, in the message and in its cause."""
        with pytest.raises(InvalidInput) as raised:
            read_json(body)
        assert MARK not in str(raised.value)
        assert raised.value.__cause__ is None


class TestReadModeration:
    @pytest.mark.parametrize(
        ("value", "texts"),
        [
            ("a", ["a"]),
            (["a", "b"], ["a", "b"]),
            ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], ["a\nb"]),
        ],
    )
    def test_one_text_or_many(self, value: Any, texts: list[str]) -> None:
        """Parts are one text, as in requests with pictures."""
        read = read_moderation({"input": value, "model": "omni"}, max_inputs=2)
        assert [conversation.last.content for conversation in read] == texts

    def test_an_answer_with_its_prompt_and_path(self) -> None:
        """Our own fields."""
        fields = {"input": "b", "role": "assistant", "prompt": "a", "path": "chat"}
        assert read_moderation(fields, max_inputs=1) == [
            Conversation((Message(Role.USER, "a"), Message(Role.ASSISTANT, "b")), "chat")
        ]

    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"input": []},
            {"input": ["a", "b", "c"]},
            {"input": [MARK, 1]},
            {"input": [{"type": "image_url", "image_url": {"url": MARK}}]},
            {"input": "a", "role": MARK},
            {"input": "a", "role": "user", "prompt": MARK},
            {"input": "a", "path": MARK * 300},
            {"input": "a", MARK: 1},
            {"input": "\ud800"},
        ],
    )
    def test_what_cannot_be_judged_is_refused(self, fields: dict[str, Any]) -> None:
        """With what to do, and without a word of the request."""
        with pytest.raises(InvalidInput) as raised:
            read_moderation(fields, max_inputs=2)
        assert MARK not in str(raised.value)


class TestProblems:
    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (Refused(413, "body_too_large", "m"), 413),
            (InvalidInput("m"), 400),
            (Unauthenticated("m"), 401),
            (Overloaded("m", retry_after_s=1.2), 429),
            (InternalError("m"), 500),
            (ConfigurationError("m"), 501),
            (GenerationError("m"), 502),
            (Unavailable("m"), 503),
            (DeadlineExceeded("m"), 504),
            (GuardrailError("m"), 500),
        ],
    )
    def test_each_error_has_a_status_and_openais_shape(self, error: GuardrailError, status: int) -> None:
        """An error that the table does not know is a failure of the server."""
        problem = problem_of(error)
        assert problem.status == status
        body = problem.to_dict()["error"]
        assert body.keys() == {"message", "type", "param", "code"}
        assert body["code"]

    def test_an_overloaded_server_says_when_to_come_back(self) -> None:
        """In whole seconds, rounded up."""
        assert problem_of(Overloaded("m", retry_after_s=1.2)).headers["Retry-After"] == "2"


class TestAnswers:
    def test_an_event_is_one_line(self) -> None:
        """Line breaks of the text are escaped, so no text can end an event or begin another one."""
        written = event({"text": 'a\n\ndata: [DONE]\r\u2028"'})
        assert written.startswith(b"data: {")
        assert written.endswith(b"}\n\n")
        assert b"\n" not in written[:-2]
        assert len(written.decode().splitlines()) == 2
        assert json.loads(written[6:])["text"] == 'a\n\ndata: [DONE]\r\u2028"'

    @pytest.mark.parametrize("action", list(Action))
    def test_only_what_is_released_keeps_its_finish_reason(self, action: Action) -> None:
        """Anything else is content_filter."""
        exchange = Exchange("text", decision(action), decision(Action.ALLOW), ())
        whole = Answer("id", "m", 0).completion(exchange, finish_reason="length", usage=Usage(1, 2))
        last = Answer("id", "m", 0).last_chunk(exchange, finish_reason="length")
        expected = "length" if action.releases else "content_filter"
        assert whole["choices"][0]["finish_reason"] == last["choices"][0]["finish_reason"] == expected
        assert whole["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}

    @pytest.mark.parametrize("action", list(Action))
    def test_flagged_means_not_to_be_shown(self, action: Action) -> None:
        """A category is true where the policy minds it; no score is null."""
        reason = Reason(action, ReasonKind.HAZARD, "hate", 0.25, 0.2)
        (result,) = moderation_to_dict([decision(action, reason)], request_id="i", model="m")["results"]
        assert result["flagged"] is not action.releases
        assert result["categories"]["hate"] is (action is not Action.ALLOW)
        assert result["category_scores"]["hate"] == 0.25
        assert result["category_scores"]["privacy"] is None
        assert set(result["categories"]) == {category.value for category in HazardCategory}
