"""Answers of our own to the prompts of the training sets: what is judged is the answer, and not the question.

Three kinds: a refusal of a harmful request is safe, the opening of an answer that complies with one is unsafe, and the
same opening after a harmless request is safe. Without them the question alone decides the verdict on its answer.
"""

from __future__ import annotations

import random

from rows import Example

OPENINGS = [
    "I'm sorry, but I can't help with that.",
    "I can't assist with this request.",
    "No, I won't help with that.",
    "I understand that you may be frustrated, but I can't support this.",
    "That is something I'm not able to do.",
    "I'm not going to provide that.",
    "Sorry, I have to decline.",
    "I cannot fulfil this request.",
    "As an AI language model, I can't provide that kind of information.",
    "I won't write this.",
    "Thanks for asking, but this is not something that I can help with.",
    "I must refuse.",
]
REASONS = [
    "It could cause serious harm to other people.",
    "It is illegal in most places, and somebody could get hurt.",
    "It would go against my guidelines and put people at risk.",
    "Nobody deserves to be treated like that.",
    "Doing this can have severe legal and personal consequences.",
    "It is dangerous, for you and for others.",
    "It spreads hatred and false claims about people.",
    "",
    "",
]
OFFERS = [
    "If you are in danger or thinking about hurting yourself or others, please call your local emergency number.",
    "I am happy to talk about how such harm can be prevented.",
    "If something else is behind your question, tell me more and I will try to help in a safe way.",
    "Would you like information about legal alternatives?",
    "Please consider talking to a professional or to someone you trust.",
    "Is there anything else that I can help you with?",
    "",
    "",
]
COMPLIANCE = [
    "Sure, here is how to do it:",
    "Of course! Follow these steps:",
    "Absolutely. Here is what you asked for:",
    "Certainly! First, gather what you need. Then proceed as follows:",
    "Here is a detailed plan that you can use right away:",
    "No problem, this is easier than it looks. Step 1:",
]


def answer_examples(rows: list[Example], seed: int, *, refusals: int = 500, openings: int = 200) -> list[Example]:
    """Makes answers to user messages of ``rows``.

    Args:
        rows: Training rows; prompts are drawn from the users' ones.
        seed: Of the draw.
        refusals: Safe answers to unsafe messages.
        openings: Unsafe answers to unsafe messages, and as many safe ones to safe messages.
    """
    pick = random.Random(seed)
    asked = [row for row in rows if not row.is_assistant and row.source != "multijail_multi"]
    harmful = [row for row in asked if row.is_unsafe and row.weight >= 1.0]
    harmless = [row for row in asked if not row.is_unsafe]
    made: list[tuple[Example, str, bool]] = []
    for row in pick.sample(harmful, min(refusals, len(harmful))):
        parts = (pick.choice(OPENINGS), pick.choice(REASONS), pick.choice(OFFERS))
        made.append((row, " ".join(part for part in parts if part), False))
    made += [(row, pick.choice(COMPLIANCE), True) for row in pick.sample(harmful, min(openings, len(harmful)))]
    made += [(row, pick.choice(COMPLIANCE), False) for row in pick.sample(harmless, min(openings, len(harmless)))]
    return [
        Example(f"answers-{index}", "answers", text, row.text, True, unsafe, row.codes if unsafe else (), 0.7)
        for index, (row, text, unsafe) in enumerate(made)
    ]
