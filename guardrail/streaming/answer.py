"""One answer that arrives in pieces: what is judged when, and how far the text may be shown. Sans-IO.

::

    delta ─▶ HeldText ─▶ piece ─▶ check ── allowed ──▶ released
                                    │ unsafe by itself
                                    ▼
                         halted ─▶ check of the whole so far ── allowed ──▶ released, goes on
                                    │ not allowed
                                    ▼
                         nothing more is released           end of the text ─▶ check of the whole ─▶ the end

A piece is judged with a little of the text before it, and a part can look worse than the whole that it belongs to. So
a piece alone only halts the stream; the decision is always that on a whole text, which is the decision that a check of
that text gives. With ``stop_early`` the text so far is that text where it is not allowed, and the stream ends there.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from guardrail.pipeline import CheckStep
from guardrail.progress import Progress, Release
from guardrail.streaming.held import HeldText
from guardrail.verdict import Conversation, Decision, Finding, Message, Role, Span

__all__ = ["Answer", "AnswerStep", "PullStep", "ReportStep", "checked_answer"]

# Of the conversation so much is context of a piece, in code points; the whole is judged with all of it. Without a
# limit a long conversation would be read again for each sentence of the answer.
_PIECE_CONTEXT = 4000


@dataclass(frozen=True, slots=True)
class PullStep:
    """Asks the driver for what has come of the answer; it sends back text, or None at the end."""


@dataclass(frozen=True, slots=True)
class ReportStep:
    """Tells the driver how far the answer has come.

    Attributes:
        text: Text that may be shown from now on, after that of the reports before.
        progress: How far it has been checked; holds the decision in the last report.
    """

    text: str
    progress: Progress


AnswerStep = CheckStep | PullStep | ReportStep


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of an answer.

    Attributes:
        text: What has come of it.
        decision: What ended it.
        is_released: Whether any of its text may have been shown before the end.
    """

    text: str
    decision: Decision
    is_released: bool


def checked_answer(
    before: Sequence[Message], *, path: str = "", release: Release = Release.CHECKED, stop_early: bool = False
) -> Generator[AnswerStep, Any, Answer]:
    """Checks each piece of an answer before it is released, then the whole answer.

    Args:
        before: The conversation that is answered.
        path: Where the exchange belongs; the policy may name it.
        release: When text may be shown.
        stop_early: Whether to end at text that is not allowed, with the decision about what has come.

    Yields:
        What the driver must do next.

    Returns:
        The answer. Its decision is that on the whole, or on the text so far where it was stopped.
    """
    return (yield from _Stream(before, path, release, stop_early).run())


class _Stream:
    """The state of one answer: what is held, what was released, which findings were told."""

    def __init__(self, before: Sequence[Message], path: str, release: Release, stop_early: bool) -> None:
        self._before = tuple(before)
        self._nearby = _nearby(self._before)
        self._path = path
        self._release = release
        self._stop_early = stop_early
        self._held = HeldText()
        self._released = 0
        self._is_halted = False
        # The last decision that is one on the whole text so far, and how far that was.
        self._decided: tuple[int, Decision] | None = None
        self._told: set[tuple[str, int]] = set()

    def run(self) -> Generator[AnswerStep, Any, Answer]:
        """Takes the answer to its end, or to where it is not allowed to go on."""
        held = self._held
        is_over = False
        while (delta := (yield PullStep())) is not None:
            held.add(delta)
            if self._release is Release.IMMEDIATELY and delta and not self._is_halted:
                self._released = held.length
                yield self._report(delta)
            if is_over or (boundary := held.boundary()) <= held.checked_through:
                continue
            is_over = not (yield from self._goes_on(boundary))
            if is_over and self._stop_early:
                assert self._decided is not None
                return (yield from self._end(*self._decided))
        if self._decided is None or self._decided[0] != held.length:
            self._decided = held.length, (yield self._check(self._before, held.text()))
        return (yield from self._end(*self._decided))

    def _goes_on(self, boundary: int) -> Generator[AnswerStep, Any, bool]:
        """Judges up to a boundary; says whether the answer may go on."""
        held = self._held
        if not self._is_halted:
            piece = held.piece(boundary)
            decision: Decision = yield self._check(self._nearby, piece.text, piece.code_from)
            if piece.start == piece.code_from == 0 and self._nearby is self._before:
                self._decided = boundary, decision
            findings = self._untold(decision, piece.start)
            if decision.action.releases:
                yield from self._pass(boundary, findings)
                return True
            self._is_halted = True
            yield self._report("", findings)
        if self._decided is None or self._decided[0] != boundary:
            if not held.may_judge_whole(boundary):
                return True
            self._decided = boundary, (yield self._check(self._before, held.text(boundary)))
        if not self._decided[1].action.releases:
            return False
        self._is_halted = False
        yield from self._pass(boundary, self._untold(self._decided[1]), forget=True)
        return True

    def _pass(
        self, boundary: int, findings: tuple[Finding, ...], *, forget: bool = False
    ) -> Generator[AnswerStep, Any, None]:
        """Lets the text up to a boundary be shown; in an optimistic stream, all that has come."""
        through = self._held.length if self._release is Release.IMMEDIATELY else boundary
        text = self._held.cut(self._released, through) if through > self._released else ""
        self._held.advance(boundary, forget=forget)
        self._released = through
        yield self._report(text, findings)

    def _end(self, through: int, decision: Decision) -> Generator[AnswerStep, Any, Answer]:
        """Reports the decision; where it allows the text, with the rest of it."""
        held, is_released, text = self._held, self._released > 0, ""
        checked_through = held.checked_through
        if decision.action.releases:
            text = held.cut(self._released, through) if through > self._released else ""
            checked_through = self._released = through
        yield ReportStep(
            text,
            Progress(
                self._release,
                checked_through,
                self._released,
                self._untold(decision),
                is_halted=not decision.action.releases,
                decision=decision,
                decided_through=through,
            ),
        )
        return Answer(held.text(), decision, is_released)

    def _check(self, before: tuple[Message, ...], text: str, code_from: int = 0) -> CheckStep:
        return CheckStep(Conversation((*before, Message(Role.ASSISTANT, text)), self._path), code_from)

    def _report(self, text: str, findings: tuple[Finding, ...] = ()) -> ReportStep:
        progress = Progress(
            self._release, self._held.checked_through, self._released, findings, is_halted=self._is_halted
        )
        return ReportStep(text, progress)

    def _untold(self, decision: Decision, start: int = 0) -> tuple[Finding, ...]:
        """Returns the findings that were not told before, counted from the start of the answer."""
        found = []
        for finding in decision.findings:
            span = Span(finding.span.start + start, finding.span.end + start)
            if (key := (finding.rule_id, span.start)) not in self._told:
                self._told.add(key)
                found.append(replace(finding, span=span))
        return tuple(found)


def _nearby(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Returns the end of a conversation, as context of a piece; the conversation itself where it is short."""
    if sum(len(message.content) for message in messages) <= _PIECE_CONTEXT:
        return messages
    kept: list[Message] = []
    room = _PIECE_CONTEXT
    for message in reversed(messages):
        kept.append(Message(message.role, message.content[-room:]))
        room -= len(message.content)
        if room <= 0:
            break
    return tuple(reversed(kept))
