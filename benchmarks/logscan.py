"""What a scan costs beside the model, what it gains over a plain loop, and whether its memory grows with the log.

    python benchmarks/logscan.py overhead [--rows 100000] [--profile]
    python benchmarks/logscan.py embedded [--rows 600] [--repeats 3]
    python benchmarks/logscan.py memory [--rows 20000] [--times 8] [--with-model]

*overhead*: a classifier that costs nothing, JSON Lines to JSON Lines, every row another; rows a second, and processor
time a row, which says more on a machine that is busy. *embedded*: the scan beside a loop that reads a row, asks
``Guard.check`` and writes what it says; the two take turns, the median of their ratio counts. Beside them the
tokenizer and the model alone, in one thread: with every core at that and nothing else, the ratio would be the ceiling
that is printed. *memory*: peak resident
size of two processes, of which the second scans a log that many times as long, with the classifier that costs nothing
or with the embedded model. Rows are seeded and made of a word list.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardrail.logscan import Layout, ResultWriter, conversation_of
from guardrail.logscan.engine import Judge
from guardrail.logscan.inputs import find_inputs
from guardrail.logscan.run import Pace, Sink, read_chunks, run
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Conversation, Outcome, Source, Verdict

WORDS = [
    *("please", "could", "you", "tell", "me", "how", "to", "bake", "bread", "plan", "a", "trip", "write", "letter"),
    *("my", "aunt", "fix", "bicycle", "learn", "the", "piano", "what", "is", "capital", "of", "largest", "lake", "in"),
    *("small", "garden", "near", "river", "that", "runs", "under", "old", "bridges"),
]


class FreeClassifier:
    """Answers at once: scores that differ, made beforehand."""

    source = Source("free", "1")

    def __init__(self) -> None:
        rng = random.Random(0)
        self._verdicts = [
            Verdict(
                Outcome.SAFE,
                self.source,
                {category: rng.random() / 10 for category in HazardCategory},
                unsafe_probability=rng.random() / 10,
            )
            for _ in range(997)
        ]

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        """Answers."""
        return [self._verdicts[i % 997] for i in range(len(conversations))]


def free_guard() -> Guard:
    return Guard(FreeClassifier(), policy=load_policy("default"))


def write_log(path: Path, rows: int, *, seed: int = 0) -> None:
    rng = random.Random(seed)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            ask, answer = (" ".join(rng.choices(WORDS, k=rng.randint(5, 60))) for _ in range(2))
            chat = [{"role": "user", "content": f"{ask} {number}"}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"id": number, "messages": chat}) + "\n")


def scan_file(log: Path, output: Path, guard: Guard) -> None:
    pace = Pace()
    with ResultWriter(output) as writer:
        sink = Sink(writer)
        run(read_chunks(find_inputs([str(log)]), Layout(), pace), Judge(guard), sink, pace)
        sink.commit(is_at_end=True)
        writer.commit()


def loop_file(log: Path, output: Path, guard: Guard) -> None:
    with open(log, encoding="utf-8") as lines, open(output, "w", encoding="utf-8") as results:
        for line in lines:
            row = json.loads(line)
            results.write(json.dumps({"id": row["id"], **guard.check(conversation_of(row)).to_dict()}) + "\n")


def overhead(folder: Path, rows: int, *, is_profiled: bool) -> None:
    log, output, guard = folder / "log.jsonl", folder / "out.jsonl", free_guard()
    write_log(log, rows)
    scan_file(log, output, guard)  # once for the imports
    wall, cpu = time.perf_counter(), time.process_time()
    scan_file(log, output, guard)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{rows:,} rows: {rows / wall:,.0f} rows/s, {1e6 * cpu / rows:.1f} us of processor time a row")
    if is_profiled:  # in one thread, where the profiler sees everything
        profile = cProfile.Profile()
        profile.enable()
        pace, judge = Pace(), Judge(guard)
        with open(output, "wb") as file:
            for chunk in read_chunks(find_inputs([str(log)]), Layout(), pace):
                pace.took(len(chunk.rows), 0.0)
                file.write(b"".join([result.to_json_line() for result in judge.judge(chunk.rows)]))
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


def embedded(folder: Path, rows: int, repeats: int) -> None:
    log = folder / "log.jsonl"
    write_log(log, rows)
    guard = embedded_guard()
    guard.check(Conversation.of("hello"))
    cores = len(os.sched_getaffinity(0))
    ratios, ceilings = list[float](), list[float]()
    for _ in range(repeats):
        taken, used = [], []
        for work in (loop_file, scan_file, classify_file):
            started, cpu = time.perf_counter(), time.process_time()
            work(log, folder / f"{work.__name__}.jsonl", guard)
            taken.append(time.perf_counter() - started)
            used.append(1e3 * (time.process_time() - cpu) / rows)
        ratios.append(taken[0] / taken[1])
        ceilings.append(cores * used[0] / used[2])
        print(
            f"loop {rows / taken[0]:,.1f} rows/s, scan {rows / taken[1]:,.1f} rows/s, ratio {ratios[-1]:.2f}; "
            f"ms of processor time a row: loop {used[0]:.2f}, scan {used[1]:.2f}, model alone {used[2]:.2f}"
        )
    print(f"median ratio {statistics.median(ratios):.2f}, ceiling on {cores} cores {statistics.median(ceilings):.2f}")


def classify_file(log: Path, output: Path, guard: Guard) -> None:
    classifier: Any = guard._classifier
    with open(log, encoding="utf-8") as lines:
        for line in lines:
            classifier._begin(conversation_of(json.loads(line)), 0.0)  # one window each


def embedded_guard() -> Guard:
    # Not above: what is measured with the classifier that costs nothing is not to hold a model's libraries.
    from guardrail.models.embedded import EmbeddedClassifier

    return Guard(EmbeddedClassifier(), policy=load_policy("default"))


def memory(folder: Path, rows: int, times: int, *, guard: str) -> None:
    for count in (rows, rows * times):
        log = folder / f"{count}.jsonl"
        write_log(log, count)
        program = (
            "import resource, sys; from pathlib import Path; from benchmarks.logscan import *\n"
            f"scan_file(Path(sys.argv[1]), Path(sys.argv[1] + '.out'), {guard}())\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
        )
        root = Path(__file__).resolve().parent.parent
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", program, str(log)], check=True, capture_output=True, text=True, cwd=root
        )
        seconds = time.perf_counter() - started
        size, peak = log.stat().st_size / 1e6, float(done.stdout)
        print(f"{count:,} rows, {size:.0f} MB: peak {peak:.1f} MiB, {count / seconds:,.0f} rows/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "embedded", "memory"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--with-model", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.what == "overhead":
            overhead(Path(name), options.rows or 100_000, is_profiled=options.profile)
        elif options.what == "embedded":
            embedded(Path(name), options.rows or 600, options.repeats)
        else:
            guard = embedded_guard if options.with_model else free_guard
            memory(Path(name), options.rows or 20_000, options.times, guard=guard.__name__)


if __name__ == "__main__":
    main()
