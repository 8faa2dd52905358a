"""``GenerateStream``: checked text as it is released, from generators that stream and from those that do not."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from sidecar import KEYWORDS, GatedClassifier, client_of, in_thread, served, until
from streams import stub_to

from guardrail._pb import guard_pb2 as pb
from guardrail.errors import (
    Blocked,
    ConfigurationError,
    DeadlineExceeded,
    GenerationError,
    InvalidInput,
    Overloaded,
)
from guardrail.generators.openai_compatible import OpenAIGenerator
from guardrail.pipeline import Guard
from guardrail.policy import load_policy, parse_policy
from guardrail.progress import PromptCheck
from guardrail.protocols import StreamingGenerator
from guardrail.streaming import astream, astream_exchange, begin_with
from guardrail.testing import ScriptedGenerator
from guardrail.verdict import Action, Conversation, Exchange, Message, Role

SAFE = "This is the first sentence of a long answer. Here is a second one that says a little more.\n"
UNSAFE = "And now I grumble about everybody in this whole town. "
HELLO = (Message(Role.USER, "hello"),)


class StreamedGenerator:
    """Gives scripted answers in pieces of five; a script waits at an event, and at None until it is closed."""

    def __init__(self, *answers: Sequence[str | asyncio.Event | None]) -> None:
        self._answers = iter(answers)
        self.feedback: list[str | None] = []
        self.closed = 0

    async def generate(self, conversation: Conversation, *, attempt: int, feedback: str | None) -> str:
        raise AssertionError("a generator that streams is streamed")

    async def stream(self, conversation: Conversation, *, attempt: int, feedback: str | None) -> AsyncIterator[str]:
        self.feedback.append(feedback)
        try:
            for part in next(self._answers):
                if not isinstance(part, str):
                    await (part or asyncio.Event()).wait()
                    continue
                for at in range(0, len(part), 5):
                    yield part[at : at + 5]
        finally:
            self.closed += 1


_HELD: type[StreamingGenerator] = StreamedGenerator  # mypy holds it to the seam
_HELD_TOO: type[StreamingGenerator] = OpenAIGenerator


async def collected(stream: Any) -> tuple[str, Exchange]:
    shown: list[str] = []
    blocked = False
    try:
        async for text in stream:
            shown.append(text)
    except Blocked as exc:
        blocked = exc.decision == stream.decision
    assert stream.exchange is not None
    assert blocked == stream.exchange.is_blocked
    return "".join(shown), stream.exchange


class TestExchange:
    async def test_text_comes_as_it_is_released_and_then_the_exchange(self) -> None:
        """From both clients, in more pieces than one, with the answer whole at the end."""
        generator = StreamedGenerator([SAFE, SAFE], [SAFE, SAFE])
        async with served(generator=generator) as server, client_of(server) as client:
            text, exchange = await collected(client.generate_stream(HELLO))
            texts = await in_thread(server, lambda c: list(c.generate_stream(HELLO)))
        assert text == "".join(texts) == exchange.text == SAFE * 2
        assert exchange.prompt_decision.action is Action.ALLOW
        assert [attempt.number for attempt in exchange.attempts] == [1]
        assert generator.closed == 2

    async def test_the_first_text_does_not_wait_for_the_rest(self) -> None:
        """And a client that leaves ends the generation."""
        generator = StreamedGenerator([SAFE, None])
        async with served(generator=generator, max_in_flight=1) as server, client_of(server) as client:
            stream = client.generate_stream(HELLO)
            assert SAFE.startswith(await anext(stream))
            assert stream.exchange is stream.decision is None
            await stream.aclose()
            await until(lambda: generator.closed == 1)
            await until(lambda: not server._gate.calls)

    async def test_an_unsafe_start_is_generated_again(self) -> None:
        """With feedback, while nothing was released; the rejected text comes where it is asked for."""
        generator = StreamedGenerator([UNSAFE, None], [SAFE])
        async with served(generator=generator) as server, client_of(server) as client:
            text, exchange = await collected(client.generate_stream(HELLO, include_rejected_text=True))
        assert text == SAFE
        assert [attempt.decision.action for attempt in exchange.attempts] == [Action.RETRY, Action.ALLOW]
        assert exchange.attempts[0].text.startswith(UNSAFE[:40])
        assert "Hate" in (generator.feedback[1] or "")
        assert generator.closed == 2

    async def test_unsafe_text_after_a_release_ends_the_exchange(self) -> None:
        """What was shown was checked; the block message comes with the exchange, and the generator is closed."""
        shown = asyncio.Event()
        generator = StreamedGenerator([SAFE, shown, UNSAFE, None])
        async with served(generator=generator) as server, client_of(server) as client:
            stream = client.generate_stream(HELLO)
            text = await anext(stream)
            shown.set()
            rest, exchange = await collected(stream)
        assert (text + rest).rstrip() == SAFE.rstrip()
        assert exchange.is_blocked
        assert exchange.text == load_policy("default").block_message
        assert exchange.attempts[0].text == ""
        assert generator.closed == 1

    async def test_attempts_are_bounded(self) -> None:
        """As many as the policy says."""
        generator = StreamedGenerator(*[[UNSAFE]] * 9)
        async with served(generator=generator) as server, client_of(server) as client:
            text, exchange = await collected(client.generate_stream(HELLO))
        assert text == ""
        assert len(exchange.attempts) == load_policy("default").max_attempts

    async def test_the_total_time_is_bounded(self) -> None:
        """By the policy's deadline, for a generator that stalls, which is closed."""
        generator = StreamedGenerator([SAFE, None])
        policy = parse_policy("version: 1\ndeadline_s: 0.3")
        async with served(generator=generator, policy=policy) as server, client_of(server) as client:
            stream = client.generate_stream(HELLO)
            with pytest.raises(DeadlineExceeded):
                await collected(stream)
            assert generator.closed == 1

    async def test_a_generator_that_cannot_stream_is_used_whole(self) -> None:
        """The answer is checked and comes at once."""
        async with (
            served(generator=ScriptedGenerator([UNSAFE, SAFE])) as server,
            client_of(server) as client,
        ):
            text, exchange = await collected(client.generate_stream(HELLO))
        assert text == SAFE
        assert len(exchange.attempts) == 2


