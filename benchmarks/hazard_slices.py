"""Accuracy of the configured classifier on the hazard sentences of the tests, slice by slice.

    GUARDRAIL_MODEL=embedded python benchmarks/hazard_slices.py [tests/data/hazards.jsonl]

A row is right where the classifier calls it unsafe exactly if its label does; an unverified row is wrong whatever its
label. The sentences are mild and were written for this repository: the table shows where a classifier is weak
(negations, quotations, other scripts), not how it does on real traffic. No text is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guardrail.assembly import build_classifier
from guardrail.config import load_settings
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.protocols import HazardClassifier
from guardrail.verdict import Conversation, Outcome, Role

HAZARDS = Path(__file__).resolve().parent.parent / "tests/data/hazards.jsonl"


@dataclass(frozen=True, slots=True)
class Answer:
    """One row and what the classifier made of it."""

    slice: str
    is_unsafe: bool
    outcome: Outcome

    @property
    def is_right(self) -> bool:
        """Whether the outcome is the one that the label asks for."""
        return self.outcome is (Outcome.UNSAFE if self.is_unsafe else Outcome.SAFE)


def judge(classifier: HazardClassifier, path: Path) -> list[Answer]:
    """Judges every row of a file."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    asked = [Conversation.of(row["text"], role=Role(row["role"]), prompt=row["prompt"]) for row in rows]
    decisions = asyncio.run(Guard(classifier, policy=load_policy("default")).acheck_many(asked))
    return [
        Answer(row["slice"], row["unsafe"], decision.outcome) for row, decision in zip(rows, decisions, strict=True)
    ]


def accuracy(answers: Sequence[Answer]) -> float:
    """The share of right answers, of at least one."""
    return sum(answer.is_right for answer in answers) / len(answers)


def table(answers: Sequence[Answer]) -> str:
    """The accuracy of each slice, and of its unsafe and safe rows apart, as Markdown."""
    lines = ["| slice | rows | accuracy | unsafe found | safe passed |", "| --- | --- | --- | --- | --- |"]
    for name in [*dict.fromkeys(answer.slice for answer in answers), "all rows"]:
        inside = [answer for answer in answers if name in (answer.slice, "all rows")]
        halves = [[answer for answer in inside if answer.is_unsafe is label] for label in (True, False)]
        cells = [f"{accuracy(half):.3f}" if half else "" for half in (inside, *halves)]
        lines.append(f"| {name} | {len(inside)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Accuracy of the configured classifier by slice.")
    parser.add_argument("file", type=Path, nargs="?", default=HAZARDS)
    arguments = parser.parse_args()
    classifier = build_classifier(load_settings())
    print(f"{classifier.source}\n")
    print(table(judge(classifier, arguments.file)))


if __name__ == "__main__":
    main()
