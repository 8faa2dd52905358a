"""The sidecar: a real aio server on a free port of 127.0.0.1, asked by real clients."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from sidecar import (
    KEYWORDS,
    EvalShield,
    GatedClassifier,
    channel_to,
    client_of,
    in_thread,
    served,
    standing_in,
    stub_of,
)

from guardrail._pb import guard_pb2 as pb
from guardrail._pb import guard_pb2_grpc
from guardrail.client import AsyncGuardClient, GuardClient
from guardrail.errors import (
    ClassificationError,
    ConfigurationError,
    DeadlineExceeded,
    GenerationError,
    GuardrailError,
    InternalError,
    InvalidInput,
    Overloaded,
    Unavailable,
)
from guardrail.pipeline import Guard
from guardrail.policy import Policy, RailPolicy, Rule, load_policy
from guardrail.protocols import HazardClassifier
from guardrail.server import Canary, GuardServer, ServerOptions
from guardrail.taxonomy import HazardCategory
from guardrail.testing import FailingClassifier, HangingClassifier, KeywordClassifier, ScriptedGenerator
from guardrail.verdict import (
    Action,
    Conversation,
    Decision,
    Message,
    Outcome,
    Rail,
    Role,
    Span,
    Verdict,
)

ROOT = Path(__file__).parents[2]
SERVICE = "guardrail.v1.GuardService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

T = TypeVar("T")


async def until(is_so: Callable[[], bool]) -> None:
    """Waits for what another task brings about; the test's own time limit ends it where that never comes."""
    while not is_so():  # noqa: ASYNC110 - nobody sets an event for it
        await asyncio.sleep(0.01)


async def results_before(stream: AsyncIterator[T], seen: list[T]) -> None:
    """Keeps what a stream gives before it raises."""
    async for result in stream:
        seen.append(result)


