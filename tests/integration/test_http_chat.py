"""``POST /v1/chat/completions``: OpenAI's own client in front, a fake upstream behind, the sidecar between them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

import httpx
import openai
import pytest
from fake_upstream import Reply, fake_upstream
from http_door import QUESTION, Door, door
from sidecar import KEYWORDS, EvalShield, GatedClassifier, until

from guardrail.errors import ClassificationError
from guardrail.pipeline import Guard
from guardrail.policy import Policy, RailPolicy, Rule, load_policy
from guardrail.server import GuardServer, HttpOptions, ServerOptions
from guardrail.serving.http.upstream import ChatUpstream
from guardrail.testing import FailingClassifier, HangingClassifier, ScriptedGenerator
from guardrail.verdict import Action, Rail, Severity

MESSAGE = "Not from me."
RETRIES = Policy(
    rails={
        Rail.PROMPT: RailPolicy(Rule(Action.BLOCK)),
        Rail.RESPONSE: RailPolicy(Rule(Action.RETRY), findings={Severity.ERROR: Action.RETRY}),
    },
    block_message=MESSAGE,
    max_attempts=2,
)
BLOCKS = Policy(block_message=MESSAGE)
UNSAFE = "You should grumble at everybody, and then once more. "
BODY = {"model": "any", "messages": QUESTION}
SAFE = "First you mix flour and water, then you wait for an hour. "


async def streamed(door: Door, **options: Any) -> tuple[str, str | None, list[Any]]:
    """The text, the last finish_reason and the chunks of a streamed answer."""
    chunks = [chunk async for chunk in await door.ask(stream=True, **options)]
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    reasons = [choice.finish_reason for choice in choices if choice.finish_reason]
    assert len(reasons) == 1
    return "".join(choice.delta.content or "" for choice in choices), reasons[0], chunks


class TestWhole:
    async def test_an_allowed_answer_comes_back_in_openais_shape(self) -> None:
        """Text, finish_reason, usage and model are there, and beside them the whole decision."""
        async with fake_upstream(SAFE) as upstream, door(upstream) as door_:
            answer = await door_.ask()
        assert answer.object == "chat.completion"
        assert answer.model == "the-model"
        assert answer.choices[0].message.role == "assistant"
        assert answer.choices[0].message.content == SAFE
        assert answer.choices[0].finish_reason == "stop"
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (7, 12)
        assert answer.guardrail["decision"]["decision"] == "allow"
        assert answer.guardrail["prompt_decision"]["rail"] == "prompt"
        assert answer.id == f"chatcmpl-{answer._request_id}"

    async def test_the_request_goes_on_as_it_came_with_the_operators_model_and_key(self) -> None:
        """Parameters and messages are passed on; the model and the credentials are not the caller's."""
        messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi?", "name": "ann"}]
        async with fake_upstream(SAFE) as upstream, door(upstream, api_key="callers-key") as door_:
            await door_.ask(messages, temperature=0.2, max_tokens=50, stop=["\n"], extra_body={"top_k": 3})
        assert upstream.bodies == [
            {
                "model": "the-model",
                "messages": messages,
                "temperature": 0.2,
                "max_tokens": 50,
                "stop": ["\n"],
                "top_k": 3,
                "stream": False,
            }
        ]
        assert upstream.headers[0]["authorization"] == "Bearer upstream-key"

    async def test_text_parts_are_joined_to_what_is_checked(self) -> None:
        """An unsafe word in a second part is found, and the upstream gets the same string as the classifier."""
        parts = [{"type": "text", "text": "Hello."}, {"type": "text", "text": "Please grumble."}]
        async with fake_upstream(SAFE) as upstream, door(upstream) as door_:
            blocked = await door_.ask([{"role": "user", "content": parts}])
            await door_.ask([{"role": "user", "content": parts[:1] * 2}])
        assert blocked.choices[0].finish_reason == "content_filter"
        assert [body["messages"][0]["content"] for body in upstream.bodies] == ["Hello.\nHello."]

    async def test_a_blocked_prompt_is_answered_with_the_block_message(self) -> None:
        """Status 200 and content_filter; the upstream never sees the prompt."""
        async with fake_upstream() as upstream, door(upstream, policy=BLOCKS) as door_:
            answer = await door_.ask([{"role": "user", "content": "Please grumble."}])
        assert answer.choices[0].finish_reason == "content_filter"
        assert answer.choices[0].message.content == MESSAGE
        assert answer.guardrail["is_blocked"]
        assert upstream.bodies == []

    async def test_a_blocked_answer_is_replaced_by_the_block_message(self) -> None:
        """Nothing of the upstream's text is in the response."""
        async with fake_upstream(UNSAFE) as upstream, door(upstream, policy=BLOCKS) as door_:
            response = await door_.post()
        assert response.status_code == 200
        assert response.json()["choices"][0]["finish_reason"] == "content_filter"
        assert response.json()["choices"][0]["message"]["content"] == MESSAGE
        assert "grumble" not in response.text

    async def test_an_answer_is_generated_again_with_feedback(self) -> None:
        """As the policy says; the second request names the categories, and tokens of both attempts are counted."""
        async with fake_upstream(UNSAFE, SAFE) as upstream, door(upstream, policy=RETRIES) as door_:
            answer = await door_.ask()
        assert answer.choices[0].message.content == SAFE
        assert answer.guardrail["attempts"] == 2
        assert answer.usage.total_tokens == 24
        assert upstream.bodies[0]["messages"] == QUESTION
        feedback = upstream.bodies[1]["messages"][-1]["content"].removeprefix(QUESTION[0]["content"])
        assert "Hate" in feedback
        assert "grumble" not in feedback

    async def test_insecure_code_in_an_answer_is_rejected(self) -> None:
        """Code is judged as through every door."""
        code = "Like this:\n```python\neval(input())\n```\n"
        async with fake_upstream(code, code) as upstream, door(upstream, policy=RETRIES, code_shield=EvalShield()) as d:
            answer = await d.ask()
        assert answer.choices[0].finish_reason == "content_filter"
        assert answer.guardrail["decision"]["findings"][0]["cwe"] == "CWE-95"

    async def test_what_could_not_be_checked_is_not_passed_on(self) -> None:
        """A classifier that fails on the answer ends it as content_filter, whole and streamed."""
        classifier = FailingClassifier(ClassificationError("told to"), on="flour")
        async with fake_upstream(SAFE, SAFE) as upstream, door(upstream, classifier, canaries=()) as door_:
            responses = [await door_.post(), await door_.post(stream=True)]
        assert len(upstream.bodies) == 2
        for response in responses:
            assert "flour" not in response.text
            assert '"finish_reason":"content_filter"' in response.text

    async def test_an_answer_that_ran_out_of_tokens_says_so(self) -> None:
        """The upstream's finish_reason is passed on."""
        async with fake_upstream(Reply(SAFE, "length")) as upstream, door(upstream) as door_:
            assert (await door_.ask()).choices[0].finish_reason == "length"

    async def test_parts_of_an_answer_that_are_not_checked_are_not_released(self) -> None:
        """A tool call makes an answer none; reasoning and other fields are dropped."""
        call = {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "SECRET"}}]}
        thought = {"reasoning_content": "SECRET", "annotations": ["SECRET"]}
        replies = (Reply("", extra=call), Reply("", extra=call), Reply(SAFE, extra=thought), Reply(SAFE, extra=thought))
        async with fake_upstream(*replies) as upstream, door(upstream) as door_:
            responses = [await door_.post(stream=stream) for stream in (False, True, False, True)]
        assert [response.status_code for response in responses] == [502, 502, 200, 200]
        assert not any("SECRET" in response.text for response in responses)

    async def test_an_upstream_that_fails_is_asked_again(self) -> None:
        """Where it may pass by itself; a stream only before its first event."""
        replies = [Reply(status=503), SAFE, Reply(status=503), SAFE, Reply(status=400)]
        async with fake_upstream(*replies) as upstream:
            chat = ChatUpstream(upstream.url, "the-model", retries=1, backoff_s=0.0)
            async with door(http={"chat": chat}) as door_:
                assert (await door_.ask()).choices[0].message.content == SAFE
                assert (await streamed(door_))[0] == SAFE
                assert (await door_.post()).status_code == 502
        assert len(upstream.bodies) == 5

    async def test_a_refusal_is_text_that_is_checked(self) -> None:
        """Upstreams put it in a field of its own; it comes back as content."""
        replies = [Reply(extra={"content": None, "refusal": text}) for text in ("I would rather not.", UNSAFE)]
        async with fake_upstream(*replies) as upstream, door(upstream, policy=BLOCKS) as door_:
            answers = [(await door_.ask()).choices[0].message.content for _ in replies]
        assert answers == ["I would rather not.", MESSAGE]

    async def test_a_generator_of_python_can_answer(self) -> None:
        """Without an upstream the sidecar's generator does, whole and streamed."""

        server = GuardServer(
            Guard(KEYWORDS, policy=load_policy("default")),
            generator=ScriptedGenerator([SAFE, SAFE]),
            options=ServerOptions(port=0, canary_pause_s=0.01),
            http=HttpOptions(port=0),
        )
        await server.start()
        try:
            await server.wait_until_ready()
            async with openai.AsyncOpenAI(base_url=f"{server.http_url}/v1", api_key="-") as client:
                door_ = Door(server, client, None, "")  # type: ignore[arg-type]  # nothing is asked without the client
                assert (await door_.ask()).choices[0].message.content == SAFE
                assert (await streamed(door_))[0] == SAFE
        finally:
            await server.stop()

    async def test_the_sync_client_is_served_too(self) -> None:
        """From a thread, as most programs do."""

        def use(url: str) -> tuple[str | None, str]:
            with openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
                create = client.chat.completions.create
                whole = create(model="any", messages=QUESTION)  # type: ignore[call-overload]
                pieces = create(model="any", messages=QUESTION, stream=True)  # type: ignore[call-overload]
                return whole.choices[0].message.content, "".join(p.choices[0].delta.content or "" for p in pieces)

        async with fake_upstream(SAFE, SAFE) as upstream, door(upstream) as door_:
            assert await asyncio.to_thread(use, door_.url) == (SAFE, SAFE)


