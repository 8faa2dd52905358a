"""Speed of the embedded model: one message alone on one thread, and many messages at once on two.

    python benchmarks/embedded_speed.py [--threads 2] [--texts 600] [--json out.json]

Texts are plain sentences of 20 to 80 tokens, 40 in the median, all different. One message: 200 calls of 60 tokens, one
after another; p50 and p95 in milliseconds, tokeniser and event loop included. Many: one call with all texts, the median
of five; texts a second. Also prints the bytes of model and tokenizer, and the machine's load before the run, since
another program on the same cores shows in every figure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import sys
import time
from importlib import resources
from pathlib import Path

from tokenizers import Tokenizer

from guardrail.models.embedded import EmbeddedClassifier
from guardrail.verdict import Conversation

SEED = 7
WORDS = (
    "the a morning train leaves from an old station where people wait with coffee and bread while rain falls on roofs "
    "my sister wants to learn how to plant tomatoes in small pots because her balcony gets sun after lunch most days "
    "please explain which book about history is worth reading before we travel north along the river next summer"
)
LONE_TOKENS = 60
LONE_CALLS = 200
ROUNDS = 5


def text_of(tokens: int, pick: random.Random, tokenizer: Tokenizer) -> str:
    """Makes a text of at least that many tokens, at most a word longer."""
    words: list[str] = []
    while len(tokenizer.encode(" ".join(words), add_special_tokens=False).ids) < tokens:
        words.append(pick.choice(WORDS.split()))
    return " ".join(words)


async def lone_ms(text: str) -> list[float]:
    """Times of single calls on one thread, sorted, in milliseconds."""
    classifier = EmbeddedClassifier(threads=1)
    message = Conversation.of(text)
    times = []
    for call in range(LONE_CALLS + 10):
        started = time.perf_counter()
        await classifier.classify([message])
        if call >= 10:  # the first calls allocate
            times.append(1000 * (time.perf_counter() - started))
    classifier.close()
    return sorted(times)


async def texts_a_second(texts: list[str], threads: int) -> float:
    """Median throughput of one call with all texts."""
    classifier = EmbeddedClassifier(threads=threads)
    conversations = [Conversation.of(text) for text in texts]
    await classifier.classify(conversations[:50])
    rates = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        await classifier.classify(conversations)
        rates.append(len(texts) / (time.perf_counter() - started))
    classifier.close()
    return statistics.median(rates)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    folder = resources.files("guardrail.models") / "embedded_data"
    tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
    pick = random.Random(SEED)
    texts = [text_of(round(pick.triangular(20, 80, 25)), pick, tokenizer) for _ in range(arguments.texts)]
    counts = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
    lone = asyncio.run(lone_ms(text_of(LONE_TOKENS, pick, tokenizer)))
    found = {
        "processor": platform.processor() or platform.machine(),
        "load_before": round(load, 2),
        "bytes": sum(len((folder / name).read_bytes()) for name in ("model.onnx", "tokenizer.json")),
        "lone_tokens": LONE_TOKENS,
        "lone_p50_ms": round(statistics.median(lone), 2),
        "lone_p95_ms": round(lone[int(0.95 * len(lone))], 2),
        "texts": len(texts),
        "median_tokens": statistics.median(counts),
        "threads": arguments.threads,
        "texts_per_s": round(asyncio.run(texts_a_second(texts, arguments.threads)), 1),
    }
    print(json.dumps(found, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
