"""Reads the public training rows: which are used, with what targets and weights, and which are kept for calibration.

Texts are data: they are held in memory, and only counts and hashes are written or printed.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from guardrail.verdict import Conversation, Role

SEED = 20240517
CODES = [f"S{number}" for number in range(1, 12)]  # the order of HazardCategory
# Rows a set may give; the rest of the sets give all they have. Large single-intent sets would drown the others, a
# style that is harmful in every row teaches style, 2500 translated rows that are all unsafe would teach that a
# foreign language is unsafe, and long rows cost time.
CAPS = {
    "aart": 700, "banking77": 250, "bbq_sample": 400, "clinc150": 300, "cse_instruct_benign": 500,
    "cse_interpreter": 100, "cse_mitre": 300, "diasafety": 900, "dices": 500, "donotanswer": 600,
    "gpteacher_codegen": 500, "gpteacher_roleplay": 700, "gptfuzz_responses": 500, "gsm8k": 200, "harmfulqa": 400,
    "hatemojibuild": 2200, "jbb_artifacts": 600, "medquad": 600, "medsafety": 1000, "mlc_v05": 1600,
    "multijail_multi": 100, "salad_subset": 600, "trustllm_misuse_add": 200, "trustllm_privacy_query": 200,
}  # fmt: skip
# Sets whose unsafe rows are often questions that anyone may ask, or whose labels are votes that disagree.
DOUBTFUL = {
    "dangerousqa": 0.5, "dices": 0.4, "diasafety": 0.7, "donotanswer": 0.7, "harmfulqa": 0.4,
    "trustllm_misuse_add": 0.5, "trustllm_privacy_query": 0.4,
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


def to_conversation(row: Example) -> Conversation:
    """What the runtime's classifier is asked about a row."""
    return Conversation.of(row.text, role=Role.ASSISTANT if row.is_assistant else Role.USER, prompt=row.prompt)


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
        weight = DOUBTFUL.get(row["source"], 1.0) * (0.5 if row["cat_conf"] == "out" else 1.0)
        is_assistant = row["role"] == "assistant"
        prompt = row["prompt"] if is_assistant else None
        examples.append(
            Example(row["id"], row["source"], row["text"], prompt, is_assistant, row["unsafe"], codes, weight)
        )
    return examples


def read_training_sets(
    folder: Path, seed: int, *, without: Collection[str] = ()
) -> tuple[list[Example], list[Example], dict[str, str]]:
    """Reads every set of a folder but those named in ``without``.

    Returns:
        Rows to learn from (capped by set), rows to calibrate on, and the SHA-256 of each file.
    """
    learn: list[Example] = []
    calibrate: list[Example] = []
    hashes = {}
    for path in sorted(folder.glob("*.jsonl")):
        if path.stem in without:
            continue
        hashes[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        rows = read_set(path)
        calibrate += [row for row in rows if is_calibration(row.id)]
        rest = [row for row in rows if not is_calibration(row.id)]
        random.Random(f"{seed}-{path.name}").shuffle(rest)
        learn += rest[: CAPS.get(path.stem, len(rest))]
    return learn, calibrate, hashes
