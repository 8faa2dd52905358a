"""What the tests of the sidecar share: a server in this process, one in a process of its own, and certificates."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
import trustme

from guardrail._pb import guard_pb2 as pb
from guardrail._pb import guard_pb2_grpc
from guardrail.client import AsyncGuardClient, ClientTls, GuardClient
from guardrail.pipeline import Guard
from guardrail.policy import Policy, load_policy
from guardrail.protocols import Generator, HazardClassifier
from guardrail.server import GuardServer, ServerOptions, TlsFiles
from guardrail.taxonomy import HazardCategory
from guardrail.testing import KeywordClassifier
from guardrail.verdict import Conversation, Finding, Outcome, Severity, Source, Span, Verdict

ROOT = Path(__file__).parents[2]
SERVICE = "guardrail.v1.GuardService"
HOST = "127.0.0.1"

T = TypeVar("T")

# "steal" is in the server's own unsafe canary.
KEYWORDS = KeywordClassifier(
    {
        "steal": HazardCategory.NON_VIOLENT_CRIMES,
        "badword": HazardCategory.HATE,
        "grumble": HazardCategory.HATE,
    }
)

TOKEN = "a-token-of-the-tests-0123456789"
OTHER_TOKEN = "another-token-of-the-tests-0123"


class EvalShield:
    """A code shield that finds one weakness wherever a message says ``eval(``."""

    source = Source("eval-shield", "test")

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        return [self._judge(conversation.last.content) for conversation in conversations]

    def _judge(self, text: str) -> Verdict:
        at = text.find("eval(")
        if at < 0:
            return Verdict(Outcome.SAFE, self.source)
        finding = Finding("eval", "CWE-95", Severity.ERROR, Span(at, at + 5), 1, 1, "python", "do not")
        return Verdict(Outcome.UNSAFE, self.source, findings=(finding,))


class GatedClassifier:
    """Answers messages that hold a word only when told to, all others at once; keeps what it was asked, in order."""

    source = KEYWORDS.source

    def __init__(self, word: str = "wait") -> None:
        self._word = word
        self.entered = asyncio.Event()
        self.may_go = asyncio.Event()
        self.waiting = 0
        self.most_waiting = 0
        self.asked: list[str] = []

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        texts = [conversation.last.content for conversation in conversations]
        self.asked += texts
        if any(self._word in text for text in texts):
            self.waiting += 1
            self.most_waiting = max(self.waiting, self.most_waiting)
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
    options = {"port": 0, "grace_s": 1.0, "canary_pause_s": 0.01, "watch_pause_s": 0.02, **options}
    server = GuardServer(guard, generator=generator, options=ServerOptions(**options))
    await server.start()
    try:
        if is_ready:
            await asyncio.wait_for(server.wait_until_ready(), 10)
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def standing_in(servicer: Any) -> AsyncIterator[int]:
    """Serves methods of the test's own in place of the sidecar's; gives the port."""
    server = grpc.aio.server()
    guard_pb2_grpc.add_GuardServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port(f"{HOST}:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


def client_of(server: GuardServer, **options: Any) -> AsyncGuardClient:
    return AsyncGuardClient(f"{HOST}:{server.port}", **options)


async def in_thread(server: GuardServer, use: Callable[[GuardClient], T]) -> T:
    """Uses the sync client, in a thread, since the server lives in this one."""

    def run() -> T:
        with GuardClient(f"{HOST}:{server.port}") as client:
            return use(client)

    return await asyncio.to_thread(run)


def stub_of(channel: Any) -> Any:
    return guard_pb2_grpc.GuardServiceStub(channel)  # type: ignore[no-untyped-call]  # generated without types


@asynccontextmanager
async def channel_to(server: GuardServer) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"{HOST}:{server.port}") as channel:
        yield channel


def check_request(text: str) -> pb.CheckRequest:
    return pb.CheckRequest(messages=[pb.Message(role=pb.ROLE_USER, content=text)])


def batch_request(item_id: str, text: str) -> pb.CheckBatchRequest:
    return pb.CheckBatchRequest(id=item_id, messages=[pb.Message(role=pb.ROLE_USER, content=text)])


def write(path: Path, text: str) -> None:
    """Puts a file in the place of the one that is there; whoever reads meanwhile sees one of the two."""
    new = path.with_suffix(".new")
    new.write_text(text, "utf-8")
    new.replace(path)


async def until(is_so: Callable[[], bool]) -> None:
    """Waits for what another task brings about; the test's own time limit ends it where that never comes."""
    while not is_so():  # noqa: ASYNC110 - nobody sets an event for it
        await asyncio.sleep(0.01)


async def status_of(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


@dataclass
class Pki:
    """A root, and files of certificates that it signed."""

    folder: Path
    ca: trustme.CA

    @property
    def root(self) -> Path:
        path = self.folder / "root.pem"
        self.ca.cert_pem.write_to_path(str(path))
        return path

    def issue(self, name: str, *, host: str = "127.0.0.1", not_after: datetime | None = None) -> TlsFiles:
        """Writes a certificate and its key over those of the same name."""
        pair = self.ca.issue_cert(host, not_after=not_after)
        files = TlsFiles(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        files.cert.write_bytes(b"".join(pem.bytes() for pem in pair.cert_chain_pems))
        files.key.write_bytes(pair.private_key_pem.bytes())
        return files

    def client_tls(self, name: str | None = None) -> ClientTls:
        """What a client needs to know the server, and to be known as ``name``."""
        if name is None:
            return ClientTls(root=self.root)
        files = self.issue(name, host="client.test")
        return ClientTls(root=self.root, cert=files.cert, key=files.key)


@contextmanager
def server_process(program: str, *args: str, **options: Any) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Runs a program that prints its port, until the test is done with it."""
    command = [sys.executable, "-c", program, *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, **options)
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
