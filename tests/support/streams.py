"""What the tests of the sidecar's streams share: a server with a code shield, and classifiers that are plain to see."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sidecar import channel_to, stub_of

from guardrail.extraction import extract_code_blocks
from guardrail.server import GuardServer
from guardrail.verdict import Conversation, Finding, Outcome, Severity, Source, Span, Verdict


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


@asynccontextmanager
async def stub_to(server: GuardServer) -> AsyncIterator[Any]:
    async with channel_to(server) as channel:
        yield stub_of(channel)