class TestPromptCheck:
    @pytest.mark.parametrize("mode", ["first", "parallel"])
    async def test_a_blocked_prompt_gives_the_same_exchange(self, mode: str) -> None:
        """No text, no attempts, the prompt's decision."""
        generator = StreamedGenerator([SAFE, SAFE], [SAFE])
        async with served(generator=generator) as server, client_of(server) as client:
            prompt = [Message(Role.USER, "I grumble")]
            text, exchange = await collected(client.generate_stream(prompt, prompt_check=mode))
        assert text == ""
        assert exchange.is_blocked
        assert exchange.attempts == ()
        assert exchange.decision == exchange.prompt_decision
        assert generator.closed == (0 if mode == "first" else 1)

    async def test_the_generation_runs_beside_the_check_and_nothing_is_released_before_it(self) -> None:
        """The generator has begun while the prompt is judged; its text comes after."""
        gated = GatedClassifier()
        generator = StreamedGenerator([SAFE, SAFE])
        async with served(gated, generator=generator) as server, client_of(server) as client:
            stream = client.generate_stream([Message(Role.USER, "please wait")], prompt_check="parallel")
            first = asyncio.ensure_future(anext(stream))
            await until(lambda: bool(generator.feedback) and gated.waiting == 1)
            await asyncio.sleep(0.05)
            assert not first.done()
            gated.may_go.set()
            assert SAFE.startswith((await first)[: len(SAFE)])
            await stream.aclose()

    async def test_a_blocked_prompt_cancels_a_generation_that_stalls(self) -> None:
        """Before it has given anything."""
        gated = GatedClassifier()
        generator = StreamedGenerator([None])
        async with served(gated, generator=generator) as server, client_of(server) as client:
            prompt = [Message(Role.USER, "wait, I grumble")]
            running = asyncio.ensure_future(collected(client.generate_stream(prompt, prompt_check="parallel")))
            await gated.entered.wait()
            await until(lambda: bool(generator.feedback))
            gated.may_go.set()
            text, exchange = await running
            await until(lambda: generator.closed == 1)
        assert (text, exchange.attempts) == ("", ())

    @pytest.mark.parametrize("mode", PromptCheck)
    async def test_in_process_it_is_the_same(self, mode: PromptCheck) -> None:
        """``astream`` raises, ``astream_exchange`` tells; an answer that is rejected waits for the prompt, too."""
        guard = Guard(KEYWORDS, policy=load_policy("default"))
        generator = StreamedGenerator([UNSAFE], [SAFE], [SAFE])
        begin = begin_with(generator, Conversation(HELLO))
        parts = [p async for p in astream_exchange(guard, Conversation(HELLO), begin, prompt_check=mode)]
        assert isinstance(parts[-1], Exchange)
        assert [a.decision.action for a in parts[-1].attempts] == [Action.RETRY, Action.ALLOW]
        blocked = Conversation.of("I grumble")
        with pytest.raises(Blocked):
            [p async for p in astream(guard, blocked, begin_with(generator, blocked), prompt_check=mode)]

    async def test_an_unknown_mode_is_an_error(self) -> None:
        """Told by the client."""
        async with served() as server, client_of(server) as client:
            with pytest.raises(InvalidInput, match="one of first, parallel"):
                client.generate_stream(HELLO, prompt_check="later")


