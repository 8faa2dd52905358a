"""Code Shield's recall on labelled insecure code, and its findings on benign code.

    python benchmarks/code_shield.py recall ../shared/data/code/insecure.jsonl [--language rust] [--misses out.jsonl]
        [--peer PEER/bin/python]
    python benchmarks/code_shield.py benign --language python FOLDER... [--findings out.jsonl]
    python benchmarks/code_shield.py gate --language python FOLDER... [--limit 500]

*Recall*: a record counts as found where a finding with its CWE, or a parent or child of it, lies within two lines of
the flagged line. The flagged lines are those of another detector, so this is agreement with it.

*Benign*: files are cut into blocks of 5 to 60 lines at blank lines between definitions, as people paste them; what is
found in them is taken for a false positive.

*Gate*: the same blocks are scanned with all rules of the language; counted is what is found by a rule that the gate
would have left out, which must be nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from guardrail.errors import ScanError
from guardrail.shield import PartialScan
from guardrail.shield.gate import Gate
from guardrail.shield.install import find_semgrep
from guardrail.shield.oneshot import scan_files
from guardrail.shield.report import Result, judge
from guardrail.shield.rulebook import RULES, Rulebook
from guardrail.shield.semgrep import SemgrepScanner
from guardrail.shield.targets import LANGUAGES, make_targets, plain_text
from guardrail.verdict import CodeBlock, Finding, Severity, Span

NEAR_LINES = 2
CHUNK = 400
SUFFIXES = {
    "python": (".py",),
    "javascript": (".js", ".mjs", ".cjs", ".jsx"),
    "typescript": (".ts", ".tsx"),
    "java": (".java",),
    "c": (".c", ".h"),
    "cpp": (".cpp", ".cc", ".hpp", ".cxx"),
    "csharp": (".cs",),
    "php": (".php",),
    "go": (".go",),
    "rust": (".rs",),
    "ruby": (".rb",),
    "kotlin": (".kt",),
    "swift": (".swift",),
    "bash": (".sh", ".bash"),
    "yaml": (".yaml", ".yml"),
    "hcl": (".tf",),
    "dockerfile": ("Dockerfile", ".dockerfile"),
}

# child -> parents, by the research view of CWE 4.16 (https://cwe.mitre.org), for the numbers that rules and data name.
PARENTS = {
    23: [22], 36: [22], 73: [610], 77: [74], 78: [77], 79: [74], 88: [77], 89: [943], 90: [943], 91: [74], 93: [74],
    94: [74], 95: [94], 96: [94], 98: [706, 829], 113: [93, 436], 116: [707], 117: [116], 119: [118], 120: [119],
    121: [787, 788], 122: [787, 788], 124: [786, 787], 125: [119], 126: [125, 788], 129: [1285], 131: [682],
    134: [668], 170: [707], 185: [697], 190: [682], 191: [682], 193: [682], 195: [681], 197: [681], 200: [668],
    201: [200], 203: [200], 208: [203], 209: [200, 755], 215: [200], 242: [1177], 250: [269, 657], 256: [522],
    259: [798], 276: [732], 290: [287], 295: [287], 297: [295, 923], 306: [287], 311: [693], 312: [311], 315: [312],
    319: [311], 321: [798], 322: [306], 323: [344], 326: [693], 327: [693], 328: [326, 327], 329: [573, 1204],
    330: [693], 331: [330], 335: [330], 336: [335], 337: [335], 338: [330], 345: [693], 346: [284, 345],
    347: [345], 352: [345], 362: [691], 367: [362], 377: [668], 378: [377], 379: [377], 385: [514], 400: [664],
    401: [772], 404: [664], 415: [825, 1341], 416: [825, 672], 426: [642, 673], 427: [668], 434: [669], 441: [610],
    457: [908], 467: [131], 470: [913, 610], 476: [710, 754], 489: [710], 497: [200], 502: [913], 521: [1391],
    522: [287, 1390], 523: [522], 532: [538], 538: [200], 539: [552], 548: [497], 552: [668], 554: [1173],
    562: [758], 566: [639], 573: [710], 589: [474], 590: [762], 598: [201], 601: [610], 606: [1284], 611: [610],
    614: [319], 617: [670], 625: [185], 639: [863], 640: [1390], 643: [91, 943], 644: [116], 652: [91, 943],
    662: [664], 665: [664], 667: [662], 672: [666], 676: [1177], 680: [190], 681: [704], 682: [], 693: [],
    697: [], 703: [], 704: [664], 732: [285, 668], 754: [703], 755: [703], 759: [916], 760: [916], 762: [763],
    763: [404], 770: [400, 665], 772: [404], 775: [772], 776: [674, 405], 780: [327], 786: [119], 787: [119],
    788: [119], 798: [1391], 806: [805], 805: [119], 807: [693], 823: [119], 825: [119, 672], 829: [669],
    862: [285], 863: [285], 908: [665], 909: [665], 913: [664], 915: [913], 916: [328], 917: [77], 918: [441, 610],
    922: [664], 923: [284], 942: [863, 923], 943: [74], 1004: [732], 1173: [20], 1188: [1419], 1204: [330],
    1236: [74], 1240: [327], 1275: [923], 1321: [915], 1333: [407], 1336: [94], 1391: [1390],
}  # fmt: skip


def number(cwe: str) -> int:
    return int(cwe.removeprefix("CWE-"))


def is_related(one: str, other: str) -> bool:
    """Whether two CWEs are the same, or one is a parent of the other."""
    a, b = number(one), number(other)
    return a == b or b in PARENTS.get(a, ()) or a in PARENTS.get(b, ())


def block_of(code: str, language: str) -> CodeBlock:
    starts = [0]
    for line in code.split("\n")[:-1]:
        starts.append(starts[-1] + len(line) + 1)
    return CodeBlock(code, language, Span(0, len(code)), tuple(starts))


async def scan_all(blocks: Sequence[CodeBlock], scanner: SemgrepScanner) -> list[list[Finding] | ScanError]:
    results: list[list[Finding] | ScanError] = []
    for at in range(0, len(blocks), CHUNK):
        results += await scanner.scan(blocks[at : at + CHUNK])
    return results


def findings_of(result: list[Finding] | ScanError) -> Sequence[Finding]:
    if isinstance(result, list):
        return result
    return result.findings if isinstance(result, PartialScan) else ()


def flagged_lines(record: dict[str, Any]) -> list[int]:
    """The numbers, from 1, of the lines that equal the flagged one; of those that contain it where none does."""
    wanted = record["line"].strip()
    lines = [line.strip() for line in record["code"].split("\n")]
    exact = [at for at, line in enumerate(lines, 1) if line == wanted]
    return exact or [at for at, line in enumerate(lines, 1) if wanted and wanted in line]


def is_found(record: dict[str, Any], findings: Iterable[Finding]) -> bool:
    """Whether a finding of a related CWE is near the flagged line; anywhere where that line is not in the code."""
    for finding in findings:
        last = finding.line + record["code"].count("\n", finding.span.start, finding.span.end)
        if is_related(finding.cwe, record["cwe"]) and is_near(record, finding.line, last):
            return True
    return False


def is_near(record: dict[str, Any], first: int, last: int) -> bool:
    lines = flagged_lines(record)
    return not lines or any(first - NEAR_LINES <= line <= last + NEAR_LINES for line in lines)


def recall_of_peer(python: Path, records: Sequence[dict[str, Any]]) -> tuple[Counter[str], Counter[str]]:
    """Counts, by language, what Meta's CodeShield finds by the same measure, and what it flags at all."""
    found, flagged = Counter[str](), Counter[str]()
    for record, answer in zip(records, run_peer(python, records), strict=True):
        issues = [i for i in answer["issues"] if str(i["cwe"] or "").removeprefix("CWE-").isdigit()]
        hit = any(
            is_related(i["cwe"], record["cwe"]) and is_near(record, i["line"] or 0, i["line"] or 0) for i in issues
        )
        for name in (record["language"], "all"):
            found[name] += hit
            flagged[name] += bool(answer["issues"])
    return found, flagged


