"""Groups of items in ``CheckBatch``: fewer messages, and every promise that single items have."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from sidecar import (
    GatedClassifier,
    batch_request,
    channel_to,
    client_of,
    in_thread,
    served,
    standing_in,
    stub_of,
    until,
)

from guardrail import wire
from guardrail._pb import guard_pb2 as pb
from guardrail._pb import guard_pb2_grpc
from guardrail.client import AsyncGuardClient, GuardClient
from guardrail.errors import InvalidInput
from guardrail.verdict import Action, Decision


def group(*items: pb.CheckBatchRequest) -> pb.CheckBatchRequest:
    return pb.CheckBatchRequest(items=items)


def numbered(text: str, count: int) -> list[pb.CheckBatchRequest]:
    return [batch_request(str(number), text) for number in range(count)]


def flat(responses: list[pb.CheckBatchResponse]) -> list[pb.CheckBatchResponse]:
    return [answer for response in responses for answer in response.items or (response,)]


async def read_all(call: Any, responses: list[pb.CheckBatchResponse]) -> None:
    """Keeps what a stream answers until its end, or until it raises."""
    while (response := await call.read()) is not grpc.aio.EOF:
        responses.append(response)


class TestServer:
    async def test_a_group_is_answered_in_the_order_of_its_items(self) -> None:
        """One answer for each; what is wrong with one is that one's error."""
        items = [
            batch_request("a", "hello"),
            batch_request("b", "a badword"),
            pb.CheckBatchRequest(id="c"),
            group(batch_request("nested", "hello")),
            batch_request("d", "hello"),
        ]
        async with served() as server, channel_to(server) as channel:
            call = stub_of(channel).CheckBatch(iter([group(*items), batch_request("e", "hello")]))
            responses = [response async for response in call]
            assert await call.code() is grpc.StatusCode.OK
        answers = flat(responses)
        assert [answer.id for answer in answers] == ["a", "b", "c", "", "d", "e"]
        assert [answer.decision.action for answer in answers] == [
            *(pb.ACTION_ALLOW, pb.ACTION_BLOCK, 0, 0, pb.ACTION_ALLOW, pb.ACTION_ALLOW)
        ]
        assert [answer.error.reason for answer in answers] == ["", "", "INVALID_INPUT", "INVALID_INPUT", "", ""]

    async def test_single_items_are_answered_alone(self) -> None:
        """A client that knows nothing of groups gets none, however many answers are ready."""
        gated = GatedClassifier()
        async with served(gated) as server, channel_to(server) as channel:
            call = stub_of(channel).CheckBatch(iter([batch_request("first", "wait"), *numbered("hello", 20)]))
            await until(lambda: len(gated.asked) >= 21)
            gated.may_go.set()
            responses = [response async for response in call]
        assert [response.id for response in responses] == ["first", *map(str, range(20))]
        assert not any(response.items for response in responses)

    async def test_answers_that_are_ready_go_out_together(self) -> None:
        """The items behind a slow one are answered in one message with it."""
        gated = GatedClassifier()
        async with served(gated) as server, channel_to(server) as channel:
            call = stub_of(channel).CheckBatch(iter([group(batch_request("first", "wait"), *numbered("hello", 20))]))
            await until(lambda: len(gated.asked) >= 21)
            await asyncio.sleep(0.05)
            gated.may_go.set()
            (response,) = [response async for response in call]
        assert [answer.id for answer in response.items] == ["first", *map(str, range(20))]

    async def test_an_answer_does_not_wait_for_its_group(self) -> None:
        """The items before a slow one are answered without it."""
        gated = GatedClassifier()
        async with served(gated) as server, channel_to(server) as channel:
            call = stub_of(channel).CheckBatch(iter([group(batch_request("a", "hello"), batch_request("b", "wait"))]))
            assert (await call.read()).id == "a"
            gated.may_go.set()
            assert (await call.read()).id == "b"

    async def test_however_items_are_cut_into_groups_the_answers_are_the_same(self) -> None:
        """Single items and groups may alternate."""
        pick = random.Random(0)
        items = [batch_request(str(n), pick.choice(["hello", "a badword", ""])) for n in range(200)]
        async with served() as server, channel_to(server) as channel:
            for _ in range(5):
                requests, rest = [], items
                while rest:
                    size = pick.choice([1, 1, 2, 7, 40])
                    requests.append(rest[0] if size == 1 else group(*rest[:size]))
                    rest = rest[size:]
                answers = flat([response async for response in stub_of(channel).CheckBatch(iter(requests))])
                assert [answer.id for answer in answers] == [item.id for item in items]
                for item, answer in zip(items, answers, strict=True):
                    text = item.messages[0].content
                    assert (answer.decision.action == pb.ACTION_ALLOW) == (text == "hello")

    async def test_a_message_is_a_group_or_an_item(self) -> None:
        """Both at once ends the stream, after the answers to what came before."""
        both = pb.CheckBatchRequest(id="x", items=[batch_request("y", "hello")])
        answers: list[pb.CheckBatchResponse] = []
        async with served() as server, channel_to(server) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await read_all(stub_of(channel).CheckBatch(iter([batch_request("a", "hello"), both])), answers)
        assert [answer.id for answer in answers] == ["a"]
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    async def test_items_of_a_group_begin_as_there_is_room(self) -> None:
        """As many at one time as the options say, and within the stream's tokens, however large the group is."""
        for text, options, most in (
            ("wait", {"max_in_flight_per_stream": 4}, 4),
            # 500 tokens each, and a quarter of 4,000 for one stream.
            ("wait " + "x" * 2000, {"max_tokens": 4000}, 2),
        ):
            gated = GatedClassifier()
            async with served(gated, **options) as server, channel_to(server) as channel:
                call = stub_of(channel).CheckBatch(iter([group(*numbered(text, 20))]))
                await until(lambda gated=gated, most=most: gated.waiting == most)  # type: ignore[misc]
                await asyncio.sleep(0.05)
                gated.may_go.set()
                answers = flat([response async for response in call])
            assert gated.most_waiting == most
            assert [answer.id for answer in answers] == [str(number) for number in range(20)]

    async def test_a_stopping_server_answers_the_items_that_have_begun(self) -> None:
        """And then says UNAVAILABLE, for the rest of the group."""
        gated = GatedClassifier()
        async with (
            served(gated, max_in_flight_per_stream=2, grace_s=10.0) as server,
            channel_to(server) as channel,
        ):
            call = stub_of(channel).CheckBatch()
            await call.write(group(*numbered("wait", 10)))
            await until(lambda: gated.waiting == 2)
            stopping = asyncio.create_task(server.stop())
            await until(lambda: server._gate.closing.is_set())
            gated.may_go.set()
            responses: list[pb.CheckBatchResponse] = []
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await read_all(call, responses)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            await stopping
        assert [answer.id for answer in flat(responses)] == ["0", "1"]

    async def test_a_client_that_goes_away_ends_the_items_of_its_groups(self) -> None:
        """Those that have begun are cancelled, the others never begin."""
        gated = GatedClassifier()
        async with served(gated, max_in_flight=1) as server, channel_to(server) as channel:
            call = stub_of(channel).CheckBatch()
            await call.write(group(batch_request("a", "wait"), *numbered("gone", 20)))
            await until(lambda: gated.waiting == 1)
            call.cancel()
            await until(lambda: gated.waiting == 0)
            await until(lambda: not server._gate.calls)
        assert "gone" not in gated.asked


