"""What breaks around a sidecar that serves: its model, its clients, its log, and bytes that are none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sidecar import (
    HOST,
    KEYWORDS,
    ROOT,
    SERVICE,
    GatedClassifier,
    batch_request,
    channel_to,
    check_request,
    client_of,
    served,
    server_process,
    stub_of,
    until,
)

from guardrail._pb import guard_pb2 as pb
from guardrail.batching import BatchWorker
from guardrail.client import AsyncGuardClient, GuardClient
from guardrail.errors import InvalidInput, Unavailable
from guardrail.policy import load_policy
from guardrail.server import GuardServer
from guardrail.verdict import Action, Conversation, Decision, Outcome, Source, Verdict

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class SwitchedClassifier:
    """Judges as usual until it is told what to do instead."""

    source = KEYWORDS.source

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hangs = False
        self.is_blind = False

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        if self.error is not None:
            raise self.error
        if self.hangs:
            await asyncio.Event().wait()
        if self.is_blind:
            return [Verdict(Outcome.SAFE, self.source) for _ in conversations]
        return await KEYWORDS.classify(conversations)


class WorkerClassifier:
    """Judges on a worker thread in batches, as guard models do; "crash" kills the thread, "poison" fails its batch."""

    source = Source("worker-classifier", "test")

    def __init__(self) -> None:
        self.worker: BatchWorker[Conversation, Verdict] = BatchWorker(self._run, max_batch_tokens=64, max_wait_s=0.01)

    def _run(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        if any("crash" in conversation.last.content for conversation in conversations):
            raise SystemExit
        if any("poison" in conversation.last.content for conversation in conversations):
            raise RuntimeError
        return asyncio.run(KEYWORDS.classify(conversations))

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        futures = [asyncio.wrap_future(self.worker.submit(c, cost=1)) for c in conversations]
        return list(await asyncio.gather(*futures))


async def health_of(channel: Any) -> Any:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE))
    return answer.status


class TestModel:
    @pytest.mark.parametrize(
        "fault",
        [{"error": RuntimeError("gone")}, {"is_blind": True}, {"hangs": True}],
        ids=["raises", "blind", "hangs"],
    )
    async def test_one_that_breaks_while_it_serves_is_told_of(
        self, fault: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Health says NOT_SERVING and calls are UNAVAILABLE until it judges right again; nothing is let through."""
        switched = SwitchedClassifier()
        policy = replace(load_policy("default"), deadline_s=0.1)
        async with (
            served(switched, policy=policy, canary_period_s=0.02) as server,
            client_of(server) as client,
            channel_to(server) as channel,
        ):
            assert await health_of(channel) == SERVING
            for name, value in fault.items():
                setattr(switched, name, value)
            await until(lambda: not server.is_ready)
            await until(lambda: "not serving: canary" in caplog.text)
            assert await health_of(channel) == NOT_SERVING
            with pytest.raises(Unavailable, match="canaries"):
                await client.check("hello")
            switched.error, switched.hangs, switched.is_blind = None, False, False
            await until(lambda: server.is_ready)
            assert (await client.check("hello")).action is Action.ALLOW
            await until(lambda: "serving" in caplog.text)
            assert await health_of(channel) == SERVING
        assert "steal" not in caplog.text

    async def test_one_that_is_busy_is_not_closed(self, caplog: pytest.LogCaptureFixture) -> None:
        """Canaries that wait too long behind others' messages are no sign of a broken model."""

        class Busy(SwitchedClassifier):
            """Has no time for canaries."""

            async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
                if self.hangs and len(conversations) > 1:
                    await asyncio.Event().wait()
                return await KEYWORDS.classify(conversations)

        busy = Busy()
        policy = replace(load_policy("default"), deadline_s=0.05)
        async with served(busy, policy=policy, canary_period_s=0.02) as server, client_of(server) as client:
            busy.hangs = True
            for _ in range(100):
                assert (await client.check("hello")).action is Action.ALLOW
                await asyncio.sleep(0.005)
        assert "not serving" not in caplog.text

    async def test_a_worker_that_dies_answers_everybody_and_closes_the_server(self) -> None:
        """Who waited gets UNVERIFIED, which is blocked; then health says NOT_SERVING."""
        classifier = WorkerClassifier()
        async with served(classifier, canary_period_s=0.02) as server, client_of(server) as client:
            decisions = await asyncio.gather(*(client.check(text) for text in ["hello", "crash", "hello"]))
            assert {decision.outcome for decision in decisions} <= {Outcome.UNVERIFIED, Outcome.SAFE}
            assert decisions[1].action is Action.BLOCK
            await until(lambda: not server.is_ready)
        classifier.worker.close()

    async def test_a_message_that_breaks_its_batch_costs_its_neighbours_nothing(self) -> None:
        """The batch is run again in halves; the worker goes on."""
        classifier = WorkerClassifier()
        async with served(classifier) as server, client_of(server) as client:
            texts = [*["hello"] * 20, "poison", *["a badword"] * 20]
            results = [r async for r in client.check_many(texts)]
            assert (await client.check("hello")).action is Action.ALLOW
        classifier.worker.close()
        outcomes = [result.outcome for result in results if isinstance(result, Decision)]
        assert outcomes == [*[Outcome.SAFE] * 20, Outcome.UNVERIFIED, *[Outcome.UNSAFE] * 20]


