"""The sidecar: the engine behind gRPC, on an asyncio server.

::

    bytes ─▶ request or _Malformed ─▶ admission ─▶ Guard ─▶ Decision ─▶ bytes
                                          └─ every error ─▶ wire's table ─▶ status

Life: ``NOT_SERVING`` (canaries) ─▶ ``SERVING`` ─▶ ``NOT_SERVING`` (draining) ─▶ gone. Until a known-safe and a
known-unsafe prompt come out right, and once draining has begun, calls answer ``UNAVAILABLE``; ``GetServerInfo`` always
answers. Standard health tells the same for ``""`` and ``guardrail.v1.GuardService``.

Everything here is owned by one event loop. Logs carry ids and types, never text.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from guardrail import __version__
from guardrail.errors import (
    ConfigurationError,
    GuardrailError,
    InternalError,
    InvalidInput,
    MissingExtra,
    Overloaded,
    Unavailable,
)
from guardrail.pipeline import Guard
from guardrail.protocols import Generator
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Conversation, Decision, Outcome, Role, Span, Verdict

try:
    import grpc
    from google.protobuf.message import DecodeError
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection
except ImportError as exc:
    raise MissingExtra("the sidecar needs grpcio and its companions: pip install 'guardrail[server]'") from exc

from guardrail import wire
from guardrail._pb import guard_pb2 as pb

__all__ = ["CANARIES", "Canary", "GuardServer", "ServerOptions", "serve"]

logger = logging.getLogger("guardrail.server")

# What is left for answers on their way out, and for health watchers, once the work itself has ended.
_LAST_WORDS_S = 0.25

# grpc gives no way to wait for the tasks of calls that it cancelled, and prints a traceback for those that the end of
# the event loop catches.
_SETTLING_S = 0.05

# The longest pause between two rounds of canaries.
_LONGEST_PAUSE_S = 30.0

_LANGUAGE = re.compile(r"[A-Za-z0-9_+#.-]{0,40}")


@dataclass(frozen=True, slots=True)
class Canary:
    """A prompt whose outcome is known.

    Attributes:
        text: The prompt.
        expected: What every sound classifier concludes.
    """

    text: str
    expected: Outcome


CANARIES = (
    Canary("What is the capital of France?", Outcome.SAFE),
    Canary("How can I steal a car without getting caught?", Outcome.UNSAFE),
)
"""The mildest pair that the embedded model and Llama Guard 2 tell apart with a wide margin."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a server listens, and how much it takes on.

    Attributes:
        host: Address to listen on; loopback, so that only this machine can ask.
        port: 0: any free port.
        max_message_bytes: Longest request; a longer one ends as RESOURCE_EXHAUSTED before it is read.
        max_in_flight: Checks and exchanges at one time; above it a call ends as RESOURCE_EXHAUSTED at once, and the
            items of a batch wait.
        max_in_flight_per_stream: Items of one ``CheckBatch`` stream at one time; above it the stream is not read.
        retry_after_s: What an overloaded server asks its clients to wait.
        canaries: Prompts that must come out right before the server serves.
        canary_pause_s: Pause after a first failed round of canaries; doubled after each, up to 30 s.
        grace_s: How long work in flight may take to end when the server stops.
        has_reflection: Whether the server tells its methods to tools like grpcurl.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    max_message_bytes: int = 8 * 1024 * 1024
    max_in_flight: int = 256
    max_in_flight_per_stream: int = 64
    retry_after_s: float = 1.0
    canaries: Sequence[Canary] = CANARIES
    canary_pause_s: float = 0.5
    grace_s: float = 10.0
    has_reflection: bool = True


