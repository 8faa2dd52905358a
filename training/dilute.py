"""Windows in which one row stands among harmless text: what a short request looks like inside a long message.

Without them the mean over 192 tokens drowns a harmful sentence: the judged window then scores below one half.
"""

from __future__ import annotations

import random

from rows import Example
from tokenizers import Tokenizer

from guardrail.models.embedded import MAX_CONTEXT_TOKENS, MAX_TEXT_TOKENS, Window, frame, tokenise

FILLER_SETS = frozenset(
    {"banking77", "clinc150", "gpteacher_roleplay", "gpteacher_codegen", "gsm8k", "medquad", "truthfulqa"}
)
ROW_TOKENS = 60  # a row longer than this is no needle
REPEAT_SHARE = 0.25  # of the windows are filled with one text again and again


def diluted(tokenizer: Tokenizer, rows: list[Example], count: int, seed: int) -> tuple[list[Window], list[Example]]:
    """Makes windows of up to 192 tokens around ``count`` rows, half of them unsafe, with the rows' own targets."""
    pick = random.Random(seed)
    fillers = [tokenise(tokenizer, row.text) for row in rows if row.source in FILLER_SETS]
    chosen = [row for is_unsafe in (True, False) for row in _short(tokenizer, rows, is_unsafe, count // 2, pick)]
    windows = []
    for row in chosen:
        needle = tokenise(tokenizer, row.text)
        room = pick.randint(0, MAX_TEXT_TOKENS - len(needle))
        before = pick.choice([0, room, pick.randint(0, room)])
        text = _fill(fillers, before, pick) + needle + _fill(fillers, room - before, pick)
        context = None if row.prompt is None else tokenise(tokenizer, row.prompt)[-MAX_CONTEXT_TOKENS:]
        windows.append(frame(text, context=context, is_assistant=row.is_assistant))
    return windows, chosen


def _short(
    tokenizer: Tokenizer, rows: list[Example], is_unsafe: bool, count: int, pick: random.Random
) -> list[Example]:
    """Returns ``count`` short rows of one class, at random, of which a label is known."""
    labelled = [row for row in rows if row.weight and row.source != "multijail_multi"]
    candidates = [row for row in labelled if row.is_unsafe == is_unsafe]
    pick.shuffle(candidates)
    found: list[Example] = []
    for row in candidates:
        if len(found) == count:
            break
        if len(tokenise(tokenizer, row.text)) <= ROW_TOKENS:
            found.append(row)
    return found


def _fill(fillers: list[list[int]], size: int, pick: random.Random) -> list[int]:
    """Returns ``size`` tokens of harmless text."""
    repeated = pick.choice(fillers) if pick.random() < REPEAT_SHARE else None
    tokens: list[int] = []
    while len(tokens) < size:
        tokens += repeated or pick.choice(fillers)
    return tokens[:size]
