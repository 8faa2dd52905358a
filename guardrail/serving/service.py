"""The methods of ``GuardService``: a message in, a message out, every error a status of wire's table."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any

import grpc

from guardrail import __version__, wire
from guardrail._pb import guard_pb2 as pb
from guardrail.errors import ConfigurationError, InvalidInput
from guardrail.protocols import Generator
from guardrail.serving.admission import Gate, Slot
from guardrail.serving.batch import BatchChecker
from guardrail.serving.calls import Requests, reader, reporting, reporting_stream, request_id, taken
from guardrail.serving.live import LiveGuard
from guardrail.serving.moderate import Moderator
from guardrail.serving.options import ServerOptions
from guardrail.serving.turns import tokens_of
from guardrail.streaming import astream_exchange, begin_with
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Conversation, Decision, Role, Span, Verdict

__all__ = ["Service"]

_LANGUAGE = re.compile(r"[A-Za-z0-9_+#.-]{0,40}")


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
                reporting(method),
                request_deserializer=reader(request),
                response_serializer=lambda response: response.SerializeToString(),
            )
            for name, (method, request) in unary.items()
        }
        streams: dict[str, tuple[Callable[[Requests, Any], Awaitable[None]], Any]] = {
            "CheckBatch": (BatchChecker(self._live, self._gate, self._options).check_batch, pb.CheckBatchRequest),
            "Moderate": (Moderator(self._live, self._gate, self._options).moderate, pb.ModerateRequest),
        }
        for name, (method, request) in streams.items():
            methods[name] = grpc.stream_stream_rpc_method_handler(
                reporting_stream(method),
                request_deserializer=reader(request),
                response_serializer=lambda response: response.SerializeToString(),
            )
        methods["GenerateStream"] = grpc.unary_stream_rpc_method_handler(
            reporting(self._generate_stream),
            request_deserializer=reader(pb.GenerateStreamRequest),
            response_serializer=lambda response: response.SerializeToString(),
        )
        return grpc.method_handlers_generic_handler(wire.SERVICE, methods)

    async def _check(self, request: pb.CheckRequest, context: Any) -> pb.CheckResponse:
        async with self._gate.call():
            own_id = request_id(request)
            conversation = wire.conversation_from_wire(request.messages, request.path)
            async with self._slot(context, (message.content for message in request.messages)):
                decision = await self._live.guard.acheck(conversation, deadline_s=context.time_remaining())
        return pb.CheckResponse(request_id=own_id, decision=wire.decision_to_wire(decision))

    async def _scan_code(self, request: pb.ScanCodeRequest, context: Any) -> pb.ScanCodeResponse:
        async with self._gate.call():
            own_id = request_id(request)
            if (code_guard := self._live.code_guard) is None:
                raise ConfigurationError("this server does not examine code; start it with its code shield on")
            text, block = _text_to_scan(request)
            async with self._slot(context, (text,), kind="scan"):
                decision = await code_guard.acheck(
                    Conversation.of(text, role=Role.ASSISTANT), deadline_s=context.time_remaining()
                )
        if block is not None:
            decision = _within(decision, block)
        return pb.ScanCodeResponse(request_id=own_id, decision=wire.decision_to_wire(decision))

    async def _generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        async with self._gate.call():
            own_id = request_id(request)
            generator, conversation = self._to_answer(request)
            async with self._slot(context, (message.content for message in request.messages), kind="generate"):
                exchange = await self._live.guard.arun(conversation, generator, deadline_s=context.time_remaining())
        return wire.exchange_to_wire(exchange, request_id=own_id, with_rejected_text=request.include_rejected_text)

    async def _generate_stream(self, request: pb.GenerateStreamRequest, context: Any) -> None:
        async with self._gate.call():
            own_id = request_id(request)
            generator, conversation = self._to_answer(request)
            guard = self._live.guard
            running = astream_exchange(
                guard,
                conversation,
                begin_with(generator, conversation),
                prompt_check=wire.PROMPT_CHECKS.from_wire(request.prompt_check),
                deadline_s=context.time_remaining(),
            )
            texts = (message.content for message in request.messages)
            async with self._slot(context, texts, kind="generate"), contextlib.aclosing(running):
                async for part in running:
                    response = pb.GenerateStreamResponse(request_id=own_id)
                    if isinstance(part, str):
                        response.text = part
                    else:
                        exchange = wire.exchange_to_wire(
                            part, request_id=own_id, with_rejected_text=request.include_rejected_text
                        )
                        response.exchange.CopyFrom(exchange)
                    await taken(context.write(response), guard.policy.deadline_s)

    def _to_answer(self, request: pb.GenerateRequest | pb.GenerateStreamRequest) -> tuple[Generator, Conversation]:
        """Returns the generator, and the conversation that it is to answer."""
        if self._generator is None:
            raise ConfigurationError(
                "this server has no generator; start it with --upstream URL and --upstream-model NAME"
            )
        conversation = wire.conversation_from_wire(request.messages, request.path)
        if conversation.last.role is not Role.USER:
            raise InvalidInput(
                f"the last message is answered and must be from user, got {conversation.last.role.value}"
            )
        return self._generator, conversation

    def _slot(self, context: Any, texts: Iterable[str], *, kind: str = "check") -> Slot:
        """Returns a place for a call, which waits no longer than its client and the policy."""
        limit_s = self._live.guard.policy.deadline_s
        if (client_s := context.time_remaining()) is not None:
            limit_s = min(client_s, limit_s)
        return self._gate.slot(tokens=tokens_of(texts), limit_s=limit_s, kind=kind)

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
