"""Text on its way from who writes an answer to who checks it, on one event loop.

What comes while a check runs is taken together afterwards: a check that is slower than the writer delays text, and
does not fall further behind with every delta. The writer waits while ``_ROOM`` code points are not taken.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Any

from guardrail.errors import GenerationError
from guardrail.pipeline import require_text

__all__ = ["Feed", "Pump"]

_ROOM = 65_536

# A generator that minds its cancellation ends at once.
_CANCELLATION_S = 0.05


class Feed:
    """Deltas in, what has come out; owned by one event loop."""

    def __init__(self) -> None:
        self._deltas: list[str] = []
        self._size = 0
        self._has_ended = False
        self._error: Exception | None = None
        self._came = asyncio.Event()
        self._taken = asyncio.Event()

    async def put(self, delta: str) -> None:
        """Puts text in; waits while there is no room."""
        if not delta:
            return
        while self._size >= _ROOM:
            self._taken.clear()
            await self._taken.wait()
        self._deltas.append(delta)
        self._size += len(delta)
        self._came.set()

    def end(self, error: Exception | None = None) -> None:
        """Says that no more text comes, and why, if that is no good end."""
        self._has_ended, self._error = True, error
        self._came.set()

    async def take(self) -> str | None:
        """Takes all text that has come since, waiting for some; None at the end. Nothing is lost if it is cancelled.

        Raises:
            Exception: What the text ended with, after all of it was taken.
        """
        await self._came.wait()
        if self._deltas:
            text = "".join(self._deltas)
            self._deltas.clear()
            self._size = 0
            self._taken.set()
            if not self._has_ended:
                self._came.clear()
            return text
        if self._error is not None:
            raise self._error
        return None


class Pump:
    """Reads an async iterator in a task of its own, a little ahead of who takes its text.

    Args:
        pieces: Gives the text.
        stage: Surrounds the reading.
    """

    def __init__(self, pieces: AsyncIterator[Any], *, stage: AbstractContextManager[object] | None = None) -> None:
        self._pieces = pieces
        self._stage = stage or contextlib.nullcontext()
        self._feed = Feed()
        self._task = asyncio.create_task(self._run(), name="guardrail-stream")

    async def take(self) -> str | None:
        """Takes what has come; see :meth:`Feed.take`."""
        return await self._feed.take()

    async def aclose(self) -> None:
        """Stops reading and closes the iterator."""
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=_CANCELLATION_S)
        close = getattr(self._pieces, "aclose", None)
        if close is not None:
            # A generator that ignored its cancellation is still running and cannot be closed.
            with contextlib.suppress(RuntimeError):
                await close()

    async def _run(self) -> None:
        try:
            with self._stage:
                async for piece in self._pieces:
                    await self._feed.put(require_text(piece))
        except asyncio.CancelledError:
            # Ours, or one that the iterator raised: whoever still waits must hear of an end.
            self._feed.end(GenerationError("the answer's stream was cancelled"))
            raise
        except Exception as exc:
            self._feed.end(exc)
        else:
            self._feed.end()
