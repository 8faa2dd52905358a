"""Finding code in messages: how long a message takes, with and without code, and whether hostile text is linear.

    python benchmarks/extraction.py [--texts FILE.jsonl ...] [--rounds 3]

Printed: for texts from which no code comes (``text`` of each row; default: three sets of ../shared/data/train, never
shown) the median and the 99th percentile, and the time for 10,000 characters; for a chat answer with code; and for
each hostile text the ratio of the time at twice the size to that at the size: 2 is linear, 4 is not.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from guardrail.extraction import extract_code_blocks, guess_language

TRAIN = Path(__file__).resolve().parent.parent.parent / "shared/data/train"
SETS = ("oasst_en100", "gpteacher_roleplay", "medquad")
ANSWER = (
    "Here is how:\n\n```python\nimport os\n\nprint(os.getcwd())\n```\n\nThen run it:\n\n```\n$ python a.py\n```\n\n" * 3
)

HOSTILE: dict[str, Callable[[int], str]] = {
    "brackets": lambda n: "    \n" + "[" * n,
    "fences": lambda n: "```\n" * (n // 4),
    "one line": lambda n: "```\n" + "a" * n,
    "one indented line": lambda n: "    " + "a" * n,
    "deep quotes": lambda n: "> " * (n // 2) + "```",
    "deep lists": lambda n: "- " * (n // 2) + "```",
    "tabs": lambda n: "\t" * n,
    "backticks": lambda n: "`" * n + "    ",
    "open pre": lambda n: "<pre>" * (n // 5),
    "pre in lines": lambda n: "<pre>\n" * (n // 6),
    "closed pre": lambda n: "<pre>\nx\n</pre>\n" * (n // 15),
    "fences in pre": lambda n: "<pre>\nx\n```\ny\n```\n</pre>\n" * (n // 26),
    "tags": lambda n: "<pre>\n" + "<span " * (n // 6),
    "entities": lambda n: "<pre>\n" + "&#9" * (n // 3),
    "open angles": lambda n: "<pre " * (n // 5),
    "curl": lambda n: "curl " * (n // 5),
    "curl and pipes": lambda n: "curl x.y |" * (n // 10),
    "shell of curl": lambda n: "sh -c $(curl a.b " * (n // 17),
    "diff starts": lambda n: "--- a\n+++ b\n@@ -1 +1 @@\n" * (n // 24),
    "diff lines": lambda n: "--- a\n+++ b\n@@ -1,999999999 +1,999999999 @@\n" + "+x\n" * (n // 3),
    "diff in a fence": lambda n: "```diff\n" + "--- a\n+++ b\n+x\n" * (n // 15),
    "session": lambda n: "```console\n" + "$ a \\\n" * (n // 6),
    "prompts": lambda n: "```\n" + "a@" * (n // 2),
    "notebook nesting": lambda n: '{"cell_type"' + "[" * n,
    "notebook strings": lambda n: '{"cells": [{"cell_type": "code", "source": [' + '"a\\n",' * (n // 6),
    "notebook quotes": lambda n: '{"cell_type"' + '"\\' * (n // 2),
    "notebook escapes": lambda n: '{"cells": [{"cell_type": "code", "source": "' + "\\\\" * (n // 2),
}


def seconds(text: str, rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        for block in extract_code_blocks(text):
            if block.language is None:
                guess_language(block.code)
        best = min(best, time.perf_counter() - started)
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description="Time of finding code.")
    parser.add_argument("--texts", type=Path, nargs="*", default=[TRAIN / f"{name}.jsonl" for name in SETS])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    texts = [
        json.loads(line)["text"] for path in arguments.texts if path.exists() for line in path.open(encoding="utf-8")
    ]
    plain = [text for text in texts if not extract_code_blocks(text)]
    if plain:
        times = sorted(seconds(text, arguments.rounds) for text in plain)
        size = sum(map(len, plain))
        print(f"{len(plain)} of {len(texts)} texts hold no code, {size / len(plain):.0f} characters each:")
        print(
            f"  median {times[len(times) // 2] * 1e3:.4f} ms, p99 {times[int(len(times) * 0.99)] * 1e3:.4f} ms, "
            f"worst {times[-1] * 1e3:.3f} ms; {sum(times) / size * 1e4 * 1e3:.4f} ms for 10,000 characters"
        )
        lists = "\n".join(f"{i}. A point:\n    - with a line under it" for i in range(250))
        time_of_lists = seconds(lists, arguments.rounds) / len(lists) * 1e4 * 1e3
        print(f"  nested lists, no code: {time_of_lists:.3f} ms for 10,000 characters")
    print(f"an answer with code ({len(ANSWER)} characters): {seconds(ANSWER, arguments.rounds) * 1e3:.3f} ms")
    print("| hostile text | ms at 100,000 | ms at 200,000 | ratio |\n| --- | --- | --- | --- |")
    for name, make in HOSTILE.items():
        half, whole = (seconds(make(n), arguments.rounds) for n in (100_000, 200_000))
        print(f"| {name} | {half * 1e3:.1f} | {whole * 1e3:.1f} | {whole / half:.2f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
