"""What the sidecar adds to a check, and how many checks one client process gets through one stream.

    python benchmarks/sidecar_speed.py [--calls 2000] [--items 20000] [--rounds 3] [--json out.json]

The server is a process of its own on loopback, with the default policy and a classifier that costs nothing. ``Check``:
the same message through gRPC and in this process by turns, one at a time; milliseconds, p50 and p99 of each and what
gRPC adds. ``CheckBatch``: one stream of one client; checks a second, the best and the median of the rounds, and the CPU
time that client and server spend on a check, which says what two idle cores would give. ``echo`` is the floor: a server
of the same library that sends the same bytes back and knows nothing of guards.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from guardrail._pb import guard_pb2 as pb
from guardrail.client import AsyncGuardClient, GuardClient
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Conversation, Decision, Outcome, Source, Verdict

TEXT = "Could you help me plan a weekend in the mountains with my family, by train and without much walking? "

SERVER = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
import sidecar_speed as bench
asyncio.run(bench.serve_free() if sys.argv[2] == "guard" else bench.serve_echo())
"""


class FreeClassifier:
    """Finds everything safe, with scores as a model would give; costs nothing."""

    source = Source("free-classifier", "benchmark")
    _verdict = Verdict(Outcome.SAFE, source, dict.fromkeys(HazardCategory, 0.01), unsafe_probability=0.01)

    async def classify(self, conversations: Any) -> list[Verdict]:
        return [self._verdict] * len(conversations)


def guard() -> Guard:
    return Guard(FreeClassifier(), policy=load_policy("default"))


async def serve_free() -> None:
    from guardrail.server import ServerOptions, serve

    options = ServerOptions(port=0, canaries=())
    await serve(guard(), options=options, on_start=lambda server: print(server.port, flush=True))


