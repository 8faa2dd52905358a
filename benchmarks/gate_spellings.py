"""Rewrites the cases of all rules as others would write them, and counts the findings that the gate would leave out.

    python benchmarks/gate_spellings.py [LANGUAGE ...] [--seed N]

A rule's ``needs`` and ``needs-match`` are texts that have to be found wherever the rule matches, however the code is
laid out. Here each case is laid out in other ways: more spaces, comments, line breaks, brackets round names. Semgrep
scans the result with all rules; what it finds by a rule that the gate did not let pass is lost, and has to be nothing.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.code_shield import block_of, scan_past
from guardrail.shield.gate import Gate
from guardrail.shield.install import find_semgrep
from guardrail.shield.languages import LANGUAGES
from guardrail.shield.rulebook import RULES, Rulebook

TOKEN = re.compile(
    r"""//[^\n]*|\#[^\n]*|/\*.*?\*/|\"{3}.*?\"{3}|"(?:[^"\\]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`[^`]*`|[\w$@]+|\s+|\W""",
    re.DOTALL,
)
SLASHES = frozenset(["c", "cpp", "csharp", "go", "java", "javascript", "kotlin", "php", "rust", "swift", "typescript"])
NO_BREAK_BEFORE_CALL = frozenset(["javascript", "kotlin", "swift", "typescript"])


def respelled(code: str, language: str, kind: str, rng: random.Random) -> str:
    """Returns code with the same meaning, laid out otherwise in half of the places where it can be."""
    if kind == "brackets":
        return re.sub(
            r"(?<![\w.$@\"/])([a-z]\w*)(?=\.\w+\()",
            lambda name: f"({name[0]})" if rng.random() < 0.6 else name[0],
            code,
        )
    pieces: list[str] = []
    depth, before = 0, " "
    for token in TOKEN.findall(code):
        is_free = before.strip() and token.strip() and (before[-1].isalnum() or before in ")].([")
        if is_free and (token[0].isalnum() or token in "().[]") and rng.random() < 0.5:
            pieces.append(_filler(language, kind, is_inside=depth > 0, is_call=token == "("))
        depth += (token in "([") - (token in ")]")
        pieces.append(token)
        before = token
    return "".join(pieces)


def _filler(language: str, kind: str, *, is_inside: bool, is_call: bool) -> str:
    if kind == "comments" and language in SLASHES:
        return ' /* a; (b, "c) */ '
    if kind == "lines" and is_inside:
        if language == "python":
            return "  # x (y\n  "
        if language in SLASHES and not (is_call and language in NO_BREAK_BEFORE_CALL) and language != "go":
            return " // x (y;\n "
    return "  " if language not in ("ruby", "bash", "yaml") else ""


KINDS = ("spaces", "comments", "lines", "brackets")


def spellings(folder: Path, language: str, rng: random.Random) -> Iterator[str]:
    """Yields each case of a folder in each way."""
    for path in sorted(folder.glob("*.cases.yaml")):
        for sides in yaml.safe_load(path.read_text("utf-8")).values():
            for code in sides["match"]:
                yield from {respelled(code, language, kind, rng) for kind in KINDS}


def main() -> int:
    parser = argparse.ArgumentParser(description="What the gate loses of cases that are laid out otherwise.")
    parser.add_argument("languages", nargs="*")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rulebook = Rulebook.load(RULES)
    gate = Gate.load(find_semgrep(), rulebook)
    folders = {path.name: path for path in sorted(RULES.iterdir()) if path.is_dir()}
    folders |= {"cpp": folders["c"], "typescript": folders["javascript"]}
    is_lost = False
    for language in arguments.languages or sorted(folders.keys() & LANGUAGES.keys()):
        codes = spellings(folders[language], language, random.Random(arguments.seed))
        blocks = [block_of(code, language) for code in codes]
        found, lost = 0, defaultdict[str, list[str]](list)
        for block, allowed, result in scan_past(gate, rulebook, blocks):
            rules = {hit.rule_id for hit in result.hits}
            found += len(rules)
            for rule_id in rules - allowed:
                lost[rule_id].append(block.code)
        print(f"{language}: {len(blocks)} spellings, {found} findings, {sum(map(len, lost.values()))} lost")
        for rule_id, texts in lost.items():
            print(f"  {rule_id} ({len(texts)}): {texts[0]!r}")
        is_lost |= bool(lost)
    return int(is_lost)


if __name__ == "__main__":
    raise SystemExit(main())