class _Recorder(guard_pb2_grpc.GuardServiceServicer):
    """Allows every item, and keeps the messages that came.

    Args:
        group_bytes: What it announces; None: nothing, and items of groups are fields that it does not know.
    """

    def __init__(self, group_bytes: str | None) -> None:
        self.group_bytes = group_bytes
        self.requests: list[pb.CheckBatchRequest] = []

    async def CheckBatch(self, requests: Any, context: Any) -> AsyncIterator[pb.CheckBatchResponse]:  # noqa: N802
        if self.group_bytes is not None:
            await context.send_initial_metadata(((wire.GROUP_BYTES, self.group_bytes),))
        async for request in requests:
            self.requests.append(request)
            for item in request.items or (request,):
                yield pb.CheckBatchResponse(id=item.id, decision=pb.Decision(action=pb.ACTION_ALLOW))


@asynccontextmanager
async def recorded(group_bytes: str | None) -> AsyncIterator[tuple[_Recorder, int]]:
    recorder = _Recorder(group_bytes)
    async with standing_in(recorder) as port:
        yield recorder, port


async def sent_by(client: str, port: int, items: list[str]) -> list[Any]:
    if client == "aio":
        async with AsyncGuardClient(f"127.0.0.1:{port}") as aio:
            return [result async for result in aio.check_many(items)]

    def run() -> list[Any]:
        with GuardClient(f"127.0.0.1:{port}") as sync:
            return list(sync.check_many(items))

    return await asyncio.to_thread(run)