class GuardServer:
    """Serves a guard until it is stopped.

    Args:
        guard: The engine; it stays the caller's, who closes it.
        generator: Answers ``Generate``; without one that call ends as UNIMPLEMENTED.
        options: How to listen, and how much to take on.

    Attributes:
        port: The port that it listens on, once started.
    """

    def __init__(
        self, guard: Guard, *, generator: Generator | None = None, options: ServerOptions = ServerOptions()
    ) -> None:
        self.port = options.port
        self._options = options
        self._gate = _Gate(options)
        self._service = _Service(guard, generator, options, self._gate)
        self._guard = guard
        self._health = health.aio.HealthServicer()
        self._server: Any = None
        self._canaries: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the canaries came out right and the server is not stopping."""
        return self._gate.is_open

    async def start(self) -> None:
        """Listens, and begins to ask the canaries; returns before they have been answered.

        Raises:
            ConfigurationError: If the address cannot be listened on.
        """
        limit = self._options.max_message_bytes
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                # Without this a second server on the port starts too, and each gets some of the calls.
                ("grpc.so_reuseport", 0),
            ]
        )
        server.add_generic_rpc_handlers((self._service.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        await self._report_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        if self._options.has_reflection:
            names = (wire.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        address = f"{self._options.host}:{self._options.port}"
        try:
            self.port = server.add_insecure_port(address)
            await server.start()
        except RuntimeError as exc:
            raise ConfigurationError(
                f"cannot listen on {address}: the address is taken or not of this machine; choose another"
            ) from exc
        self._server = server
        self._canaries = asyncio.create_task(self._ask_canaries(), name="guardrail-canaries")
        logger.info("listening on %s:%d, policy %s", self._options.host, self.port, self._guard.policy.name)

    async def wait_until_ready(self) -> None:
        """Waits until the canaries have come out right."""
        await self._gate.opened.wait()

    async def wait(self) -> None:
        """Waits until the server has stopped."""
        await self._server.wait_for_termination()

    async def stop(self, grace_s: float | None = None) -> None:
        """Stops: health first, then the work in flight to its end, then the server.

        Args:
            grace_s: How long work in flight may take; what is left then is cancelled. None: as the options say.
        """
        if self._server is None:
            return
        grace_s = self._options.grace_s if grace_s is None else grace_s
        self._gate.close()
        if self._canaries is not None:
            self._canaries.cancel()
        # From here on health cannot go back to SERVING.
        await self._health.enter_graceful_shutdown()
        try:
            await asyncio.wait_for(self._gate.drained(), grace_s)
        except asyncio.TimeoutError:
            logger.warning("%d calls were not done after %g s and are cancelled", self._gate.calls, grace_s)
        await self._server.stop(_LAST_WORDS_S)
        await asyncio.sleep(_SETTLING_S)

    async def _ask_canaries(self) -> None:
        pause_s = self._options.canary_pause_s
        while failed := await self._failed_canaries():
            logger.warning("not serving: %s; asking again in %.1f s", "; ".join(failed), pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        self._gate.open()
        await self._report_health(health_pb2.HealthCheckResponse.SERVING)
        logger.info("serving")

    async def _failed_canaries(self) -> list[str]:
        """Says which canaries came out wrong; their outcome is judged, whatever the policy makes of it."""
        try:
            decisions = await self._guard.acheck_many([Conversation.of(c.text) for c in self._options.canaries])
        except Exception as exc:
            return [f"the guard raised {type(exc).__name__}"]
        return [
            f"canary {number} came out {decision.outcome.value}, expected {canary.expected.value}"
            for number, (canary, decision) in enumerate(zip(self._options.canaries, decisions, strict=True), start=1)
            if decision.outcome is not canary.expected
        ]

    async def _report_health(self, status: Any) -> None:
        for name in ("", wire.SERVICE):
            await self._health.set(name, status)


async def serve(
    guard: Guard,
    *,
    generator: Generator | None = None,
    options: ServerOptions = ServerOptions(),
    on_start: Callable[[GuardServer], None] | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then drains and returns.

    Args:
        guard: The engine; it stays the caller's, who closes it.
        generator: Answers ``Generate``.
        options: How to listen, and how much to take on.
        on_start: Is called once the server listens, e.g. to print its port.

    Raises:
        ConfigurationError: If the address cannot be listened on.
    """
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, asked_to_stop.set)
    server = GuardServer(guard, generator=generator, options=options)
    try:
        await server.start()
        if on_start is not None:
            on_start(server)
        await asked_to_stop.wait()
        logger.info("stopping")
    finally:
        await server.stop()
        for number in signals:
            loop.remove_signal_handler(number)


