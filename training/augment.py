"""Changes the surface of a text and not its meaning, alike for safe and unsafe rows.

Letters' case needs no change: the word pieces are lower case. The disguises are those that the runtime undoes
(``guardrail.models.disguise``), of harmless text as well: it is judged in both forms, and neither may be an alarm.
"""

from __future__ import annotations

import random

CHANCE = 0.3  # of a text to be changed
BEFORE = ["hi, ", "hey ", "please ", "quick question: ", "can you help me? ", "hello! ", "ok so ", "I was wondering, "]
AFTER = [" please", " thanks", " thank you!", " asap", " and explain briefly", " ?", "..."]
SIGNS = str.maketrans("aeiostl", "4310571")
LOOK_ALIKES = str.maketrans("aeiopcxy", "\u0430\u0435\u0456\u043e\u0440\u0441\u0445\u0443")  # of Cyrillic


def varied(text: str, pick: random.Random) -> str:
    """Returns the text, or in three of ten cases a variant of it."""
    if pick.random() >= CHANCE or not text.strip():
        return text
    kind = pick.randrange(5)
    if kind == 0:
        return text.rstrip(" .?!")
    if kind == 1:
        return pick.choice(BEFORE) + text
    if kind == 2:
        return text.rstrip(" .?!") + pick.choice(AFTER)
    if kind == 3:
        return _with_slip(text, pick)
    return _in_disguise(text, pick)


def _in_disguise(text: str, pick: random.Random) -> str:
    """Writes a word, some words or all of them with signs for letters, look-alike letters, or letters set apart."""
    words = text.split(" ")
    share = pick.choice([0.1, 0.4, 1.0])
    chosen = {pick.randrange(len(words)), *(index for index in range(len(words)) if pick.random() < share)}
    between = pick.choice([" ", ".", "-", "*"])
    way = pick.choice(
        [lambda word: word.translate(SIGNS), lambda word: word.translate(LOOK_ALIKES), lambda word: between.join(word)]
    )
    return " ".join(way(word) if index in chosen else word for index, word in enumerate(words))


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