async def health_of(server: GuardServer, service: str = "") -> Any:
    async with channel_to(server) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def status_of(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def user(text: str) -> pb.Message:
    return pb.Message(role=pb.ROLE_USER, content=text)


class TestCheck:
    async def test_both_clients_get_the_engine_s_own_decision(self) -> None:
        """Sync, async and in-process answers are equal, for prompts, answers and conversations."""
        cases = [
            Conversation.of("a badword"),
            Conversation.of("hello"),
            Conversation.of("a badword", role=Role.ASSISTANT, prompt="hello"),
            Conversation((Message(Role.SYSTEM, "be kind"), Message(Role.USER, "ü 🙂 \x00"))),
        ]
        guard = Guard(KEYWORDS, policy=load_policy("default"))
        expected = [(await guard.acheck(case)).to_dict() for case in cases]
        async with served() as server, client_of(server) as client:
            assert [(await client.check(messages=case.messages)).to_dict() for case in cases] == expected
            found = await in_thread(server, lambda c: [c.check(messages=case.messages).to_dict() for case in cases])
        assert found == expected
        assert [decision["decision"] for decision in expected] == ["block", "allow", "retry", "allow"]

    async def test_text_role_and_prompt_make_a_conversation(self) -> None:
        """The short form says the same as messages."""
        async with served() as server, client_of(server) as client:
            decision = await client.check("a badword", role=Role.ASSISTANT, prompt="hello")
        assert decision.rail is Rail.RESPONSE
        assert decision.categories == (HazardCategory.HATE,)

    async def test_the_request_id_comes_back(self) -> None:
        """The client's own, or one that the server makes."""
        async with served() as server, channel_to(server) as channel:
            stub = stub_of(channel)
            given = await stub.Check(pb.CheckRequest(request_id="mine", messages=[user("hello")]))
            made = await stub.Check(pb.CheckRequest(messages=[user("hello")]))
        assert given.request_id == "mine"
        assert len(made.request_id) == 32

    @pytest.mark.parametrize(
        "request_",
        [
            pb.CheckRequest(),
            pb.CheckRequest(messages=[pb.Message(content="private")]),
            pb.CheckRequest(messages=[pb.Message(role=pb.ROLE_SYSTEM, content="private")]),
            pb.CheckRequest(messages=[user("private")], request_id="private\n"),
        ],
        ids=["no messages", "no role", "system last", "bad id"],
    )
    async def test_a_bad_request_is_an_invalid_argument(self, request_: pb.CheckRequest) -> None:
        """The caller is told what to change, and the text is not repeated."""
        async with served() as server, channel_to(server) as channel:
            status = await status_of(stub_of(channel).Check(request_))
        assert status.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "private" not in (status.details() or "")

    @pytest.mark.parametrize(
        "data",
        [b"\xff\xff\xff\xff", b"\x12\x07\x08\x02\x12\x03\xff\xfe\xfd", b"\x12\x7fshort"],
        ids=["garbage", "not UTF-8", "cut off"],
    )
    async def test_malformed_bytes_are_an_invalid_argument(self, data: bytes) -> None:
        """Never INTERNAL or UNKNOWN: the server is sound, the bytes are not."""
        async with served() as server, channel_to(server) as channel:
            for method in ("Check", "ScanCode", "Generate"):
                status = await status_of(channel.unary_unary(f"/{SERVICE}/{method}")(data))
                assert status.code() is grpc.StatusCode.INVALID_ARGUMENT, method
                assert "proto/guard.proto" in (status.details() or "")

    async def test_a_message_above_the_size_limit_is_refused(self) -> None:
        """And the client says that the message is the problem, not the load."""
        async with served(max_message_bytes=1000) as server, client_of(server) as client:
            with pytest.raises(InvalidInput, match="larger than max"):
                await client.check("x" * 2000)
            assert (await client.check("x" * 500)).action is Action.ALLOW

    async def test_a_large_message_is_judged_whole(self) -> None:
        """A megabyte passes, and its last word counts."""
        async with served() as server, client_of(server) as client:
            assert (await client.check("x " * 500_000 + "badword")).action is Action.BLOCK

    @pytest.mark.parametrize("error", [ClassificationError("no"), RuntimeError("private"), ValueError("private")])
    async def test_a_classifier_that_raises_is_a_decision(self, error: Exception) -> None:
        """Status OK, UNVERIFIED, blocked by the default policy."""
        classifier = FailingClassifier(error)
        async with served(classifier, canaries=()) as server, client_of(server) as client:
            decision = await client.check("hello")
        assert decision.outcome is Outcome.UNVERIFIED
        assert decision.action is Action.BLOCK
        assert "private" not in str(decision)

    async def test_the_client_s_deadline_is_the_engine_s(self) -> None:
        """A classifier that hangs costs the client its own time limit and no more."""
        async with served(HangingClassifier(), canaries=()) as server, client_of(server) as client:
            # The engine keeps the same deadline: which of the two is heard first is open, and neither allows anything.
            try:
                decision = await client.check("hello", timeout_s=0.2)
            except DeadlineExceeded:
                return
        assert decision.outcome is Outcome.UNVERIFIED
        assert decision.action is Action.BLOCK

    async def test_a_full_server_says_when_to_come_back(self) -> None:
        """RESOURCE_EXHAUSTED at once, with RetryInfo for every client and retry_after_s for ours."""
        gated = GatedClassifier()
        async with (
            served(gated, max_in_flight=1, max_waiting=0, retry_after_s=2.5) as server,
            client_of(server) as client,
            channel_to(server) as channel,
        ):
            first = asyncio.create_task(client.check("wait"))
            await gated.entered.wait()
            with pytest.raises(Overloaded, match="retry in") as caught:
                await client.check("hello")
            status = await status_of(stub_of(channel).Check(pb.CheckRequest(messages=[user("hello")])))
            gated.may_go.set()
            assert (await first).action is Action.ALLOW
            assert (await client.check("hello")).action is Action.ALLOW
        assert caught.value.retry_after_s == 2.5
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in rpc_status.from_call(status).details)
        assert retry.retry_delay.ToMilliseconds() == 2500

    async def test_a_client_that_goes_away_frees_its_place(self) -> None:
        """Cancelled work ends, and the next call finds room."""
        gated = GatedClassifier()
        async with served(gated, max_in_flight=1) as server, client_of(server) as client:
            first = asyncio.create_task(client.check("wait"))
            await gated.entered.wait()
            first.cancel()
            await until(lambda: not gated.waiting)
            assert (await client.check("hello")).action is Action.ALLOW

    async def test_a_defect_has_an_id_and_no_text(self, caplog: pytest.LogCaptureFixture) -> None:
        """INTERNAL names an id; the log has the same id with the error's type and place, and no text either."""

        class Broken(Guard):
            async def acheck(self, conversation: Conversation, *, deadline_s: float | None = None) -> Decision:
                raise RuntimeError(conversation.last.content)

        server = GuardServer(Broken(KEYWORDS, policy=Policy()), options=ServerOptions(port=0))
        await server.start()
        try:
            await server.wait_until_ready()
            async with client_of(server) as client:
                with pytest.raises(InternalError) as caught:
                    await client.check("private")
        finally:
            await server.stop()
        error_id = str(caught.value).split()[2].rstrip(";")
        assert f"internal error {error_id}: RuntimeError at {__file__}" in caplog.text
        assert "private" not in caplog.text + str(caught.value)


