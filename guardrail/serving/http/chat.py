"""``POST /v1/chat/completions``: a guarded exchange, whole or as server-sent events.

A stream's status is sent with its first text: what fails before that ends with a status of its own. After it, an error
is the stream's last event, and a block its last chunk's ``finish_reason``.
"""

from __future__ import annotations

import contextlib
import time

from guardrail.deadline import Deadline
from guardrail.errors import ConfigurationError, MissingExtra
from guardrail.serving.admission import Gate, Slot
from guardrail.serving.http.answers import DONE, Answer, event
from guardrail.serving.http.asgi import Reply, read_body, unless_gone
from guardrail.serving.http.backends import ChatBackend, ChatSession
from guardrail.serving.http.requests import ChatRequest, read_chat, read_json
from guardrail.serving.live import LiveGuard
from guardrail.serving.turns import tokens_of
from guardrail.streaming import astream_exchange, begin_with
from guardrail.verdict import Exchange

try:
    from starlette.requests import Request
except ImportError as exc:
    raise MissingExtra("the HTTP door needs starlette and uvicorn: pip install 'guardrail[http]'") from exc

__all__ = ["Completions"]


class Completions:
    """The method.

    Args:
        live: Judges.
        gate: Lets requests in.
        chat: Answers; None: requests end as 501.
        max_body_bytes: Longest request.
    """

    def __init__(self, live: LiveGuard, gate: Gate, chat: ChatBackend | None, *, max_body_bytes: int) -> None:
        self._live = live
        self._gate = gate
        self._chat = chat
        self._max_body_bytes = max_body_bytes

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answers a request."""
        deadline = Deadline(self._live.guard.policy.deadline_s)
        wanted = read_chat(read_json(await read_body(request, limit=self._max_body_bytes, deadline=deadline)))
        if self._chat is None:
            raise ConfigurationError("this server has no upstream; start it with --upstream URL --upstream-model NAME")
        form = Answer(reply.record.request_id, self._chat.model, int(time.time()))
        answer = self._stream if wanted.is_streamed else self._whole
        async with self._gate.call():
            work = answer(self._chat.open(wanted), wanted, form, deadline, reply)
            await unless_gone(request.receive, reply, work)

    def _slot(self, wanted: ChatRequest, deadline: Deadline) -> Slot:
        tokens = tokens_of(message.content for message in wanted.conversation.messages)
        return self._gate.slot(tokens=tokens, limit_s=deadline.remaining_s, kind="generate")

    async def _whole(
        self, session: ChatSession, wanted: ChatRequest, form: Answer, deadline: Deadline, reply: Reply
    ) -> None:
        async with self._slot(wanted, deadline):
            exchange = await self._live.guard.arun(wanted.conversation, session, deadline_s=deadline.remaining_s)
        reply.record.action = exchange.decision.action.value
        body = form.completion(exchange, finish_reason=session.finish_reason, usage=session.usage)
        await reply.send_json(body)

    async def _stream(
        self, session: ChatSession, wanted: ChatRequest, form: Answer, deadline: Deadline, reply: Reply
    ) -> None:
        guard = self._live.guard
        patience_s = guard.policy.deadline_s
        is_empty = True
        async with self._slot(wanted, deadline):
            begin = begin_with(session, wanted.conversation)
            running = astream_exchange(guard, wanted.conversation, begin, deadline_s=deadline.remaining_s)
            async with contextlib.aclosing(running) as parts:
                async for part in parts:
                    if not reply.has_begun:
                        await reply.begin_stream()
                        await reply.put(event(form.first_chunk()), patience_s=patience_s)
                    if isinstance(part, str):
                        is_empty = False
                        await reply.put(event(form.text_chunk(part)), patience_s=patience_s)
                    else:
                        reply.record.action = part.decision.action.value
                        end = _end(part, is_empty, wanted, session, form)
                        await reply.put(end, patience_s=patience_s, is_last=True)


def _end(exchange: Exchange, is_empty: bool, wanted: ChatRequest, session: ChatSession, form: Answer) -> bytes:
    """Returns the last events; the block message among them where nothing else was shown."""
    chunks = [form.text_chunk(exchange.text)] if exchange.is_blocked and is_empty else []
    chunks.append(form.last_chunk(exchange, finish_reason=session.finish_reason))
    if wanted.includes_usage:
        chunks.append(form.usage_chunk(session.usage))
    return b"".join(map(event, chunks)) + DONE
