"""How long Code Shield takes: one block, a chat answer without code, a batch; Meta's CodeShield beside it.

    python benchmarks/code_shield_speed.py --insecure ../shared/data/code/insecure.jsonl --benign python=FOLDER \
        --benign javascript=FOLDER ... [--peer PEER/bin/python] [--blocks 400] [--batch 10000] [--json out.json]

*Mixed data*: as many labelled insecure blocks as benign ones, drawn at random, each once, so that no result is kept
from before. *Warm*: the processes that keep running and the gate are there, and each language was seen once. The peer
runs over the same blocks in the same run, warm as well; its semgrep tier's times are those of the blocks for which it
starts semgrep.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.code_shield import SUFFIXES, block_of, cut, run_peer
from guardrail.code_shield import CodeShield
from guardrail.errors import ScanError
from guardrail.shield.semgrep import SemgrepScanner
from guardrail.shield.targets import plain_text
from guardrail.verdict import CodeBlock, Conversation, Role

PEER_LANGUAGES = {"c", "cpp", "csharp", "java", "javascript", "kotlin", "php", "python", "ruby", "rust", "swift"}
ANSWER = (
    "Sure! The Nile is about 6,650 km long and flows north through eleven countries.\n\n"
    "- It has two main tributaries, the White Nile and the Blue Nile.\n- Most Egyptians live near its banks.\n\n"
    "**In short:** without the river there would be no Egypt as we know it. Would you like to know more?\n\n"
)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def read_benign(sources: Sequence[str], count: int, rng: random.Random) -> list[CodeBlock]:
    blocks: list[CodeBlock] = []
    for source in sources:
        language, _, folder = source.partition("=")
        paths = [p for p in Path(folder).rglob("*") if p.is_file() and p.name.endswith(SUFFIXES[language])]
        rng.shuffle(paths)
        mine: list[CodeBlock] = []
        for path in paths:
            if len(mine) >= count // len(sources) + 1:
                break
            if path.stat().st_size < 200_000:
                text = path.read_text("utf-8", errors="replace")
                pieces = [piece for piece in cut(text, rng) if piece.strip()]
                mine += [block_of(piece, language) for piece in rng.sample(pieces, min(len(pieces), 8))]
        blocks += mine
    rng.shuffle(blocks)
    return blocks[:count]


async def time_blocks(scanner: SemgrepScanner, blocks: Sequence[CodeBlock]) -> tuple[list[float], int]:
    times, unverified = [], 0
    for block in blocks:
        started = time.perf_counter()
        (result,) = await scanner.scan([block])
        times.append((time.perf_counter() - started) * 1000)
        unverified += isinstance(result, ScanError)
    return times, unverified


async def main() -> int:
    parser = argparse.ArgumentParser(description="Code Shield's times.")
    parser.add_argument("--insecure", type=Path, required=True)
    parser.add_argument("--benign", action="append", default=[], metavar="LANGUAGE=FOLDER")
    parser.add_argument("--peer", type=Path, help="the Python of an environment with codeshield")
    parser.add_argument("--blocks", type=int, default=400)
    parser.add_argument("--batch", type=int, default=10_000)
    parser.add_argument("--chunk", type=int, default=10_000, help="blocks of the batch in one call")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rng = random.Random(11)
    records = [json.loads(line) for line in arguments.insecure.read_text("utf-8").splitlines()]
    insecure = [block_of(record["code"], record["language"]) for record in rng.sample(records, len(records))]
    benign = read_benign(arguments.benign, arguments.blocks // 2 + arguments.batch, rng)
    half = arguments.blocks // 2
    mixed = [*insecure[:half], *benign[:half]]
    rng.shuffle(mixed)
    report: dict[str, Any] = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "blocks": len(mixed)}

    scanner = SemgrepScanner(timeout_s=600)
    if not scanner.start(wait_s=120):
        raise SystemExit("no warm semgrep")
    await time_blocks(scanner, [block_of("x", language) for language in sorted({b.language or "" for b in mixed})])
    times, unverified = await time_blocks(scanner, mixed)
    gate = scanner._gate
    assert gate is not None
    gated = [not gate.candidates(*plain_text(block)) for block in mixed]
    semgrep = [t for t, is_gated in zip(times, gated, strict=True) if not is_gated]
    report |= {
        "revision": scanner.revision,
        "one_block_ms": {"p50": percentile(times, 0.5), "p90": percentile(times, 0.9), "p99": percentile(times, 0.99)},
        "gated": sum(gated) / len(gated),
        "gated_p50_ms": percentile([t for t, is_gated in zip(times, gated, strict=True) if is_gated], 0.5),
        "semgrep_p50_ms": percentile(semgrep, 0.5),
        "unverified": unverified,
    }
    print(json.dumps(report, indent=1), flush=True)

    if arguments.peer:
        known = [i for i, block in enumerate(mixed) if block.language in PEER_LANGUAGES]
        answers = run_peer(arguments.peer, [{"language": mixed[i].language, "code": mixed[i].code} for i in known])
        tier = [(times[i], answer["ms"]) for i, answer in zip(known, answers, strict=True) if answer["semgrep"]]
        report["peer"] = {
            "blocks": len(known),
            "p50_ms": percentile([answer["ms"] for answer in answers], 0.5),
            "p90_ms": percentile([answer["ms"] for answer in answers], 0.9),
            "semgrep_blocks": len(tier),
            "semgrep_p50_ms": percentile([theirs for _, theirs in tier], 0.5),
            "ours_on_them_p50_ms": percentile([ours for ours, _ in tier], 0.5),
        }
        print(json.dumps(report["peer"], indent=1), flush=True)

    shield = CodeShield(scanner)
    answers_ms = []
    for i in range(3000):
        conversation = Conversation.of(ANSWER * rng.randint(1, 6) + str(i), role=Role.ASSISTANT)
        started = time.perf_counter()
        await shield.classify([conversation])
        answers_ms.append((time.perf_counter() - started) * 1000)
    report["no_code_ms"] = {"p50": percentile(answers_ms, 0.5), "p99": percentile(answers_ms, 0.99)}
    print(json.dumps(report["no_code_ms"]), flush=True)

    # Distinct blocks: what the log scanner would send after it has left out repeated texts.
    pool = [*insecure[half:], *benign[half:]]
    batch = list({(b.language, b.code): b for b in pool}.values())[: arguments.batch]
    rng.shuffle(batch)
    started = time.perf_counter()
    results: list[Any] = []
    for at in range(0, len(batch), arguments.chunk):
        results += await scanner.scan(batch[at : at + arguments.chunk])
    elapsed = time.perf_counter() - started
    report["batch"] = {
        "blocks": len(batch),
        "blocks_a_call": arguments.chunk,
        "seconds": elapsed,
        "blocks_per_s": len(batch) / elapsed,
        "unverified": sum(isinstance(result, ScanError) for result in results),
    }
    print(json.dumps(report["batch"]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    scanner.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