class TestCheckBatch:
    async def test_results_come_in_the_order_of_the_items(self) -> None:
        """From both clients, for more items than are judged at one time."""
        items = ["a badword" if number % 3 == 0 else f"hello {number}" for number in range(300)]
        expected = [Action.BLOCK if number % 3 == 0 else Action.ALLOW for number in range(300)]

        async def source() -> AsyncIterator[str]:
            for item in items:
                yield item

        async with served() as server, client_of(server) as client:
            found = await in_thread(server, lambda c: list(c.check_many(items)))
            assert [r.action for r in found if isinstance(r, Decision)] == expected
            for given in (items, source()):
                assert [r.action async for r in client.check_many(given) if isinstance(r, Decision)] == expected

    async def test_a_fast_item_waits_for_a_slow_one_before_it(self) -> None:
        """Order is kept where the judging does not keep it."""
        gated = GatedClassifier()
        async with served(gated) as server, client_of(server) as client:
            results = client.check_many(["wait", "a badword"])
            first = asyncio.ensure_future(anext(results))
            await gated.entered.wait()
            gated.may_go.set()
            assert [r.action for r in (await first, await anext(results)) if isinstance(r, Decision)] == [
                Action.ALLOW,
                Action.BLOCK,
            ]
            await results.aclose()

    async def test_a_poisoned_item_costs_its_neighbours_nothing(self) -> None:
        """What makes the classifier raise, or is no request, is that item's own result."""
        classifier = FailingClassifier(RuntimeError("private"), on="poison")
        async with served(classifier, canaries=()) as server, client_of(server) as client:
            results = [r async for r in client.check_many(["hello", "poison", "\ud800", "hello"])]
        outcomes = [r.outcome if isinstance(r, Decision) else type(r) for r in results]
        assert outcomes == [Outcome.SAFE, Outcome.UNVERIFIED, InvalidInput, Outcome.SAFE]

    async def test_an_item_s_error_is_the_item_s(self) -> None:
        """On the wire: ids come back in order, the bad item has an error, the stream ends with OK."""
        requests = [
            pb.CheckBatchRequest(id="a", messages=[user("hello")]),
            pb.CheckBatchRequest(id="b"),
            pb.CheckBatchRequest(id="c", messages=[user("badword")]),
        ]
        async with served() as server, channel_to(server) as channel:
            call = stub_of(channel).CheckBatch(iter(requests))
            responses = [response async for response in call]
            assert await call.code() is grpc.StatusCode.OK
        assert [(r.id, r.WhichOneof("result")) for r in responses] == [
            ("a", "decision"),
            ("b", "error"),
            ("c", "decision"),
        ]
        assert responses[1].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert responses[1].error.reason == "INVALID_INPUT"

    async def test_malformed_bytes_end_the_stream_after_the_answers_before_them(self) -> None:
        """Nobody who was accepted is left without an answer."""
        good = pb.CheckBatchRequest(id="a", messages=[user("hello")]).SerializeToString()
        async with served() as server, channel_to(server) as channel:
            call = channel.stream_stream(f"/{SERVICE}/CheckBatch")(iter([good, b"\xff\xff", good]))
            answers: list[bytes] = []
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await results_before(call, answers)
        assert [pb.CheckBatchResponse.FromString(answer).id for answer in answers] == ["a"]
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    async def test_a_stream_is_not_read_beyond_its_limit(self) -> None:
        """Back-pressure: as many items are judged at one time as the options say, and all get answered."""
        gated = GatedClassifier()
        async with served(gated, max_in_flight_per_stream=4) as server, client_of(server) as client:
            results = client.check_many(["wait"] * 20)
            first = asyncio.ensure_future(anext(results))
            await until(lambda: gated.waiting == 4)
            gated.may_go.set()
            assert len([await first, *[r async for r in results]]) == 20
        assert gated.most_waiting == 4

    async def test_a_batch_waits_where_a_single_call_is_refused(self) -> None:
        """More items than the server has places are judged one after the other."""
        async with served(max_in_flight=2) as server, client_of(server) as client:
            results = [r async for r in client.check_many(["hello"] * 50)]
        assert all(isinstance(r, Decision) and r.action is Action.ALLOW for r in results)

    async def test_a_source_that_raises_is_heard(self) -> None:
        """The caller's own error comes back to the caller, after the results before it."""

        def items() -> Iterator[str]:
            yield "hello"
            raise KeyError("mine")

        def use(client: GuardClient) -> None:
            results = client.check_many(items())
            assert isinstance(next(results), Decision)
            with pytest.raises(KeyError, match="mine"):
                next(results)

        async with served() as server, client_of(server) as client:
            await in_thread(server, use)
            with pytest.raises(KeyError, match="mine"):
                _ = [r async for r in client.check_many(items())]

    async def test_a_consumer_that_stops_early_ends_the_work(self) -> None:
        """Leaving the loop cancels the stream; the server goes on."""
        gated = GatedClassifier()
        async with served(gated) as server, client_of(server) as client:
            results = client.check_many(["hello", *["wait"] * 10])
            assert isinstance(await anext(results), Decision)
            await results.aclose()
            await until(lambda: not gated.waiting)
            assert (await client.check("hello")).action is Action.ALLOW


