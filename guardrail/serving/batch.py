"""``CheckBatch``: a stream of conversations, judged side by side and answered in their order.

::

    client ──▶ reader ─▶ a task for each item: turn ─▶ Guard ─▶ answer ─▶ writer, in order ──▶ client
                 └─ reads on while there is room: items without an answer, tokens not yet judged

A message may hold a group of items, which then begin one by one as there is room for each, as if each had come alone;
answers to items of groups go out with what else is ready, answers to single items alone: a client that knows no groups
gets none. What is wrong with one item is that one's error. A client that does not take its answers is not read on; one
that is gone cancels the call and all of its items. When the server stops, a stream gets the answers that it is owed
and then UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

import grpc

from guardrail import wire
from guardrail._pb import guard_pb2 as pb
from guardrail.errors import GuardrailError, InvalidInput, Unavailable
from guardrail.serving.admission import Gate
from guardrail.serving.calls import Requests, sendable, well_formed
from guardrail.serving.live import LiveGuard
from guardrail.serving.options import ServerOptions
from guardrail.serving.turns import Lane, tokens_of

__all__ = ["BatchChecker"]

# How long a message with a group may be. More saves nothing, and one message is read ahead of what has room.
_GROUP_BYTES = 64 * 1024

# One stream takes at most so much of the tokens that the server reads ahead.
_LARGEST_SHARE = 4


class BatchChecker:
    """The method ``CheckBatch``.

    Args:
        live: Judges.
        gate: Lets streams in, and gives their items turns.
        options: How far to read ahead.
    """

    def __init__(self, live: LiveGuard, gate: Gate, options: ServerOptions) -> None:
        self._live = live
        self._gate = gate
        self._options = options
        self._streams = 0

    async def check_batch(self, requests: Requests, context: Any) -> None:
        """Answers items in their order; reads on only as answers are taken."""
        async with self._gate.call():
            # Tells a client that it may go on, and with groups.
            group_bytes = min(_GROUP_BYTES, self._options.max_message_bytes)
            await context.send_initial_metadata(((wire.GROUP_BYTES, str(group_bytes)),))
            stream = _Stream(self._options.max_in_flight_per_stream)
            reader = asyncio.create_task(self._read(requests, context, stream), name="guardrail-batch")
            closing = asyncio.create_task(self._gate.closing.wait())
            closing.add_done_callback(lambda _: reader.cancel())
            self._streams += 1
            try:
                while (item := await stream.next()) is not None:
                    if isinstance(item, GuardrailError):
                        raise item
                    if not item.task.done():
                        # Shielded, so that all items of a client that went away are cancelled in one moment: one after
                        # the other, each would leave its place to the next.
                        await asyncio.shield(item.task)
                    answers = stream.ready()
                    is_single = len(answers) == 1
                    await context.write(answers[0] if is_single else pb.CheckBatchResponse(items=answers))
                    stream.answered(len(answers))
            finally:
                self._streams -= 1
                closing.cancel()
                reader.cancel()
                # After an orderly end there is nothing left; after a client that went away, nobody waits for the rest.
                stream.cancel()

    async def _read(self, requests: Requests, context: Any, stream: _Stream) -> None:
        """Begins a task for each item; at the end None, or the error that ends the stream."""
        try:
            while True:
                await self._room(stream)
                request = await requests.read()
                if request is grpc.aio.EOF:
                    stream.put(None)
                    return
                if not well_formed(request).items:
                    self._begin(request, stream, context, is_grouped=False)
                    continue
                if request.id or request.messages or request.path:
                    raise InvalidInput("expected a group of items or the fields of one, got both in one message")
                for item in request.items:
                    await self._room(stream)
                    self._begin(item, stream, context, is_grouped=True)
        except asyncio.CancelledError:
            if not self._gate.closing.is_set():
                raise
            stream.put(Unavailable("the server is stopping; send what has no answer to another one"))
        except Exception as exc:
            stream.put(sendable(exc))

    async def _room(self, stream: _Stream) -> None:
        await stream.room(self._options.max_tokens // max(self._streams, _LARGEST_SHARE))

    def _begin(self, request: pb.CheckBatchRequest, stream: _Stream, context: Any, *, is_grouped: bool) -> None:
        tokens = tokens_of(message.content for message in request.messages)
        stream.tokens += tokens
        stream.put(_Item(asyncio.create_task(self._answer(request, tokens, stream, context)), is_grouped))

    async def _answer(
        self, request: pb.CheckBatchRequest, tokens: int, stream: _Stream, context: Any
    ) -> pb.CheckBatchResponse:
        try:
            wire.require_id(request.id)
            if request.items:
                raise InvalidInput("an item of a group holds a group; put its items into the message itself")
            conversation = wire.conversation_from_wire(request.messages, request.path)
            async with self._gate.slot(tokens=tokens, limit_s=context.time_remaining(), lane=stream.lane):
                decision = await self._live.guard.acheck(conversation, deadline_s=context.time_remaining())
            return pb.CheckBatchResponse(id=request.id, decision=wire.decision_to_wire(decision))
        except Exception as exc:
            error = wire.problem_from_error(sendable(exc)).to_item()
            return pb.CheckBatchResponse(id=request.id, error=error)
        finally:
            stream.judged(tokens)


@dataclass(frozen=True, slots=True)
class _Item:
    """One item in work.

    Attributes:
        task: Answers it.
        is_grouped: Whether its answer may go out with others.
    """

    task: asyncio.Task[pb.CheckBatchResponse]
    is_grouped: bool


_Next = _Item | GuardrailError | None


class _Stream:
    """The items of one stream between its reader and its writer.

    Args:
        most: Items without an answer at one time.

    Attributes:
        lane: Its items' turns.
        tokens: Of items that were read and not yet judged.
    """

    def __init__(self, most: int) -> None:
        self.lane = Lane()
        self.tokens = 0
        self._most = most
        self._unanswered = 0
        self._items: deque[_Next] = deque()
        self._has_item = asyncio.Event()
        self._has_room = asyncio.Event()

    def put(self, item: _Next) -> None:
        """Puts an item behind those before it."""
        self._unanswered += 1
        self._items.append(item)
        self._has_item.set()

    async def next(self) -> _Next:
        """Waits for the next item."""
        while not self._items:
            self._has_item.clear()
            await self._has_item.wait()
        return self._items[0]

    def ready(self) -> list[pb.CheckBatchResponse]:
        """Returns the next answer, which is there, and those behind it that may go out with it."""
        answers: list[pb.CheckBatchResponse] = []
        size = 0
        for item in self._items:
            if not isinstance(item, _Item) or not item.task.done():
                break
            answer = item.task.result()
            size += answer.ByteSize() + wire.FRAME_BYTES
            if answers and (size > _GROUP_BYTES or not item.is_grouped):
                break
            answers.append(answer)
            if not item.is_grouped:
                break
        return answers

    def answered(self, count: int) -> None:
        """Makes room for so many more items."""
        for _ in range(count):
            self._items.popleft()
        self._unanswered -= count
        self._has_room.set()

    def judged(self, tokens: int) -> None:
        """Makes room for so many more tokens."""
        self.tokens -= tokens
        self._has_room.set()

    async def room(self, tokens: int) -> None:
        """Waits until one more item may be read.

        Args:
            tokens: What may have been read ahead; one item always may.
        """
        while self._unanswered >= self._most or (self.tokens >= tokens and self._unanswered):
            self._has_room.clear()
            await self._has_room.wait()

    def cancel(self) -> None:
        """Ends the work on what is left."""
        for item in self._items:
            if isinstance(item, _Item):
                item.task.cancel()
