"""Reads the public training rows: which are used, with what targets, and which part is kept for calibration.

Texts are data: they are held in memory, and only counts and hashes are written or printed.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path

CODES = [f"S{number}" for number in range(1, 12)]  # the order of HazardCategory
# Rows a set may give; the rest of the sets give all they have. Large single-intent sets would drown the others, and
# 2500 translated rows that are all unsafe would teach that a foreign language is unsafe.
CAPS = {
    "banking77": 500, "clinc150": 600, "gsm8k": 500, "gpteacher_codegen": 900, "gpteacher_roleplay": 1200,
    "medquad": 900, "cse_instruct_benign": 900, "bbq_sample": 500, "aart": 1200, "harmfulqa": 900, "salad_subset": 900,
    "multijail_multi": 200, "cse_mitre": 400, "cse_interpreter": 200, "jbb_artifacts": 1500, "medsafety": 1800,
    "diasafety": 1800, "gptfuzz_responses": 1500, "hatemojibuild": 2200,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Example:
    """One row to learn from.

    Attributes:
        id: The row's id in its set.
        source: The set.
        text: What is judged.
        prompt: The user message before an assistant's; None otherwise.
        is_assistant: Who wrote the text.
        is_unsafe: The overall target.
        codes: The categories, None where they are not known; empty for a safe row.
        weight: Weight of the row in the loss.
    """

    id: str
    source: str
    text: str
    prompt: str | None
    is_assistant: bool
    is_unsafe: bool
    codes: tuple[str, ...] | None
    weight: float = 1.0


def is_calibration(row_id: str) -> bool:
    """Whether a training row is kept for calibration: one in ten, by hash of its id."""
    return int(hashlib.sha256(row_id.encode()).hexdigest()[:8], 16) % 10 == 0


def read_set(path: Path) -> list[Example]:
    """Reads the rows of one set that say whether they are safe."""
    examples = []
    for line in path.read_text(encoding="utf-8").split("\n"):  # splitlines() would also split at U+2028 inside a text
        if not line:
            continue
        row = json.loads(line)
        if row["unsafe"] is None or not row["text"].strip():
            continue
        is_usable = row["cat_conf"] in ("clear", "approx") and row["categories"]
        codes = () if not row["unsafe"] else tuple(row["categories"]) if is_usable else None
        # Harm outside the eleven categories counts half: the taxonomy does not ask for it, the evaluation sets do.
        weight = 0.5 if row["cat_conf"] == "out" else 1.0
        is_assistant = row["role"] == "assistant"
        prompt = row["prompt"] if is_assistant else None
        examples.append(
            Example(row["id"], row["source"], row["text"], prompt, is_assistant, row["unsafe"], codes, weight)
        )
    return examples


def read_training_sets(folder: Path, seed: int) -> tuple[list[Example], list[Example], dict[str, str]]:
    """Reads every set of a folder.

    Returns:
        Rows to learn from (capped by set), rows to calibrate on, and the SHA-256 of each file.
    """
    learn: list[Example] = []
    calibrate: list[Example] = []
    hashes = {}
    for path in sorted(folder.glob("*.jsonl")):
        hashes[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        rows = read_set(path)
        calibrate += [row for row in rows if is_calibration(row.id)]
        rest = [row for row in rows if not is_calibration(row.id)]
        random.Random(f"{seed}-{path.name}").shuffle(rest)
        learn += rest[: CAPS.get(path.stem, len(rest))]
    return learn, calibrate, hashes