class TestScanCode:
    async def test_a_message_is_scanned(self) -> None:
        """The verdict is the code shield's alone, with spans in the message."""
        async with served(code_shield=EvalShield()) as server, client_of(server) as client:
            decision = await client.scan_code("see `eval(x)`, badword")
            found = await in_thread(server, lambda c: c.scan_code("see `eval(x)`, badword"))
        assert found == decision
        assert [verdict.source.model for verdict in decision.verdicts] == ["eval-shield"]
        assert decision.findings[0].span == Span(5, 10)
        assert decision.action is Action.RETRY

    @pytest.mark.parametrize("code", ["x = eval(y)", "# ```\nx = eval(y)\n# ````\n"])
    async def test_a_block_s_spans_count_from_its_start(self, code: str) -> None:
        """Code goes in without a fence, and its own backticks change nothing."""
        async with served(code_shield=EvalShield()) as server, client_of(server) as client:
            decision = await client.scan_code(code, is_block=True, language="python")
        span = decision.findings[0].span
        assert code[span.start : span.end] == "eval("

    @pytest.mark.parametrize(("code", "language"), [("  ", "python"), ("x", "py\n```\nfree text")])
    async def test_a_block_that_is_none_is_refused(self, code: str, language: str) -> None:
        """No code, or a language that would be text of its own."""
        async with served(code_shield=EvalShield()) as server, client_of(server) as client:
            with pytest.raises(InvalidInput):
                await client.scan_code(code, is_block=True, language=language)

    async def test_a_server_without_code_shield_says_so(self) -> None:
        """It does not answer that nothing was found."""
        async with served() as server, client_of(server) as client:
            with pytest.raises(ConfigurationError, match="does not examine code"):
                await client.scan_code("x = 1")


RETRYING = Policy(rails={Rail.PROMPT: RailPolicy(), Rail.RESPONSE: RailPolicy(unsafe=Rule(Action.RETRY))})


