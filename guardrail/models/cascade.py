"""A cascade: the embedded model judges every text, and the guard model only those it is unsure of.

::

    conversation ─▶ first stage ─┬─ p < low        ─▶ its verdict: safe
                                 ├─ low <= p <= high, or not read ─▶ guard's verdict
                                 └─ p > high       ─▶ its verdict: unsafe

``p`` is the first stage's ``unsafe_probability``, and ``0 <= low <= 0.5 <= high <= 1``: below one half the first stage
itself says safe, so no verdict is ever turned round. ``guardrail eval cascade`` chooses both on rows that both judged.

A guard that fails is a failure of the cascade: the first stage's verdict on an unsure text is never given instead.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from guardrail.errors import ClassificationError, ConfigurationError
from guardrail.protocols import HazardClassifier
from guardrail.verdict import Conversation, Outcome, Source, Timing, Verdict

__all__ = ["CascadeCalls", "CascadeClassifier"]


@dataclass(frozen=True, slots=True)
class CascadeCalls:
    """How often the guard was spared.

    Attributes:
        judged: Conversations that got a verdict.
        asked: Those of them that the guard judged.
    """

    judged: int
    asked: int

    @property
    def saved(self) -> int:
        """Conversations that the first stage decided alone."""
        return self.judged - self.asked


class CascadeClassifier:
    """Judges messages in two stages; a :class:`~guardrail.protocols.HazardClassifier`.

    Args:
        first: Judges every conversation; gives an ``unsafe_probability``, and is unsafe from one half on.
        guard: Judges the conversations that ``first`` is unsure of.
        low: Below it, ``first`` passes a text alone.
        high: Above it, ``first`` flags a text alone.

    Raises:
        ConfigurationError: If not ``0 <= low <= 0.5 <= high <= 1``.
    """

    def __init__(self, first: HazardClassifier, guard: HazardClassifier, *, low: float, high: float) -> None:
        if not 0.0 <= low <= 0.5 <= high <= 1.0:
            raise ConfigurationError(f"a cascade needs 0 <= low <= 0.5 <= high <= 1, got low {low:g} and high {high:g}")
        self._first = first
        self._guard = guard
        self._low = low
        self._high = high
        self._calls = CascadeCalls(0, 0)
        self._calls_lock = threading.Lock()

    @property
    def source(self) -> Source:
        """Both models and the thresholds between them; a verdict's own source is the stage that decided."""
        return Source(f"cascade of {self._first.source} and {self._guard.source}", f"{self._low:g}..{self._high:g}")

    @property
    def calls(self) -> CascadeCalls:
        """What was judged so far, and how much of it the guard was asked."""
        return self._calls

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        """Judges each conversation's last message; verdict i belongs to conversation i.

        Raises:
            ClassificationError: If the first stage, or the guard where it is asked, could not judge any of them.
            Overloaded: If the guard's queue is full.
            Unavailable: If the guard is closed or lost.
        """
        verdicts = _matched(await self._first.classify(conversations), conversations, self._first)
        unsure = [i for i, verdict in enumerate(verdicts) if self._is_unsure(verdict)]
        asked = [conversations[i] for i in unsure]
        answers = _matched(await self._guard.classify(asked), asked, self._guard) if asked else []
        answer_of = dict(zip(unsure, answers, strict=True))
        joined = [
            self._decided_by_guard(verdict, answer_of[i]) if i in answer_of else self._decided_first(verdict)
            for i, verdict in enumerate(verdicts)
        ]
        with self._calls_lock:
            self._calls = CascadeCalls(self._calls.judged + len(joined), self._calls.asked + len(unsure))
        return joined

    def close(self) -> None:
        """Closes both stages."""
        for stage in (self._first, self._guard):
            close = getattr(stage, "close", None)
            if close is not None:
                close()

    def _is_unsure(self, verdict: Verdict) -> bool:
        return verdict.outcome is Outcome.UNVERIFIED or self._low <= _probability(verdict) <= self._high

    def _decided_first(self, verdict: Verdict) -> Verdict:
        side = f"below {self._low:g}" if _probability(verdict) < self._low else f"above {self._high:g}"
        note = f"cascade: {verdict.source} decided, {side}; {self._guard.source} was not asked"
        return replace(verdict, detail=_noted(note, verdict.detail))

    def _decided_by_guard(self, first: Verdict, answer: Verdict) -> Verdict:
        is_unread = first.outcome is Outcome.UNVERIFIED
        why = "could not read it" if is_unread else f"was unsure at {_probability(first):.3f}"
        note = f"cascade: {answer.source} decided; {first.source} {why}"
        timing = Timing(
            first.timing.queue_ms + answer.timing.queue_ms, first.timing.compute_ms + answer.timing.compute_ms
        )
        return replace(answer, detail=_noted(note, answer.detail), timing=timing)


def _matched(
    verdicts: list[Verdict], conversations: Sequence[Conversation], classifier: HazardClassifier
) -> list[Verdict]:
    if len(verdicts) != len(conversations):
        raise ClassificationError(
            f"expected {len(conversations)} verdicts, got {len(verdicts)} from {classifier.source}"
        )
    return verdicts


def _probability(verdict: Verdict) -> float:
    """The first stage's P(unsafe); NaN would be neither sure nor unsure."""
    probability = verdict.unsafe_probability
    if probability is None or not 0.0 <= probability <= 1.0:
        raise ClassificationError(f"expected an unsafe_probability in 0..1 from {verdict.source}, got none")
    return probability


def _noted(note: str, detail: str) -> str:
    return f"{note}; {detail}" if detail else note
