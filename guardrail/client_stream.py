"""Streams of the clients: text goes in as a model writes it, and comes out as it may be shown.

::

    text = guard.stream(model.deltas(), prompt=question)
    for piece in text:
        show(piece)
    text.decision

What is sent is kept until the server says how far it may be shown; a server's word never lets text out that the mode
of the stream holds back. Each stream has one state, :class:`_Moderated` or :class:`_Generated`, and two ways to wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from enum import Enum
from typing import Any, TypeVar

from guardrail import wire
from guardrail.deadline import Deadline
from guardrail.errors import Blocked, GuardrailError, InternalError, InvalidInput, MissingExtra, Unavailable
from guardrail.progress import Progress, PromptCheck, Release
from guardrail.verdict import Conversation, Decision, Exchange, Finding, Message, Role

try:
    import grpc

    from guardrail._pb import guard_pb2 as pb
except ImportError as exc:
    raise MissingExtra("the client needs grpcio and protobuf: pip install 'guardrail[client]'") from exc

__all__ = [
    "AsyncCheckedStream",
    "AsyncGeneratedStream",
    "CheckedStream",
    "Ending",
    "GeneratedStream",
    "each",
    "error_of",
    "generate_stream_request",
    "moderate_config",
]

M = TypeVar("M", bound=Enum)
T = TypeVar("T")

# What a source of deltas may take to end, in seconds; one that ignores its cancellation is left behind.
_CLOSING_S = 0.05

# What grpc.aio tells of a stream that the server ended while a message was being written, whatever the server's reason.
_FAILED_WRITE = "Internal error from Core"
_STATUS_S = 0.25
_LOOK_S = 0.001


def moderate_config(
    prompt: str | None, messages: Sequence[Message], path: str, release: str, stop_early: bool, request_id: str
) -> pb.ModerateConfig:
    """Returns the first request of ``Moderate``.

    Raises:
        InvalidInput: If it cannot be sent.
    """
    if prompt is not None and messages:
        raise InvalidInput("give either prompt or messages; a prompt is the one user message before the answer")
    if prompt is not None:
        messages = (Message(Role.USER, prompt),)
    return pb.ModerateConfig(
        request_id=wire.require_id(request_id),
        messages=wire.messages_to_wire(messages),
        path=wire.require_unicode(path, "the path"),
        release=wire.RELEASES.to_wire(_member(Release, release, "release")),
        stop_early=stop_early,
    )


def generate_stream_request(
    messages: Sequence[Message], path: str, include_rejected_text: bool, prompt_check: str, request_id: str
) -> pb.GenerateStreamRequest:
    """Returns the request of ``GenerateStream``.

    Raises:
        InvalidInput: If it cannot be sent.
    """
    return pb.GenerateStreamRequest(
        request_id=wire.require_id(request_id),
        messages=wire.conversation_to_wire(Conversation(tuple(messages))),
        include_rejected_text=include_rejected_text,
        path=wire.require_unicode(path, "the path"),
        prompt_check=wire.PROMPT_CHECKS.to_wire(_member(PromptCheck, prompt_check, "prompt_check")),
    )


def _member(kind: type[M], value: str, name: str) -> M:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(str(member.value) for member in kind)
        raise InvalidInput(f"expected {name} to be one of {known}, got {value!r}") from None


class _Moderated:
    """An answer on its way through ``Moderate``: what was sent, and how much of it may be shown.

    The sync client sends from grpc's thread and receives in the caller's: a deque is safe between the two.
    """

    def __init__(self, config: pb.ModerateConfig) -> None:
        self.first = pb.ModerateRequest(config=config)
        self.release = wire.RELEASES.from_wire(config.release)
        self.progress = Progress(self.release, 0, 0)
        self.findings: list[Finding] = []
        self.source_error: BaseException | None = None
        self._unshown: deque[str] = deque()
        self._shown = 0

    def send(self, delta: object) -> pb.ModerateRequest:
        """Returns what to send for a delta; from then on the server can release it."""
        if not isinstance(delta, str):
            raise TypeError(f"expected deltas of str, got {type(delta).__name__}")
        wire.require_unicode(delta, "the delta")
        self._unshown.append(delta)
        return pb.ModerateRequest(delta=delta)

    def receive(self, response: pb.ModerateResponse) -> str:
        """Returns the text that a response lets out."""
        self.progress = progress = wire.progress_from_wire(response)
        self.findings += progress.findings
        through = progress.released_through
        if self.release is Release.CHECKED:
            through = min(through, progress.checked_through)
        if progress.decision is not None and not progress.decision.action.releases:
            return ""
        text = self._take(through - self._shown)
        self._shown += len(text)
        return text

    def end(self) -> None:
        """Judges the end of the stream.

        Raises:
            Blocked: If the answer may not be shown.
            InternalError: If the server did not say.
        """
        decision = self.progress.decision
        if decision is None:
            raise InternalError("the server ended the stream without a decision")
        if not decision.action.releases:
            raise Blocked(decision)
        if any(self._unshown):
            raise InternalError("the server ended the stream before the end of the text")

    def _take(self, count: int) -> str:
        taken: list[str] = []
        while count > 0:
            if not self._unshown:
                raise InternalError("the server released more text than it was sent")
            piece = self._unshown.popleft()
            if len(piece) > count:
                self._unshown.appendleft(piece[count:])
                piece = piece[:count]
            taken.append(piece)
            count -= len(piece)
        return "".join(taken)


class _Generated:
    """An exchange on its way through ``GenerateStream``."""

    def __init__(self) -> None:
        self.exchange: Exchange | None = None

    def receive(self, response: pb.GenerateStreamResponse) -> str:
        """Returns the text that a response brings."""
        if response.WhichOneof("part") == "exchange":
            self.exchange = wire.exchange_from_wire(response.exchange)
        return response.text

    def end(self) -> None:
        """Judges the end of the stream.

        Raises:
            Blocked: If the exchange was blocked.
            InternalError: If the server did not say.
        """
        if self.exchange is None:
            raise InternalError("the server ended the stream without its exchange")
        if self.exchange.is_blocked:
            raise Blocked(self.exchange.decision)


class _ModeratedTexts:
    """What the streams of both clients tell of an answer that is judged."""

    def __init__(self, state: _Moderated) -> None:
        self._state = state

    @property
    def decision(self) -> Decision | None:
        """The decision about the answer; None before the end."""
        return self._state.progress.decision

    @property
    def progress(self) -> Progress:
        """How far the answer has been checked, as last heard of."""
        return self._state.progress

    @property
    def release(self) -> Release:
        """When text of this stream is shown: ``IMMEDIATELY`` is optimistic."""
        return self._state.release

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The rule hits so far; spans count from the start of the answer."""
        return tuple(self._state.findings)


