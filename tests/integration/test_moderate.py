"""``Moderate`` on a real server: what a client in any language sees."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sidecar import KEYWORDS, GatedClassifier, client_of, served, until
from streams import EvalShield, stub_to

from guardrail import wire
from guardrail._pb import guard_pb2 as pb
from guardrail.pipeline import Guard
from guardrail.policy import load_policy, parse_policy
from guardrail.testing import KeywordClassifier
from guardrail.verdict import Action, Conversation, Outcome, Role, Source, Verdict

SAFE = "This is the first sentence of a long answer. Here is a second one that says a little more.\n"
UNSAFE = "And now I grumble about everybody in this whole town. "
METHOD = "/guardrail.v1.GuardService/Moderate"

ASK = pb.Message(role=pb.ROLE_USER, content="hello")


def config(**values: Any) -> pb.ModerateRequest:
    return pb.ModerateRequest(config=pb.ModerateConfig(**{"messages": [ASK], **values}))


def delta(text: str) -> pb.ModerateRequest:
    return pb.ModerateRequest(delta=text)


async def moderate(stub: Any, *deltas: str, **values: Any) -> list[pb.ModerateResponse]:
    call = stub.Moderate(iter([config(**values), *map(delta, deltas)]))
    responses = [response async for response in call]
    assert await call.code() is grpc.StatusCode.OK
    return responses


async def read_all(call: Any, answers: list[Any]) -> list[Any]:
    """Keeps what a stream answers until its end, or until it raises."""
    while (response := await call.read()) is not grpc.aio.EOF:
        answers.append(response)
    return answers


async def status_of(stub: Any, *requests: pb.ModerateRequest) -> tuple[grpc.StatusCode, str, list[Any]]:
    """The status that ends a stream, its words, and what was answered before."""
    answers: list[Any] = []
    call = stub.Moderate(iter(requests))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_all(call, answers)
    return caught.value.code(), caught.value.details() or "", answers


class TestAnswers:
    async def test_an_answer_is_released_as_it_is_checked_and_decided_at_the_end(self) -> None:
        """The watermark only grows, each answer has the id, and the last alone has the decision, which is Check's."""
        deltas = [SAFE[:30], SAFE[30:], SAFE]
        async with served() as server, stub_to(server) as stub:
            responses = await moderate(stub, *deltas, request_id="mine")
        marks = [response.checked_through for response in responses]
        assert marks == sorted(marks)
        assert marks[-1] == responses[-1].decided_through == len("".join(deltas))
        assert {response.request_id for response in responses} == {"mine"}
        assert {response.release for response in responses} == {pb.RELEASE_CHECKED}
        assert all(response.released_through == response.checked_through for response in responses)
        assert [response.HasField("decision") for response in responses] == [False] * (len(responses) - 1) + [True]
        guard = Guard(KEYWORDS, policy=load_policy("default"))
        whole = Conversation.of("".join(deltas), role=Role.ASSISTANT, prompt="hello")
        assert wire.decision_from_wire(responses[-1].decision) == await guard.acheck(whole)

    async def test_text_is_released_while_the_answer_is_written(self) -> None:
        """The first sentences can be shown before the model has written the next."""
        async with served() as server, stub_to(server) as stub:
            call = stub.Moderate()
            await call.write(config())
            await call.write(delta(SAFE))
            assert (await call.read()).checked_through == len(SAFE)
            await call.write(delta(SAFE))
            assert (await call.read()).checked_through == 2 * len(SAFE)
            await call.done_writing()
            assert (await call.read()).decision.action == pb.ACTION_ALLOW
            assert await call.read() is grpc.aio.EOF

    async def test_unsafe_text_ends_a_stream_that_shall_stop_early(self) -> None:
        """Nothing of it is released, the client need not have ended, and the decision is about the text so far."""
        async with served() as server, stub_to(server) as stub:
            call = stub.Moderate()
            await call.write(config(stop_early=True))
            await call.write(delta(SAFE))
            assert (await call.read()).checked_through == len(SAFE)
            await call.write(delta(UNSAFE))
            responses = await read_all(call, [])
        last = responses[-1]
        assert {response.released_through for response in responses} == {len(SAFE)}
        assert responses[0].is_halted
        assert last.decision.action == pb.ACTION_RETRY
        assert last.decided_through > len(SAFE)

    async def test_unsafe_text_holds_back_all_that_follows_and_the_decision_is_about_all(self) -> None:
        """The stream is read to its end, as Check would read it."""
        async with served() as server, stub_to(server) as stub:
            responses = await moderate(stub, SAFE, UNSAFE, SAFE, SAFE)
        assert responses[-1].decided_through == len(SAFE + UNSAFE + SAFE + SAFE)
        assert responses[-1].decision.action == pb.ACTION_RETRY
        assert max(response.released_through for response in responses) <= len(SAFE)

    async def test_an_unsafe_last_sentence_is_judged_at_its_end(self) -> None:
        """Without white space after it, and before the client says that the answer is over."""
        async with served() as server, stub_to(server) as stub:
            call = stub.Moderate()
            await call.write(config(stop_early=True))
            await call.write(delta(UNSAFE.rstrip()))
            responses = await read_all(call, [])
        assert responses[-1].decision.action == pb.ACTION_RETRY

    async def test_findings_come_when_a_code_block_closes(self) -> None:
        """With spans in the answer, once, and the block is scanned once before the end."""
        shield = EvalShield()
        before, block = SAFE, "```python\nx = eval(y)\n```\n"
        policy = parse_policy("version: 1\nrails: {response: {findings: {error: flag}}}")
        async with served(code_shield=shield, policy=policy) as server, stub_to(server) as stub:
            call = stub.Moderate()
            await call.write(config())
            for piece in (before, block[:12], block[12:24], block[24:]):
                await call.write(delta(piece))
            found = []
            while not found:
                found = list((await call.read()).findings)
            await call.write(delta(SAFE))
            assert not (await call.read()).findings
            assert shield.seen == ["x = eval(y)"]
            await call.done_writing()
            last = await call.read()
        assert not last.findings
        assert len(wire.decision_from_wire(last.decision).findings) == 1
        text = before + block
        assert text[found[0].span.start : found[0].span.end] == "eval("

    async def test_a_block_that_never_closes_is_scanned_at_the_end(self) -> None:
        """It is held until then."""
        async with served(code_shield=EvalShield()) as server, stub_to(server) as stub:
            responses = await moderate(stub, SAFE, "```python\nx = eval(y)\nand = more\n" * 3)
        assert responses[-1].released_through == len(SAFE)
        assert responses[-1].findings
        assert responses[-1].decision.action == pb.ACTION_RETRY

    async def test_a_part_that_looks_worse_than_the_whole_goes_on(self) -> None:
        """A piece alone halts the stream; a look at the whole so far releases it, and the decision is the whole's."""

        class NeedsStart:
            """Unsafe where it is not told how the answer began."""

            source = Source("needs-start", "test")

            async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
                fine = [c.last.content.startswith("Begin") or c.last.role is Role.USER for c in conversations]
                return [
                    Verdict(Outcome.SAFE if f else Outcome.UNSAFE, self.source, unsafe_probability=0.1 if f else 0.9)
                    for f in fine
                ]

        async with served(NeedsStart(), canaries=()) as server, stub_to(server) as stub:
            call = stub.Moderate()
            await call.write(config())
            seen, text = [], ""
            for number in range(8):
                text += SAFE if number else f"Begin. {SAFE}"
                await call.write(delta(SAFE if number else text))
                while (response := await call.read()).is_halted:
                    seen.append(response)
                assert response.released_through == len(text)
            await call.done_writing()
            last = await call.read()
        assert seen
        assert last.decision.action == pb.ACTION_ALLOW
        assert last.released_through == len(text)

    async def test_an_optimistic_stream_is_named_in_every_answer(self) -> None:
        """Text is released before it is checked; every message says so."""
        gated = GatedClassifier()
        async with served(gated) as server, stub_to(server) as stub:
            call = stub.Moderate()
            await call.write(config(release=pb.RELEASE_IMMEDIATELY, stop_early=True))
            await call.write(delta("Please wait for the check of this one. "))
            first = await call.read()
            assert (first.checked_through, first.released_through) == (0, 39)
            gated.may_go.set()
            await call.write(delta(UNSAFE))
            responses = await read_all(call, [first])
        assert {response.release for response in responses} == {pb.RELEASE_IMMEDIATELY}
        assert responses[-1].decision.action == pb.ACTION_RETRY
        assert responses[-1].checked_through <= 39

    async def test_an_empty_answer_is_not_allowed(self) -> None:
        """As with Check: there is nothing to judge."""
        async with served() as server, stub_to(server) as stub:
            (last,) = await moderate(stub)
        assert last.decision.outcome == pb.OUTCOME_UNVERIFIED
        assert last.decision.action == pb.ACTION_BLOCK

    @pytest.mark.parametrize("messages", [[], [ASK, pb.Message(role=pb.ROLE_TOOL, content="42")]])
    async def test_any_conversation_can_be_answered(self, messages: list[pb.Message]) -> None:
        """None at all, or one that a tool ended."""
        async with served() as server, stub_to(server) as stub:
            assert (await moderate(stub, SAFE, messages=messages))[-1].decision.action == pb.ACTION_ALLOW


