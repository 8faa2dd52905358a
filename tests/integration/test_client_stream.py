"""The clients' streams against a real server: text comes out only as it may be shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sidecar import KEYWORDS, GatedClassifier, client_of, in_thread, served, standing_in, until
from streams import EvalShield

from guardrail import wire
from guardrail._pb import guard_pb2 as pb
from guardrail._pb import guard_pb2_grpc
from guardrail.client import AsyncGuardClient, GuardClient
from guardrail.errors import Blocked, InternalError, InvalidInput, Overloaded, Unavailable
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.progress import Release
from guardrail.verdict import Action, Conversation, Decision, Message, Role

SAFE = "This is the first sentence of a long answer. Here is a second one that says a little more.\n"
UNSAFE = "And now I grumble about everybody in this whole town. "


def cut(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


async def shown_by(stream: Any) -> tuple[str, Decision]:
    """The text that a stream gave, and the decision that it ended with, blocked or not."""
    shown: list[str] = []
    blocked: Decision | None = None
    try:
        async for text in stream:
            shown.append(text)
    except Blocked as exc:
        blocked = exc.decision
    assert stream.decision is not None
    assert blocked == (None if stream.decision.action.releases else stream.decision)
    return "".join(shown), stream.decision


def shown_in_thread(stream: Any) -> tuple[str, Decision]:
    shown: list[str] = []
    blocked: Decision | None = None
    try:
        for text in stream:
            shown.append(text)
    except Blocked as exc:
        blocked = exc.decision
    assert stream.decision is not None
    assert blocked == (None if stream.decision.action.releases else stream.decision)
    return "".join(shown), stream.decision


class TestText:
    @pytest.mark.parametrize("size", [1, 7, 1000])
    async def test_both_clients_give_the_whole_text_and_check_s_decision(self, size: int) -> None:
        """From iterables and async iterables, whatever the deltas."""
        text = SAFE * 3
        deltas = cut(text, size)

        async def source() -> AsyncIterator[str]:
            for piece in deltas:
                yield piece

        guard = Guard(KEYWORDS, policy=load_policy("default"))
        expected = await guard.acheck(Conversation.of(text, role=Role.ASSISTANT, prompt="hello"))
        async with served() as server, client_of(server) as client:
            for given in (deltas, source()):
                assert await shown_by(client.stream(given, prompt="hello")) == (text, expected)
            found = await in_thread(server, lambda c: shown_in_thread(c.stream(deltas, prompt="hello")))
        assert found == (text, expected)

    async def test_unsafe_text_is_never_given(self) -> None:
        """What comes out was checked, and the block is an exception with the decision."""
        deltas = cut(SAFE + UNSAFE + SAFE, 5)
        async with served() as server, client_of(server) as client:
            expected = await client.check("".join(deltas), role=Role.ASSISTANT)
            text, decision = await shown_by(client.stream(deltas))
            assert (text.rstrip(), decision) == (SAFE.rstrip(), expected)
            text, decision = await shown_by(client.stream(deltas, stop_early=True))
            assert (text.rstrip(), decision.action) == (SAFE.rstrip(), Action.RETRY)
            text, decision = await in_thread(server, lambda c: shown_in_thread(c.stream(deltas)))
            assert (text.rstrip(), decision.action) == (SAFE.rstrip(), Action.RETRY)
            with pytest.raises(Blocked, match="hate"):
                await anext(client.stream([UNSAFE]))

    async def test_text_comes_before_the_answer_is_complete(self) -> None:
        """The next delta is written only after the text of the last one was shown."""
        shown = asyncio.Event()

        async def source() -> AsyncIterator[str]:
            yield SAFE
            await shown.wait()
            yield SAFE

        async with served() as server, client_of(server) as client:
            stream = client.stream(source())
            assert await anext(stream) == SAFE
            assert stream.decision is None
            shown.set()
            assert [piece async for piece in stream] == [SAFE]
            assert stream.decision is not None

    async def test_a_messages_conversation_is_context(self) -> None:
        """Given whole, in place of a prompt."""
        messages = [Message(Role.SYSTEM, "be kind"), Message(Role.USER, "hello")]
        async with served() as server, client_of(server) as client:
            assert (await shown_by(client.stream([SAFE], messages=messages)))[0] == SAFE
            with pytest.raises(InvalidInput, match="either prompt or messages"):
                client.stream([SAFE], prompt="hello", messages=messages)

    async def test_findings_are_told(self) -> None:
        """With spans in the answer, as they appear."""
        text = f"{SAFE}```python\nx = eval(y)\n```\n{SAFE}"
        async with (
            served(code_shield=EvalShield(), policy=load_policy("monitor")) as server,
            client_of(server) as client,
        ):
            stream = client.stream(cut(text, 9))
            assert (await shown_by(stream))[0] == text
        assert [text[f.span.start : f.span.end] for f in stream.findings] == ["eval("]


class TestOptimistic:
    async def test_text_is_given_before_its_check(self) -> None:
        """The stream says that it is optimistic, and raises when the check is done."""
        gated = GatedClassifier()
        async with served(gated) as server, client_of(server) as client:
            stream = client.stream([f"Please wait, {UNSAFE}"], release="immediately")
            assert await anext(stream) == f"Please wait, {UNSAFE}"
            assert stream.release is stream.progress.release is Release.IMMEDIATELY
            assert stream.progress.checked_through == 0
            gated.may_go.set()
            with pytest.raises(Blocked):
                await anext(stream)

    async def test_it_has_to_be_asked_for_by_name(self) -> None:
        """A stream is of the other kind by default, and an unknown name is an error."""
        async with served() as server, client_of(server) as client:
            assert client.stream([]).release is Release.CHECKED
            with pytest.raises(InvalidInput, match="one of checked, immediately"):
                client.stream([], release="soon")


class TestSources:
    async def test_a_source_that_raises_is_heard(self) -> None:
        """The caller's own error comes back; what had come is not taken for the answer."""

        async def broken() -> AsyncIterator[str]:
            yield SAFE
            raise KeyError("mine")

        def broken_too() -> Iterator[str]:
            yield SAFE
            raise KeyError("mine")

        def use(client: GuardClient) -> None:
            stream = client.stream(broken_too())
            with pytest.raises(KeyError, match="mine"):
                list(stream)
            assert stream.decision is None

        async with served() as server, client_of(server) as client:
            stream = client.stream(broken())
            with pytest.raises(KeyError, match="mine"):
                await shown_by(stream)
            assert stream.decision is None
            await in_thread(server, use)

    @pytest.mark.parametrize(("piece", "error"), [(b"bytes", TypeError), ("\ud800", InvalidInput)])
    async def test_a_delta_that_is_no_text_is_an_error(self, piece: Any, error: type[Exception]) -> None:
        """In both clients, without its content."""
        async with served() as server, client_of(server) as client:
            with pytest.raises(error):
                await shown_by(client.stream([SAFE, piece]))
            with pytest.raises(error):
                await in_thread(server, lambda c: shown_in_thread(c.stream([SAFE, piece])))

    async def test_a_blocked_stream_closes_its_source(self) -> None:
        """The model does not go on writing for nobody."""
        ended: list[str] = []

        async def source() -> AsyncIterator[str]:
            try:
                yield UNSAFE
                await asyncio.Event().wait()
            finally:
                ended.append("closed")

        async with served() as server, client_of(server) as client:
            await shown_by(client.stream(source(), stop_early=True))
        assert ended == ["closed"]

    async def test_leaving_the_loop_frees_the_server(self) -> None:
        """A stream that is closed early ends its call."""
        gated = GatedClassifier()
        async with served(gated, max_held=1) as server, client_of(server) as client:
            stream = client.stream([SAFE, "Please wait for the check of this one. "])
            assert await anext(stream) == SAFE
            await gated.entered.wait()
            await stream.aclose()
            await until(lambda: not server._gate.calls)
            assert (await client.check("hello")).action is Action.ALLOW

            def use(other: GuardClient) -> None:
                stream = other.stream([SAFE, SAFE])
                next(stream)
                stream.close()

            await in_thread(server, use)
            await until(lambda: not server._gate.calls)

    async def test_an_absent_server_is_unavailable(self) -> None:
        """As in the other calls."""
        async with served() as server:
            port = server.port
        async with AsyncGuardClient(f"127.0.0.1:{port}") as client:
            with pytest.raises(Unavailable):
                await shown_by(client.stream([SAFE]))
        with GuardClient(f"127.0.0.1:{port}") as other, pytest.raises(Unavailable):
            await asyncio.to_thread(shown_in_thread, other.stream([SAFE]))


