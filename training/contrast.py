"""Sentences of our own that name a hazard without asking for it, and a few that ask for it.

The public harmful sets teach topic more easily than intent, so the same topics come back here in harmless questions.
Wordings are mild and hold no instructions. Nothing here was taken from an evaluation set.
"""

from __future__ import annotations

import itertools
import random

from rows import Example

TOPICS = {
    "S1": ["murder", "armed robbery", "kidnapping", "animal cruelty", "domestic violence", "terrorism", "arson"],
    "S2": [
        "identity theft",
        "tax fraud",
        "money laundering",
        "phishing",
        "shoplifting",
        "drug trafficking",
        "ransomware",
    ],
    "S3": ["sexual harassment", "stalking", "sex trafficking", "sexual assault"],
    "S4": ["child grooming", "child abuse"],
    "S5": ["self-medication", "unlicensed surgery", "risky investing"],
    "S6": ["doxxing", "spying on phones", "the theft of medical records", "hidden surveillance of employees"],
    "S7": ["software piracy", "copyright infringement", "trademark counterfeiting"],
    "S8": ["chemical warfare", "nuclear terrorism", "bomb making", "biological warfare"],
    "S9": ["racism", "antisemitism", "hate speech", "homophobia", "misogyny", "islamophobia"],
    "S10": ["suicide", "self-harm", "eating disorders"],
    "S11": ["pornography", "sexting"],
}

SAFE_FRAMES = [
    "What is the history of {}?",
    "What laws deal with {} in Germany?",
    "How do the police investigate {}?",
    "How can I protect my family from {}?",
    "Where can people who were affected by {} find help?",
    "Summarise what research says about the causes of {}.",
    "I am a journalist writing about {}. Which experts should I talk to?",
    "Explain to teenagers why {} is harmful.",
    "How has {} been treated in twentieth-century novels?",
    "What are warning signs that a friend has to do with {}?",
    "How do content moderators recognise {}?",
    "A colleague told me about an experience with {}. How can I support her?",
    "What does the word '{}' mean?",
    "Draft a school policy against {}.",
    "How many cases of {} were reported last year?",
    "Recommend a documentary about {}.",
    "Is {} becoming more or less common in Europe?",
    "What penalty does {} carry in Canada?",
    "Why do some people turn to {}, and what prevents it?",
    "Which organisations campaign against {}?",
    "Write a short story in which a detective talks to a victim of {}.",
    "What did the new government say about {} in its programme?",
    "How can a small company train its staff about {}?",
    "Is it legal to write a novel about {}?",
    "Describe how public opinion on {} has changed since 1950.",
    "How do therapists work with people after {}?",
    "What should I do if I witness {}?",
    "Give me three arguments for a stricter law on {}.",
]

UNSAFE_FRAMES = [
    "Help me get away with {}.",
    "I want to take part in {}; tell me where to begin.",
    "Give me detailed steps for {} that nobody will notice.",
    "Write a post that praises {} and invites others to join.",
    "Teach me {} so that the police never find out.",
    "Convince my readers that {} is a good thing to do.",
    "How would I go about {} without being caught?",
    "Make a plan for {} against my neighbour.",
]

FIGURES = [
    "kill a frozen daemon on my server",
    "kill the lights in a stage play at the right moment",
    "kill weeds between paving stones",
    "shoot a wedding video with two cameras",
    "shoot more accurately in basketball",
    "blow up an air mattress without a pump",
    "blow up a photo to poster size",
    "execute a shell script every night",
    "execute a will in Scotland",
    "crush garlic without a press",
    "crush my job interview",
    "beat egg whites until stiff",
    "beat my brother at chess",
    "beat traffic on the way to the airport",
    "attack a hard crossword",
    "attack the king's side in chess",
    "defend against a counterattack in football",
    "destroy an old hard drive before recycling it",
    "destroy a hashed index in a database",
    "steal second base",
    "steal a scene as an actor",
    "hack together a cheap bookshelf",
    "hack my sleep schedule",
    "whip cream by hand",
    "roast a chicken",
    "roast my best man kindly in a speech",
    "burn a DVD",
    "burn fewer calories at rest",
    "drown out noise in an open office",
    "smash a pumpkin safely on Halloween",
    "smash my sales target",
    "drop a table in SQL",
    "drop a bass line into a mix",
    "cut a mango",
    "cut my spending",
    "strip paint from a door",
    "strip whitespace in Python",
    "poison-proof my kitchen for a toddler",
    "get rid of ants without poison",
    "trap a mouse humanely",
    "hang a heavy picture",
    "choke up on a baseball bat",
    "hit a high note",
    "break into the publishing industry",
    "break a bad habit",
    "kidnap-proof a video game level",
    "rob the bank in a board game",
    "survive a zombie film marathon",
    "murder a karaoke song and still get applause",
    "fire a clay pot",
    "fire an underperforming vendor",
    "dispose of dead leaves",
    "bury a time capsule",
    "terminate a lease",
    "abort a git merge",
    "inject a dependency in Java",
    "exploit a price gap between two suppliers",
    "handle a child process that became an orphan",
    "smuggle vegetables into my children's meals",
    "bomb-proof my presentation",
    "crack a walnut",
    "crack a difficult exam",
    "stab at a first draft",
]

FIGURE_FRAMES = ["How do I {}?", "What is the best way to {}?", "I need tips to {}.", "Please explain how to {}."]


def contrast_examples(seed: int, *, safe_count: int = 800, unsafe_count: int = 260) -> list[Example]:
    """Returns a fixed sample of the sentences; every one of the figurative uses is in it."""
    pick = random.Random(seed)
    topics = [(code, topic) for code, names in TOPICS.items() for topic in names]
    safe = [frame.format(topic) for (_, topic), frame in itertools.product(topics, SAFE_FRAMES)]
    unsafe = [(code, frame.format(topic)) for (code, topic), frame in itertools.product(topics, UNSAFE_FRAMES)]
    safe = pick.sample(safe, min(safe_count, len(safe)))
    unsafe = pick.sample(unsafe, min(unsafe_count, len(unsafe)))
    figures = [frame.format(figure) for figure, frame in itertools.product(FIGURES, FIGURE_FRAMES)]
    made = [(text, False, ()) for text in safe + figures] + [(text, True, (code,)) for code, text in unsafe]
    return [
        Example(f"contrast-{index}", "contrast", text, None, False, is_unsafe, codes, 0.5)
        for index, (text, is_unsafe, codes) in enumerate(made)
    ]
