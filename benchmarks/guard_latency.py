"""How long one request takes beside others: requests arrive at random at a share of what the guard engine can do.

    python benchmarks/guard_latency.py                               # a random Llama of 57 M parameters, one CPU thread
    python benchmarks/guard_latency.py --config 8b --json out.json   # a random 8B in bfloat16; needs a CUDA GPU

Capacity is measured first, by assessing all requests in one call. Then requests of the median length arrive by a
Poisson process at ``--load`` times that rate, whether or not earlier ones are done; a request's time is from its
arrival to its assessment. It is compared with one lone forward pass over the same prompt behind a cached prefix.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.guard_engine import (
    FITTING_MESSAGES,
    SIZES,
    Request,
    RequestMaker,
    UsualWays,
    fit_head,
    make_model,
    make_tokenizer,
    synchronize,
)
from guardrail.models.tokens import GuardTokenizer
from guardrail.models.transformers import TransformersGuardModel
from guardrail.taxonomy import GuardVersion
from guardrail.verdict import Role, Source
from tests.support import tiny_guard

MEDIAN_WORDS = 40
LONE_ROUNDS = 30


async def offer(
    guard: TransformersGuardModel, requests: list[Request], per_s: float, rng: random.Random
) -> list[float]:
    """Returns the seconds of each request, [requests]."""

    async def one(request: Request, arrival: float) -> float:
        await guard.assess([request.prompt])
        return time.perf_counter() - arrival

    tasks = []
    arrival = time.perf_counter()
    for request in requests:
        arrival += rng.expovariate(per_s)
        await asyncio.sleep(max(arrival - time.perf_counter(), 0))
        tasks.append(asyncio.create_task(one(request, arrival)))
    return list(await asyncio.gather(*tasks))


def main() -> int:
    parser = argparse.ArgumentParser(description="Latency of the guard engine under load.")
    parser.add_argument("--config", choices=list(SIZES), default="small")
    parser.add_argument("--load", type=float, default=0.5, help="share of the measured capacity")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.config == "8b" and not torch.cuda.is_available():
        parser.error("--config 8b needs a CUDA GPU; torch finds none")
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if arguments.config == "8b" else "cpu")
    rng = random.Random(5)
    tokenizer = make_tokenizer(rng)
    tokens = GuardTokenizer(tokenizer, source="random-llama")
    model = make_model(arguments.config, len(tokenizer), tokenizer.convert_tokens_to_ids(tiny_guard.EOT), device)
    maker = RequestMaker(tokenizer, tokens, rng)
    with torch.inference_mode():
        fit_head(model, tokens, RequestMaker(tokenizer, tokens, random.Random(9)).make_many(FITTING_MESSAGES))
        requests = [maker.make(MEDIAN_WORDS, Role.ASSISTANT if i % 2 else Role.USER) for i in range(arguments.requests)]
        lone_way = UsualWays(model, tokens, requests)
        lone = []
        for request in requests[: LONE_ROUNDS + 3]:
            synchronize(model)
            started = time.perf_counter()
            lone_way.d([request])
            synchronize(model)
            lone.append(time.perf_counter() - started)
    guard = TransformersGuardModel(
        model, tokenizer, source=Source("random-llama", arguments.config), version=GuardVersion.LLAMA_GUARD_2
    )
    asyncio.run(guard.assess([request.prompt for request in requests[:16]]))
    started = time.perf_counter()
    asyncio.run(guard.assess([request.prompt for request in requests]))
    capacity = len(requests) / (time.perf_counter() - started)
    times = sorted(asyncio.run(offer(guard, requests, arguments.load * capacity, rng)))
    guard.close()
    lone_s = statistics.median(lone[3:])
    result: dict[str, Any] = {
        "config": arguments.config,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "requests": len(requests),
        "load": arguments.load,
        "capacity_per_s": capacity,
        "lone_forward_s": lone_s,
        "p50_s": times[len(times) // 2],
        "p99_s": times[int(len(times) * 0.99)],
        "p99_over_lone": times[int(len(times) * 0.99)] / lone_s,
    }
    for name, value in result.items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