@pytest.mark.parametrize("client", ["sync", "aio"])
class TestClients:
    @pytest.mark.parametrize("group_bytes", [None, "0", "many"])
    async def test_a_server_that_takes_no_groups_gets_none(self, client: str, group_bytes: str | None) -> None:
        """One of an earlier version sees what it always saw."""
        async with recorded(group_bytes) as (recorder, port):
            results = await sent_by(client, port, ["hello"] * 200)
        assert len(results) == len(recorder.requests) == 200
        assert not any(request.items for request in recorder.requests)

    @pytest.mark.parametrize("group_bytes", [200, 65_536])
    async def test_groups_are_no_longer_than_the_server_takes(self, client: str, group_bytes: int) -> None:
        """Nor than 32 items; an item that is longer by itself goes alone."""
        texts = ["hello", "x" * 1000] * 500
        async with recorded(str(group_bytes)) as (recorder, port):
            results = await sent_by(client, port, texts)
        assert len(results) == 1000
        grouped = [request for request in recorder.requests if request.items]
        assert grouped or group_bytes == 200
        assert all(request.ByteSize() <= group_bytes and len(request.items) <= 32 for request in grouped)
        sent = [item for request in recorder.requests for item in request.items or (request,)]
        assert [item.messages[0].content for item in sent] == texts

    async def test_a_server_s_size_limit_holds_for_single_items_alone(self, client: str) -> None:
        """Many short items pass where the server takes short messages."""
        async with served(max_message_bytes=300) as server:
            results = await sent_by(client, server.port, ["hello there"] * 300)
        assert [result.action for result in results] == [Action.ALLOW] * 300

    async def test_what_cannot_be_sent_has_its_place_in_a_group(self, client: str) -> None:
        """Its error comes where it stood."""
        texts = ["\ud800" if n % 5 == 0 else "a badword" if n % 5 == 1 else "hello" for n in range(203)]
        async with served() as server:
            results = await sent_by(client, server.port, texts)
        expected = {"\ud800": InvalidInput, "a badword": Action.BLOCK, "hello": Action.ALLOW}
        found = [result.action if isinstance(result, Decision) else type(result) for result in results]
        assert found == [expected[text] for text in texts]


class TestSources:
    async def test_an_item_goes_out_before_there_is_another(self) -> None:
        """A source that gives one when it has seen the answer to the last never waits for a group to fill."""
        async with served() as server, client_of(server) as client:
            answered = asyncio.Semaphore(1)

            async def source() -> AsyncIterator[str]:
                for _ in range(20):
                    await answered.acquire()
                    yield "hello"

            count = 0
            async for _ in client.check_many(source()):
                count += 1
                answered.release()
            assert count == 20

            def lockstep(sync: GuardClient) -> int:
                seen = threading.Semaphore(1)

                def items() -> Iterator[str]:
                    for _ in range(20):
                        seen.acquire()
                        yield "hello"

                count = 0
                for _ in sync.check_many(items()):
                    count += 1
                    seen.release()
                return count

            assert await in_thread(server, lockstep) == 20

    async def test_a_source_is_read_a_little_ahead(self) -> None:
        """One without end is not read into memory, and not on when nobody wants more."""
        read = 0

        def endless() -> Iterator[str]:
            nonlocal read
            while True:
                read += 1
                yield "hello"

        async def aendless() -> AsyncIterator[str]:
            for item in endless():
                yield item

        def use(sync: GuardClient) -> None:
            results = sync.check_many(endless())
            assert isinstance(next(results), Decision)
            results.close()  # type: ignore[attr-defined]  # it is a generator

        gated = GatedClassifier()
        async with served(gated) as server, client_of(server) as client:
            await in_thread(server, use)
            for source in (endless, aendless):
                results = client.check_many(source())
                assert isinstance(await anext(results), Decision)
                await results.aclose()
            await asyncio.sleep(0.05)
            before = read
            await asyncio.sleep(0.1)
            assert read == before < 100_000

    async def test_a_source_that_ends_badly_is_no_end_of_the_items(self) -> None:
        """Not even where it was cancelled: results would be missing in silence."""

        async def source() -> AsyncIterator[str]:
            yield "hello"
            raise asyncio.CancelledError

        async with served() as server, client_of(server) as client:
            with pytest.raises(asyncio.CancelledError):
                _ = [result async for result in client.check_many(source())]