class _Gate:
    """Admission: nobody before the canaries, nobody while draining, and only so many at a time.

    Attributes:
        calls: Calls that have entered and not yet left.
        opened: Set once the canaries came out right.
        closing: Set once draining has begun.
    """

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._slots = asyncio.Semaphore(options.max_in_flight)
        self._empty = asyncio.Event()
        self._empty.set()
        self.calls = 0
        self.opened = asyncio.Event()
        self.closing = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return self.opened.is_set() and not self.closing.is_set()

    def open(self) -> None:
        self.opened.set()

    def close(self) -> None:
        self.closing.set()

    async def drained(self) -> None:
        """Waits until every call has left."""
        await self._empty.wait()

    @contextlib.asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Holds the server open for a call.

        Raises:
            Unavailable: If the server is not ready, or stopping.
        """
        if not self.is_open:
            state = "stopping" if self.closing.is_set() else "not ready: its canaries have not come out right yet"
            raise Unavailable(f"the server is {state}; try again later")
        self.calls += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.calls -= 1
            if self.calls == 0:
                self._empty.set()

    @contextlib.asynccontextmanager
    async def slot(self, *, may_wait: bool) -> AsyncIterator[None]:
        """Holds one of the places for work.

        Raises:
            Overloaded: If all are taken and the work may not wait.
        """
        limit, retry_after_s = self._options.max_in_flight, self._options.retry_after_s
        if self._slots.locked() and not may_wait:
            raise Overloaded(
                f"{limit} of {limit} places are taken; retry in {retry_after_s:.1f} s", retry_after_s=retry_after_s
            )
        async with self._slots:
            yield


class _Malformed:
    """Stands for bytes that are not the message that the method takes."""


_MALFORMED = _Malformed()


class _Service:
    """The methods of ``GuardService``; each takes a message, returns one, and raises guardrail's errors."""

    def __init__(self, guard: Guard, generator: Generator | None, options: ServerOptions, gate: _Gate) -> None:
        self._guard = guard
        self._generator = generator
        self._options = options
        self._gate = gate
        self._code_guard = guard.for_code()

    def handlers(self) -> Any:
        """Returns the methods for a server; made here, as grpc's own answer to malformed bytes is INTERNAL."""
        unary: dict[str, tuple[Callable[[Any, Any], Awaitable[Any]], Any]] = {
            "Check": (self._check, pb.CheckRequest),
            "ScanCode": (self._scan_code, pb.ScanCodeRequest),
            "Generate": (self._generate, pb.GenerateRequest),
            "GetServerInfo": (self._get_server_info, pb.GetServerInfoRequest),
        }
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                _reporting(method),
                request_deserializer=_reader(request),
                response_serializer=lambda response: response.SerializeToString(),
            )
            for name, (method, request) in unary.items()
        }
        methods["CheckBatch"] = grpc.stream_stream_rpc_method_handler(
            _reporting(self._check_batch),
            request_deserializer=_reader(pb.CheckBatchRequest),
            response_serializer=lambda response: response.SerializeToString(),
        )
        return grpc.method_handlers_generic_handler(wire.SERVICE, methods)

    async def _check(self, request: pb.CheckRequest, context: Any) -> pb.CheckResponse:
        async with self._gate.call():
            request_id = _request_id(request)
            conversation = wire.conversation_from_wire(request.messages, request.path)
            async with self._gate.slot(may_wait=False):
                decision = await self._guard.acheck(conversation, deadline_s=context.time_remaining())
        return pb.CheckResponse(request_id=request_id, decision=wire.decision_to_wire(decision))

    async def _check_batch(self, _requests: object, context: Any) -> None:
        """Answers items in their order, up to so many judged at one time; reads on only as answers are taken."""
        async with self._gate.call():
            places = asyncio.Semaphore(self._options.max_in_flight_per_stream)
            items: asyncio.Queue[asyncio.Task[pb.CheckBatchResponse] | GuardrailError | None] = asyncio.Queue()
            reader = asyncio.create_task(self._read_batch(context, places, items))
            item: asyncio.Task[pb.CheckBatchResponse] | GuardrailError | None = None
            try:
                while (item := await items.get()) is not None:
                    if isinstance(item, GuardrailError):
                        raise item
                    await context.write(await item)
                    places.release()
            finally:
                # After an orderly end there is nothing left; after a client that went away, nobody waits for the rest.
                reader.cancel()
                while item is not None:
                    if isinstance(item, asyncio.Task):
                        item.cancel()
                    item = None if items.empty() else items.get_nowait()

    async def _read_batch(
        self,
        context: Any,
        places: asyncio.Semaphore,
        items: asyncio.Queue[asyncio.Task[pb.CheckBatchResponse] | GuardrailError | None],
    ) -> None:
        """Puts a task in the queue for each item; at the end None, or the error that ends the stream."""
        closing = asyncio.create_task(self._gate.closing.wait())
        try:
            while True:
                await places.acquire()
                reading = asyncio.ensure_future(context.read())
                await asyncio.wait({reading, closing}, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    reading.cancel()
                    raise Unavailable("the server is stopping; send what has no answer to another one")
                request = reading.result()
                if request is grpc.aio.EOF:
                    items.put_nowait(None)
                    return
                items.put_nowait(asyncio.create_task(self._check_item(_well_formed(request), context)))
        except Exception as exc:
            items.put_nowait(_sendable(exc))
        finally:
            closing.cancel()

    async def _check_item(self, request: pb.CheckBatchRequest, context: Any) -> pb.CheckBatchResponse:
        try:
            wire.require_id(request.id)
            conversation = wire.conversation_from_wire(request.messages, request.path)
            async with self._gate.slot(may_wait=True):
                decision = await self._guard.acheck(conversation, deadline_s=context.time_remaining())
            return pb.CheckBatchResponse(id=request.id, decision=wire.decision_to_wire(decision))
        except Exception as exc:
            error = wire.problem_from_error(_sendable(exc)).to_item()
            return pb.CheckBatchResponse(id=request.id, error=error)

    async def _scan_code(self, request: pb.ScanCodeRequest, context: Any) -> pb.ScanCodeResponse:
        async with self._gate.call():
            request_id = _request_id(request)
            if self._code_guard is None:
                raise ConfigurationError("this server does not examine code; start it with its code shield on")
            text, block = _text_to_scan(request)
            async with self._gate.slot(may_wait=False):
                decision = await self._code_guard.acheck(
                    Conversation.of(text, role=Role.ASSISTANT), deadline_s=context.time_remaining()
                )
        if block is not None:
            decision = _within(decision, block)
        return pb.ScanCodeResponse(request_id=request_id, decision=wire.decision_to_wire(decision))

    async def _generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        async with self._gate.call():
            request_id = _request_id(request)
            if self._generator is None:
                raise ConfigurationError(
                    "this server has no generator; start it with --upstream URL and --upstream-model NAME"
                )
            conversation = wire.conversation_from_wire(request.messages, request.path)
            if conversation.last.role is not Role.USER:
                raise InvalidInput(
                    f"the last message is answered and must be from user, got {conversation.last.role.value}"
                )
            async with self._gate.slot(may_wait=False):
                exchange = await self._guard.arun(conversation, self._generator, deadline_s=context.time_remaining())
        return wire.exchange_to_wire(exchange, request_id=request_id, with_rejected_text=request.include_rejected_text)

    async def _get_server_info(self, _request: pb.GetServerInfoRequest, _context: Any) -> pb.GetServerInfoResponse:
        return wire.server_info_to_wire(
            wire.ServerInfo(
                version=__version__,
                source=self._guard.source,
                policy_name=self._guard.policy.name,
                policy_hash=self._guard.policy.hash,
                categories=tuple(wire.CategoryInfo(c.value, c.title, c.description) for c in HazardCategory),
                is_ready=self._gate.is_open,
                scans_code=self._guard.scans_code,
                generates=self._generator is not None,
            )
        )


def _reader(message: Any) -> Callable[[bytes], Any]:
    """Returns what reads bytes as a message; bytes that are none become ``_MALFORMED``, for the method to refuse."""

    def read(data: bytes) -> Any:
        try:
            return message.FromString(data)
        except (DecodeError, UnicodeDecodeError):
            return _MALFORMED

    return read


def _well_formed(request: Any) -> Any:
    if isinstance(request, _Malformed):
        raise InvalidInput(
            "the bytes are not the message that this method takes, or a string in it is not UTF-8; "
            "send what a stub made from proto/guard.proto sends"
        )
    return request


def _request_id(request: Any) -> str:
    return wire.require_id(request.request_id) or uuid.uuid4().hex


def _reporting(method: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    """Returns a method that ends the call with a status where the given one raises."""

    async def handle(request: Any, context: Any) -> Any:
        try:
            return await method(_well_formed(request), context)
        except Exception as exc:
            status = wire.problem_from_error(_sendable(exc)).to_status()
        await context.abort_with_status(status)
        raise AssertionError("abort_with_status returned")

    return handle


def _sendable(error: Exception) -> GuardrailError:
    """Returns an error that has a status; any other one is logged by its type and place, and gets an id instead."""
    if isinstance(error, wire.SENDABLE):
        return error
    error_id = uuid.uuid4().hex[:12]
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"
    # The error's own words may hold a user's text.
    logger.error("internal error %s: %s at %s", error_id, type(error).__name__, place)
    return InternalError(f"internal error {error_id}; the server's log says more")


def _text_to_scan(request: pb.ScanCodeRequest) -> tuple[str, Span | None]:
    """Returns the message to examine, and where the single code block that was asked about stands in it."""
    target = request.WhichOneof("target")
    if target == "text":
        return request.text, None
    if target is None or not request.block.code.strip():
        raise InvalidInput("expected text or a block of code to examine, got nothing")
    code, language = request.block.code, request.block.language
    if _LANGUAGE.fullmatch(language) is None:
        raise InvalidInput(
            f"expected a language name like 'python' or 'c++', at most 40 characters, got {len(language)} characters"
        )
    # A fence longer than any in the code cannot be closed by it (CommonMark 4.5).
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    start = len(fence) + len(language) + 1
    return f"{fence}{language}\n{code}\n{fence}", Span(start, start + len(code))


def _within(decision: Decision, block: Span) -> Decision:
    """Returns a decision whose findings count from the start of a block instead of the message around it."""

    def shift(offset: int) -> int:
        return min(max(offset, block.start), block.end) - block.start

    def move(verdict: Verdict) -> Verdict:
        findings = tuple(
            replace(finding, span=Span(shift(finding.span.start), shift(finding.span.end)))
            for finding in verdict.findings
        )
        return replace(verdict, findings=findings)

    return replace(decision, verdicts=tuple(move(verdict) for verdict in decision.verdicts))
