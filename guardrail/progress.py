"""Values of streams: when text may be shown, when the prompt is checked, and how far an answer has been checked.

Offsets are Unicode code points from the start of the answer, as everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from guardrail.verdict import Decision, Finding

__all__ = ["Progress", "PromptCheck", "Release"]


class Release(str, Enum):
    """When text of a stream may be shown.

    ``CHECKED`` holds it back until it has been checked. ``IMMEDIATELY`` is optimistic: text is shown as it comes, and
    unsafe text can be seen until the check that finds it is done.
    """

    CHECKED = "checked"
    IMMEDIATELY = "immediately"


class PromptCheck(str, Enum):
    """When the prompt of a generated answer is checked; nothing is released before it was, in either case.

    ``PARALLEL`` checks it beside the first generation, which a blocked prompt cancels.
    """

    FIRST = "first"
    PARALLEL = "parallel"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an answer has been checked.

    Attributes:
        release: When text of this stream may be shown; in every progress, so that an optimistic stream is known as one.
        checked_through: Text before this offset has been checked, and may be shown.
        released_through: Text before this offset may be shown, and none after it.
        findings: Rule hits that no earlier progress of the stream had; spans count from the start of the answer.
        is_halted: Whether text after ``checked_through`` was found unsafe by itself. Nothing is released until a look
            at the whole answer so far lets it go on, or ends the stream.
        decision: In the last progress alone: the decision about the text before ``decided_through``.
        decided_through: How far the decision looked; 0 where there is none.
    """

    release: Release
    checked_through: int
    released_through: int
    findings: tuple[Finding, ...] = ()
    is_halted: bool = False
    decision: Decision | None = None
    decided_through: int = 0