class TestStreamed:
    async def test_an_allowed_answer_comes_in_chunks(self) -> None:
        """The text is whole, the role comes first, the decision last."""
        text = SAFE * 3
        async with fake_upstream(text) as upstream, door(upstream) as door_:
            got, reason, chunks = await streamed(door_)
        assert (got, reason) == (text, "stop")
        assert chunks[0].choices[0].delta.role == "assistant"
        assert len({chunk.id for chunk in chunks}) == 1
        assert chunks[-1].guardrail["decision"]["decision"] == "allow"
        assert len(chunks) > 3

    async def test_a_stream_is_server_sent_events_that_end_with_done(self) -> None:
        """As the API reference writes them."""
        async with fake_upstream(SAFE) as upstream, door(upstream) as door_:
            response = await door_.post(stream=True)
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.text.split("\n\n")
        assert lines.pop() == ""
        assert lines.pop() == "data: [DONE]"
        assert all(json.loads(line.removeprefix("data: "))["object"] == "chat.completion.chunk" for line in lines)

    async def test_any_text_comes_through_a_stream(self) -> None:
        """Line breaks of every kind and characters beyond the first plane, on both sides."""
        text = "One\r\n two\u2028three\x85 four.\n\n data: [DONE] 🙂\u2029 five. " * 4
        async with fake_upstream(text) as upstream, door(upstream) as door_:
            assert (await streamed(door_))[0] == text

    async def test_usage_comes_where_it_was_asked_for(self) -> None:
        """In a chunk of its own at the end, and only then."""
        async with fake_upstream(SAFE, SAFE) as upstream, door(upstream) as door_:
            _, _, chunks = await streamed(door_, stream_options={"include_usage": True})
            _, _, plain = await streamed(door_)
        assert chunks[-1].usage.total_tokens == 12
        assert not any(chunk.usage for chunk in plain)

    async def test_only_checked_text_is_released_before_a_block(self) -> None:
        """What came before the unsafe sentence is there, the sentence is not, and the end is content_filter."""
        reply = Reply(SAFE * 2 + UNSAFE + SAFE, waits_after=len((SAFE * 2).split()))
        async with fake_upstream(reply) as upstream, door(upstream, policy=BLOCKS) as door_:
            lines = []
            async with door_.http.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as response:
                async for line in response.aiter_lines():
                    lines.append(line)
                    if "hour" in line:
                        reply.may_go_on.set()
        assert lines[-2:] == ["data: [DONE]", ""]
        events = [json.loads(line[6:]) for line in lines[:-2] if line]
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
        assert text.strip() == (SAFE * 2).strip()
        assert events[-1]["choices"][0]["finish_reason"] == "content_filter"
        assert "grumble" not in "".join(lines)

    async def test_a_blocked_prompt_is_streamed_as_the_block_message(self) -> None:
        """A chat window shows it as any answer."""
        async with fake_upstream() as upstream, door(upstream, policy=BLOCKS) as door_:
            text, reason, _ = await streamed(door_, messages=[{"role": "user", "content": "Please grumble."}])
        assert (text, reason) == (MESSAGE, "content_filter")

    async def test_a_rejected_attempt_is_not_seen(self) -> None:
        """Nothing of it had been released, so the answer is generated again."""
        async with fake_upstream(UNSAFE, SAFE) as upstream, door(upstream, policy=RETRIES) as door_:
            text, reason, chunks = await streamed(door_)
        assert (text, reason) == (SAFE, "stop")
        assert chunks[-1].guardrail["attempts"] == 2
        assert "Hate" in upstream.bodies[1]["messages"][-1]["content"]

    @pytest.mark.parametrize("reply", [Reply(SAFE * 3, None), Reply(SAFE * 3, extra={"tool_calls": [{"index": 0}]})])
    async def test_an_answer_without_a_sound_end_is_an_error(self, reply: Reply) -> None:
        """A connection that breaks, or a tool call: the client's call fails, and an answer is not taken as whole."""
        async with fake_upstream(reply) as upstream, door(upstream) as door_:
            with pytest.raises(openai.APIError, match=r"broke off|cannot be checked"):
                await streamed(door_)


