"""``Moderate``: an answer is judged while the client's model writes it.

::

    client ── config, delta, delta, … ──▶ reader ─▶ Feed ─▶ amoderate ─▶ Progress ──▶ client
                                            └─ EOF, an error, or the server stops

A stream holds one of the places for streams from its config to its end, and is refused at once where none is free. What
bounds it: the text, with the conversation, is as long as a ``CheckRequest`` may be; nobody waits longer than the
policy's deadline for the next delta or for an answer to be taken; and the whole takes an hour at most. A client that
is gone cancels the call. When the server stops it judges what has come and ends the stream with UNAVAILABLE: the
client has the text and can ask another server.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from guardrail import wire
from guardrail._pb import guard_pb2 as pb
from guardrail.deadline import Deadline
from guardrail.errors import DeadlineExceeded, InvalidInput, Unavailable
from guardrail.serving.admission import Gate
from guardrail.serving.calls import Requests, request_id, sendable, taken, well_formed
from guardrail.serving.live import LiveGuard
from guardrail.serving.options import ServerOptions
from guardrail.streaming import Feed, amoderate

__all__ = ["Moderator"]

# The longest deadline that a policy can have.
_LONGEST_STREAM_S = 3600.0


class Moderator:
    """The method ``Moderate``.

    Args:
        live: Judges.
        gate: Lets calls in.
        options: Limits the text.
    """

    def __init__(self, live: LiveGuard, gate: Gate, options: ServerOptions) -> None:
        self._live = live
        self._gate = gate
        self._options = options

    async def moderate(self, requests: Requests, context: Any) -> None:
        """Judges one answer; the last message that is written has the decision."""
        async with self._gate.call():
            guard = self._live.guard
            reader = _Reader(requests, self._gate, self._options.max_message_bytes, guard.policy.deadline_s)
            try:
                config = await reader.config()
                own_id = request_id(config)
                before = wire.messages_from_wire(config.messages)
                async with self._gate.slot(is_held=True):
                    reader.start()
                    reports = amoderate(
                        guard,
                        before,
                        reader.feed.take,
                        path=config.path,
                        release=wire.RELEASES.from_wire(config.release),
                        stop_early=config.stop_early,
                        limit_s=context.time_remaining,
                    )
                    async for progress in reports:
                        response = wire.progress_to_wire(progress, request_id=own_id)
                        await taken(context.write(response), guard.policy.deadline_s)
            finally:
                reader.close()


class _Reader:
    """Reads the messages of one stream, in a task of its own once the config was read.

    Args:
        requests: Gives the messages.
        gate: Says when the server stops.
        limit: What all messages together may be long, in bytes.
        patience_s: How long to wait for one, in seconds.
    """

    def __init__(self, requests: Requests, gate: Gate, limit: int, patience_s: float) -> None:
        self.feed = Feed()
        self._requests = requests
        self._limit = self._room = limit
        self._patience_s = patience_s
        self._deadline = Deadline(_LONGEST_STREAM_S)
        self._closing = asyncio.create_task(gate.closing.wait())
        self._reading: asyncio.Task[None] | None = None

    async def config(self) -> pb.ModerateConfig:
        """Reads the first message."""
        first = await self._read()
        if first is grpc.aio.EOF or first.WhichOneof("part") != "config":
            raise InvalidInput("expected a config as the first message of the stream; deltas come after it")
        config: pb.ModerateConfig = first.config
        return config

    def start(self) -> None:
        """Begins to read deltas."""
        self._reading = asyncio.create_task(self._fill(), name="guardrail-moderate")

    def close(self) -> None:
        """Reads no more."""
        self._closing.cancel()
        if self._reading is not None:
            self._reading.cancel()

    async def _fill(self) -> None:
        """Puts deltas in until their end; an error comes after the text before it."""
        try:
            while (request := await self._read()) is not grpc.aio.EOF:
                if request.WhichOneof("part") != "delta":
                    raise InvalidInput("expected a delta after the config; a stream judges one answer")
                await self.feed.put(request.delta)
            self.feed.end()
        except Exception as exc:
            self.feed.end(sendable(exc))

    async def _read(self) -> Any:
        """Reads the next message, or EOF.

        Raises:
            InvalidInput: If it is none, or the stream is too long.
            DeadlineExceeded: If none comes in time.
            Unavailable: If the server stops meanwhile.
        """
        self._deadline.require()
        reading = self._requests.reading()
        await asyncio.wait({reading, self._closing}, timeout=self._patience_s, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            if self._closing.done():
                raise Unavailable("the server is stopping; ask another one about the text")
            raise DeadlineExceeded(f"the client sent nothing for {self._patience_s:g} s; end a stream that is over")
        request = well_formed(reading.result())
        if request is not grpc.aio.EOF:
            self._room -= request.ByteSize()
        if self._room < 0:
            raise InvalidInput(
                f"the conversation and its answer are longer than {self._limit} bytes, "
                "the most that this server judges at once"
            )
        return request
