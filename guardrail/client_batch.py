"""Batches of the clients: what is at hand goes out together, and results come back in the order of the items.

::

    items ─▶ source ─▶ Batch.requests: single items, or groups to a server that takes them ─▶ CheckBatch
                                                 results ◀─ Batch.receive ◀─ single answers, or groups of them

A source is read a little ahead of what is sent. Whoever sends takes what was read by then, one item or many: nobody
waits for a group to fill, however slowly items come.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterable, Iterable, Iterator, Sequence

from guardrail import wire
from guardrail.errors import GuardrailError, InternalError, InvalidInput, MissingExtra
from guardrail.verdict import Conversation, Decision

try:
    from guardrail._pb import guard_pb2 as pb
except ImportError as exc:
    raise MissingExtra("the client needs grpcio and protobuf: pip install 'guardrail[client]'") from exc

__all__ = ["AsyncSource", "Batch", "Source"]

Item = str | Conversation

# A group is half of what a server has in work for one stream by default: one is judged while the next is on its way.
_MOST_ITEMS = 32
# More saves nothing: what a message costs beside its bytes is small by then.
_MOST_BYTES = 64 * 1024

# What a source may take to end, in seconds; one that ignores its cancellation is left behind.
_CLOSING_S = 0.05


class Batch:
    """Items on their way through ``CheckBatch``: what was sent, and what the answers mean.

    The sync client sends from grpc's thread and receives in the caller's: a deque is safe between the two.

    Attributes:
        source_error: What the source of items raised, to be raised after the results before it.
        most: Items to be sent at once.
    """

    def __init__(self) -> None:
        # For each item in order: the id it was sent with, or why it was not sent.
        self._items: deque[str | GuardrailError] = deque()
        self._count = 0
        self._group_bytes = 0
        self.source_error: BaseException | None = None
        self.most = 1

    def opened(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
        """Reads in a stream's initial metadata whether the server takes groups; before that it gets single items."""
        announced = dict(metadata or ()).get(wire.GROUP_BYTES, "0")
        if isinstance(announced, str) and announced.isascii() and announced.isdigit():
            self._group_bytes = min(int(announced), _MOST_BYTES)
            self.most = _MOST_ITEMS if self._group_bytes else 1

    def requests(self, items: Iterable[Item]) -> Iterator[pb.CheckBatchRequest]:
        """Gives what to send for some items; nothing for one that cannot be sent, whose result is then its error."""
        group: list[pb.CheckBatchRequest] = []
        size = 0
        for item in items:
            if (request := self._request(item)) is None:
                continue
            length = request.ByteSize() + wire.FRAME_BYTES
            if group and size + length > self._group_bytes:
                yield _joined(group)
                group, size = [], 0
            group.append(request)
            size += length
        if group:
            yield _joined(group)

    def receive(self, response: pb.CheckBatchResponse) -> Iterator[Decision | GuardrailError]:
        """Gives the results that a response brings, in the order of the items."""
        for answer in response.items or (response,):
            yield from self._unsent()
            if not self._items or self._items.popleft() != answer.id:
                raise InternalError(f"expected the server's answers in the order of the requests, got id {answer.id!r}")
            if answer.WhichOneof("result") == "error":
                yield wire.error_from_problem(wire.problem_from_item(answer.error))
            else:
                yield wire.decision_from_wire(answer.decision)

    def end(self) -> Iterator[GuardrailError]:
        """Gives what is left when the server has answered everything.

        Raises:
            InternalError: If it has not.
        """
        if self.source_error is not None:
            raise self.source_error
        yield from self._unsent()
        if self._items:
            raise InternalError(f"the server ended the stream with {len(self._items)} answers missing")

    def _request(self, item: Item) -> pb.CheckBatchRequest | None:
        item_id = str(self._count)
        self._count += 1
        try:
            conversation = Conversation.of(item) if isinstance(item, str) else item
            request = pb.CheckBatchRequest(
                id=item_id,
                messages=wire.conversation_to_wire(conversation),
                path=wire.require_unicode(conversation.path, "the path"),
            )
        except InvalidInput as exc:
            self._items.append(exc)
            return None
        self._items.append(item_id)
        return request

    def _unsent(self) -> Iterator[GuardrailError]:
        """Gives the results of the next items that were not sent."""
        while self._items and isinstance(item := self._items[0], GuardrailError):
            self._items.popleft()
            yield item


