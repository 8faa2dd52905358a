"""Changes the surface of a text and not its meaning, alike for safe and unsafe rows.

Letters' case needs no change: the word pieces are lower case.
"""

from __future__ import annotations

import random

CHANCE = 0.3  # of a text to be changed
BEFORE = ["hi, ", "hey ", "please ", "quick question: ", "can you help me? ", "hello! ", "ok so ", "I was wondering, "]
AFTER = [" please", " thanks", " thank you!", " asap", " and explain briefly", " ?", "..."]


def varied(text: str, pick: random.Random) -> str:
    """Returns the text, or in three of ten cases a variant of it."""
    if pick.random() >= CHANCE or not text.strip():
        return text
    kind = pick.randrange(4)
    if kind == 0:
        return text.rstrip(" .?!")
    if kind == 1:
        return pick.choice(BEFORE) + text
    if kind == 2:
        return text.rstrip(" .?!") + pick.choice(AFTER)
    return _with_slip(text, pick)


def _with_slip(text: str, pick: random.Random) -> str:
    """Swaps two neighbouring letters inside one longer word."""
    words = text.split(" ")
    long = [index for index, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not long:
        return text
    index = pick.choice(long)
    word, place = words[index], pick.randrange(1, len(words[index]) - 2)
    words[index] = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    return " ".join(words)
