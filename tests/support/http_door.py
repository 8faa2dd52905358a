"""A sidecar with its HTTP door on a free port, in front of a fake upstream, and the official client to ask it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
from fake_upstream import FakeUpstream
from sidecar import KEYWORDS

from guardrail.pipeline import Guard
from guardrail.policy import Policy, load_policy
from guardrail.protocols import Generator, HazardClassifier
from guardrail.server import GuardServer, ServerOptions
from guardrail.serving.http.options import HttpOptions
from guardrail.serving.http.upstream import ChatUpstream
from guardrail.telemetry import Telemetry

QUESTION = [{"role": "user", "content": "How do I bake bread?"}]


@dataclass
class Door:
    """A running sidecar.

    Attributes:
        server: It.
        client: OpenAI's client, which does not ask again.
        http: For what the client cannot say.
        url: Where HTTP listens.
    """

    server: GuardServer
    client: openai.AsyncOpenAI
    http: httpx.AsyncClient
    url: str

    async def ask(self, messages: list[dict[str, Any]] | None = None, **options: Any) -> Any:
        """Asks for an answer through the official client."""
        return await self.client.chat.completions.create(  # type: ignore[call-overload]
            model="any", messages=messages or QUESTION, **options
        )

    async def post(self, path: str = "/v1/chat/completions", /, **body: Any) -> httpx.Response:
        """Asks for an answer without the official client."""
        return await self.http.post(path, json={"model": "any", "messages": QUESTION, **body})


@asynccontextmanager
async def door(
    upstream: FakeUpstream | None = None,
    classifier: HazardClassifier = KEYWORDS,
    *,
    policy: Policy | None = None,
    code_shield: HazardClassifier | None = None,
    is_ready: bool = True,
    generator: Generator | None = None,
    telemetry: Telemetry | None = None,
    api_key: str = "none",
    http: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Door]:
    """Serves a guard around the classifier until the test is done with it."""
    guard = Guard(classifier, policy=policy or load_policy("default"), code_shield=code_shield)
    chat = None if upstream is None else ChatUpstream(upstream.url, "the-model", api_key="upstream-key", retries=0)
    server = GuardServer(
        guard,
        generator=generator,
        options=ServerOptions(**{"port": 0, "grace_s": 1.0, "canary_pause_s": 0.01, **options}),
        http=HttpOptions(**{"port": 0, "chat": chat, **(http or {})}),
        telemetry=telemetry,
    )
    await server.start()
    url = str(server.http_url)
    try:
        if is_ready:
            await asyncio.wait_for(server.wait_until_ready(), 10)
        async with (
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0) as client,
            httpx.AsyncClient(base_url=url) as plain,
        ):
            yield Door(server, client, plain, url)
    finally:
        await server.stop()
