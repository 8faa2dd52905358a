"""A policy that changes while the sidecar serves."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

import pytest
from sidecar import (
    HOST,
    GatedClassifier,
    channel_to,
    check_request,
    client_of,
    served,
    server_process,
    stub_of,
    until,
    write,
)

from guardrail._pb import guard_pb2 as pb
from guardrail.cli import serve as serve_command
from guardrail.client import GuardClient
from guardrail.policy import load_policy
from guardrail.verdict import Action

BLOCK = "version: 1\nname: one\n"
FLAG = "version: 1\nname: two\nrails: {prompt: {unsafe: {action: flag}}}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(BLOCK, "utf-8")
    return path


class TestWatching:
    async def test_a_changed_file_is_followed(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Decisions, their hash and GetServerInfo are the new policy's, without a restart."""
        with caplog.at_level(logging.INFO, "guardrail.server"):
            async with served(policy=load_policy(path), policy_file=path) as server, client_of(server) as client:
                before = await client.server_info()
                assert (await client.check("a badword")).action is Action.BLOCK
                write(path, FLAG)
                new = load_policy(path)
                await until(lambda: "the policy was replaced" in caplog.text)
                after = await client.server_info()
                decision = await client.check("a badword")
        assert (before.policy_name, after.policy_name) == ("one", "two")
        assert before.policy_hash != after.policy_hash == new.hash
        assert (decision.action, decision.policy_hash) == (Action.FLAG, new.hash)
        assert f"one {before.policy_hash} -> two {new.hash}" in caplog.text

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ("version: 1\nname: two\nrails: {prompt: {unsafe: {action: flagg}}}\n", "policy.yaml:3: "),
            ("", "the file is empty"),
            ("version: 1\nname: {", "not readable as YAML"),
        ],
    )
    async def test_a_bad_file_changes_nothing(
        self, path: Path, content: str, problem: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is refused with its line in the log, once, and the next good one counts."""
        async with served(policy=load_policy(path), policy_file=path) as server, client_of(server) as client:
            write(path, content)
            await until(lambda: "the policy is kept as it was" in caplog.text)
            assert (await client.check("a badword")).action is Action.BLOCK
            await asyncio.sleep(0.1)
            write(path, FLAG)
            while (await client.server_info()).policy_name != "two":  # noqa: ASYNC110 - the server's word is awaited
                await asyncio.sleep(0.01)
        assert caplog.text.count("the policy is kept as it was") == 1
        assert problem in caplog.text

    async def test_a_file_that_is_gone_changes_nothing(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """As while a deployment swaps it."""
        async with served(policy=load_policy(path), policy_file=path) as server, client_of(server) as client:
            await asyncio.to_thread(path.unlink)
            await until(lambda: "the policy is kept as it was" in caplog.text)
            assert (await client.check("a badword")).action is Action.BLOCK

    async def test_the_same_policy_in_other_words_is_no_news(
        self, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A comment changes the file and not the policy."""
        with caplog.at_level(logging.INFO, "guardrail.server"):
            async with served(policy=load_policy(path), policy_file=path) as server:
                write(path, f"# a comment\n{BLOCK}")
                await asyncio.sleep(0.2)
                assert server.is_ready
        assert "replaced" not in caplog.text

    async def test_a_call_in_flight_keeps_its_policy(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """The whole of one decision is by one policy."""
        gated = GatedClassifier()
        old = load_policy(path)
        with caplog.at_level(logging.INFO, "guardrail.server"):
            async with served(gated, policy=old, policy_file=path) as server, client_of(server) as client:
                in_flight = asyncio.create_task(client.check("wait for a badword"))
                await until(lambda: gated.waiting == 1)
                write(path, FLAG)
                await until(lambda: "the policy was replaced" in caplog.text)
                gated.may_go.set()
                decision = await in_flight
        assert (decision.action, decision.policy_hash) == (Action.BLOCK, old.hash)

    async def test_no_call_is_lost_while_policies_change(self, path: Path) -> None:
        """Each of many calls has one policy's decision or the other's."""
        hashes = {}
        for content in (BLOCK, FLAG):
            write(path, content)
            policy = load_policy(path)
            hashes[policy.hash] = Action.BLOCK if content is BLOCK else Action.FLAG
        async with (
            served(policy=load_policy(path), policy_file=path, watch_pause_s=0.001) as server,
            client_of(server) as client,
        ):
            seen = set()
            for number in range(300):
                if number % 20 == 0:
                    write(path, BLOCK if number % 40 == 0 else FLAG)
                decision = await client.check("a badword")
                assert decision.action is hashes[decision.policy_hash]
                seen.add(decision.policy_hash)
                await asyncio.sleep(0.002)
        assert seen == set(hashes)

    async def test_it_can_be_off(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Then a change counts when it is asked for."""
        with caplog.at_level(logging.INFO, "guardrail.server"):
            async with (
                served(policy=load_policy(path), policy_file=path, watches_policy=False) as server,
                client_of(server) as client,
            ):
                write(path, FLAG)
                await asyncio.sleep(0.2)
                assert (await client.check("a badword")).action is Action.BLOCK
                server.reload()
                await until(lambda: "the policy was replaced" in caplog.text)
                assert (await client.check("a badword")).action is Action.FLAG


PROGRAM = """
import asyncio, sys
from pathlib import Path
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.server import ServerOptions, serve
from guardrail.taxonomy import HazardCategory
from guardrail.testing import KeywordClassifier

path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
policy = load_policy(path or "default")
guard = Guard(KeywordClassifier({"steal": HazardCategory.HATE}), policy=policy)
options = ServerOptions(port=0, policy_file=path, watches_policy=False)
asyncio.run(serve(guard, options=options, on_start=lambda s: print(s.port, flush=True)))
"""


class TestSighup:
    def test_it_reads_the_policy_anew(self, path: Path) -> None:
        """A real process: the new policy decides, and the process goes on."""
        with server_process(PROGRAM, str(path)) as (process, port), GuardClient(f"{HOST}:{port}") as client:
            while not client.is_ready():
                pass
            assert client.check("steal").action is Action.BLOCK
            write(path, FLAG)
            os.kill(process.pid, signal.SIGHUP)
            while client.server_info().policy_name != "two":
                pass
            assert client.check("steal").action is Action.FLAG
            process.terminate()
            assert process.wait(30) == 0

    def test_it_ends_no_server_that_has_no_files(self) -> None:
        """A terminal that closes, or an operator who forgot that the policy is one of ours."""
        with server_process(PROGRAM) as (process, port), GuardClient(f"{HOST}:{port}") as client:
            while not client.is_ready():
                pass
            os.kill(process.pid, signal.SIGHUP)
            assert client.check("hello").action is Action.ALLOW
            assert process.poll() is None


class TestCommand:
    @pytest.mark.parametrize(
        ("policy", "environment", "expected"),
        [
            (None, None, None),
            ("strict", None, None),
            ("mine.yaml", None, Path("mine.yaml")),
            (None, "theirs.yaml", Path("theirs.yaml")),
            ("strict", "theirs.yaml", None),
        ],
    )
    def test_the_file_is_that_of_the_policy(
        self, policy: str | None, environment: str | None, expected: Path | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Option before environment; a policy of ours has no file."""
        if environment is None:
            monkeypatch.delenv("GUARDRAIL_POLICY", raising=False)
        else:
            monkeypatch.setenv("GUARDRAIL_POLICY", environment)
        assert serve_command._policy_file(policy) == expected


async def test_a_program_need_not_watch_anything() -> None:
    """Without files a server serves, and asking it to read anew does nothing."""
    async with served() as server, channel_to(server) as channel:
        server.reload()
        await asyncio.sleep(0.05)
        assert (await stub_of(channel).Check(check_request("hello"))).decision.action == pb.ACTION_ALLOW
