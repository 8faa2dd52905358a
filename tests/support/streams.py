"""What the tests of the sidecar's streams share: a server with a code shield, and classifiers that are plain to see."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from guardrail._pb import guard_pb2_grpc
from guardrail.client import AsyncGuardClient, GuardClient
from guardrail.extraction import extract_code_blocks
from guardrail.pipeline import Guard
from guardrail.policy import Policy, load_policy
from guardrail.protocols import Generator, HazardClassifier
from guardrail.server import GuardServer, ServerOptions
from guardrail.taxonomy import HazardCategory
from guardrail.testing import KeywordClassifier
from guardrail.verdict import Conversation, Finding, Outcome, Severity, Source, Span, Verdict

# "steal" is in the server's own unsafe canary.
KEYWORDS = KeywordClassifier({"steal": HazardCategory.NON_VIOLENT_CRIMES, "grumble": HazardCategory.HATE})


class EvalShield:
    """A code shield that finds one weakness for each ``eval(`` in a code block, and keeps what it was asked about."""

    source = Source("eval-shield", "test")

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        return [self._judge(conversation.last.content) for conversation in conversations]

    def _judge(self, text: str) -> Verdict:
        blocks = extract_code_blocks(text)
        self.seen += [block.code for block in blocks]
        found = tuple(
            Finding("eval", "CWE-95", Severity.ERROR, Span(at, at + 5), 1, 1, "python", "do not")
            for block in blocks
            for match in re.finditer(r"eval\(", block.code)
            for at in [block.span.start + match.start()]
        )
        return Verdict(Outcome.UNSAFE if found else Outcome.SAFE, self.source, findings=found)


class GatedClassifier:
    """Answers messages that hold "wait" only when told to; all others at once."""

    source = KEYWORDS.source

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.may_go = asyncio.Event()
        self.waiting = 0

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        if any("wait" in conversation.last.content for conversation in conversations):
            self.waiting += 1
            self.entered.set()
            try:
                await self.may_go.wait()
            finally:
                self.waiting -= 1
        return await KEYWORDS.classify(conversations)


@asynccontextmanager
async def served(
    classifier: HazardClassifier = KEYWORDS,
    *,
    generator: Generator | None = None,
    policy: Policy | None = None,
    code_shield: HazardClassifier | None = None,
    is_ready: bool = True,
    **options: Any,
) -> AsyncIterator[GuardServer]:
    """Serves a guard around the classifier until the test is done with it."""
    guard = Guard(classifier, policy=policy or load_policy("default"), code_shield=code_shield)
    options = {"port": 0, "grace_s": 1.0, "canary_pause_s": 0.01, **options}
    server = GuardServer(guard, generator=generator, options=ServerOptions(**options))
    await server.start()
    try:
        if is_ready:
            await asyncio.wait_for(server.wait_until_ready(), 10)
        yield server
    finally:
        await server.stop()


def client_of(server: GuardServer) -> AsyncGuardClient:
    return AsyncGuardClient(f"127.0.0.1:{server.port}")


async def in_thread(server: GuardServer, use: Callable[[GuardClient], Any]) -> Any:
    """Uses the sync client, in a thread, since the server lives in this one."""

    def run() -> Any:
        with GuardClient(f"127.0.0.1:{server.port}") as client:
            return use(client)

    return await asyncio.to_thread(run)


@asynccontextmanager
async def stub_to(server: GuardServer) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield guard_pb2_grpc.GuardServiceStub(channel)  # type: ignore[no-untyped-call]  # generated without types


async def until(is_so: Callable[[], bool]) -> None:
    """Waits for what another task brings about; the test's own time limit ends it where that never comes."""
    while not is_so():  # noqa: ASYNC110 - nobody sets an event for it
        await asyncio.sleep(0.01)
