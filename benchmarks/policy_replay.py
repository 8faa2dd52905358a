"""How long a replay, a diff and a report of stored results take; results made from a seed, no model, no text.

    python benchmarks/policy_replay.py [--rows 200000] [--seed 7] [--rounds 3] [--folder FOLDER]

Each row has a hazard verdict with eleven scores, half of them a code verdict too, and a share of them findings,
unscanned code or no answer. *json.loads* is that of every line and nothing else; *reading alone* is what the commands
do before they decide; *object by object* reads each verdict into values and decides each row, timed over a tenth of
them. The best of the rounds is printed, and the ratio to json.loads: seconds depend on the machine, ratios less.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from guardrail.logscan.page import render_page
from guardrail.logscan.replay import Replayer, diff, replay
from guardrail.logscan.report import Report
from guardrail.logscan.report_samples import Chooser
from guardrail.logscan.stored import read_results
from guardrail.policy import Policy, load_policy
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Confidence, Finding, Outcome, Rail, Severity, Source, Span, Verdict

GUARD = Source("a-guard", "0123abcd4567", "89abcdef0123")
SHIELD = Source("code-shield", "rules-0123456789ab+semgrep-1.182.0")
RULES = [
    (f"{language}.rule-{number}", f"CWE-{cwe}", severity, confidence, language)
    for number, (language, cwe, severity, confidence) in enumerate(
        (language, cwe, severity, confidence)
        for language in ("python", "javascript", "java", "c", "go")
        for cwe, severity in ((78, Severity.ERROR), (89, Severity.ERROR), (328, Severity.WARNING), (532, Severity.INFO))
        for confidence in (Confidence.LOW, Confidence.HIGH)
    )
]


def make_rows(count: int, seed: int, policy: Policy) -> Iterator[dict[str, Any]]:
    """Rows as a scan with a policy writes them, in the shares of a busy log."""
    rng = random.Random(seed)
    start = 1_760_000_000
    for number in range(1, count + 1):
        rail = rng.choice(list(Rail))
        verdicts = [_hazard(rng)]
        if policy.rails[rail].scans_code:
            verdicts.append(_code(rng))
        row: dict[str, Any] = {"id": f"log-{seed}.jsonl:{number}", **policy.decide(rail, verdicts).to_dict()}
        yield {**row, "timestamp": start + number * 40}


def _hazard(rng: random.Random) -> Verdict:
    if rng.random() < 0.004:
        return Verdict(Outcome.UNVERIFIED, GUARD, detail="deadline of 30 s passed")
    unsafe = rng.betavariate(0.15, 2.0)
    scores = {category: unsafe * rng.betavariate(0.2, 3.0) for category in HazardCategory}
    named: tuple[HazardCategory, ...] = ()
    if unsafe >= 0.5:
        named = (rng.choice(list(HazardCategory)),)
        scores[named[0]] = unsafe
    return Verdict(Outcome.UNSAFE if named else Outcome.SAFE, GUARD, scores, named, unsafe)


def _code(rng: random.Random) -> Verdict:
    kind = rng.random()
    if kind < 0.85:
        return Verdict(Outcome.SAFE, SHIELD, detail="no code")
    if kind < 0.88:
        return Verdict(Outcome.UNVERIFIED, SHIELD, unscanned=(rng.choice(("cobol", "fortran", "unlabelled")),))
    findings = tuple(_finding(rng) for _ in range(rng.randint(0, 3)))
    is_unsafe = any(finding.severity is not Severity.INFO for finding in findings)
    return Verdict(Outcome.UNSAFE if is_unsafe else Outcome.SAFE, SHIELD, findings=findings)


def _finding(rng: random.Random) -> Finding:
    rule_id, cwe, severity, confidence, language = rng.choice(RULES)
    start, line = rng.randrange(4000), rng.randint(1, 90)
    message, fix = "What is wrong here, in a sentence or two for the reader.", "What to do instead, in one line."
    return Finding(rule_id, cwe, severity, Span(start, start + 30), line, 5, language, message, confidence, fix)


def parsed(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(1 for line in file if json.loads(line))


def read(path: Path) -> int:
    return sum(1 for _ in read_results(path))


def decided(path: Path, policy: Policy, share: int) -> int:
    replayer = Replayer(policy)
    return sum(1 for number, row in read_results(path) if number % share == 0 and replayer.decide(row, policy))


def reported(path: Path, policy: Policy) -> str:
    report, chooser = Report(), Chooser()
    for number, row in read_results(path):
        report.add(row)
        chooser.add(str(path), number, row)
    return render_page(report, chooser.chosen(), chooser.seen, policy=policy)


def best(rounds: int, run: Callable[[], object]) -> float:
    """Least seconds of some rounds."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the results here")
    args = parser.parse_args()
    default, strict = load_policy("default"), load_policy("strict")
    with tempfile.TemporaryDirectory() as scratch:
        path = (args.folder or Path(scratch)) / "results.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in make_rows(args.rows, args.seed, default))
        print(f"{args.rows:,} rows, {path.stat().st_size / 1e6:,.0f} MB, seed {args.seed}, best of {args.rounds}")
        same = replay([path], default)
        print(f"replay of the policy that was used changes {same.changed} decisions")
        print(f"the report's page has {len(reported(path, default).encode()) / 1e6:.2f} MB")
        reading = best(args.rounds, lambda: read(path))
        timings = {
            "json.loads": best(args.rounds, lambda: parsed(path)),
            "reading alone": reading,
            "policy replay": best(args.rounds, lambda: replay([path], strict)),
            "policy diff": best(args.rounds, lambda: diff([path], default, strict)),
            "report page": best(args.rounds, lambda: reported(path, default)),
            "object by object": reading + 10 * (best(args.rounds, lambda: decided(path, strict, 10)) - reading),
        }
        for name, seconds in timings.items():
            ratio = seconds / timings["json.loads"]
            print(f"{name:<18}{seconds:6.2f} s{args.rows / seconds:>12,.0f} rows/s{ratio:>8.2f} x json.loads")


if __name__ == "__main__":
    main()