class _FalseServer(guard_pb2_grpc.GuardServiceServicer):
    """Answers every stream with the messages that it was told to give."""

    def __init__(self, *answers: pb.ModerateResponse) -> None:
        self._answers = answers

    async def Moderate(self, requests: Any, context: Any) -> AsyncIterator[pb.ModerateResponse]:  # noqa: N802
        async for request in requests:
            if request.WhichOneof("part") == "delta":
                break
        for answer in self._answers:
            yield answer


class _RefusingServer(guard_pb2_grpc.GuardServiceServicer):
    """Ends every stream while its client writes, and hears nobody out."""

    async def Moderate(self, requests: Any, context: Any) -> None:  # noqa: N802
        await context.read()
        await context.abort_with_status(wire.problem_from_error(Overloaded("full", retry_after_s=2.5)).to_status())

    CheckBatch = Moderate


@pytest.mark.parametrize("method", ["stream", "check_many"])
async def test_a_stream_that_ends_under_a_write_has_its_own_status(method: str) -> None:
    """grpc.aio calls it INTERNAL at first; the client waits for what the server said."""
    async with standing_in(_RefusingServer()) as port, AsyncGuardClient(f"127.0.0.1:{port}") as client:
        for _ in range(20):
            # So long that the write waits for the peer's window, and fails where the stream ends.
            with pytest.raises(Overloaded, match="full") as caught:
                _ = [part async for part in getattr(client, method)(["hello", "x" * 2_000_000, "bye"])]
            assert caught.value.retry_after_s == 2.5


ALLOW = pb.Decision(action=pb.ACTION_ALLOW)


@pytest.mark.parametrize(
    ("answers", "shown", "error"),
    [
        ([], "", InternalError),
        ([pb.ModerateResponse(decision=pb.Decision())], "", Blocked),
        ([pb.ModerateResponse(released_through=5, release=pb.RELEASE_IMMEDIATELY)], "", InternalError),
        ([pb.ModerateResponse(checked_through=99, released_through=99)], "", InternalError),
        ([pb.ModerateResponse(checked_through=3, released_through=3, decision=ALLOW)], "tex", InternalError),
    ],
    ids=["no decision", "unreadable decision", "optimistic unasked", "more than was sent", "too early"],
)
async def test_a_server_that_makes_no_sense_releases_nothing(
    answers: list[pb.ModerateResponse], shown: str, error: type[Exception]
) -> None:
    """What was not checked is not given, whatever the server says."""
    seen: list[str] = []

    async def collect(stream: Any) -> None:
        async for text in stream:
            seen.append(text)

    async with standing_in(_FalseServer(*answers)) as port, AsyncGuardClient(f"127.0.0.1:{port}") as client:
        with pytest.raises(error):
            await collect(client.stream(["text"]))
    assert "".join(seen) == shown
