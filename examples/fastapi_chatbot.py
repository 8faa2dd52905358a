"""A streaming chatbot with FastAPI, guarded in its own process or by a sidecar.

    pip install 'guardrail[client]' fastapi uvicorn
    uvicorn --app-dir examples fastapi_chatbot:app                                     # guarded in this process
    GUARDRAIL_TARGET=127.0.0.1:50051 uvicorn --app-dir examples fastapi_chatbot:app    # guarded by a sidecar
    curl -N http://127.0.0.1:8000/chat -H 'content-type: application/json' \
        -d '{"messages": [{"role": "user", "content": "Why does bread rise?"}]}'

``answer`` is a fake that always runs: put your model there. Text is sent once it has been checked. A prompt that is
refused gets the refusal, and so does the rest of an answer; a prompt that cannot be checked gets 503.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from guardrail import AsyncGuardClient, Blocked, GuardrailError, InvalidInput, Message, Role, guarded

REFUSAL = "I can't help with that."


class Turn(BaseModel):
    """One message of the conversation; a caller cannot speak for the operator."""

    role: Literal["user", "assistant"]
    content: str


class ChatRequest(BaseModel):
    """The conversation so far; the last message is the user's."""

    messages: list[Turn]


async def answer(messages: list[Message]) -> AsyncIterator[str]:
    """Writes an answer, word by word: your model goes here."""
    prompt = messages[-1].content
    if "roast" in prompt.lower():
        text = "With pleasure, since you asked for it. I hate women, they are stupid and worthless."
    else:
        text = f"You asked: {prompt} That is a good question, and here is an answer in a few words. Bread is fine."
    for word in text.split(" "):
        await asyncio.sleep(0.02)
        yield f"{word} "


guarded_answer = guarded(answer)


async def checked_by(sidecar: AsyncGuardClient, messages: list[Message]) -> AsyncIterator[str]:
    """Gives the answer's text as the sidecar lets it out."""
    decision = await sidecar.check(messages=messages)
    if not decision.action.releases:
        raise Blocked(decision)
    async for text in sidecar.stream(answer(messages), messages=messages):
        yield text


async def until_refused(first: str, texts: AsyncIterator[str]) -> AsyncIterator[str]:
    """Gives the texts, and the refusal where they end early: the status has been sent by then."""
    yield first
    try:
        async for text in texts:
            yield text
    except GuardrailError:
        yield f"\n\n{REFUSAL}"


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Connects to the sidecar, if there is one."""
    app.state.sidecar = None
    if target := os.environ.get("GUARDRAIL_TARGET"):
        async with AsyncGuardClient(target) as app.state.sidecar:
            yield
    else:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/chat")
async def chat(request: Request, body: ChatRequest) -> Any:
    """Answers the last message, as plain text that arrives piece by piece."""
    messages = [Message(Role(turn.role), turn.content) for turn in body.messages]
    sidecar = request.app.state.sidecar
    texts = checked_by(sidecar, messages) if sidecar is not None else guarded_answer(messages)
    try:
        first = await anext(texts, "")
    except Blocked:
        first = REFUSAL
    except InvalidInput as exc:
        raise HTTPException(422, str(exc)) from exc
    except GuardrailError as exc:
        raise HTTPException(503, f"the message could not be checked: {type(exc).__name__}") from exc
    return StreamingResponse(until_refused(first, texts), media_type="text/plain; charset=utf-8")


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    """Says that the process answers."""
    return {"status": "ok"}
