"""Kills real scans at random moments, and holds what they end with against a scan that nobody disturbed.

    python benchmarks/logscan_kill.py [--kills 20] [--rows 3000] [--seed 0] [--suffix .jsonl|.jsonl.gz|.parquet]

Each ``guardrail scan --resume`` runs with the embedded model over the same small generated log, part of it gzipped CSV,
with bad rows in it; it gets SIGKILL after a random time until that many were killed, and then runs to its end. Results
and bad rows must be the same bytes as those of one run (of ``.jsonl.gz`` what is inside, of Parquet the rows).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.logscan import WORDS, write_log


def write_csv(path: Path, rows: int) -> None:
    rng = random.Random(1)
    with gzip.open(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "prompt", "response"])
        for number in range(rows):
            ask, answer = (" ".join(rng.choices(WORDS, k=rng.randint(3, 30))) for _ in range(2))
            writer.writerow([f"c{number}", f"{ask}\n{number}", answer] if number % 97 else [f"c{number}"])


def command(folder: Path, name: str, suffix: str) -> list[str]:
    files = [str(folder / "a.jsonl"), str(folder / "b.csv.gz")]
    options = ["--model", "embedded", "--quiet", "--turns", "all", "--allow-unjudged", "--resume"]
    written = ["-o", str(folder / f"{name}{suffix}"), "--errors", str(folder / f"{name}.errors.jsonl")]
    return [sys.executable, "-m", "guardrail", "scan", *files, *written, *options]


def content(path: Path) -> object:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(path).to_pylist()
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--suffix", default=".jsonl")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    env = {**os.environ, "GUARDRAIL_CODE_SHIELD": "false"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_log(folder / "a.jsonl", options.rows)
        with open(folder / "a.jsonl", "ab") as log:
            log.write(b'{"text": "cut\n{"text": "\xff"}\n')
        write_csv(folder / "b.csv.gz", options.rows // 4)
        started = time.monotonic()
        subprocess.run(command(folder, "whole", options.suffix), check=True, env=env, stderr=subprocess.DEVNULL)
        whole_s = time.monotonic() - started
        kills, runs, seen = 0, 0, [0]
        while kills < options.kills:
            runs += 1
            scan = subprocess.Popen(command(folder, "killed", options.suffix), env=env, stderr=subprocess.DEVNULL)
            try:
                # Most kills come while it judges; some while it starts, which takes about a second.
                scan.wait(rng.uniform(0.2, 2.0 + 2 * whole_s / options.kills))
            except subprocess.TimeoutExpired:
                scan.kill()
                scan.wait()
                kills += 1
                progress = folder / f"killed{options.suffix}.progress.json"
                if progress.exists():
                    seen.append(json.loads(progress.read_text())["counts"]["rows"])
            else:  # it came to its end: what it made is compared, and the next one starts over
                if not same(folder, options.suffix):
                    return 1
                for path in folder.glob("killed*"):
                    path.unlink()
        subprocess.run(command(folder, "killed", options.suffix), check=True, env=env, stderr=subprocess.DEVNULL)
        is_same = same(folder, options.suffix)
        print(
            f"one run took {whole_s:.1f} s; {kills} kills in {runs} runs; rows committed at each kill: {seen[1:]}; "
            f"{'the same' if is_same else 'NOT the same'} results"
        )
        return 0 if is_same else 1


def same(folder: Path, suffix: str) -> bool:
    pairs = [(folder / f"whole{end}", folder / f"killed{end}") for end in (suffix, ".errors.jsonl")]
    return all(content(whole) == content(killed) for whole, killed in pairs)


if __name__ == "__main__":
    sys.exit(main())
