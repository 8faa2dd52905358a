"""Guessing languages: how many blocks without a label are told, for each language, and the time of one.

    python benchmarks/language.py [--code FILE.jsonl] [--misses]

Read are the blocks of tests/data/languages, and records with ``language`` and ``code`` (default:
../shared/data/code/insecure.jsonl: windows of real programs, cut anywhere). Each is guessed with ast-grep's parsers and
without, in one run. ``--misses`` names what was missed by its place, never its text.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from guardrail.language import guess_language

ROOT = Path(__file__).resolve().parent.parent
NO_PROGRAM = {None, "ini", "csv", "json", "text", "console", "markdown"}
Rows = list[tuple[str, str]]


def measure(rows: Rows) -> tuple[Counter[str], list[tuple[int, str, str | None]], float]:
    right: Counter[str] = Counter()
    misses = []
    started = time.process_time()
    for i, (language, code) in enumerate(rows):
        guess = guess_language(code)
        if guess in NO_PROGRAM if language == "none" else guess == language:
            right[language] += 1
        else:
            misses.append((i, language, guess))
    return right, misses, (time.process_time() - started) / len(rows) * 1e3


def report(title: str, rows: Rows, show_misses: bool) -> None:
    guess_language("int x = 1;\nlet y = 2;")  # loads the parsers
    right, misses, time_ms = measure(rows)
    parsers: ModuleType | None = sys.modules.get("ast_grep_py")
    sys.modules["ast_grep_py"] = None  # type: ignore[assignment]
    right_without, _, time_ms_without = measure(rows)
    if parsers is None:
        del sys.modules["ast_grep_py"]
    else:
        sys.modules["ast_grep_py"] = parsers
    count = Counter(language for language, _ in rows)
    print(f"\n{title}\n\n| language | blocks | told | without parsers |\n| --- | --- | --- | --- |")
    for language, n in sorted(count.items()):
        print(f"| {language} | {n} | {right[language] / n:.2f} | {right_without[language] / n:.2f} |")
    whole, whole_without = (sum(c.values()) / len(rows) for c in (right, right_without))
    print(f"| all | {len(rows)} | {whole:.3f} | {whole_without:.3f} |")
    print(f"| ms a block | | {time_ms:.2f} | {time_ms_without:.2f} |")
    confused = Counter((language, guess) for _, language, guess in misses).most_common(8)
    print("most often taken for another:", ", ".join(f"{a} as {b} {n}" for (a, b), n in confused) or "none")
    if show_misses:
        print("\n".join(f"block {i}: {language} taken for {guess}" for i, language, guess in misses))


def main() -> int:
    parser = argparse.ArgumentParser(description="Accuracy of guessed languages.")
    parser.add_argument("--code", type=Path, default=ROOT.parent / "shared/data/code/insecure.jsonl")
    parser.add_argument("--misses", action="store_true")
    arguments = parser.parse_args()
    rows: Rows = []
    for path in sorted((ROOT / "tests/data/languages").glob("*.yaml")):
        rows += [(path.stem, code) for code in yaml.safe_load(path.read_text("utf-8"))]
    report("Blocks as they stand in chats (tests/data/languages)", rows, arguments.misses)
    if arguments.code.exists():
        records = map(json.loads, arguments.code.open(encoding="utf-8"))
        report(arguments.code.name, [(r["language"], r["code"]) for r in records], arguments.misses)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