def _joined(group: Sequence[pb.CheckBatchRequest]) -> pb.CheckBatchRequest:
    return group[0] if len(group) == 1 else pb.CheckBatchRequest(items=group)


class Source:
    """Items for a thread that sends them; an iterator, which may be slow, is read in a thread of its own.

    Args:
        items: Where they come from.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._changed = threading.Condition()
        # What was read and not yet taken. Of a list that is all of it: it makes nobody wait.
        self._read: deque[Item] = deque(items) if isinstance(items, (list, tuple)) else deque()
        self._error: BaseException | None = None
        self._is_closed = False
        self._is_over = isinstance(items, (list, tuple))
        if not self._is_over:
            threading.Thread(target=self._fill, args=(items,), name="guardrail-items", daemon=True).start()

    def take(self, most: int) -> list[Item]:
        """Waits for one item, and takes what else is at hand; nothing at the end.

        Raises:
            BaseException: What the source raised, after the items before it.
        """
        with self._changed:
            while not self._read and not self._is_over:
                self._changed.wait()
            taken = [self._read.popleft() for _ in range(min(most, len(self._read)))]
            self._changed.notify_all()
        if not taken and self._error is not None:
            raise self._error
        return taken

    def close(self) -> None:
        """Lets no more be read or taken."""
        with self._changed:
            self._is_closed = self._is_over = True
            self._read.clear()
            self._changed.notify_all()

    def _fill(self, items: Iterable[Item]) -> None:
        try:
            for item in items:
                with self._changed:
                    self._read.append(item)
                    self._changed.notify_all()
                    while len(self._read) >= _MOST_ITEMS and not self._is_closed:
                        self._changed.wait()
                    if self._is_closed:
                        return
        except BaseException as exc:  # in this thread nobody would see it
            self._error = exc
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


class AsyncSource:
    """Items for a task that sends them; whatever is no list is read in a task of its own.

    Args:
        items: Where they come from; an iterable that is not async is read in this event loop, too.
    """

    def __init__(self, items: Iterable[Item] | AsyncIterable[Item]) -> None:
        self._changed = asyncio.Event()
        self._read: deque[Item] = deque(items) if isinstance(items, (list, tuple)) else deque()
        self._error: BaseException | None = None
        self._filling: asyncio.Task[None] | None = None
        if not isinstance(items, (list, tuple)):
            self._filling = asyncio.create_task(self._fill(items), name="guardrail-items")

    async def take(self, most: int) -> list[Item]:
        """Waits for one item, and takes what else is at hand; nothing at the end.

        Raises:
            BaseException: What the source raised, after the items before it.
        """
        while not self._read and self._filling is not None and not self._filling.done():
            await self._change()
        taken = [self._read.popleft() for _ in range(min(most, len(self._read)))]
        self._changed.set()
        if not taken and self._error is not None:
            raise self._error
        return taken

    async def aclose(self) -> None:
        """Reads no more."""
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.wait({self._filling}, timeout=_CLOSING_S)

    async def _fill(self, items: Iterable[Item] | AsyncIterable[Item]) -> None:
        try:
            if isinstance(items, AsyncIterable):
                async for item in items:
                    await self._put(item)
            else:
                for item in items:
                    await self._put(item)
        except BaseException as exc:  # whoever takes raises it; an end without it would pass for the end of the items
            self._error = exc
        finally:
            self._changed.set()

    async def _put(self, item: Item) -> None:
        self._read.append(item)
        self._changed.set()
        # Whoever sends has its turn after each item: the next one may be long in coming.
        await asyncio.sleep(0)
        while len(self._read) >= _MOST_ITEMS:
            await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
