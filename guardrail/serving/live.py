"""The guard that answers now: calls in flight keep the one that they began with when another takes its place."""

from __future__ import annotations

from guardrail.pipeline import Guard
from guardrail.policy import Policy

__all__ = ["LiveGuard"]


class LiveGuard:
    """Holds the guard of a server, whose policy can be replaced while it serves.

    Args:
        guard: The engine; it stays the caller's, who closes it.

    Attributes:
        guard: What judges calls that begin now. A call reads it once.
        code_guard: The same for code alone; None where code is not examined.
    """

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.code_guard = guard.for_code()

    def replace_policy(self, policy: Policy) -> None:
        """Lets calls that begin from now on be decided by another policy; verdicts stay as they are."""
        guard = self.guard.with_policy(policy)
        self.guard, self.code_guard = guard, guard.for_code()
