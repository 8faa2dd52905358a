"""What goes wrong ends as the design promises, with the real parts: embedded model, code shield, sidecar, CLI."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guardrail.assembly import build_guard
from guardrail.client import AsyncGuardClient
from guardrail.config import Settings
from guardrail.pipeline import Guard
from guardrail.server import GuardServer, ServerOptions
from guardrail.verdict import Action, Conversation, Outcome, Role

MEGABYTE = "Plain words about nothing in particular, again and again. " * 18_000
CODE = "Run this:\n```python\nprint('hello')\n```\n"


@pytest.fixture(scope="module")
def guard() -> Iterator[Guard]:
    built = build_guard(Settings(model="embedded", policy="default"))
    yield built
    built.close()


def broken_semgrep(path: Path, script: str) -> Guard:
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo 1.182.0 && exit\n{script}\n', "utf-8")
    path.chmod(0o755)
    return build_guard(Settings(model="embedded", policy="default", semgrep=str(path)))


class TestMessages:
    def test_a_megabyte_ends_by_its_deadline_and_starves_nobody(self, guard: Guard) -> None:
        """Judged whole or unverified, never in part; and the next message has its answer."""
        assert len(MEGABYTE) > 1_000_000
        decision = guard.check(Conversation.of(MEGABYTE), deadline_s=1.0)
        assert (decision.outcome, decision.action) == (Outcome.UNVERIFIED, Action.BLOCK)
        assert guard.check(Conversation.of("Good morning!")).action is Action.ALLOW

    async def test_a_megabyte_over_the_wire_leaves_room_for_others(self, guard: Guard) -> None:
        """A short message beside it is answered while it is being judged."""
        server = GuardServer(guard, options=ServerOptions(port=0))
        await server.start()
        try:
            await server.wait_until_ready()
            async with AsyncGuardClient(f"127.0.0.1:{server.port}") as client:
                long = asyncio.create_task(client.check(MEGABYTE, timeout_s=60))
                await asyncio.sleep(0.2)
                assert (await client.check("Good morning!")).action is Action.ALLOW
                assert not long.done()
                long.cancel()
        finally:
            await server.stop(0.1)

    @pytest.mark.parametrize("text", ["", " \n", "\u200b\u200b"])
    def test_a_message_without_text_is_unverified(self, guard: Guard, text: str) -> None:
        """There is nothing that could have been judged."""
        decision = guard.check(Conversation.of(text))
        assert (decision.outcome, decision.action) == (Outcome.UNVERIFIED, Action.BLOCK)

    def test_bytes_that_are_not_utf8_are_refused_at_the_command_line(self) -> None:
        """Bad usage, told with the place; nothing is judged in part."""
        command = [sys.executable, "-m", "guardrail", "check", "-", "--model", "embedded"]
        done = subprocess.run(command, input=b"caf\xe9 au lait", capture_output=True, check=False)
        assert done.returncode == 2
        assert b"byte 4 of 12" in done.stderr
        assert done.stdout == b""


class TestSemgrep:
    @pytest.mark.parametrize(
        "script",
        ["exit 7", "kill -9 $$", "echo garbage", "echo '{}'", 'echo \'{"results": [], "paths": {"scanned": []}}\''],
        ids=["fails", "is killed", "prints garbage", "prints nothing of use", "says it scanned nothing"],
    )
    def test_a_broken_semgrep_is_unverified(self, tmp_path: Path, script: str) -> None:
        """Code that nobody scanned is blocked; text without code does not need semgrep."""
        guard = broken_semgrep(tmp_path / "semgrep", script)
        try:
            decision = guard.check(Conversation.of(CODE, role=Role.ASSISTANT))
            assert (decision.outcome, decision.action) == (Outcome.UNVERIFIED, Action.BLOCK)
            assert guard.check(Conversation.of("Good morning!", role=Role.ASSISTANT)).action is Action.ALLOW
        finally:
            guard.close()

    def test_a_hanging_semgrep_is_unverified_and_ended(self, tmp_path: Path) -> None:
        """The deadline answers, and the process does not stay behind."""
        mark = tmp_path / "pid"
        guard = broken_semgrep(tmp_path / "semgrep", f"echo $$ > {mark}\nexec sleep 600")
        try:
            decision = guard.check(Conversation.of(CODE, role=Role.ASSISTANT), deadline_s=2.0)
            assert (decision.outcome, decision.action) == (Outcome.UNVERIFIED, Action.BLOCK)
        finally:
            guard.close()
        process = Path("/proc") / mark.read_text("utf-8").strip()
        for _ in range(100):
            if not process.exists():
                break
            time.sleep(0.05)
        assert not process.exists()
