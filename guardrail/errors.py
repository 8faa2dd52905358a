"""Every error guardrail raises, in one tree.

::

    GuardrailError
    ├── ConfigurationError        settings that cannot work; nothing was judged
    │   ├── PolicyError           a policy file that cannot be read as a policy
    │   └── MissingExtra          an optional dependency to install (also an ImportError)
    ├── InvalidInput              the caller must change the request (also a ValueError)
    ├── ClassificationError       a judge gave no usable answer; becomes UNVERIFIED in the pipeline
    │   ├── CompletionError       a guard completion outside the grammar
    │   └── ScanError             the code scanner failed, or scanned less than it was given
    ├── GenerationError           the generator failed; nothing was released
    ├── Blocked                   the policy forbids the text; carries the decision
    ├── Overloaded                the queue is full; carries when to come back
    ├── DeadlineExceeded          the time allowed ran out (also a TimeoutError)
    ├── Unavailable               not ready, or the peer is gone
    ├── Unauthenticated           the peer asks for credentials
    └── InternalError             a defect in guardrail; carries an id to look up in the log

Messages carry ids, lengths and offsets, never a user's text. Classifiers, scanners and generators raise; the
pipeline alone turns a failure to judge into ``UNVERIFIED``, and the policy alone says what that means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guardrail.verdict import Decision


class GuardrailError(Exception):
    """Base of every error guardrail raises."""


class ConfigurationError(GuardrailError):
    """Settings that cannot work; the message says which and what to write instead."""


class PolicyError(ConfigurationError):
    """A policy that cannot be read; the message gives file, line and the nearest known key."""


class MissingExtra(ConfigurationError, ImportError):
    """An optional dependency is not installed; the message names the ``pip install`` to run."""


class InvalidInput(GuardrailError, ValueError):
    """The request itself is wrong; sending it again unchanged fails again."""


class ClassificationError(GuardrailError):
    """A classifier gave no usable answer."""


class CompletionError(ClassificationError):
    """The guard model's completion is outside the grammar ``safe`` | ``unsafe\\n<codes>``."""


class ScanError(ClassificationError):
    """The code scanner failed, or reported that it scanned less than it was given."""


class GenerationError(GuardrailError):
    """The generator failed to produce an answer."""


class Blocked(GuardrailError):
    """The policy forbids this text from passing.

    Attributes:
        decision: What was decided, and why.
    """

    def __init__(self, decision: Decision) -> None:
        super().__init__(f"{decision.rail.value} blocked: {decision.summary()}")
        self.decision = decision

    def __reduce__(self) -> tuple[type[Blocked], tuple[Decision]]:
        return (Blocked, (self.decision,))


class Overloaded(GuardrailError):
    """The queue is full.

    Attributes:
        retry_after_s: When room is expected, in seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(GuardrailError, TimeoutError):
    """The time allowed ran out before there was a result."""


class Unavailable(GuardrailError):
    """The engine is not ready, or the server cannot be reached; trying again may help."""


class Unauthenticated(GuardrailError):
    """The server asks for credentials that were not given or not accepted."""


class InternalError(GuardrailError):
    """A defect in guardrail; the message holds an id that the server's log explains."""
