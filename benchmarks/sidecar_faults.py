"""What breaks around the sidecar, and what its clients see of it.

    python benchmarks/sidecar_faults.py [--fuzz 2000] [--idle 1000] [--only NAME ...]

Each fault meets a server process of its own on loopback; that of semgrep has the real code shield, the others a
classifier that costs nothing. While the fault lasts clients ask, and afterwards until an answer is a verdict again.
Prints a Markdown table: the fault, what clients saw, what was lost (requests that ended in no answer at all within 30
seconds), and the time from the end of the fault until the server serves again. Certificates are made by trustme.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guardrail._pb import guard_pb2 as pb
from guardrail.batching import BatchWorker
from guardrail.client import AsyncGuardClient, ClientTls
from guardrail.errors import GuardrailError
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.verdict import Conversation, Decision, Message, Outcome, Role, Source, Verdict

HOST = "127.0.0.1"
TEXT = "Good morning!"
CODE = "print(eval(input()))\n"
TOKENS = ("the-first-token-0123456789", "the-second-token-0123456789")
ANSWER_S = 30.0
RETRIES = 2000

SERVER = """
import asyncio, json, sys
sys.path.insert(0, sys.argv[1])
import sidecar_faults as bench
asyncio.run(bench.serve(json.loads(sys.argv[2])))
"""


class WorkerClassifier:
    """Judges on a worker thread, as guard models do: "poison" fails a batch, "crash" kills the thread."""

    source = Source("worker-classifier", "benchmark")

    def __init__(self) -> None:
        self._worker: BatchWorker[Conversation, Verdict] = BatchWorker(self._run, max_batch_tokens=64, max_wait_s=0.002)

    def _run(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        texts = [conversation.last.content for conversation in conversations]
        if "crash" in texts:
            raise SystemExit
        if "poison" in texts:
            raise RuntimeError
        return [Verdict(Outcome.SAFE, self.source, unsafe_probability=0.01) for _ in texts]

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        futures = [asyncio.wrap_future(self._worker.submit(c, cost=1)) for c in conversations]
        return list(await asyncio.gather(*futures))


async def serve(given: dict[str, Any]) -> None:
    """Serves as one fault needs it; runs in the server process."""
    import logging

    from guardrail.server import Canary, ServerOptions, TlsFiles
    from guardrail.server import serve as serve_guard

    logging.basicConfig(level=logging.INFO)
    if given.get("is_real"):
        from guardrail.assembly import build_guard
        from guardrail.config import Settings

        guard = build_guard(Settings(model="embedded", policy="default"))
        guard.start()
    else:
        guard = Guard(WorkerClassifier(), policy=load_policy("default"))
    generator = None
    if "upstream" in given:
        from guardrail.generators.openai_compatible import OpenAIGenerator

        generator = OpenAIGenerator(given["upstream"], "model")
    options = ServerOptions(
        port=0,
        canaries=(Canary(TEXT, Outcome.SAFE),),
        canary_period_s=1.0,
        tls=TlsFiles(*map(Path, given["tls"])) if "tls" in given else None,
        token_file=Path(given["tokens"]) if "tokens" in given else None,
    )
    await serve_guard(
        guard, generator=generator, options=options, on_start=lambda server: print(server.port, flush=True)
    )


@dataclass
class Server:
    """A server process and a client of it."""

    process: asyncio.subprocess.Process
    port: int
    client: AsyncGuardClient

    @property
    def memory_mib(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    async def again_s(self, client: AsyncGuardClient | None = None) -> str:
        """Seconds from now until an answer is a verdict."""
        started = time.perf_counter()
        for _ in range(RETRIES):
            with contextlib.suppress(GuardrailError):
                if (await (client or self.client).check(TEXT, timeout_s=5)).outcome is Outcome.SAFE:
                    return f"{time.perf_counter() - started:.2f} s"
            await asyncio.sleep(0.01)
        return "not at all"


@contextlib.asynccontextmanager
async def running(*, stderr: Any = None, token: str | None = None, root: Path | None = None, **given: Any) -> Any:
    command = [sys.executable, "-c", SERVER, str(Path(__file__).parent), json.dumps(given)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL if stderr is None else stderr
    )
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        tls = None if root is None else ClientTls(root=root)
        async with AsyncGuardClient(f"{HOST}:{port}", token=token, tls=tls) as client:
            server = Server(process, port, client)
            await server.again_s()
            yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@dataclass
class Row:
    """A line of the table."""

    fault: str
    seen: Counter[str] = field(default_factory=Counter)
    again: str = "at once"
    note: str = ""

    async def ask(self, call: Awaitable[Any]) -> None:
        """Awaits an answer, and notes its kind."""
        try:
            self.note_result(await asyncio.wait_for(asyncio.ensure_future(call), ANSWER_S))
        except GuardrailError as exc:  # DeadlineExceeded is a TimeoutError too
            self.seen[type(exc).__name__] += 1
        except asyncio.TimeoutError:
            self.seen["no answer"] += 1

    def note_result(self, result: object) -> None:
        if isinstance(result, GuardrailError):
            self.seen[type(result).__name__] += 1
        elif isinstance(result, Decision):
            self.seen["verdict" if result.outcome is not Outcome.UNVERIFIED else "blocked, unverified"] += 1
        else:
            self.seen["answer"] += 1

    def to_markdown(self) -> str:
        seen = ", ".join(f"{count}x {what}" for what, count in sorted(self.seen.items()))
        lost = self.seen["no answer"]
        return f"| {self.fault} | {seen}{'; ' if self.note else ''}{self.note} | {lost or 'nothing'} | {self.again} |"


async def worker_lost() -> AsyncIterator[Row]:
    row = Row("the model's worker thread dies with 20 messages waiting")
    async with running() as server:
        await asyncio.gather(*(row.ask(server.client.check(text)) for text in [*[TEXT] * 10, "crash", *[TEXT] * 10]))
        started = time.perf_counter()
        while await health(server) == "SERVING":  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
        row.note = f"health NOT_SERVING after {time.perf_counter() - started:.1f} s"
        row.again = "when restarted"
    yield row


async def one_of_a_batch() -> AsyncIterator[Row]:
    row = Row("the model raises on one message of 200 in a stream")
    async with running() as server:
        async for result in server.client.check_many([*[TEXT] * 99, "poison", *[TEXT] * 100]):
            row.note_result(result)
        row.again = await server.again_s()
    yield row


async def semgrep_killed() -> AsyncIterator[Row]:
    row = Row("all semgrep processes are killed, again and again, while 20 blocks are examined")
    async with running(is_real=True) as server:
        await server.client.scan_code(CODE, is_block=True, language="python", timeout_s=60)
        # Different code each time: what was examined before is not examined again.
        blocks = [f"{CODE}x = {number}\n" for number in range(20)]
        asking = [
            asyncio.create_task(row.ask(server.client.scan_code(block, is_block=True, language="python")))
            for block in blocks
        ]
        killed = 0
        for _ in range(20):
            await asyncio.sleep(0.1)
            killed += kill_semgrep(server.process.pid)
        await asyncio.gather(*asking)
        started = time.perf_counter()
        for number in range(RETRIES):
            code = f"{CODE}y = {number}\n"
            decision = await server.client.scan_code(code, is_block=True, language="python", timeout_s=60)
            if decision.outcome is Outcome.UNSAFE:
                break
        row.again = f"{time.perf_counter() - started:.2f} s"
        row.note = f"{killed} processes killed"
    yield row


def kill_semgrep(pid: int) -> int:
    """Kills what the server started, by the ids of its own children."""
    killed = 0
    for child in descendants(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
            killed += 1
    return killed


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text("ascii").split()):
                found += [child, *descendants(child)]
    return found


async def clients_vanish() -> AsyncIterator[Row]:
    row = Row("100 clients vanish in the middle of a stream")
    async with running() as server:
        memory = []
        for _ in range(4):
            for _ in range(25):
                channel = grpc.aio.insecure_channel(f"{HOST}:{server.port}")
                call = channel.stream_stream("/guardrail.v1.GuardService/CheckBatch")()
                for number in range(10):
                    await call.write(batch_request(number))
                await call.read()
                await channel.close()
            memory.append(server.memory_mib)
        await row.ask(server.client.check(TEXT))
        row.note = f"memory {memory[0]:.0f} -> {memory[-1]:.0f} MiB"
        row.again = await server.again_s()
    yield row


async def idle_connections(count: int) -> AsyncIterator[Row]:
    row = Row(f"{count} connections that only stand there")
    async with running() as server:
        before = server.memory_mib
        idle = [await asyncio.open_connection(HOST, server.port) for _ in range(count)]
        await asyncio.gather(*(row.ask(server.client.check(TEXT)) for _ in range(100)))
        row.note = f"memory {before:.0f} -> {server.memory_mib:.0f} MiB"
        for _, writer in idle:
            writer.close()
        row.again = await server.again_s()
    yield row


async def slow_reader() -> AsyncIterator[Row]:
    row = Row("a client sends 5,000 items and reads nothing for 3 s")
    async with running() as server, grpc.aio.insecure_channel(f"{HOST}:{server.port}") as channel:
        before = server.memory_mib
        call = channel.stream_stream("/guardrail.v1.GuardService/CheckBatch")()

        async def send() -> None:
            for number in range(5000):
                await call.write(batch_request(number))
            await call.done_writing()

        sending = asyncio.create_task(send())
        await asyncio.sleep(3)
        during = server.memory_mib
        await asyncio.gather(*(row.ask(server.client.check(TEXT)) for _ in range(20)))
        answers = 0
        while await call.read() is not grpc.aio.EOF:
            answers += 1
        await sending
        row.seen["verdict"] += answers
        row.note = f"memory {before:.0f} -> {during:.0f} MiB while it did not read"
    yield row


async def sigterm_under_load() -> AsyncIterator[Row]:
    row = Row("SIGTERM under load")
    async with running() as server:
        calls = [asyncio.create_task(row.ask(server.client.check(TEXT))) for _ in range(200)]
        await calls[99]
        server.process.send_signal(signal.SIGTERM)
        calls += [asyncio.create_task(row.ask(server.client.check(TEXT))) for _ in range(100)]
        await asyncio.gather(*calls)
        started = time.perf_counter()
        code = await server.process.wait()
        row.note = f"exit status {code}, {time.perf_counter() - started:.1f} s after the last answer"
        row.again = "when restarted"
    yield row


async def full_disk() -> AsyncIterator[Row]:
    row = Row("the disk of the log is full (/dev/full)")
    with open("/dev/full", "wb") as full:  # noqa: ASYNC230 - a device
        async with running(stderr=full) as server:
            await asyncio.gather(*(row.ask(server.client.check(TEXT)) for _ in range(100)))
            row.again = await server.again_s()
    yield row


async def expired_certificate() -> AsyncIterator[Row]:
    row = Row("the certificate expires, and is renewed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(folder / "root.pem"))

        def issue(lasts: timedelta) -> None:
            pair = ca.issue_cert(HOST, not_after=datetime.now(timezone.utc) + lasts)
            (folder / "key.pem").write_bytes(pair.private_key_pem.bytes())
            (folder / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in pair.cert_chain_pems))

        issue(timedelta(seconds=8))
        files = [str(folder / "cert.pem"), str(folder / "key.pem")]
        async with running(tls=files, root=folder / "root.pem") as server:
            await row.ask(server.client.check(TEXT))
            await asyncio.sleep(9)
            await row.ask(server.client.check(TEXT))  # on the connection that exists
            tls = ClientTls(root=folder / "root.pem")
            async with AsyncGuardClient(f"{HOST}:{server.port}", tls=tls) as client:
                await row.ask(client.check(TEXT, timeout_s=5))
            issue(timedelta(days=1))
            started = time.perf_counter()
            again = "not at all"
            while again == "not at all" and time.perf_counter() - started < ANSWER_S:
                async with AsyncGuardClient(f"{HOST}:{server.port}", tls=tls) as client:
                    with contextlib.suppress(GuardrailError):
                        await client.check(TEXT, timeout_s=2)
                        again = f"{time.perf_counter() - started:.2f} s"
                await asyncio.sleep(0.05)
            row.again = again
    yield row


async def tokens() -> AsyncIterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "tokens"
        path.write_text(TOKENS[0], "utf-8")
        async with running(tokens=str(path), token=TOKENS[0]) as server:
            for what, token in (("missing", None), ("wrong", TOKENS[1])):
                row = Row(f"a token that is {what}")
                async with AsyncGuardClient(f"{HOST}:{server.port}", token=token) as client:
                    await asyncio.gather(*(row.ask(client.check(TEXT)) for _ in range(100)))
                await row.ask(server.client.check(TEXT))
                yield row
            row = Row("the token is rotated, after the file was empty for a while")
            path.write_text("", "utf-8")
            await asyncio.sleep(2.5)
            await row.ask(server.client.check(TEXT))
            path.write_text(TOKENS[1], "utf-8")
            async with AsyncGuardClient(f"{HOST}:{server.port}", token=TOKENS[1]) as client:
                row.again = await server.again_s(client)
            await row.ask(server.client.check(TEXT))
            yield row


async def large_message() -> AsyncIterator[Row]:
    row = Row("a message of 100 MB")
    async with running() as server:
        before = server.memory_mib
        large = "x" * 100_000_000
        for _ in range(3):
            await row.ask(server.client.check(large))
        row.note = f"memory {before:.0f} -> {server.memory_mib:.0f} MiB"
        row.again = await server.again_s()
    yield row


async def malformed(count: int) -> AsyncIterator[Row]:
    row = Row(f"{count:,} calls with malformed bytes")
    pick = random.Random(5)
    sound = pb.CheckRequest(messages=[pb.Message(role=pb.ROLE_USER, content=TEXT)]).SerializeToString()
    methods = [method.name for method in pb.DESCRIPTOR.services_by_name["GuardService"].methods]
    async with running() as server, grpc.aio.insecure_channel(f"{HOST}:{server.port}") as channel:
        memory = []

        async def one(method: str, data: bytes) -> None:
            call = channel.stream_stream(f"/guardrail.v1.GuardService/{method}")(iter([data]))
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.TimeoutError):
                await asyncio.wait_for(drain(call), ANSWER_S)
            row.seen[(await call.code()).name] += 1

        for at in range(0, count, 100):
            await asyncio.gather(
                *(one(pick.choice(methods), mutated(sound, pick)) for _ in range(min(100, count - at)))
            )
            memory.append(server.memory_mib)
        third = max(len(memory) // 3, 1)
        row.note = f"memory {sum(memory[:third]) / third:.0f} -> {sum(memory[-third:]) / third:.0f} MiB"
        row.again = await server.again_s()
    yield row


async def drain(call: Any) -> None:
    async for _ in call:
        pass


def mutated(data: bytes, pick: random.Random) -> bytes:
    """Random bytes, or a sound request with some bytes flipped, cut or doubled."""
    if pick.random() < 0.3:
        return pick.randbytes(pick.randrange(80))
    changed = bytearray(data)
    for _ in range(pick.randrange(1, 5)):
        at = pick.randrange(len(changed))
        what = pick.randrange(3)
        if what == 0:
            changed[at] ^= 1 << pick.randrange(8)
        elif what == 1 and len(changed) > 1:
            del changed[at]
        else:
            changed.insert(at, changed[at])
    return bytes(changed)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "
UPSTREAM = {
    "hangs": b"",
    "resets the connection": None,
    "sends half of its answer": HEAD + b'400\r\n\r\n{"choices": [{"mess',
    "sends what is no JSON": HEAD + b"9\r\n\r\n<html></h",
    "answers 500": b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n",
}
ANSWER = json.dumps({"choices": [{"message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}]})
SOUND = HEAD + f"{len(ANSWER)}\r\n\r\n{ANSWER}".encode()


async def upstream() -> AsyncIterator[Row]:
    reply: list[bytes | None] = [SOUND]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            if reply[0] == b"":
                await reader.read()  # until the other side gives up
            elif reply[0] is None:
                writer.transport.abort()
            else:
                writer.write(reply[0])
                await writer.drain()
            writer.close()

    listener = await asyncio.start_server(answer, HOST, 0)
    url = f"http://{HOST}:{listener.sockets[0].getsockname()[1]}"
    async with running(upstream=url) as server:
        question = [Message(Role.USER, TEXT)]
        for what, fault in UPSTREAM.items():
            row = Row(f"the generator {what}")
            reply[0] = fault
            await asyncio.gather(*(row.ask(server.client.generate(question, timeout_s=3)) for _ in range(10)))
            reply[0] = SOUND
            started = time.perf_counter()
            for _ in range(RETRIES):
                with contextlib.suppress(GuardrailError):
                    if (await server.client.generate(question, timeout_s=5)).text == "Hello.":
                        break
            row.again = f"{time.perf_counter() - started:.2f} s"
            yield row
    listener.close()


async def health(server: Server) -> str:
    async with grpc.aio.insecure_channel(f"{HOST}:{server.port}") as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def batch_request(number: int) -> bytes:
    message = pb.Message(role=pb.ROLE_USER, content=TEXT)
    return pb.CheckBatchRequest(id=str(number), messages=[message]).SerializeToString()


async def run(args: argparse.Namespace) -> None:
    faults: dict[str, Callable[[], AsyncIterator[Row]]] = {
        "worker": worker_lost,
        "poison": one_of_a_batch,
        "semgrep": semgrep_killed,
        "vanish": clients_vanish,
        "idle": lambda: idle_connections(args.idle),
        "slow": slow_reader,
        "sigterm": sigterm_under_load,
        "disk": full_disk,
        "certificate": expired_certificate,
        "tokens": tokens,
        "large": large_message,
        "malformed": lambda: malformed(args.fuzz),
        "upstream": upstream,
    }
    print("| fault | what clients saw | lost | serving again |\n| --- | --- | --- | --- |", flush=True)
    for name, fault in faults.items():
        if not args.only or name in args.only:
            async for row in fault():
                print(row.to_markdown(), flush=True)


def main() -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what handshakes say of an expired certificate
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fuzz", type=int, default=2000, help="calls with malformed bytes")
    parser.add_argument("--idle", type=int, default=1000, help="idle connections")
    parser.add_argument("--only", nargs="*", help="names of faults")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