class TestErrors:
    async def test_requests_are_refused_as_generate_refuses_them(self) -> None:
        """No generator, a conversation that is not the user's turn, a full server."""
        async with served() as server, client_of(server) as client:
            with pytest.raises(ConfigurationError, match="--upstream URL"):
                await anext(client.generate_stream(HELLO))
        generator = StreamedGenerator([SAFE, None])
        full = {"max_in_flight": 1, "max_waiting": 0}
        async with served(generator=generator, **full) as server, client_of(server) as client:
            with pytest.raises(InvalidInput, match="must be from user"):
                await anext(client.generate_stream([Message(Role.ASSISTANT, "hello")]))
            first = client.generate_stream(HELLO)
            await anext(first)
            with pytest.raises(Overloaded):
                await anext(client.generate_stream(HELLO))
            await first.aclose()

    async def test_a_generator_that_fails_is_told(self) -> None:
        """After what was released."""

        class Failing(StreamedGenerator):
            async def stream(
                self, conversation: Conversation, *, attempt: int, feedback: str | None
            ) -> AsyncIterator[str]:
                yield SAFE
                raise GenerationError("upstream broke off")

        async with served(generator=Failing()) as server, client_of(server) as client:
            stream = client.generate_stream(HELLO)
            assert SAFE.startswith(await anext(stream))
            with pytest.raises(GenerationError, match="broke off"):
                await collected(stream)

    async def test_malformed_bytes_are_an_invalid_argument(self) -> None:
        """As in the other methods."""
        async with (
            served() as server,
            stub_to(server),
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            call = channel.unary_stream("/guardrail.v1.GuardService/GenerateStream")(b"\xff\xff")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    async def test_every_message_has_the_request_s_id(self) -> None:
        """The client's own."""
        async with served(generator=StreamedGenerator([SAFE, SAFE])) as server, stub_to(server) as stub:
            user = pb.Message(role=pb.ROLE_USER, content="hello")
            call = stub.GenerateStream(pb.GenerateStreamRequest(request_id="mine", messages=[user]))
            responses = [response async for response in call]
        assert {response.request_id for response in responses} == {"mine"}
        assert responses[-1].exchange.request_id == "mine"
        assert [response.WhichOneof("part") for response in responses][-1] == "exchange"


def event(text: object, **choice: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}, **choice}]}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