class TestClients:
    async def test_one_that_vanishes_in_the_middle_of_a_stream_leaves_nothing(self) -> None:
        """Its connection breaks with items in work: they end, and others are served."""
        gated = GatedClassifier()
        async with served(gated, max_in_flight=4) as server, client_of(server) as other:
            channel = grpc.aio.insecure_channel(f"{HOST}:{server.port}")
            call = stub_of(channel).CheckBatch()
            for number in range(10):
                await call.write(batch_request(str(number), "wait"))
            await until(lambda: gated.waiting == 2)
            await channel.close()
            await until(lambda: gated.waiting == 0)
            assert (await other.check("hello")).action is Action.ALLOW

    async def test_one_that_sends_while_the_server_stops_hears_that_it_is_unavailable(self) -> None:
        """Also where an item was just being written; what was answered before is kept, in order."""
        for _ in range(5):
            results: list[Decision] = []
            async with served() as server, client_of(server) as client:
                with pytest.raises(Unavailable):
                    await _stop_in_the_middle(server, client, results)
            assert results
            assert all(result.action is Action.ALLOW for result in results)

    async def test_many_that_do_nothing_cost_nobody_anything(self) -> None:
        """A hundred connections that only stand there."""
        async with served() as server, client_of(server) as client:
            idle = [await asyncio.open_connection(HOST, server.port) for _ in range(100)]
            assert (await client.check("hello")).action is Action.ALLOW
            for _, writer in idle:
                writer.close()

    async def test_a_message_far_above_the_limit_is_refused(self) -> None:
        """A hundred megabytes are not read; the client hears that its message is the problem."""
        async with served(canary_period_s=60) as server, client_of(server) as client:
            with pytest.raises(InvalidInput, match="larger than max"):
                await client.check("x" * 100_000_000, timeout_s=60)
            assert (await client.check("hello")).action is Action.ALLOW

    @pytest.mark.parametrize("method", [m.name for m in pb.DESCRIPTOR.services_by_name["GuardService"].methods])
    async def test_bytes_that_are_no_message_end_a_call(self, method: str) -> None:
        """Random and mutated bytes: a status that says so or an answer, never INTERNAL, and the server lives on."""
        pick = random.Random(method)
        sound = check_request("hello there").SerializeToString()
        fine = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED}
        async with served() as server, channel_to(server) as channel:
            call = channel.stream_stream(f"/{SERVICE}/{method}")
            for number in range(150):
                data = pick.randbytes(pick.randrange(60)) if number % 2 else _mutated(sound, pick)
                asking = call(iter([data]))
                with contextlib.suppress(grpc.aio.AioRpcError):
                    _ = [answer async for answer in asking]
                assert await asking.code() in fine, f"{method} {number}: {await asking.code()}"
            assert (await stub_of(channel).Check(check_request("hello"))).decision.action == pb.ACTION_ALLOW


async def _stop_in_the_middle(server: GuardServer, client: AsyncGuardClient, results: list[Decision]) -> None:
    """Keeps the results of a long stream whose server stops after the first of them."""
    stopping: asyncio.Task[None] | None = None
    try:
        async for result in client.check_many(["hello"] * 100_000):
            assert isinstance(result, Decision)
            results.append(result)
            stopping = stopping or asyncio.create_task(server.stop())
    finally:
        assert stopping is not None
        await stopping


def _mutated(data: bytes, pick: random.Random) -> bytes:
    """Flips, cuts or doubles a few bytes."""
    changed = bytearray(data)
    for _ in range(pick.randrange(1, 4)):
        at = pick.randrange(len(changed))
        what = pick.randrange(3)
        if what == 0:
            changed[at] ^= 1 << pick.randrange(8)
        elif what == 1 and len(changed) > 1:
            del changed[at]
        else:
            changed.insert(at, changed[at])
    return bytes(changed)


SERVER = """
import asyncio, logging, sys
logging.basicConfig(level=logging.INFO)
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.server import ServerOptions, serve
from guardrail.taxonomy import HazardCategory
from guardrail.testing import KeywordClassifier

class Slow(KeywordClassifier):
    async def classify(self, conversations):
        await asyncio.sleep(0.05)
        return await super().classify(conversations)

guard = Guard(Slow({"steal": HazardCategory.HATE}), policy=load_policy("default"))
asyncio.run(serve(guard, options=ServerOptions(port=0), on_start=lambda s: print(s.port, flush=True)))
"""


class TestProcess:
    def test_a_full_disk_for_logs_stops_nothing(self) -> None:
        """stderr that takes no byte: calls are answered, and SIGTERM ends the server cleanly."""
        with (
            open("/dev/full", "w") as full,
            server_process(SERVER, stderr=full) as (process, port),
            GuardClient(f"{HOST}:{port}") as client,
        ):
            while not client.is_ready():
                pass
            assert client.check("hello").action is Action.ALLOW
            process.terminate()
            assert process.wait(30) == 0

    def test_sigterm_under_load_loses_nothing_that_was_taken(self) -> None:
        """Every call ends in its decision, or in UNAVAILABLE: none hangs, none is cut off."""
        with server_process(SERVER) as (process, port), GuardClient(f"{HOST}:{port}") as client:
            while not client.is_ready():
                pass
            with grpc.insecure_channel(f"{HOST}:{port}") as channel:
                stub = stub_of(channel)
                calls = [stub.Check.future(check_request("hello"), timeout=30) for _ in range(50)]
                calls[0].result()
                os.kill(process.pid, signal.SIGTERM)
                calls += [stub.Check.future(check_request("hello"), timeout=30) for _ in range(50)]
                codes = [call.code() for call in calls]
            assert process.wait(30) == 0
        assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        assert codes[0] is grpc.StatusCode.OK

    def test_a_port_that_is_taken_ends_the_second_server(self) -> None:
        """With the reason on stderr, and not beside the first in silence."""
        with server_process(SERVER) as (_, port):
            command = [sys.executable, "-c", SERVER.replace("port=0", f"port={port}")]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode != 0
        assert "the address is taken" in done.stderr