def run_peer(python: Path, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the answer of ``benchmarks/peers/codeshield_peer.py`` to each record."""
    lines = "".join(json.dumps({"language": r["language"], "code": r["code"]}) + "\n" for r in records)
    script = Path(__file__).parent / "peers" / "codeshield_peer.py"
    done = subprocess.run([python, script], input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


async def recall(arguments: argparse.Namespace) -> int:
    records = [json.loads(line) for line in arguments.data.read_text("utf-8").splitlines()]
    records = [r for r in records if arguments.language in (None, r["language"])]
    scanner = SemgrepScanner(timeout_s=300)
    results = await scan_all([block_of(r["code"], r["language"]) for r in records], scanner)
    total, found, unverified = Counter[str](), Counter[str](), Counter[str]()
    by_cwe: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    missed = []
    for record, result in zip(records, results, strict=True):
        hit = is_found(record, findings_of(result))
        for name in (record["language"], "all"):
            total[name] += 1
            found[name] += hit
            unverified[name] += isinstance(result, ScanError)
        by_cwe[record["language"], record["cwe"]][0] += hit
        by_cwe[record["language"], record["cwe"]][1] += 1
        if not hit:
            others = [f"{f.rule_id}@{f.line}" for f in findings_of(result)]
            failure = str(result) if isinstance(result, ScanError) else ""
            missed.append({**record, "flagged": flagged_lines(record), "found": others, "unverified": failure})
    theirs, flagged = recall_of_peer(arguments.peer, records) if arguments.peer else (None, None)
    print("| language | records | recall | not verified |" + " CodeShield's recall | CodeShield flags |" * bool(theirs))
    print("| --- | --- | --- | --- |" + " --- | --- |" * bool(theirs))
    for name in sorted(total, key=lambda n: (n == "all", n)):
        row = f"| {name} | {total[name]} | {found[name] / total[name]:.3f} | {unverified[name]} |"
        if theirs is not None and flagged is not None:
            row += f" {theirs[name] / total[name]:.3f} | {flagged[name] / total[name]:.3f} |"
        print(row)
    if arguments.language:
        for (_, cwe), (hits, count) in sorted(by_cwe.items()):
            print(f"{cwe}: {hits} of {count}")
    if arguments.misses:
        arguments.misses.write_text("".join(json.dumps(m) + "\n" for m in missed), "utf-8")
    return 0


def cut(text: str, rng: random.Random) -> Iterator[str]:
    """Cuts a file into blocks of 5 to 60 lines, at blank lines before lines with little indentation where it can."""
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        longest = rng.randint(10, 60)
        end = min(at + longest, len(lines))
        for place in range(end, at + 5, -1):
            if place < len(lines) and not lines[place - 1].strip() and lines[place][:1].strip():
                end = place
                break
        if end - at >= 5:
            yield "\n".join(lines[at:end])
        at = end


def read_blocks(folders: Sequence[Path], language: str, limit: int) -> tuple[list[tuple[Path, str]], int]:
    """Returns blocks of the files below some folders, drawn at random, and how many files there are."""
    suffixes = SUFFIXES[language]
    files = sorted(
        path
        for folder in folders
        for path in ([folder] if folder.is_file() else folder.rglob("*"))
        if path.is_file() and path.name.endswith(suffixes) and not path.name.endswith((".min.js", ".d.ts"))
    )
    rng = random.Random(5)
    blocks: list[tuple[Path, str]] = []
    for path in files:
        text = path.read_text("utf-8", errors="replace")
        blocks += [(path, block) for block in cut(text, rng) if block.strip()]
    rng.shuffle(blocks)
    return blocks[:limit], len(files)


def scan_past(
    sieve: Gate, rulebook: Rulebook, blocks: Sequence[CodeBlock]
) -> Iterator[tuple[CodeBlock, set[str], Result]]:
    """Scans blocks with all rules; yields each with the rules that the gate lets pass, and what was found in it."""
    core = find_semgrep()
    for at in range(0, len(blocks), CHUNK):
        some = blocks[at : at + CHUNK]
        targets = [make_targets(block, f"a{i}x")[0] for i, block in enumerate(some)]
        run = scan_files(core, rulebook, targets, deadline=time.monotonic() + 600, cancelled=threading.Event())
        for block, target in zip(some, targets, strict=True):
            yield block, sieve.candidates(*plain_text(block)), judge(run, target, block.code, rulebook.rules)


async def gate(arguments: argparse.Namespace) -> int:
    rulebook = Rulebook.load(RULES)
    sieve = Gate.load(find_semgrep(), rulebook)
    texts, _ = read_blocks(arguments.folders, arguments.language, arguments.limit)
    blocks = [block_of(text, arguments.language) for _, text in texts]
    gated = found = unread = 0
    lost = Counter[str]()
    for _, allowed, result in scan_past(sieve, rulebook, blocks):
        gated += not allowed
        unread += bool(result.failure)
        found += len(result.hits)
        lost.update(hit.rule_id for hit in result.hits if hit.rule_id not in allowed)
    print(
        f"{arguments.language}: {len(blocks)} blocks, {gated} end at the gate, {found} findings with all rules, "
        f"{sum(lost.values())} lost; {unread} blocks not read to their end",
        *lost.items(),
    )
    return bool(lost)


async def benign(arguments: argparse.Namespace) -> int:
    blocks, files = read_blocks(arguments.folders, arguments.language, arguments.limit)
    scanner = SemgrepScanner(timeout_s=300)
    results = await scan_all([block_of(block, arguments.language) for _, block in blocks], scanner)
    worst, rules = Counter[str](), Counter[str]()
    unverified = sum(isinstance(result, ScanError) for result in results)
    report = []
    for (path, block), result in zip(blocks, results, strict=True):
        findings = findings_of(result)
        for severity in (Severity.ERROR, Severity.WARNING, Severity.INFO):
            worst[severity.name] += any(f.severity is severity for f in findings)
        rules.update({f"{f.severity.name} {f.rule_id}" for f in findings})
        lines = block.split("\n")
        report += [
            {"rule": f.rule_id, "severity": f.severity.name, "file": str(path), "line": lines[f.line - 1]}
            for f in findings
        ]
    count = max(len(blocks), 1)
    print(f"{arguments.language}: {len(blocks)} blocks of {files} files, {unverified} not verified")
    for name in ("ERROR", "WARNING", "INFO"):
        print(f"  blocks with {name}: {worst[name]} (1 in {count / worst[name] if worst[name] else float('inf'):.0f})")
    for rule, hits in rules.most_common():
        print(f"    {hits:5} {rule}")
    if arguments.findings:
        arguments.findings.write_text("".join(json.dumps(r) + "\n" for r in report), "utf-8")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Code Shield on labelled and on benign code.")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("recall")
    one.add_argument("data", type=Path)
    one.add_argument("--language", choices=sorted(LANGUAGES))
    one.add_argument("--misses", type=Path, help="where to write the records that were missed")
    one.add_argument("--peer", type=Path, help="the Python of an environment with Meta's codeshield")
    one.set_defaults(run=recall)
    two = commands.add_parser("benign")
    two.add_argument("folders", type=Path, nargs="+")
    two.add_argument("--language", choices=sorted(SUFFIXES), required=True)
    two.add_argument("--limit", type=int, default=4000, help="blocks, drawn at random")
    two.add_argument("--findings", type=Path, help="where to write each finding with its line")
    two.set_defaults(run=benign)
    three = commands.add_parser("gate")
    three.add_argument("folders", type=Path, nargs="+")
    three.add_argument("--language", choices=sorted(SUFFIXES), required=True)
    three.add_argument("--limit", type=int, default=500, help="blocks, drawn at random")
    three.set_defaults(run=gate)
    arguments = parser.parse_args()
    return int(asyncio.run(arguments.run(arguments)))


if __name__ == "__main__":
    raise SystemExit(main())
