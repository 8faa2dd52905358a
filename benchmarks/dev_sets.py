"""F1, AUPRC and false-positive rate of ``guardrail scan`` on the labelled development sets.

    python benchmarks/dev_sets.py ../shared/data/dev [-- --model embedded]

Runs the command line itself on each file, joins its results with the file's labels by id, and prints a Markdown table.
Unsafe is what the verdicts say (``outcome``), whatever the policy makes of it; unverified counts as not safe. AUPRC is
average precision, the sum over thresholds of (R_n - R_{n-1}) P_n. No text is printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path


def average_precision(labels: Sequence[bool], scores: Sequence[float]) -> float:
    """Area under the precision-recall curve, ties taken together; ``labels`` holds at least one True."""
    ranked = sorted(zip(scores, labels, strict=True), key=lambda pair: -pair[0])
    total, hits, area, previous_recall = sum(labels), 0, 0.0, 0.0
    for seen, (score, is_unsafe) in enumerate(ranked, start=1):
        hits += is_unsafe
        if seen == len(ranked) or ranked[seen][0] != score:
            recall = hits / total
            area += (recall - previous_recall) * hits / seen
            previous_recall = recall
    return area


def scan(path: Path, arguments: Sequence[str]) -> dict[str, dict]:
    """Returns the scanner's result of each row by id."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.jsonl"
        command = ["guardrail", "scan", str(path), "--output", str(results), "--quiet", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in results.read_text("utf-8").splitlines()]
    return {row["id"]: row for row in rows}


def line(name: str, labels: Sequence[bool], flagged: Sequence[bool], scores: Sequence[float]) -> str:
    """One row of the table."""
    unsafe, safe = sum(labels), len(labels) - sum(labels)
    hits = sum(label and flag for label, flag in zip(labels, flagged, strict=True))
    alarms = sum(flagged) - hits
    cells = [
        f"{hits / unsafe:.3f}" if unsafe else "",
        f"{alarms / safe:.3f}" if safe else "",
        f"{2 * hits / (unsafe + hits + alarms):.3f}" if unsafe else "",
        f"{average_precision(labels, scores):.3f}" if unsafe and safe else "",
    ]
    return f"| {name} | {len(labels)} | {unsafe} | {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description="Accuracy of guardrail scan on labelled sets.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("scan_arguments", nargs="*", help="passed to guardrail scan, after --")
    arguments = parser.parse_args()
    files = sorted(arguments.folder.glob("*.jsonl"))
    if not files:
        print(f"no *.jsonl in {arguments.folder}", file=sys.stderr)
        return 2
    print("| set | rows | unsafe | recall | FPR | F1 | AUPRC |\n| --- | --- | --- | --- | --- | --- | --- |")
    every: list[tuple[bool, bool, float]] = []
    started = time.perf_counter()
    for path in files:
        results = scan(path, arguments.scan_arguments)
        judged: list[tuple[bool, bool, float]] = []
        for raw in path.read_text("utf-8").splitlines():
            row = json.loads(raw)
            result = results[row["id"]]
            if row["unsafe"] is not None:
                probability = result.get("unsafe_probability")
                score = 1.0 if probability is None else probability
                judged.append((row["unsafe"], result["outcome"] != "safe", score))
        print(line(path.stem, *zip(*judged, strict=True)), flush=True)
        every += judged
    print(line("all rows", *zip(*every, strict=True)))
    print(f"\n{len(every)} rows in {time.perf_counter() - started:.0f} s, start of each scan included")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