async def serve_echo() -> None:
    """Answers each message of a stream with bytes as long as an answer of the guard."""
    decision = await guard().acheck(Conversation.of(TEXT))
    from guardrail import wire

    answer = pb.CheckBatchResponse(id="1", decision=wire.decision_to_wire(decision)).SerializeToString()

    async def echo(_requests: Any, context: Any) -> None:
        while await context.read() is not grpc.aio.EOF:
            await context.write(answer)

    server = grpc.aio.server()

    async def echo_once(_request: Any, _context: Any) -> bytes:
        return answer

    methods = {
        "Echo": grpc.stream_stream_rpc_method_handler(echo),
        "EchoOnce": grpc.unary_unary_rpc_method_handler(echo_once),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


@contextmanager
def running(what: str) -> Iterator[tuple[int, int]]:
    """A server process; gives its id and port."""
    command = [sys.executable, "-c", SERVER, str(Path(__file__).parent), what]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.pid, int(process.stdout.readline())
        finally:
            process.kill()


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def quantiles(times_s: list[float]) -> dict[str, float]:
    ordered = sorted(times_s)
    return {
        "p50_ms": 1000 * ordered[len(ordered) // 2],
        "p99_ms": 1000 * ordered[int(len(ordered) * 0.99)],
    }


async def measure_check(port: int, calls: int) -> dict[str, Any]:
    """One check at a time: through gRPC, and here."""
    own = guard()
    conversation = Conversation.of(TEXT)
    over_grpc, here, added = [], [], []
    async with AsyncGuardClient(f"127.0.0.1:{port}") as client:
        for call in range(calls + 100):
            started = time.perf_counter()
            await client.check(TEXT)
            middle = time.perf_counter()
            await own.acheck(conversation)
            ended = time.perf_counter()
            if call >= 100:  # the first ones connect and fill caches
                over_grpc.append(middle - started)
                here.append(ended - middle)
                added.append((middle - started) - (ended - middle))
    return {"grpc": quantiles(over_grpc), "in_process": quantiles(here), "added": quantiles(added)}


async def measure_echo_once(port: int, calls: int) -> dict[str, float]:
    """One call at a time that does nothing: what the library alone takes."""
    request = pb.CheckRequest(messages=[pb.Message(role=pb.ROLE_USER, content=TEXT)]).SerializeToString()
    times = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        echo = channel.unary_unary("/bench/EchoOnce")
        for call in range(calls + 100):
            started = time.perf_counter()
            await echo(request)
            if call >= 100:
                times.append(time.perf_counter() - started)
    return quantiles(times)


def measure_sync_check(port: int, calls: int) -> dict[str, float]:
    """The client for threads."""
    times = []
    with GuardClient(f"127.0.0.1:{port}") as client:
        for call in range(calls + 100):
            started = time.perf_counter()
            client.check(TEXT)
            if call >= 100:
                times.append(time.perf_counter() - started)
    return quantiles(times)


def rates(items: int, seconds: list[float], own_s: float, server_s: float) -> dict[str, float]:
    total = items * len(seconds)
    return {
        "best_per_s": items / min(seconds),
        "median_per_s": items / statistics.median(seconds),
        "client_us": own_s / total * 1e6,
        "server_us": server_s / total * 1e6,
    }


def measure_batch(pid: int, port: int, items: int, rounds: int) -> dict[str, float]:
    """One stream of the client for threads."""
    with GuardClient(f"127.0.0.1:{port}") as client:
        for _ in client.check_many([TEXT] * 500):
            pass
        seconds = []
        own_s, server_s = time.process_time(), cpu_s(pid)
        for _ in range(rounds):
            started = time.perf_counter()
            count = sum(isinstance(result, Decision) for result in client.check_many([TEXT] * items))
            seconds.append(time.perf_counter() - started)
            assert count == items
        return rates(items, seconds, time.process_time() - own_s, cpu_s(pid) - server_s)


async def measure_async_batch(pid: int, port: int, items: int, rounds: int) -> dict[str, float]:
    """One stream of the client for asyncio."""
    async with AsyncGuardClient(f"127.0.0.1:{port}") as client:
        _ = [result async for result in client.check_many([TEXT] * 500)]
        seconds = []
        own_s, server_s = time.process_time(), cpu_s(pid)
        for _ in range(rounds):
            started = time.perf_counter()
            count = 0
            async for result in client.check_many([TEXT] * items):
                count += isinstance(result, Decision)
            seconds.append(time.perf_counter() - started)
            assert count == items
        return rates(items, seconds, time.process_time() - own_s, cpu_s(pid) - server_s)


def measure_echo(pid: int, port: int, items: int, rounds: int) -> dict[str, float]:
    """The same bytes through the same library, judged by nobody; sync, as ``measure_batch``."""
    message = pb.Message(role=pb.ROLE_USER, content=TEXT)
    request = pb.CheckBatchRequest(id="1", messages=[message]).SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        echo = channel.stream_stream("/bench/Echo")
        for _ in echo(iter([request] * 500)):
            pass
        seconds = []
        own_s, server_s = time.process_time(), cpu_s(pid)
        for _ in range(rounds):
            started = time.perf_counter()
            count = sum(1 for _ in echo(iter([request] * items)))
            seconds.append(time.perf_counter() - started)
            assert count == items
        return rates(items, seconds, time.process_time() - own_s, cpu_s(pid) - server_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: dict[str, Any] = {"load": os.getloadavg()[0], "cores": os.cpu_count()}
    with running("guard") as (pid, port):
        found["check"] = asyncio.run(measure_check(port, args.calls))
        found["check_sync"] = measure_sync_check(port, args.calls)
        found["batch_sync"] = measure_batch(pid, port, args.items, args.rounds)
        found["batch_async"] = asyncio.run(measure_async_batch(pid, port, args.items, args.rounds))
    with running("echo") as (pid, port):
        found["echo_once"] = asyncio.run(measure_echo_once(port, args.calls))
        found["echo"] = measure_echo(pid, port, args.items, args.rounds)
    print(f"load {found['load']:.2f} on {found['cores']} cores before the run\n")
    print("| one check at a time | p50 ms | p99 ms |\n| --- | --- | --- |")
    others = (("grpc, sync client", found["check_sync"]), ("echo", found["echo_once"]))
    for name, row in (*found["check"].items(), *others):
        print(f"| {name} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} |")
    print("\n| one stream | checks/s, best | median | client CPU µs | server CPU µs |\n| --- | --- | --- | --- | --- |")
    for name in ("batch_sync", "batch_async", "echo"):
        row = found[name]
        figures = (row["best_per_s"], row["median_per_s"], row["client_us"], row["server_us"])
        print(f"| {name} | " + " | ".join(f"{figure:,.0f}" for figure in figures) + " |")
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
