"""Texts that nobody wrote and no label is known of: parts of two rows of one set, which a larger encoder then judges.

A small network learns more of a larger one where both read much that is new (https://arxiv.org/abs/2106.05237). Rows of
one set have one style and, in ours, twins of either intent: a beginning of one with the end of another lies between.
"""

from __future__ import annotations

import random
from collections import defaultdict

from rows import Example

COUNT = 40_000
MOST_WORDS = 70  # of either row
THINNED, REPLACED = 0.15, 0.2  # the words that are left out, or taken from the other row


def crossed(first: list[str], second: list[str], pick: random.Random) -> list[str]:
    """The beginning of one and the end of another, cut at about the same share of each."""
    share = pick.uniform(0.2, 0.8)
    return first[: round(share * len(first))] + second[round(share * len(second)) :]


def thinned(first: list[str], second: list[str], pick: random.Random) -> list[str]:
    """One, without some of its words."""
    return [word for word in first if pick.random() >= THINNED]


def replaced(first: list[str], second: list[str], pick: random.Random) -> list[str]:
    """One, with some words of another."""
    return [pick.choice(second) if pick.random() < REPLACED else word for word in first]


def mixed(rows: list[Example], seed: int, *, count: int = COUNT) -> list[Example]:
    """Makes rows of weight 0 out of rows of like role: the text of two, what stands before it of the first."""
    pick = random.Random(seed)
    words = {id(row): row.text.split() for row in rows}
    short = [row for row in rows if 4 <= len(words[id(row)]) <= MOST_WORDS]
    fellows = defaultdict(list)
    for row in short:
        fellows[row.source, row.is_assistant].append(row)
    made = []
    for number in range(count if short else 0):
        first = pick.choice(short)
        second = pick.choice(fellows[first.source, first.is_assistant])
        way = pick.choice([crossed, crossed, crossed, thinned, replaced])
        text = " ".join(way(words[id(first)], words[id(second)], pick))
        if text:
            made.append(Example(f"mixed-{number}", "mixed", text, first.prompt, first.is_assistant, False, None, 0.0))
    return made
