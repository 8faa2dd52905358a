"""Fakes for tests of code that uses guardrail; each keeps its seam's promises unless it was told to break them.

::

    guard = Guard(KeywordClassifier({"badword": HazardCategory.HATE}), policy=load_policy("default"))
    assert guard.check(Conversation.of("a badword")).action is Action.BLOCK
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from guardrail.errors import ScanError
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import (
    Assessment,
    CodeBlock,
    Conversation,
    Decision,
    Finding,
    GuardPrompt,
    Outcome,
    Source,
    Verdict,
)

__all__ = [
    "FailingClassifier",
    "FailingScanner",
    "HangingClassifier",
    "KeywordClassifier",
    "RecordingObserver",
    "ScriptedGenerator",
    "ScriptedGuardModel",
]


class KeywordClassifier:
    """Finds a message unsafe when it holds one of the given words; costs nothing.

    Args:
        words: Word -> category of a message that holds it.
    """

    source = Source("keyword-classifier", "test")

    def __init__(self, words: Mapping[str, HazardCategory]) -> None:
        self._words = dict(words)

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        """Judges each message at once."""
        return [self._judge(conversation.last.content) for conversation in conversations]

    def _judge(self, text: str) -> Verdict:
        hits = {category for word, category in self._words.items() if word in text}
        scores = {category: 0.99 if category in hits else 0.01 for category in HazardCategory}
        named = tuple(category for category in HazardCategory if category in hits)
        outcome = Outcome.UNSAFE if hits else Outcome.SAFE
        return Verdict(outcome, self.source, scores, named, unsafe_probability=0.99 if hits else 0.01)


class FailingClassifier:
    """Raises what it is given, on every message or on those that hold a word.

    Args:
        error: Raised as it is.
        on: The word that makes it fail; None: it always fails.
    """

    source = Source("failing-classifier", "test")

    def __init__(self, error: Exception, *, on: str | None = None) -> None:
        self._error = error
        self._on = on

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        """Raises, or finds every message safe."""
        if self._on is None or any(self._on in conversation.last.content for conversation in conversations):
            raise self._error
        return [Verdict(Outcome.SAFE, self.source, unsafe_probability=0.01) for _ in conversations]


class HangingClassifier:
    """Never answers."""

    source = Source("hanging-classifier", "test")

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        """Waits for ever."""
        await asyncio.Event().wait()
        raise AssertionError("an event that nobody sets was set")


class ScriptedGuardModel:
    """A guard model that gives the assessments it was told to give, in order.

    Args:
        assessments: One for each prompt it will see.
    """

    def __init__(self, assessments: Iterable[Assessment]) -> None:
        self._assessments = iter(assessments)
        self.prompts: list[GuardPrompt] = []

    async def assess(self, prompts: Sequence[GuardPrompt]) -> list[Assessment]:
        """Keeps the prompts and returns as many assessments, fewer if the script ends."""
        self.prompts += prompts
        return [assessment for _, assessment in zip(prompts, self._assessments, strict=False)]


class FailingScanner:
    """A code scanner that always raises :class:`~guardrail.errors.ScanError`."""

    async def scan(self, blocks: Sequence[CodeBlock]) -> list[list[Finding]]:
        """Raises."""
        raise ScanError(f"told to fail on {len(blocks)} blocks")


class ScriptedGenerator:
    """Gives the answers it was told to give, in order, and keeps what it was asked.

    Args:
        answers: One for each call; a callable is called, so that it can raise or wait.
    """

    def __init__(self, answers: Iterable[str | Callable[[], str]]) -> None:
        self._answers = iter(answers)
        self.calls: list[tuple[Conversation, int, str | None]] = []

    async def generate(self, conversation: Conversation, *, attempt: int, feedback: str | None) -> str:
        """Returns the next answer."""
        self.calls.append((conversation, attempt, feedback))
        answer = next(self._answers)
        return answer if isinstance(answer, str) else answer()


class RecordingObserver:
    """Keeps the decisions it is told of."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []

    def decided(self, decision: Decision) -> None:
        """Takes note of a decision."""
        self.decisions.append(decision)
