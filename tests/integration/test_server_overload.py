"""A busy sidecar: who waits, who is refused, and who is not kept waiting by others."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sidecar import (
    GatedClassifier,
    batch_request,
    channel_to,
    check_request,
    client_of,
    served,
    status_of,
    stub_of,
    until,
)

from guardrail._pb import guard_pb2 as pb
from guardrail.errors import DeadlineExceeded, Overloaded
from guardrail.verdict import Action, Decision


class TestCalls:
    async def test_one_that_finds_no_place_waits_for_it(self) -> None:
        """It is judged when the one before it is done, and not refused."""
        gated = GatedClassifier()
        async with served(gated, max_in_flight=1) as server, client_of(server) as client:
            first = asyncio.create_task(client.check("wait"))
            await until(lambda: gated.waiting == 1)
            second = asyncio.create_task(client.check("a badword"))
            await asyncio.sleep(0.05)
            assert not second.done()
            assert "a badword" not in gated.asked
            gated.may_go.set()
            assert (await first).action is Action.ALLOW
            assert (await second).action is Action.BLOCK

    async def test_above_the_queue_it_is_refused_at_once(self) -> None:
        """RESOURCE_EXHAUSTED with RetryInfo, while those that were taken on are answered."""
        gated = GatedClassifier()
        async with (
            served(gated, max_in_flight=1, max_waiting=1) as server,
            client_of(server) as client,
            channel_to(server) as channel,
        ):
            taken = [asyncio.create_task(client.check("wait"))]
            await until(lambda: gated.waiting == 1)
            taken.append(asyncio.create_task(client.check("hello")))
            await asyncio.sleep(0.05)
            status = await status_of(stub_of(channel).Check(check_request("hello")))
            gated.may_go.set()
            assert [(await call).action for call in taken] == [Action.ALLOW, Action.ALLOW]
        assert status.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in rpc_status.from_call(status).details)
        assert retry.retry_delay.ToMilliseconds() == 1000

    async def test_tokens_fill_the_queue_too(self) -> None:
        """Two long texts are more than this server takes on together; alone each is judged."""
        gated = GatedClassifier()
        long = "wait " + "x" * 3000
        async with served(gated, max_tokens=1000) as server, client_of(server) as client:
            first = asyncio.create_task(client.check(long))
            await until(lambda: gated.waiting == 1)
            with pytest.raises(Overloaded):
                await client.check(long)
            assert (await client.check("hello")).action is Action.ALLOW
            gated.may_go.set()
            assert (await first).action is Action.ALLOW
            assert (await client.check(long)).action is Action.ALLOW

    async def test_one_whose_deadline_passes_while_it_waits_is_never_judged(self) -> None:
        """The model does no work for which nobody waits."""
        gated = GatedClassifier()
        async with served(gated, max_in_flight=1) as server, client_of(server) as client:
            first = asyncio.create_task(client.check("wait"))
            await until(lambda: gated.waiting == 1)
            with pytest.raises(DeadlineExceeded):
                await client.check("too late", timeout_s=0.1)
            await until(lambda: server._gate.waiting == 0)  # the server's clock may be a little behind the client's
            gated.may_go.set()
            await first
            assert (await client.check("hello")).action is Action.ALLOW
        assert "too late" not in gated.asked

    async def test_one_whose_client_goes_away_while_it_waits_is_never_judged(self) -> None:
        """Its place in the queue is the next one's."""
        gated = GatedClassifier()
        async with served(gated, max_in_flight=1, max_waiting=1) as server, client_of(server) as client:
            first = asyncio.create_task(client.check("wait"))
            await until(lambda: gated.waiting == 1)
            gone = asyncio.create_task(client.check("gone"))
            await asyncio.sleep(0.05)
            gone.cancel()
            await asyncio.sleep(0.05)
            next_one = asyncio.create_task(client.check("hello"))
            await asyncio.sleep(0.05)
            gated.may_go.set()
            assert (await first).action is Action.ALLOW
            assert (await next_one).action is Action.ALLOW
        assert "gone" not in gated.asked