class Upstream:
    """A chat server that streams scripted bytes: (status, type, parts), None for a lost connection.

    A part of None loses the connection there; "hang" waits.
    """

    def __init__(self) -> None:
        self.replies: list[tuple[int, str, list[bytes | str | None]] | None] = []
        self.requests: list[Any] = []
        self._released = threading.Event()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                upstream.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                reply = upstream.replies.pop(0)
                self.close_connection = True
                if reply is None:
                    return
                status, kind, parts = reply
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for part in parts:
                    if part is None:
                        return
                    if isinstance(part, str):
                        upstream._released.wait()
                        return
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                    self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def streams(self, *parts: bytes | str | None) -> None:
        self.replies.append((200, "text/event-stream", list(parts)))

    def close(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    yield server
    server.close()


async def texts_of(upstream: Upstream, **options: Any) -> list[str]:
    generator = OpenAIGenerator(upstream.url, "llama-3", **{"backoff_s": 0.0, **options})
    try:
        return [text async for text in generator.stream(Conversation(HELLO), attempt=1, feedback=None)]
    finally:
        await generator.aclose()


class TestOpenAIGenerator:
    async def test_it_asks_for_a_stream_and_reads_its_events(self, upstream: Upstream) -> None:
        """Roles, comments, usage and other fields are no text; a mark that JSON may hold ends no line."""
        whole = event("a\u2028b", finish_reason=None)
        upstream.streams(
            b": hello\r\n\r\n",
            b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n',
            whole[:9],
            whole[9:],
            event(None) + event("ü"),
            b'event: x\ndata: {"choices": [], "usage": {}}\n\n',
            DONE,
        )
        assert await texts_of(upstream) == ["a\u2028b", "ü"]
        assert upstream.requests[0]["stream"] is True

    async def test_a_finish_reason_is_an_end(self, upstream: Upstream) -> None:
        """Where a server leaves the last event out."""
        upstream.streams(event("fine"), event("", finish_reason="stop"))
        assert await texts_of(upstream) == ["fine"]

    async def test_a_server_that_does_not_stream_is_read_whole(self, upstream: Upstream) -> None:
        """By what it says of its answer."""
        body = json.dumps({"choices": [{"message": {"content": "fine"}}]}).encode()
        upstream.replies = [(200, "application/json", [body])]
        assert await texts_of(upstream) == ["fine"]

    @pytest.mark.parametrize("reply", [(503, "text/plain", [b"private"]), (429, "text/plain", []), None])
    async def test_what_may_pass_is_tried_again_before_the_first_byte(self, upstream: Upstream, reply: Any) -> None:
        """A server error, a busy server, a lost connection."""
        upstream.replies = [reply, reply]
        upstream.streams(event("fine"), DONE)
        assert await texts_of(upstream) == ["fine"]
        assert len(upstream.requests) == 3

    @pytest.mark.parametrize(
        ("parts", "words"),
        [
            ([event("private"), None], "broke off"),
            ([event("private")], "its answer has no end"),
            ([event("fine"), b"data: private\n\n"], "7 bytes that is not JSON"),
            ([b"data: []\n\n"], "without choices"),
            ([b'data: {"error": {"message": "private"}}\n\n'], "without choices"),
            ([event(["private"])], "got list"),
            ([b"data: " + b"x" * (1024 * 1024 + 1)], "more than 1048576 bytes"),
        ],
        ids=["lost", "no end", "not JSON", "no object", "error", "no text", "endless line"],
    )
    async def test_an_answer_that_breaks_off_is_an_error(
        self, upstream: Upstream, parts: list[bytes | None], words: str
    ) -> None:
        """Asked once: its first text may have been shown. And told without any text."""
        upstream.streams(*parts)
        with pytest.raises(GenerationError, match=words) as caught:
            await texts_of(upstream)
        assert len(upstream.requests) == 1
        for error in (caught.value, caught.value.__cause__):
            assert "private" not in str(error)

    async def test_silence_is_an_error(self, upstream: Upstream) -> None:
        """In the middle of an answer as before it."""
        upstream.streams(event("fine"), "hang")
        with pytest.raises(GenerationError, match="broke off"):
            await texts_of(upstream, timeout_s=0.2)
        upstream.streams("hang")
        with pytest.raises(GenerationError, match=r"no answer within 0\.2 s"):
            await texts_of(upstream, timeout_s=0.2)

    async def test_a_sidecar_streams_through_it(self, upstream: Upstream) -> None:
        """From the upstream's events to the client's text."""
        upstream.streams(*[event(SAFE[at : at + 7]) for at in range(0, len(SAFE), 7)], DONE)
        generator = OpenAIGenerator(upstream.url, "llama-3")
        async with served(generator=generator) as server, client_of(server) as client:
            text, exchange = await collected(client.generate_stream(HELLO))
        await generator.aclose()
        assert text == exchange.text == SAFE