class TestErrors:
    @pytest.mark.parametrize(
        ("requests", "words"),
        [
            ([], "expected a config"),
            ([delta("private text")], "expected a config"),
            ([config(), config()], "expected a delta"),
            ([config(), pb.ModerateRequest()], "expected a delta"),
            ([config(messages=[pb.Message(content="private")])], "no known role"),
            ([config(request_id="private\n")], "printable ASCII"),
        ],
    )
    async def test_a_stream_out_of_order_is_an_invalid_argument(
        self, requests: list[pb.ModerateRequest], words: str
    ) -> None:
        """The caller is told what to change, without its text."""
        async with served() as server, stub_to(server) as stub:
            code, details, _ = await status_of(stub, *requests)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert words in details
        assert "private" not in details

    async def test_malformed_bytes_are_an_invalid_argument(self) -> None:
        """After the answers to what came before them."""
        good = [config().SerializeToString(), delta(SAFE).SerializeToString()]
        async with served() as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            for requests in ([b"\xff\xff"], [*good, b"\xff\xff"]):
                answers: list[bytes] = []
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await read_all(channel.stream_stream(METHOD)(iter(requests)), answers)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert "proto/guard.proto" in (caught.value.details() or "")
        assert pb.ModerateResponse.FromString(answers[-1]).checked_through == len(SAFE)

    async def test_a_text_above_the_limit_is_refused(self) -> None:
        """However small its deltas are."""
        async with served(max_message_bytes=1000) as server, stub_to(server) as stub:
            code, details, _ = await status_of(stub, config(), *[delta("x" * 100)] * 20)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "1000 bytes" in details

    async def test_a_full_server_refuses_at_once(self) -> None:
        """With the time to come back; and a stream that ends makes room."""
        async with served(max_held=1, retry_after_s=2.5) as server, stub_to(server) as stub:
            first = stub.Moderate()
            await first.write(config())
            await first.write(delta(SAFE))
            assert (await first.read()).checked_through
            call = stub.Moderate(iter([config(), delta(SAFE)]))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            retry = error_details_pb2.RetryInfo()
            assert any(detail.Unpack(retry) for detail in rpc_status.from_call(caught.value).details)
            await first.done_writing()
            assert (await read_all(first, []))[-1].decision.action == pb.ACTION_ALLOW
            assert (await moderate(stub, SAFE))[-1].decision.action == pb.ACTION_ALLOW

    async def test_a_client_that_goes_away_frees_its_place(self) -> None:
        """In the middle of a check."""
        gated = GatedClassifier()
        async with served(gated, max_held=1) as server, client_of(server) as client, stub_to(server) as stub:
            call = stub.Moderate()
            await call.write(config())
            await call.write(delta("Please wait for the check of this one. "))
            await gated.entered.wait()
            call.cancel()
            await until(lambda: not gated.waiting)
            await until(lambda: not server._gate.calls)
            assert (await client.check("hello")).action is Action.ALLOW

    async def test_a_client_that_says_nothing_frees_its_place(self) -> None:
        """After the policy's deadline, before the config and after it."""
        policy = parse_policy("version: 1\ndeadline_s: 0.2")
        async with served(policy=policy, max_held=1) as server, stub_to(server) as stub:
            for requests in ([], [config()], [config(), delta(SAFE)]):
                call = stub.Moderate()
                for request in requests:
                    await call.write(request)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await read_all(call, [])
                assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                assert "sent nothing for 0.2 s" in (caught.value.details() or "")

    async def test_a_stopping_server_ends_streams_after_what_has_come(self) -> None:
        """The text that was sent gets its check, and then the client is told to ask another server."""
        gated = GatedClassifier()
        async with served(gated, grace_s=10.0) as server, stub_to(server) as stub:
            call = stub.Moderate()
            await call.write(config())
            text = "Please wait for the check of this one. "
            await call.write(delta(text))
            await gated.entered.wait()
            stopping = asyncio.create_task(server.stop())
            await until(lambda: server._gate.closing.is_set())
            gated.may_go.set()
            assert (await call.read()).checked_through == len(text) - 1
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            await stopping

    async def test_a_server_that_is_not_ready_says_so(self) -> None:
        """Before its canaries have come out right."""
        async with served(KeywordClassifier({}), is_ready=False) as server, stub_to(server) as stub:
            code, details, _ = await status_of(stub, config(), delta(SAFE))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "canaries" in details

    async def test_a_client_that_writes_on_hears_why_its_stream_was_refused(self) -> None:
        """A status sent under its writes would reach a client of grpc.aio as INTERNAL; it is heard out first."""
        async with served(KeywordClassifier({}), is_ready=False) as server, stub_to(server) as stub:
            call = stub.Moderate()
            await call.write(config())
            await until(lambda: server._gate._refused > 0)
            for _ in range(5):
                await call.write(delta(SAFE))
            await call.done_writing()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    async def test_a_client_that_writes_on_reads_the_decision_that_ended_its_stream(self) -> None:
        """Answers on their way would be lost with a write that failed."""
        async with served() as server, stub_to(server) as stub:
            call = stub.Moderate()
            await call.write(config(stop_early=True))
            await call.write(delta(SAFE))
            await call.write(delta(UNSAFE))
            await until(lambda: not server._gate.calls)
            for _ in range(5):
                await call.write(delta(SAFE))
            responses = await read_all(call, [])
        assert responses[-1].decision.action == pb.ACTION_RETRY

    async def test_a_client_that_only_listens_hears_of_a_refusal_too(self) -> None:
        """It is not waited for without end."""
        async with served(KeywordClassifier({}), is_ready=False) as server, stub_to(server) as stub:
            call = stub.Moderate()
            await call.write(config())
            assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_long_conversation_is_context_of_the_whole_and_its_end_of_each_piece() -> None:
    """A megabyte before the answer is not read again for each of its sentences."""
    seen: list[int] = []

    class Counting:
        source = KEYWORDS.source

        async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
            seen.extend(sum(len(m.content) for m in c.messages[:-1]) for c in conversations)
            return await KEYWORDS.classify(conversations)

    long = [pb.Message(role=pb.ROLE_USER, content="x" * 1_000_000)]
    async with served(Counting(), canaries=()) as server, stub_to(server) as stub:
        call = stub.Moderate()
        await call.write(config(messages=long))
        for number in range(1, 4):
            await call.write(delta(SAFE))
            assert (await call.read()).checked_through == number * len(SAFE)
        await call.done_writing()
        assert (await call.read()).decision.action == pb.ACTION_ALLOW
    assert seen == [4000, 4000, 4000, 1_000_000]