class _GeneratedTexts:
    """What the streams of both clients tell of an answer that is generated."""

    def __init__(self, state: _Generated) -> None:
        self._state = state

    @property
    def exchange(self) -> Exchange | None:
        """What came of it, with prompt decision and attempts; None before the end."""
        return self._state.exchange

    @property
    def decision(self) -> Decision | None:
        """The decision that ended the exchange; None before the end."""
        return None if self._state.exchange is None else self._state.exchange.decision


class _Sync:
    """An iterator that can be closed."""

    _texts: Any

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        text: str = next(self._texts)
        return text

    def close(self) -> None:
        """Ends the call; what was not shown stays so."""
        self._texts.close()


class _Async:
    """An async iterator that can be closed."""

    _texts: Any

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        text: str = await self._texts.__anext__()
        return text

    async def aclose(self) -> None:
        """Ends the call; what was not shown stays so."""
        await self._texts.aclose()


class CheckedStream(_ModeratedTexts, _Sync):
    """The text of an answer that may be shown; iterate over it. Raises ``Blocked`` at the end of one that may not.

    Args:
        open_call: Makes the call from its requests.
        config: The first request.
        deltas: The answer; read in a thread of grpc's.
    """

    def __init__(
        self, open_call: Callable[[Iterator[Any]], Any], config: pb.ModerateConfig, deltas: Iterable[str]
    ) -> None:
        super().__init__(_Moderated(config))
        self._open_call = open_call
        self._deltas = deltas
        self._texts = self._run()

    def _requests(self) -> Iterator[pb.ModerateRequest]:
        yield self._state.first
        try:
            for delta in self._deltas:
                yield self._state.send(delta)
        except Exception as exc:  # in grpc's thread nobody would see it
            self._state.source_error = exc
            # Not an end: the server would take what has come for the whole answer.
            yield pb.ModerateRequest()

    def _run(self) -> Iterator[str]:
        call = self._open_call(self._requests())
        try:
            for response in call:
                if text := self._state.receive(response):
                    yield text
                if self._state.progress.decision is not None:
                    break
        except grpc.RpcError as exc:
            if self._state.source_error is not None:
                raise self._state.source_error from None
            raise error_of(exc) from exc
        finally:
            call.cancel()
        self._state.end()


