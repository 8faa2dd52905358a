"""Admission: nobody before the canaries, nobody while draining, and only so many at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from guardrail.errors import Overloaded, Unavailable
from guardrail.serving.options import ServerOptions

__all__ = ["Gate"]


class Gate:
    """Admission: nobody before the canaries, nobody while draining, and only so many at a time.

    Attributes:
        calls: Calls that have entered and not yet left.
        opened: Set once the canaries came out right.
        closing: Set once draining has begun.
    """

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._slots = asyncio.Semaphore(options.max_in_flight)
        self._empty = asyncio.Event()
        self._empty.set()
        self.calls = 0
        self.opened = asyncio.Event()
        self.closing = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return self.opened.is_set() and not self.closing.is_set()

    def open(self) -> None:
        self.opened.set()

    def close(self) -> None:
        self.closing.set()

    async def drained(self) -> None:
        """Waits until every call has left."""
        await self._empty.wait()

    @contextlib.asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Holds the server open for a call.

        Raises:
            Unavailable: If the server is not ready, or stopping.
        """
        if not self.is_open:
            state = "stopping" if self.closing.is_set() else "not ready: its canaries have not come out right yet"
            raise Unavailable(f"the server is {state}; try again later")
        self.calls += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.calls -= 1
            if self.calls == 0:
                self._empty.set()

    @contextlib.asynccontextmanager
    async def slot(self, *, may_wait: bool) -> AsyncIterator[None]:
        """Holds one of the places for work.

        Raises:
            Overloaded: If all are taken and the work may not wait.
        """
        limit, retry_after_s = self._options.max_in_flight, self._options.retry_after_s
        if self._slots.locked() and not may_wait:
            raise Overloaded(
                f"{limit} of {limit} places are taken; retry in {retry_after_s:.1f} s", retry_after_s=retry_after_s
            )
        async with self._slots:
            yield
