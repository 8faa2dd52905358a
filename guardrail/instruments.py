"""Figures that parts tell of themselves while they work, for whoever listens in this process.

A part deep inside, a batch worker or the code scanner, knows no observer; it tells the process, in numbers alone. Where
nobody listens that costs a look at an empty tuple. Times are seconds.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

__all__ = ["BatchRan", "BlocksScanned", "Figures", "Queue", "add_queue", "listen", "queues", "tell"]

logger = logging.getLogger("guardrail")


@dataclass(frozen=True, slots=True)
class BatchRan:
    """A guard model ran a batch.

    Attributes:
        items: Prompts in it.
        tokens: What they cost.
        seconds: How long it took.
    """

    items: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class BlocksScanned:
    """The code scanner was asked about blocks.

    Attributes:
        blocks: How many.
        failed: How many of them were not scanned to their end.
        seconds: How long all of them took.
    """

    blocks: int
    failed: int
    seconds: float


Figures = BatchRan | BlocksScanned
Listener = Callable[[Figures], None]


class Queue(Protocol):
    """What waits for a guard model, asked at any time and from any thread."""

    @property
    def queued_requests(self) -> int:
        """Requests that wait."""
        ...

    @property
    def queued_tokens(self) -> int:
        """Their tokens."""
        ...


_lock = threading.Lock()
# Replaced as a whole, so that `tell` needs no lock.
_listeners: tuple[Listener, ...] = ()
_queues: weakref.WeakSet[Queue] = weakref.WeakSet()


def listen(listener: Callable[[Figures], None]) -> Callable[[], None]:
    """Calls a function with all figures from now on, from any thread.

    Args:
        listener: Must be quick and must not raise.

    Returns:
        What ends it.
    """
    global _listeners
    with _lock:
        _listeners = (*_listeners, listener)

    def stop() -> None:
        global _listeners
        with _lock:
            _listeners = tuple(other for other in _listeners if other is not listener)

    return stop


def tell(figures: Figures) -> None:
    """Tells all who listen."""
    for listener in _listeners:
        try:
            listener(figures)
        except Exception as exc:
            logger.warning("a listener raised %s", type(exc).__name__)


def add_queue(queue: Queue) -> None:
    """Lets a queue be asked how much waits in it, for as long as it lives."""
    with _lock:
        _queues.add(queue)


def queues() -> list[Queue]:
    """Returns the queues of this process."""
    with _lock:
        return list(_queues)