class AsyncCheckedStream(_ModeratedTexts, _Async):
    """The text of an answer that may be shown; see :class:`CheckedStream`.

    Args:
        open_call: Makes the call.
        config: The first request.
        deltas: The answer; read in a task of its own, and closed when the stream ends.
    """

    def __init__(
        self, open_call: Callable[[], Any], config: pb.ModerateConfig, deltas: Iterable[str] | AsyncIterable[str]
    ) -> None:
        super().__init__(_Moderated(config))
        self._open_call = open_call
        self._deltas = deltas
        self._texts = self._run()

    async def _write(self, call: Any) -> None:
        try:
            await call.write(self._state.first)
            async for delta in each(self._deltas):
                await call.write(self._state.send(delta))
            await call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass  # the call has ended, and who reads it hears why
        except Exception as exc:
            self._state.source_error = exc
            call.cancel()

    async def _run(self) -> AsyncIterator[str]:
        call = self._open_call()
        ending = Ending(call)
        writing = asyncio.create_task(self._write(call), name="guardrail-deltas")
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                if text := self._state.receive(response):
                    yield text
                if self._state.progress.decision is not None:
                    break
        except grpc.RpcError as exc:
            raise await ending.error(exc) from exc
        except asyncio.CancelledError:
            if self._state.source_error is not None:
                raise self._state.source_error from None
            raise
        finally:
            call.cancel()
            writing.cancel()
            await asyncio.wait({writing}, timeout=_CLOSING_S)
            await _aclose(self._deltas)
        self._state.end()


class GeneratedStream(_GeneratedTexts, _Sync):
    """The checked text of a generated answer; iterate over it. Raises ``Blocked`` at the end of a blocked exchange.

    Args:
        open_call: Makes the call.
    """

    def __init__(self, open_call: Callable[[], Any]) -> None:
        super().__init__(_Generated())
        self._open_call = open_call
        self._texts = self._run()

    def _run(self) -> Iterator[str]:
        call = self._open_call()
        try:
            for response in call:
                if text := self._state.receive(response):
                    yield text
        except grpc.RpcError as exc:
            raise error_of(exc) from exc
        finally:
            call.cancel()
        self._state.end()


class AsyncGeneratedStream(_GeneratedTexts, _Async):
    """The checked text of a generated answer; see :class:`GeneratedStream`.

    Args:
        open_call: Makes the call.
    """

    def __init__(self, open_call: Callable[[], Any]) -> None:
        super().__init__(_Generated())
        self._open_call = open_call
        self._texts = self._run()

    async def _run(self) -> AsyncIterator[str]:
        call = self._open_call()
        try:
            async for response in call:
                if text := self._state.receive(response):
                    yield text
        except grpc.RpcError as exc:
            raise error_of(exc) from exc
        finally:
            call.cancel()
        self._state.end()


def error_of(exc: Any) -> GuardrailError:
    """Returns the error that a call's status stands for."""
    return wire.error_from_problem(wire.problem_from_call(exc))


class Ending:
    """The status that the server ended an aio stream with.

    grpc.aio takes a write that fails, since the stream has ended, for the status (``set_internal_error``): in place of
    the server's, which it may have known already, or until Core gives it. It is never given where answers before it
    are left unread, as they are after a failed write.

    Args:
        call: The stream.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._first: Any = None
        call.add_done_callback(self._keep)

    async def error(self, exc: Any) -> GuardrailError:
        """Returns the error that the status stands for.

        Args:
            exc: What reading the stream raised; the stream was not cancelled.
        """
        if exc.details() != _FAILED_WRITE:
            return error_of(exc)
        deadline = Deadline(_STATUS_S)
        while self._first is None or self._first.details() == _FAILED_WRITE:
            if not deadline.remaining_s:
                return Unavailable("the server ended the stream; send what has no answer again")
            await asyncio.sleep(_LOOK_S)
            self._keep(self._call)
        return error_of(self._first)

    def _keep(self, call: Any) -> None:
        # A call that is done has its status at hand; its coroutines wait for nothing.
        self._first = grpc.aio.AioRpcError(
            _at_once(call.code()), grpc.aio.Metadata(), _at_once(call.trailing_metadata()), _at_once(call.details())
        )


def _at_once(coroutine: Any) -> Any:
    """Returns the result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise AssertionError("expected a call that is done")


async def each(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """Gives the items of either kind of iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def _aclose(deltas: object) -> None:
    close = getattr(deltas, "aclose", None)
    if close is not None:
        with contextlib.suppress(RuntimeError):  # it ignored its cancellation and is running still
            await close()
