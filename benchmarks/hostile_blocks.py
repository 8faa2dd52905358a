"""Hostile code through the whole engine: is every message answered in its deadline, and its neighbour served?

    python benchmarks/hostile_blocks.py [--count 500] [--deadline 30]

Each message is checked beside an innocent one that has a finding, in one call, under the default policy with the given
deadline. Printed: how many were answered in time, what they came to, the slowest, and whether any neighbour was lost.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from guardrail.code_shield import CodeShield
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.testing import KeywordClassifier
from guardrail.verdict import Conversation, Role

LANGUAGES = (
    "python",
    "javascript",
    "typescript",
    "java",
    "c",
    "cpp",
    "csharp",
    "php",
    "go",
    "rust",
    "ruby",
    "bash",
    "yaml",
)
NEIGHBOUR = "```python\neval(input())\n```"


def fenced(code: str, language: str) -> str:
    return f"```{language}\n{code}\n```"


def odd_character(pick: random.Random) -> str:
    """Any character of the lower planes, and the two that turn text round and mark its byte order."""
    return chr(pick.choice([pick.randint(1, 0x2FFF), 0x202E, 0xFEFF]))


KINDS: dict[str, Callable[[random.Random, str], str]] = {
    "deep brackets": lambda r, k: fenced("eval" + r.choice("([{") * r.randint(1_000, 30_000), k),
    "balanced nesting": lambda r, k: fenced("(" * (n := r.randint(500, 10_000)) + "eval(x)" + ")" * n, k),
    "megabyte line": lambda r, k: fenced("x = '" + "a" * 1_000_000 + "'; eval(x)", k),
    "long chain": lambda r, k: fenced("x = " + " + ".join(f'"select {i}" + y' for i in range(400)) + "\neval(x)", k),
    "redos bait": lambda r, k: fenced("password = '" + "a!" * r.randint(1_000, 20_000), k),
    "null bytes": lambda r, k: fenced("eval(x)\0" * r.randint(10, 5_000), k),
    "many fences": lambda r, k: "```\neval(x)\n```\n" * 10_000,
    "nested quotes": lambda r, k: "> " * r.randint(100, 5_000) + "```" + k + "\neval(x)",
    "unclosed strings": lambda r, k: fenced("eval(\"'`" * r.randint(100, 5_000), k),
    "unclosed comments": lambda r, k: fenced("/* eval(x) " * r.randint(100, 5_000), k),
    "odd characters": lambda r, k: fenced("".join(odd_character(r) for _ in range(3_000)), k),
    "random bytes": lambda r, k: fenced("".join(chr(r.randint(0, 255)) for _ in range(5_000)) + "eval(x)", k),
    "many findings": lambda r, k: fenced("eval(x)\n" * r.randint(100, 3_000), k),
    "canaries": lambda r, k: fenced('guardrail_canary_7f3a("end");\n' * 200 + "eval((", k),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="Hostile code through the engine.")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--deadline", type=float, default=30.0)
    arguments = parser.parse_args()
    rng = random.Random(7)
    shield = CodeShield()
    shield.start()
    guard = Guard(KeywordClassifier({}), policy=load_policy("default"), code_shield=shield)
    outcomes: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    slowest: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    late = lost = 0
    for i in range(arguments.count):
        kind = list(KINDS)[i % len(KINDS)]
        hostile = KINDS[kind](rng, rng.choice(LANGUAGES))
        started = time.perf_counter()
        answer, neighbour = guard.check_many(
            [Conversation.of(text, role=Role.ASSISTANT) for text in (hostile, f"{i}\n{NEIGHBOUR}")],
            deadline_s=arguments.deadline,
        )
        elapsed = time.perf_counter() - started
        slowest[kind] = max(slowest[kind], elapsed)
        late += elapsed > arguments.deadline + 1
        lost += not neighbour.findings
        outcomes[kind][answer.outcome.value] += 1
    print("| kind | outcomes | slowest, s |\n| --- | --- | --- |")
    for kind, counts in outcomes.items():
        print(f"| {kind} | {', '.join(f'{name} {n}' for name, n in sorted(counts.items()))} | {slowest[kind]:.2f} |")
    print(f"{arguments.count} messages, {late} late, {lost} neighbours without their finding")
    guard.close()
    return int(bool(late or lost))


if __name__ == "__main__":
    raise SystemExit(main())