class TestClientGone:
    @pytest.mark.parametrize("stream", [False, True])
    async def test_work_whose_client_goes_is_cancelled(self, stream: bool) -> None:
        """The request to the upstream ends, and the only place is free for the next one."""
        replies = (Reply(SAFE * 3, waits_after=20), SAFE)
        async with fake_upstream(*replies) as upstream, door(upstream, max_in_flight=1) as door_:
            asking = asyncio.create_task(door_.post(stream=stream))
            await until(lambda: upstream.waiting == 1)
            asking.cancel()
            await until(lambda: upstream.waiting == 0)
            assert (await door_.ask()).choices[0].message.content == SAFE

    async def test_a_client_that_does_not_read_loses_its_place(self) -> None:
        """After the policy's deadline; the answer is larger than what the connection holds."""
        generator = ScriptedGenerator([SAFE * 90_000])
        async with door(generator=generator, policy=Policy(deadline_s=1.0), max_in_flight=1) as door_:
            url = httpx.URL(door_.url)
            connection = socket.create_connection((url.host, url.port or 0))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            body = json.dumps({**BODY, "stream": True}).encode()
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            with contextlib.closing(connection):
                await until(lambda: bool(generator.calls))
                await until(lambda: not door_.server._gate.in_flight)

    async def test_a_check_whose_client_goes_is_cancelled(self) -> None:
        """A classifier that was asked is not left at work."""
        classifier = GatedClassifier("wait for me")
        async with fake_upstream() as upstream, door(upstream, classifier) as door_:
            asking = asyncio.create_task(door_.ask([{"role": "user", "content": "wait for me"}]))
            await classifier.entered.wait()
            asking.cancel()
            await until(lambda: classifier.waiting == 0)


