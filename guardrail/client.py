"""Clients of the sidecar, for threads and for asyncio; they need grpc and protobuf alone.

::

    with GuardClient("127.0.0.1:50051") as guard:
        if not guard.check("some text").action.releases: ...

Each call is a :class:`_Call`: which method, what is sent, how the answer is read. Both clients make the same calls and
differ in how they wait. A status becomes the error that the server raised; a decision to block is not an error. An
answer that cannot be read is a decision to block.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Generic, TypeVar

from guardrail import wire
from guardrail.client_batch import AsyncSource, Batch, Source
from guardrail.client_channel import ClientTls, open_aio_channel, open_channel
from guardrail.client_stream import (
    AsyncCheckedStream,
    AsyncGeneratedStream,
    CheckedStream,
    Ending,
    GeneratedStream,
    error_of,
    generate_stream_request,
    moderate_config,
)
from guardrail.errors import DeadlineExceeded, GuardrailError, InvalidInput, MissingExtra, Unavailable
from guardrail.verdict import Conversation, Decision, Exchange, Message, Role
from guardrail.wire import ServerInfo

try:
    import grpc

    from guardrail._pb import guard_pb2 as pb
    from guardrail._pb import guard_pb2_grpc
except ImportError as exc:
    raise MissingExtra("the client needs grpcio and protobuf: pip install 'guardrail[client]'") from exc

__all__ = ["AsyncGuardClient", "ClientTls", "GuardClient", "ServerInfo"]

T = TypeVar("T")

DEFAULT_TARGET = "127.0.0.1:50051"

# Above the default policy's 30 s, so that the server's own answer, which says more, comes first.
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class _Call(Generic[T]):
    """One call of a method with one answer."""

    method: str
    request: Any
    read: Callable[[Any], T]


def _conversation(
    text: str | None, role: Role, prompt: str | None, messages: Sequence[Message] | None, path: str
) -> Conversation:
    if (text is None) == (messages is None):
        raise InvalidInput("give either text or messages")
    if messages is None:
        assert text is not None
        return replace(Conversation.of(text, role=role, prompt=prompt), path=path)
    if prompt is not None:
        raise InvalidInput("a prompt goes with text; put it into messages")
    return Conversation(tuple(messages), path)


def _check(conversation: Conversation, request_id: str) -> _Call[Decision]:
    request = pb.CheckRequest(
        request_id=wire.require_id(request_id),
        messages=wire.conversation_to_wire(conversation),
        path=wire.require_unicode(conversation.path, "the path"),
    )
    return _Call("Check", request, lambda response: wire.decision_from_wire(response.decision))


def _scan_code(text: str, language: str | None, is_block: bool, request_id: str) -> _Call[Decision]:
    request = pb.ScanCodeRequest(request_id=wire.require_id(request_id))
    wire.require_unicode(text, "the text")
    if is_block:
        request.block.code = text
        request.block.language = wire.require_unicode(language or "", "the language")
    elif language is None:
        request.text = text
    else:
        raise InvalidInput("a language goes with is_block=True; the blocks of a message say their own")
    return _Call("ScanCode", request, lambda response: wire.decision_from_wire(response.decision))


def _generate(messages: Sequence[Message], path: str, include_rejected_text: bool, request_id: str) -> _Call[Exchange]:
    request = pb.GenerateRequest(
        request_id=wire.require_id(request_id),
        messages=wire.conversation_to_wire(Conversation(tuple(messages))),
        include_rejected_text=include_rejected_text,
        path=wire.require_unicode(path, "the path"),
    )
    return _Call("Generate", request, wire.exchange_from_wire)


def _server_info() -> _Call[ServerInfo]:
    return _Call("GetServerInfo", pb.GetServerInfoRequest(), wire.server_info_from_wire)


def _stub(channel: Any) -> Any:
    return guard_pb2_grpc.GuardServiceStub(channel)  # type: ignore[no-untyped-call]  # generated without types


class _Client:
    """What both clients know."""

    def __init__(self, target: str, timeout_s: float) -> None:
        self.target = target
        self._timeout_s = timeout_s

    def _limit_s(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s


class GuardClient(_Client):
    """Asks a sidecar; safe to use from many threads at once.

    Args:
        target: Address of the server.
        timeout_s: How long a call may take where it does not say itself, in seconds.
        token: Sent with every call; the server's token file has it.
        tls: How the two know each other; None: plain text.

    Raises:
        ConfigurationError: If the certificates cannot be read, or the token could not stand in a header.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_s: float = _TIMEOUT_S,
        token: str | None = None,
        tls: ClientTls | None = None,
    ) -> None:
        super().__init__(target, timeout_s)
        self._channel = open_channel(target, token=token, tls=tls)
        self._stub = _stub(self._channel)

    def __enter__(self) -> GuardClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def check(
        self,
        text: str | None = None,
        *,
        role: Role = Role.USER,
        prompt: str | None = None,
        messages: Sequence[Message] | None = None,
        path: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> Decision:
        """Judges a message.

        Args:
            text: The message; or give ``messages``.
            role: Who wrote it.
            prompt: The user message before an assistant's message.
            messages: A conversation, whose last message is judged.
            timeout_s: How long to wait, in seconds.
            request_id: To find the call in the server's log; empty: the server makes one.

        Raises:
            GuardrailError: As the server says; ``Unavailable`` where it cannot be reached.
        """
        return self._run(_check(_conversation(text, role, prompt, messages, path), request_id), timeout_s)

    def check_many(
        self, items: Iterable[str | Conversation], *, timeout_s: float | None = None
    ) -> Iterator[Decision | GuardrailError]:
        """Judges many messages over one stream; result i belongs to item i.

        Args:
            items: Conversations, or texts of user messages; read in another thread, a little ahead of the results.
            timeout_s: How long the whole may take, in seconds; None: no limit, and the policy's for each item.

        Yields:
            The decision, or the error of this one item, which is given and not raised.

        Raises:
            GuardrailError: If the stream itself fails.
        """
        batch = Batch()
        source = Source(items)

        def requests() -> Iterator[pb.CheckBatchRequest]:
            try:
                while taken := source.take(batch.most):
                    yield from batch.requests(taken)
            except GeneratorExit:
                raise
            except BaseException as exc:  # in grpc's thread nobody would see it
                batch.source_error = exc

        with contextlib.closing(source):
            call = self._stub.CheckBatch(requests(), timeout=timeout_s)
            try:
                batch.opened(call.initial_metadata())
                for response in call:
                    yield from batch.receive(response)
            except grpc.RpcError as exc:
                raise error_of(exc) from exc
            finally:
                call.cancel()
        yield from batch.end()

    def scan_code(
        self,
        text: str,
        *,
        is_block: bool = False,
        language: str | None = None,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> Decision:
        """Examines code for weaknesses, without judging hazards.

        Args:
            text: A message whose code blocks are examined, or the code of one block.
            is_block: Whether ``text`` is code, rather than a message with code in it.
            language: The language of a block.
            timeout_s: How long to wait, in seconds.
            request_id: As in :meth:`check`.

        Returns:
            A decision whose one verdict holds the findings; spans count from the start of ``text``.

        Raises:
            ConfigurationError: If the server does not examine code.
            GuardrailError: As the server says.
        """
        return self._run(_scan_code(text, language, is_block, request_id), timeout_s)

    def generate(
        self,
        messages: Sequence[Message],
        *,
        path: str = "",
        include_rejected_text: bool = False,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> Exchange:
        """Has the server's generator answer a conversation, guarded.

        Args:
            messages: Ends with the user's message.
            path: Where the exchange belongs; the policy's suppressions may name it.
            include_rejected_text: Whether rejected attempts come with their text, for audit; else it is ``""``.
            timeout_s: How long to wait, in seconds.
            request_id: As in :meth:`check`.

        Raises:
            ConfigurationError: If the server has no generator.
            GenerationError: If the generator failed.
            GuardrailError: As the server says.
        """
        return self._run(_generate(messages, path, include_rejected_text, request_id), timeout_s)

    def stream(
        self,
        deltas: Iterable[str],
        *,
        prompt: str | None = None,
        messages: Sequence[Message] = (),
        path: str = "",
        release: str = "checked",
        stop_early: bool = False,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> CheckedStream:
        """Gives the text of an answer as it may be shown, while a model writes it.

        Args:
            deltas: The answer as it is written; read in another thread.
            prompt: The user message that is answered: context, not judged.
            messages: The conversation that is answered, in place of a prompt.
            path: Where the exchange belongs; the policy's suppressions may name it.
            release: ``"checked"`` holds text back until it has been checked; ``"immediately"`` is optimistic.
            stop_early: Whether to end at text that is not allowed, with the decision about what has come; else the
                deltas are read to their end, without any more text, and the decision is about all of them.
            timeout_s: How long the whole may take, in seconds; None: no limit of the client's.
            request_id: As in :meth:`check`.

        Returns:
            Iterate over it for the text; afterwards ``decision`` holds what was decided. Iterating raises ``Blocked``
            at the end of an answer that may not be shown, and any other ``GuardrailError`` as the server says.
        """
        config = moderate_config(prompt, messages, path, release, stop_early, request_id)
        return CheckedStream(lambda requests: self._stub.Moderate(requests, timeout=timeout_s), config, deltas)

    def generate_stream(
        self,
        messages: Sequence[Message],
        *,
        path: str = "",
        include_rejected_text: bool = False,
        prompt_check: str = "first",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> GeneratedStream:
        """Has the server's generator answer a conversation, guarded, and gives the checked text as it is released.

        Args:
            messages: Ends with the user's message.
            path: As in :meth:`generate`.
            include_rejected_text: As in :meth:`generate`.
            prompt_check: ``"first"``, or ``"parallel"``: beside the first generation, which a blocked prompt cancels.
            timeout_s: How long to wait, in seconds.
            request_id: As in :meth:`check`.

        Returns:
            Iterate over it for the text; afterwards ``exchange`` and ``decision`` hold what came of it. Iterating
            raises ``Blocked`` at the end of a blocked exchange, and any other ``GuardrailError`` as the server says.
        """
        request = generate_stream_request(messages, path, include_rejected_text, prompt_check, request_id)
        return GeneratedStream(lambda: self._stub.GenerateStream(request, timeout=self._limit_s(timeout_s)))

    def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """Says what the server is and which policy it applies."""
        return self._run(_server_info(), timeout_s)

    def is_ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether the server is there and answers calls."""
        try:
            return self.server_info(timeout_s=timeout_s).is_ready
        except (Unavailable, DeadlineExceeded):
            return False

    def _run(self, call: _Call[T], timeout_s: float | None) -> T:
        try:
            response = getattr(self._stub, call.method)(call.request, timeout=self._limit_s(timeout_s))
        except grpc.RpcError as exc:
            raise error_of(exc) from exc
        return call.read(response)


class AsyncGuardClient(_Client):
    """Asks a sidecar from one event loop; made in that loop.

    Args:
        target: Address of the server.
        timeout_s: How long a call may take where it does not say itself, in seconds.
        token: Sent with every call; the server's token file has it.
        tls: How the two know each other; None: plain text.

    Raises:
        ConfigurationError: If the certificates cannot be read, or the token could not stand in a header.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_s: float = _TIMEOUT_S,
        token: str | None = None,
        tls: ClientTls | None = None,
    ) -> None:
        super().__init__(target, timeout_s)
        self._channel = open_aio_channel(target, token=token, tls=tls)
        self._stub = _stub(self._channel)

    async def __aenter__(self) -> AsyncGuardClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()

    async def check(
        self,
        text: str | None = None,
        *,
        role: Role = Role.USER,
        prompt: str | None = None,
        messages: Sequence[Message] | None = None,
        path: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> Decision:
        """Judges a message; see :meth:`GuardClient.check`."""
        return await self._run(_check(_conversation(text, role, prompt, messages, path), request_id), timeout_s)

    async def check_many(
        self,
        items: Iterable[str | Conversation] | AsyncIterable[str | Conversation],
        *,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Decision | GuardrailError, None]:
        """Judges many messages over one stream; see :meth:`GuardClient.check_many`."""
        batch = Batch()
        source = AsyncSource(items)

        async def requests() -> AsyncIterator[pb.CheckBatchRequest]:
            try:
                while taken := await source.take(batch.most):
                    for request in batch.requests(taken):
                        yield request
                        # A server that refuses the stream does so now.
                        batch.opened(await call.initial_metadata())
                        if call.done():
                            return
            except Exception as exc:  # in grpc's task nobody would see it
                batch.source_error = exc

        async with contextlib.aclosing(source):
            call = self._stub.CheckBatch(requests(), timeout=timeout_s)
            ending = Ending(call)
            try:
                async for response in call:
                    for result in batch.receive(response):
                        yield result
            except grpc.RpcError as exc:
                raise await ending.error(exc) from exc
            finally:
                call.cancel()
        for error in batch.end():
            yield error

    async def scan_code(
        self,
        text: str,
        *,
        is_block: bool = False,
        language: str | None = None,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> Decision:
        """Examines code for weaknesses; see :meth:`GuardClient.scan_code`."""
        return await self._run(_scan_code(text, language, is_block, request_id), timeout_s)

    async def generate(
        self,
        messages: Sequence[Message],
        *,
        path: str = "",
        include_rejected_text: bool = False,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> Exchange:
        """Has the server's generator answer a conversation, guarded; see :meth:`GuardClient.generate`."""
        return await self._run(_generate(messages, path, include_rejected_text, request_id), timeout_s)

    def stream(
        self,
        deltas: Iterable[str] | AsyncIterable[str],
        *,
        prompt: str | None = None,
        messages: Sequence[Message] = (),
        path: str = "",
        release: str = "checked",
        stop_early: bool = False,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> AsyncCheckedStream:
        """Gives the text of an answer as it may be shown, while a model writes it; see :meth:`GuardClient.stream`.

        An async generator of deltas is closed when the stream ends.
        """
        config = moderate_config(prompt, messages, path, release, stop_early, request_id)
        return AsyncCheckedStream(lambda: self._stub.Moderate(timeout=timeout_s), config, deltas)

    def generate_stream(
        self,
        messages: Sequence[Message],
        *,
        path: str = "",
        include_rejected_text: bool = False,
        prompt_check: str = "first",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> AsyncGeneratedStream:
        """Has the server's generator answer, and gives the checked text; see :meth:`GuardClient.generate_stream`."""
        request = generate_stream_request(messages, path, include_rejected_text, prompt_check, request_id)
        return AsyncGeneratedStream(lambda: self._stub.GenerateStream(request, timeout=self._limit_s(timeout_s)))

    async def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """Says what the server is and which policy it applies."""
        return await self._run(_server_info(), timeout_s)

    async def is_ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether the server is there and answers calls."""
        try:
            return (await self.server_info(timeout_s=timeout_s)).is_ready
        except (Unavailable, DeadlineExceeded):
            return False

    async def _run(self, call: _Call[T], timeout_s: float | None) -> T:
        try:
            response = await getattr(self._stub, call.method)(call.request, timeout=self._limit_s(timeout_s))
        except grpc.RpcError as exc:
            raise error_of(exc) from exc
        return call.read(response)
