"""Reads our own lines in ``contrast_data``: harmless text that looks harmful, and its harmful neighbours.

One JSON object a line: ``text``, ``role`` (user or assistant), ``prompt`` (the user message before an assistant's, or
null), ``unsafe``, ``categories`` (codes, empty for a safe line). One line in ten, by hash of its text, is kept out of
training; the threshold is placed on those. The larger encoder's answers (``answers.npz``) are older than the files in
``LATER``: those stand behind all other rows, whose order is what it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

from rows import Example, is_calibration

FOLDER = Path(__file__).parent / "contrast_data"
WEIGHT = 1.6  # they alone show the same topic, in the same style, on both sides
LATER = frozenset(
    {
        *("tongues_asia", "tongues_east", "tongues_north", "tongues_plain", "tongues_romance"),
        *("intent_behaviours", "intent_consoles", "intent_dejected", "intent_everyone", "intent_frames"),
        *("intent_helpful", "intent_rebuffs", "intent_spelling", "intent_stances", "intent_streetchat"),
        *("intent_thin", "intent_wronged"),
    }
)


def read_own_lines(
    *, only: Collection[str] | None = None, without: Collection[str] = (), folder: Path = FOLDER
) -> tuple[list[Example], list[Example], dict[str, str]]:
    """Reads the files, or those named in ``only``, but those in ``without``; a text that comes twice is used once.

    Returns:
        Lines to learn from, lines kept out, and the SHA-256 of each file.
    """
    learn: list[Example] = []
    held: list[Example] = []
    hashes = {}
    seen = set()
    for path in sorted(folder.glob("*.jsonl")):
        if path.stem in without or (only is not None and path.stem not in only):
            continue
        hashes[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        for line in path.read_text(encoding="utf-8").split("\n"):
            if not line:
                continue
            row = json.loads(line)
            name = hashlib.sha256(f"{row['prompt']}\n{row['text'].lower()}".encode()).hexdigest()
            if name in seen:
                continue
            seen.add(name)
            is_assistant = row["role"] == "assistant"
            example = Example(
                name,
                f"own_{path.stem}",
                row["text"],
                row["prompt"] if is_assistant else None,
                is_assistant,
                row["unsafe"],
                tuple(row["categories"]) or (None if row["unsafe"] else ()),
                WEIGHT,
            )
            (held if is_calibration(name) else learn).append(example)
    return learn, held, hashes
