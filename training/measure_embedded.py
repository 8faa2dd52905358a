"""Evaluates the shipped classifier on the dev sets through the runtime's own code, and writes the figures down.

    python training/measure_embedded.py --data /work/shared/data

Fills ``config.json`` (key ``dev``) and the tables between the ``figures`` marks of the model card and
``docs/embedded-model.md``. Nothing is chosen by these figures. Text of the rows is neither printed nor kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

import numpy as np
from rows import Example, read_set, to_conversation
from sklearn.metrics import average_precision_score

from guardrail.models.embedded import EmbeddedClassifier
from guardrail.taxonomy import LLAMA_GUARD_2
from guardrail.verdict import Conversation, Outcome, Verdict

REPOSITORY = Path(__file__).resolve().parent.parent
MARKS = ("<!-- figures -->", "<!-- /figures -->")


def share(part: int, whole: int) -> float | None:
    """Returns part / whole in four digits, None of nothing."""
    return round(part / whole, 4) if whole else None


def figures(examples: list[Example], verdicts: list[Verdict]) -> dict[str, float | int | None]:
    """Recall, false-positive rate, F1 and AUPRC of one set, and how often the first category named is a right one."""
    unsafe = np.array([example.is_unsafe for example in examples])
    flagged = np.array([verdict.outcome is Outcome.UNSAFE for verdict in verdicts])
    scores = [verdict.unsafe_probability for verdict in verdicts]
    hits, alarms = int((unsafe & flagged).sum()), int((~unsafe & flagged).sum())
    named = [
        verdict.categories[0] in [LLAMA_GUARD_2[code] for code in example.codes]
        for example, verdict in zip(examples, verdicts, strict=True)
        if example.codes and verdict.categories
    ]
    is_mixed = 0 < unsafe.sum() < len(unsafe)
    return {
        "rows": len(examples),
        "unsafe": int(unsafe.sum()),
        "recall": share(hits, int(unsafe.sum())),
        "fpr": share(alarms, int((~unsafe).sum())),
        "f1": share(2 * hits, hits + alarms + int(unsafe.sum())) if is_mixed else None,
        "auprc": round(float(average_precision_score(unsafe, scores)), 4) if is_mixed else None,
        "category_right": share(sum(named), len(named)),
    }


def table(found: dict[str, dict[str, float | int | None]]) -> str:
    """Writes the figures as a Markdown table."""

    def cell(value: float | int | None) -> str:
        return "" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"

    columns = ["rows", "unsafe", "recall", "fpr", "f1", "auprc", "category_right"]
    head = ["set", "rows", "unsafe", "recall", "FPR", "F1", "AUPRC", "first category right"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    lines += [f"| {name} | {' | '.join(cell(row[column]) for column in columns)} |" for name, row in found.items()]
    return "\n".join(lines)


async def speed_ms(classifier: EmbeddedClassifier) -> float:
    """Median time of one message of 60 tokens, asked one after another."""
    message = Conversation.of("the train leaves at noon from the old station " * 6 + "and it is always late")
    times = []
    for _ in range(60):
        started = time.perf_counter()
        await classifier.classify([message])
        times.append(1000 * (time.perf_counter() - started))
    return round(float(np.median(times)), 2)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    classifier = EmbeddedClassifier(threads=arguments.threads)
    found = {}
    for path in sorted((arguments.data / "dev").glob("*.jsonl")):
        examples = read_set(path)
        verdicts = asyncio.run(classifier.classify([to_conversation(row) for row in examples]))
        found[path.stem] = figures(examples, verdicts)
    milliseconds = asyncio.run(speed_ms(classifier))
    classifier.close()
    print(table(found), f"{milliseconds} ms a message of 60 tokens", sep="\n")
    folder = REPOSITORY / "guardrail/models/embedded_data"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dev"] = found
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    for page in (folder / "MODEL_CARD.md", REPOSITORY / "docs/embedded-model.md"):
        before, rest = page.read_text(encoding="utf-8").split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        filled = f"{before}{MARKS[0]}\nRevision `{config['revision']}`.\n\n{table(found)}\n{MARKS[1]}{after}"
        page.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