class TestBatches:
    async def test_a_batch_does_not_starve_calls(self) -> None:
        """However many items one client sends, another's call is judged while they wait."""
        gated = GatedClassifier()
        async with (
            served(gated, max_in_flight=4, max_waiting=0) as server,
            client_of(server) as greedy,
            client_of(server) as other,
        ):
            results = greedy.check_many(["wait"] * 200)
            first = asyncio.ensure_future(anext(results))
            await until(lambda: gated.waiting == 2)
            for _ in range(5):
                assert (await other.check("hello")).action is Action.ALLOW
            assert gated.waiting == 2
            gated.may_go.set()
            assert len([await first, *[r async for r in results]]) == 200

    async def test_a_batch_does_not_starve_another(self) -> None:
        """Two streams take turns: the second is not behind everything that the first one sent."""
        gated = GatedClassifier()
        async with (
            served(gated, max_in_flight=1) as server,
            client_of(server) as first,
            client_of(server) as second,
        ):
            greedy = first.check_many(["wait"] + ["greedy"] * 60)
            opening = asyncio.ensure_future(anext(greedy))
            await until(lambda: gated.waiting == 1)
            modest = second.check_many(["modest"] * 10)
            ending = asyncio.ensure_future(anext(modest))
            await asyncio.sleep(0.2)  # until both have sent what they have
            gated.may_go.set()
            await opening
            await ending
            assert len([r async for r in greedy]) + len([r async for r in modest]) == 69
        assert max(i for i, text in enumerate(gated.asked) if text == "modest") < len(gated.asked) - 30

    async def test_a_batch_is_answered_beside_many_calls(self) -> None:
        """Calls go first, and still an item has its turn now and then."""
        async with served(max_in_flight=1) as server, client_of(server) as busy, client_of(server) as batch:
            is_over = False

            async def ask() -> None:
                while not is_over:
                    await busy.check("hello")

            callers = [asyncio.create_task(ask()) for _ in range(20)]
            results = [r async for r in batch.check_many(["a badword"] * 20)]
            is_over = True
            await asyncio.gather(*callers)
        assert [r.action for r in results if isinstance(r, Decision)] == [Action.BLOCK] * 20

    async def test_a_client_that_reads_nothing_is_not_read_on(self) -> None:
        """What the server holds for it is bounded, by items and by tokens."""
        gated = GatedClassifier()
        async with served(gated, max_tokens=4000) as server, channel_to(server) as channel:
            call = stub_of(channel).CheckBatch()
            for number in range(10):
                await call.write(batch_request(str(number), "wait " + "x" * 2000))
            await until(lambda: gated.waiting >= 2)
            await asyncio.sleep(0.1)
            # 500 tokens each, and a quarter of 4,000 for one stream.
            assert gated.waiting == 2
            gated.may_go.set()
            await call.done_writing()
            answers = [answer async for answer in call]
        assert [answer.id for answer in answers] == [str(number) for number in range(10)]
        assert all(answer.decision.action == pb.ACTION_ALLOW for answer in answers)

    async def test_a_batch_whose_client_goes_away_is_dropped(self) -> None:
        """Items that wait are never judged."""
        gated = GatedClassifier()
        async with served(gated, max_in_flight=1) as server, channel_to(server) as channel:
            call = stub_of(channel).CheckBatch()
            await call.write(batch_request("a", "wait"))
            for number in range(20):
                await call.write(batch_request(str(number), "gone"))
            await until(lambda: gated.waiting == 1)
            call.cancel()
            await until(lambda: gated.waiting == 0)
            assert (await stub_of(channel).Check(check_request("hello"))).decision.action == pb.ACTION_ALLOW
        assert "gone" not in gated.asked
