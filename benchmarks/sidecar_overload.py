"""Ten times what the sidecar can do, for a minute: what comes of it.

    python benchmarks/sidecar_overload.py [--seconds 60] [--capacity 50] [--times 10] [--deadline 1.0] [--json out.json]

The server is a process of its own whose classifier judges exactly so many messages a second, one after the other, and
drops those that were cancelled before their turn. First some callers in a closed loop measure what it really gives;
then requests come at random times, whether earlier ones were answered or not, each with a deadline. Prints what became
of every request, goodput as a part of the measured capacity, the server's memory over time, and what health said.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guardrail.client import AsyncGuardClient
from guardrail.errors import GuardrailError
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.verdict import Conversation, Outcome, Source, Verdict

SEED = 11
TEXT = "Could you help me plan a weekend in the mountains with my family, by train and without much walking? "
CALIBRATION_S = 5.0
CALLERS = 8

SERVER = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
import sidecar_overload as bench
asyncio.run(bench.serve_paced(float(sys.argv[2])))
"""


class PacedClassifier:
    """Judges so many messages a second, in order; one that was cancelled before its turn costs nothing.

    Args:
        rate: Messages a second.
    """

    source = Source("paced-classifier", "benchmark")

    def __init__(self, rate: float) -> None:
        self._step_s = 1 / rate
        self._queue: deque[asyncio.Future[None]] = deque()
        self._has_work = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        loop = asyncio.get_running_loop()
        turns = [loop.create_future() for _ in conversations]
        self._queue.extend(turns)
        self._has_work.set()
        await asyncio.gather(*turns)
        return [Verdict(Outcome.SAFE, self.source, unsafe_probability=0.01) for _ in conversations]

    async def _work(self) -> None:
        free_at = time.monotonic()
        while True:
            while not self._queue:
                self._has_work.clear()
                await self._has_work.wait()
                free_at = max(free_at, time.monotonic())
            turn = self._queue.popleft()
            if turn.done():
                continue
            # By the clock, not by sleeps: a late wake-up is made up for, so the rate is exact.
            free_at += self._step_s
            if (pause_s := free_at - time.monotonic()) > 0:
                await asyncio.sleep(pause_s)
            if not turn.done():
                turn.set_result(None)


async def serve_paced(rate: float) -> None:
    from guardrail.server import ServerOptions, serve

    guard = Guard(PacedClassifier(rate), policy=load_policy("default"))
    options = ServerOptions(port=0, canaries=())
    await serve(guard, options=options, on_start=lambda server: print(server.port, flush=True))


@contextmanager
def running(rate: float) -> Iterator[tuple[int, int]]:
    """A server process; gives its id and port."""
    command = [sys.executable, "-c", SERVER, str(Path(__file__).parent), str(rate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.pid, int(process.stdout.readline())
        finally:
            process.kill()


def memory_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def measured_capacity(client: AsyncGuardClient) -> float:
    """Results a second that a few callers get, each asking again when it was answered."""
    started = time.monotonic()
    ends = started + CALIBRATION_S
    count = 0

    async def ask() -> None:
        nonlocal count
        while time.monotonic() < ends:
            await client.check(TEXT)
            count += 1

    await asyncio.gather(*(ask() for _ in range(CALLERS)))
    return count / (time.monotonic() - started)


async def one(client: AsyncGuardClient, deadline_s: float, seen: Counter[str], times: dict[str, list[float]]) -> None:
    """Asks once, and notes what came of it."""
    started = time.perf_counter()
    try:
        decision = await client.check(TEXT, timeout_s=deadline_s)
        what = "result" if decision.outcome is Outcome.SAFE else decision.outcome.value
    except GuardrailError as exc:
        what = type(exc).__name__
    seen[what] += 1
    times.setdefault(what, []).append(1000 * (time.perf_counter() - started))


async def watch(pid: int, port: int, memory: list[float], health: Counter[str]) -> None:
    """Looks at memory and health twice a second, on a connection of its own."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
                health[health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)] += 1
            except grpc.aio.AioRpcError as exc:
                health[exc.code().name] += 1
            memory.append(memory_mib(pid))
            await asyncio.sleep(0.5)


async def measure(pid: int, port: int, args: argparse.Namespace) -> dict[str, Any]:
    pick = random.Random(SEED)
    seen: Counter[str] = Counter()
    times: dict[str, list[float]] = {}
    memory: list[float] = []
    health: Counter[str] = Counter()
    async with AsyncGuardClient(f"127.0.0.1:{port}") as client:
        capacity = await measured_capacity(client)
        watching = asyncio.create_task(watch(pid, port, memory, health))
        asking: set[asyncio.Task[None]] = set()
        started = at = time.monotonic()
        sent = 0
        while at - started < args.seconds:
            at += pick.expovariate(args.capacity * args.times)
            if (pause_s := at - time.monotonic()) > 0:
                await asyncio.sleep(pause_s)
            task = asyncio.create_task(one(client, args.deadline, seen, times))
            asking.add(task)
            task.add_done_callback(asking.discard)
            sent += 1
        offered_s = time.monotonic() - started
        await asyncio.gather(*asking)
        took_s = time.monotonic() - started
        watching.cancel()
        after = await client.check(TEXT)
    return {
        "capacity_per_s": capacity,
        "offered_per_s": sent / offered_s,
        "sent": sent,
        "seen": dict(seen),
        "goodput": seen["result"] / took_s / capacity,
        "p50_ms": {what: sorted(t)[len(t) // 2] for what, t in times.items()},
        "p99_ms": {what: sorted(t)[int(len(t) * 0.99)] for what, t in times.items()},
        "memory_mib": memory,
        "health": dict(health),
        "serves_after": after.outcome.value,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--capacity", type=float, default=50.0, help="messages a second")
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--deadline", type=float, default=1.0, help="of each request, in seconds")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with running(args.capacity) as (pid, port):
        found = asyncio.run(measure(pid, port, args))
    found["load"] = load
    print(f"load {load:.2f} on {os.cpu_count()} cores before the run; deadline {args.deadline:g} s")
    print(f"capacity {found['capacity_per_s']:.1f}/s measured, {args.capacity:g}/s by design")
    print(f"offered {found['offered_per_s']:.0f}/s for {args.seconds:g} s, {found['sent']} requests")
    print(f"goodput {100 * found['goodput']:.1f} % of the measured capacity\n")
    print("| what came of it | requests | p50 ms | p99 ms |\n| --- | --- | --- | --- |")
    for what, count in sorted(found["seen"].items()):
        print(f"| {what} | {count} | {found['p50_ms'][what]:.0f} | {found['p99_ms'][what]:.0f} |")
    memory = found["memory_mib"]
    third = len(memory) // 3
    means = [sum(part) / len(part) for part in (memory[:third], memory[third : 2 * third], memory[2 * third :])]
    print(f"\nmemory, mean of each third: {', '.join(f'{mean:.1f}' for mean in means)} MiB; most {max(memory):.1f}")
    print(f"health: {found['health']}; a request after it: {found['serves_after']}")
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
