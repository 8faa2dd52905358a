"""The methods of ``GuardService``: a message in, a message out, every error a status of wire's table."""

from __future__ import annotations

import asyncio
import logging
import re
import traceback
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from guardrail import __version__, wire
from guardrail._pb import guard_pb2 as pb
from guardrail.errors import ConfigurationError, GuardrailError, InternalError, InvalidInput, Unavailable
from guardrail.protocols import Generator
from guardrail.serving.admission import Gate
from guardrail.serving.live import LiveGuard
from guardrail.serving.options import ServerOptions
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Conversation, Decision, Role, Span, Verdict

__all__ = ["Service"]

logger = logging.getLogger("guardrail.server")

_LANGUAGE = re.compile(r"[A-Za-z0-9_+#.-]{0,40}")


class _Malformed:
    """Stands for bytes that are not the message that the method takes."""


_MALFORMED = _Malformed()


class Service:
    """The methods of ``GuardService``; each takes a message, returns one, and raises guardrail's errors."""

    def __init__(self, live: LiveGuard, generator: Generator | None, options: ServerOptions, gate: Gate) -> None:
        self._live = live
        self._generator = generator
        self._options = options
        self._gate = gate

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
                decision = await self._live.guard.acheck(conversation, deadline_s=context.time_remaining())
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
                decision = await self._live.guard.acheck(conversation, deadline_s=context.time_remaining())
            return pb.CheckBatchResponse(id=request.id, decision=wire.decision_to_wire(decision))
        except Exception as exc:
            error = wire.problem_from_error(_sendable(exc)).to_item()
            return pb.CheckBatchResponse(id=request.id, error=error)

    async def _scan_code(self, request: pb.ScanCodeRequest, context: Any) -> pb.ScanCodeResponse:
        async with self._gate.call():
            request_id = _request_id(request)
            if (code_guard := self._live.code_guard) is None:
                raise ConfigurationError("this server does not examine code; start it with its code shield on")
            text, block = _text_to_scan(request)
            async with self._gate.slot(may_wait=False):
                decision = await code_guard.acheck(
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
                exchange = await self._live.guard.arun(
                    conversation, self._generator, deadline_s=context.time_remaining()
                )
        return wire.exchange_to_wire(exchange, request_id=request_id, with_rejected_text=request.include_rejected_text)

    async def _get_server_info(self, _request: pb.GetServerInfoRequest, _context: Any) -> pb.GetServerInfoResponse:
        return wire.server_info_to_wire(
            wire.ServerInfo(
                version=__version__,
                source=self._live.guard.source,
                policy_name=self._live.guard.policy.name,
                policy_hash=self._live.guard.policy.hash,
                categories=tuple(wire.CategoryInfo(c.value, c.title, c.description) for c in HazardCategory),
                is_ready=self._gate.is_open,
                scans_code=self._live.guard.scans_code,
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