class TestGenerate:
    async def test_a_rejected_answer_is_generated_again(self) -> None:
        """The second answer is released; the first comes without its text, unless it is asked for."""
        generator = ScriptedGenerator(["a badword", "fine"] * 2)
        async with served(generator=generator, policy=RETRYING) as server, client_of(server) as client:
            exchange = await client.generate([Message(Role.USER, "hello")])
            audit = await in_thread(
                server, lambda c: c.generate([Message(Role.USER, "hello")], include_rejected_text=True)
            )
        assert exchange.text == audit.text == "fine"
        assert not exchange.is_blocked
        assert [attempt.text for attempt in exchange.attempts] == ["", "fine"]
        assert [attempt.text for attempt in audit.attempts] == ["a badword", "fine"]
        assert "Hate" in (exchange.attempts[1].feedback or "")

    async def test_a_blocked_prompt_never_reaches_the_generator(self) -> None:
        """The block message comes back, with no attempts."""
        generator = ScriptedGenerator([])
        async with served(generator=generator) as server, client_of(server) as client:
            exchange = await client.generate([Message(Role.USER, "a badword")])
        assert exchange.is_blocked
        assert exchange.text == load_policy("default").block_message
        assert exchange.attempts == ()
        assert generator.calls == []

    async def test_a_generator_that_fails_is_told_apart_from_a_lost_server(self) -> None:
        """GenerationError for ours; UNAVAILABLE for everybody."""

        def fail() -> str:
            raise GenerationError("upstream gave no answer")

        async with served(generator=ScriptedGenerator([fail])) as server, client_of(server) as client:
            with pytest.raises(GenerationError, match="upstream gave no answer"):
                await client.generate([Message(Role.USER, "hello")])

    async def test_a_server_without_generator_says_how_to_get_one(self) -> None:
        """The message names the option."""
        async with served() as server, client_of(server) as client:
            with pytest.raises(ConfigurationError, match="--upstream URL"):
                await client.generate([Message(Role.USER, "hello")])

    async def test_only_a_user_is_answered(self) -> None:
        """A conversation that the assistant ended has nothing to answer."""
        async with served(generator=ScriptedGenerator([])) as server, client_of(server) as client:
            with pytest.raises(InvalidInput, match="must be from user"):
                await client.generate([Message(Role.ASSISTANT, "hello")])


class TestReadiness:
    async def test_a_ready_server_says_so_everywhere(self) -> None:
        """Standard health for "" and the service, GetServerInfo, both clients."""
        async with served() as server, client_of(server) as client:
            assert server.is_ready
            assert await health_of(server) == SERVING
            assert await health_of(server, SERVICE) == SERVING
            assert await client.is_ready()
            assert await in_thread(server, lambda c: c.is_ready())

    @pytest.mark.parametrize(
        "classifier",
        [
            KeywordClassifier({}),
            KeywordClassifier({" ": HazardCategory.HATE}),
            FailingClassifier(ClassificationError("no weights")),
        ],
        ids=["safe to everything", "unsafe to everything", "never answers"],
    )
    @pytest.mark.parametrize("policy", ["default", "monitor"])
    async def test_a_classifier_that_cannot_tell_is_not_served(self, classifier: HazardClassifier, policy: str) -> None:
        """Health is NOT_SERVING, calls are UNAVAILABLE, info still answers; whatever the policy allows."""
        async with (
            served(classifier, is_ready=False, policy=load_policy(policy)) as server,
            client_of(server) as client,
        ):
            for _ in range(3):
                assert await health_of(server) == NOT_SERVING
                assert await health_of(server, SERVICE) == NOT_SERVING
                await asyncio.sleep(0.02)
            with pytest.raises(Unavailable, match="canaries"):
                await client.check("hello")
            with pytest.raises(Unavailable, match="canaries"):
                _ = [r async for r in client.check_many(["hello"])]
            assert not (await client.server_info()).is_ready
            assert not await client.is_ready()

    async def test_the_canaries_are_asked_until_they_come_out_right(self, caplog: pytest.LogCaptureFixture) -> None:
        """A model that loads late is served late, and the log says why; before that nobody is."""
        fails = iter([True, True])

        class Late:
            source = KEYWORDS.source

            async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
                if len(conversations) > 1 and next(fails, False):
                    return [Verdict(Outcome.SAFE, self.source, unsafe_probability=0.0) for _ in conversations]
                return await KEYWORDS.classify(conversations)

        with caplog.at_level(logging.WARNING, "guardrail.server"):
            async with served(Late()) as server:
                assert server.is_ready
        assert caplog.text.count("canary 2 came out safe, expected unsafe") == 2
        assert "steal" not in caplog.text

    async def test_other_canaries_can_be_given(self) -> None:
        """For a classifier of another domain."""
        canaries = (Canary("fine", Outcome.SAFE), Canary("zebra", Outcome.UNSAFE))
        async with served(KeywordClassifier({"zebra": HazardCategory.HATE}), canaries=canaries) as server:
            assert server.is_ready

    async def test_an_absent_server_is_unavailable(self) -> None:
        """The client says so, and is_ready is False."""
        async with served() as server:
            port = server.port
        with GuardClient(f"127.0.0.1:{port}") as client:
            with pytest.raises(Unavailable, match="UNAVAILABLE from grpc"):
                client.check("hello")
            assert not client.is_ready()

    async def test_a_taken_port_is_an_error(self) -> None:
        """Two servers never share a port in silence."""
        async with served() as server:
            with pytest.raises(ConfigurationError, match="cannot listen on"):
                async with served(port=server.port):
                    pass

    async def test_the_server_says_what_it_is(self) -> None:
        """Version, model, policy, taxonomy, and what it can do."""
        async with served(code_shield=EvalShield()) as server, client_of(server) as client:
            info = await client.server_info()
            assert await in_thread(server, lambda c: c.server_info()) == info
        assert info.source == KEYWORDS.source
        assert (info.policy_name, info.policy_hash) == ("default", load_policy("default").hash)
        assert [category.name for category in info.categories] == [category.value for category in HazardCategory]
        assert (info.is_ready, info.scans_code, info.generates) == (True, True, False)


