"""One total deadline, shared by all the steps of a check or an exchange. Monotonic clock, seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from guardrail.errors import DeadlineExceeded

__all__ = ["Deadline"]

T = TypeVar("T")

# Work that minds its cancellation ends at once; what it holds is then free for the caller.
_CANCELLATION_S = 0.05


class Deadline:
    """A moment after which nobody waits any more.

    Args:
        limit_s: Seconds from now.
    """

    __slots__ = ("_at", "limit_s")

    def __init__(self, limit_s: float) -> None:
        self.limit_s = max(limit_s, 0.0)
        self._at = time.monotonic() + self.limit_s

    @property
    def remaining_s(self) -> float:
        """Seconds left, 0 when there are none."""
        return max(self._at - time.monotonic(), 0.0)

    def require(self) -> None:
        """Raises ``DeadlineExceeded`` when no time is left."""
        if self.remaining_s <= 0.0:
            raise DeadlineExceeded(f"no result within {self.limit_s:.3g} s")

    async def bound(self, work: Awaitable[T]) -> T:
        """Awaits work while there is time.

        Unlike ``asyncio.wait_for`` it does not wait for work that ignores its cancellation.

        Raises:
            DeadlineExceeded: If the time runs out first.
        """
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task}, timeout=self.remaining_s)
        finally:
            task.cancel()  # does nothing to work that is done
        if not task.done():
            await asyncio.wait({task}, timeout=_CANCELLATION_S)
        if not task.done() or task.cancelled():
            raise DeadlineExceeded(f"no result within {self.limit_s:.3g} s")
        return task.result()