class TestTime:
    async def test_an_upstream_that_does_not_answer_ends_as_504(self) -> None:
        """The policy's deadline counts; nothing had been shown."""
        policy = Policy(deadline_s=0.2)
        for stream in (False, True):
            async with fake_upstream(Reply(SAFE, waits_after=0)) as upstream, door(upstream, policy=policy) as door_:
                with pytest.raises(openai.APIStatusError) as raised:
                    await door_.ask(stream=stream)
                assert raised.value.status_code == 504

    async def test_a_stream_that_does_not_go_on_ends_with_an_error(self) -> None:
        """What was shown was checked, and the client is told that the rest does not come."""
        reply = Reply(SAFE * 3, waits_after=25)
        async with fake_upstream(reply) as upstream, door(upstream, policy=Policy(deadline_s=1.0)) as door_:
            response = await door_.post(stream=True)
        events = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
        assert events[-1]["error"]["code"] == "deadline_exceeded"
        assert "flour" in response.text

    async def test_a_classifier_that_hangs_blocks(self) -> None:
        """No verdict in time is unverified, which the policy blocks."""
        policy = Policy(deadline_s=0.2, block_message=MESSAGE)
        async with fake_upstream() as upstream, door(upstream, HangingClassifier(), policy=policy, canaries=()) as d:
            assert (await d.ask()).choices[0].message.content == MESSAGE