class TestReflection:
    async def test_a_standard_client_finds_the_service(self) -> None:
        """Names, methods and messages, as grpcurl would see them."""

        def look(port: int) -> tuple[list[str], list[str]]:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                database = ProtoReflectionDescriptorDatabase(channel)
                services = list(database.get_services())
                file = database.FindFileContainingSymbol(SERVICE)
                return services, [method.name for method in file.service[0].method]

        async with served() as server:
            services, methods = await asyncio.to_thread(look, server.port)
        assert {SERVICE, "grpc.health.v1.Health"} <= set(services)
        assert methods == [
            *("Check", "CheckBatch", "ScanCode", "Generate", "Moderate", "GenerateStream", "GetServerInfo")
        ]

    async def test_reflection_can_be_off(self) -> None:
        """Then its methods are not there."""
        async with served(has_reflection=False) as server, channel_to(server) as channel:
            # Nothing is written: grpc itself refuses the call, and its client would take a write that comes too late
            # for the status.
            call = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")()
            assert (await status_of(call.read())).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_plain_stub_of_the_proto_file_works(tmp_path: Path) -> None:
    """What grpc_tools alone makes of proto/guard.proto talks to the server, without guardrail's package."""
    done = await asyncio.to_thread(
        subprocess.run,
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}"),
            *(f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}", "guard.proto"),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    program = textwrap.dedent("""
        import sys, grpc, guard_pb2 as pb, guard_pb2_grpc
        with grpc.insecure_channel(sys.argv[1]) as channel:
            stub = guard_pb2_grpc.GuardServiceStub(channel)
            message = pb.Message(role=pb.ROLE_USER, content="a badword")
            decision = stub.Check(pb.CheckRequest(messages=[message])).decision
            batch = stub.CheckBatch(iter([pb.CheckBatchRequest(id="x", messages=[message])]))
            print(pb.Action.Name(decision.action), pb.Outcome.Name(decision.outcome), [r.id for r in batch])
            print("guardrail" in sys.modules)
    """)
    async with served() as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, f"127.0.0.1:{server.port}"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
    assert out.decode().splitlines() == ["ACTION_BLOCK OUTCOME_UNSAFE ['x']", "False"]


class _FalseServer(guard_pb2_grpc.GuardServiceServicer):
    """A server whose answers say nothing, or come in the wrong order."""

    async def Check(self, request: Any, context: Any) -> pb.CheckResponse:  # noqa: N802 - grpc's name
        return pb.CheckResponse()

    async def CheckBatch(self, requests: Any, context: Any) -> AsyncIterator[pb.CheckBatchResponse]:  # noqa: N802
        async for request in requests:
            yield pb.CheckBatchResponse(id=request.id if request.id == "0" else "7")

    async def Generate(self, request: Any, context: Any) -> pb.GenerateResponse:  # noqa: N802
        return pb.GenerateResponse(text="unsafe text", decision=pb.Decision(action=99))  # type: ignore[arg-type]


async def test_what_a_client_cannot_read_is_not_allowed() -> None:
    """An empty answer, an unknown action, an answer to another item: blocked, or an error."""
    async with standing_in(_FalseServer()) as port, AsyncGuardClient(f"127.0.0.1:{port}") as client:
        decision = await client.check("hello")
        assert (decision.action, decision.outcome) == (Action.BLOCK, Outcome.UNVERIFIED)
        exchange = await client.generate([Message(Role.USER, "hello")])
        assert exchange.is_blocked
        assert exchange.text == ""
        results: list[Decision | GuardrailError] = []
        with pytest.raises(InternalError, match="order"):
            await results_before(client.check_many(["a", "b"]), results)
        assert [r.action for r in results if isinstance(r, Decision)] == [Action.BLOCK]
        with pytest.raises(ConfigurationError):
            await client.server_info()


class TestStopping:
    async def test_health_goes_first_and_work_ends(self) -> None:
        """While draining: watchers see NOT_SERVING, new calls are refused, a call in flight gets its answer."""
        gated = GatedClassifier()
        async with served(gated, grace_s=10.0) as server, client_of(server) as client, channel_to(server) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert (await watch.read()).status == SERVING
            in_flight = asyncio.create_task(client.check("wait"))
            await gated.entered.wait()
            stopping = asyncio.create_task(server.stop())
            assert (await watch.read()).status == NOT_SERVING
            with pytest.raises(Unavailable, match="stopping"):
                await client.check("hello")
            assert not in_flight.done()
            gated.may_go.set()
            assert (await in_flight).action is Action.ALLOW
            await stopping
            await server.wait()

    async def test_an_idle_stream_does_not_hold_the_server(self) -> None:
        """An open batch gets the answers that it is owed, and then UNAVAILABLE."""
        gated = GatedClassifier()
        async with served(gated, grace_s=10.0) as server, channel_to(server) as channel:
            call = stub_of(channel).CheckBatch()
            await call.write(pb.CheckBatchRequest(id="a", messages=[user("wait")]))
            await gated.entered.wait()
            stopping = asyncio.create_task(server.stop())
            await asyncio.sleep(0)
            gated.may_go.set()
            assert (await call.read()).id == "a"
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            await stopping

    async def test_work_that_does_not_end_is_cancelled_after_the_grace(self) -> None:
        """The caller gets an error, and the server ends."""
        gated = GatedClassifier()
        async with served(gated) as server, client_of(server) as client:
            in_flight = asyncio.create_task(client.check("wait"))
            await gated.entered.wait()
            await server.stop(0.05)
            with pytest.raises(GuardrailError):
                await in_flight


SERVER = """
import asyncio, sys
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.server import ServerOptions, serve
from guardrail.taxonomy import HazardCategory
from guardrail.testing import KeywordClassifier

