"""``CheckBatch``: a stream of conversations, judged side by side and answered in their order.

::

    client ──▶ reader ─▶ a task for each item: turn ─▶ Guard ─▶ answer ─▶ writer, in order ──▶ client
                 └─ reads on while there is room: items without an answer, tokens not yet judged

What is wrong with one item is that one's error. A client that does not take its answers is not read on; one that is
gone cancels the call and all of its items. When the server stops, a stream gets the answers that it is owed and then
UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import grpc

from guardrail import wire
from guardrail._pb import guard_pb2 as pb
from guardrail.errors import GuardrailError, Unavailable
from guardrail.serving.admission import Gate
from guardrail.serving.calls import Requests, sendable, well_formed
from guardrail.serving.live import LiveGuard
from guardrail.serving.options import ServerOptions
from guardrail.serving.turns import Lane, tokens_of

__all__ = ["BatchChecker"]

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
            await context.send_initial_metadata(())  # tells a client that it may go on
            stream = _Stream(self._options.max_in_flight_per_stream)
            reader = asyncio.create_task(self._read(requests, context, stream), name="guardrail-batch")
            closing = asyncio.create_task(self._gate.closing.wait())
            closing.add_done_callback(lambda _: reader.cancel())
            self._streams += 1
            try:
                while (item := await stream.next()) is not None:
                    if isinstance(item, GuardrailError):
                        raise item
                    # Shielded, so that all items of a client that went away are cancelled in one moment: one after the
                    # other, each would leave its place to the next.
                    await context.write(item.result() if item.done() else await asyncio.shield(item))
                    stream.answered()
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
                await stream.room(self._options.max_tokens // max(self._streams, _LARGEST_SHARE))
                request = await requests.read()
                if request is grpc.aio.EOF:
                    stream.put(None)
                    return
                tokens = tokens_of(message.content for message in well_formed(request).messages)
                stream.tokens += tokens
                stream.put(asyncio.create_task(self._answer(request, tokens, stream, context)))
        except asyncio.CancelledError:
            if not self._gate.closing.is_set():
                raise
            stream.put(Unavailable("the server is stopping; send what has no answer to another one"))
        except Exception as exc:
            stream.put(sendable(exc))

    async def _answer(
        self, request: pb.CheckBatchRequest, tokens: int, stream: _Stream, context: Any
    ) -> pb.CheckBatchResponse:
        try:
            wire.require_id(request.id)
            conversation = wire.conversation_from_wire(request.messages, request.path)
            async with self._gate.slot(tokens=tokens, limit_s=context.time_remaining(), lane=stream.lane):
                decision = await self._live.guard.acheck(conversation, deadline_s=context.time_remaining())
            return pb.CheckBatchResponse(id=request.id, decision=wire.decision_to_wire(decision))
        except Exception as exc:
            error = wire.problem_from_error(sendable(exc)).to_item()
            return pb.CheckBatchResponse(id=request.id, error=error)
        finally:
            stream.judged(tokens)


_Item = asyncio.Task[pb.CheckBatchResponse] | GuardrailError | None


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
        self._items: deque[_Item] = deque()
        self._has_item = asyncio.Event()
        self._has_room = asyncio.Event()

    def put(self, item: _Item) -> None:
        """Puts an item behind those before it."""
        self._unanswered += 1
        self._items.append(item)
        self._has_item.set()

    async def next(self) -> _Item:
        """Waits for the next item."""
        while not self._items:
            self._has_item.clear()
            await self._has_item.wait()
        return self._items[0]

    def answered(self) -> None:
        """Makes room for one more item."""
        self._items.popleft()
        self._unanswered -= 1
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
            if isinstance(item, asyncio.Task):
                item.cancel()