class Slow(KeywordClassifier):
    async def classify(self, conversations):
        if any("slow" in c.last.content for c in conversations):
            print("entered", flush=True)
            await asyncio.sleep(0.5)
        return await super().classify(conversations)

guard = Guard(Slow({"steal": HazardCategory.HATE}), policy=load_policy("default"))
asyncio.run(serve(guard, options=ServerOptions(port=0), on_start=lambda s: print(s.port, flush=True)))
"""


@contextmanager
def server_process() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server in a process of its own, ready to be asked."""
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with GuardClient(f"127.0.0.1:{port}") as client:
            for _ in range(500):
                if client.is_ready():
                    break
            else:
                pytest.fail("the server did not become ready")
        yield process, port
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_a_server_process_cleanly(number: signal.Signals) -> None:
    """Health goes first, the call in flight gets its answer, exit status 0."""
    with server_process() as (process, port), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert process.stdout is not None
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert next(watch).status == SERVING
        stub = stub_of(channel)
        in_flight = stub.Check.future(pb.CheckRequest(messages=[user("slow")]))
        assert process.stdout.readline() == "entered\n"
        os.kill(process.pid, number)
        assert next(watch).status == NOT_SERVING
        assert not in_flight.done()
        assert in_flight.result().decision.action == pb.ACTION_ALLOW
        assert process.wait(30) == 0
