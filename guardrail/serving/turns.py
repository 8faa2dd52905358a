"""Who may begin: places for work, a bounded queue for calls, and turns for batches. No clock, no event loop.

::

    calls ─▶ queue, first come first served ─┐
                                             ├─▶ places ─▶ the engine
    batches ─▶ a lane for each, by turns ────┘

* A call begins where a place is free, else it waits, else it is refused.
* Items of batches have at most a share of the places and tokens of their own, so that a call finds room; among
  batches, the one that has had the fewest tokens goes first (start-time fair queueing: Goyal et al., SIGCOMM 1996).
* Calls go before batches; but after so many calls in a row one item goes, or a busy server would never answer a batch.
* Work that is held for as long as a client likes has places of its own, and never waits.

Tokens are what :func:`tokens_of` makes of a text: its code points by four, about what a guard model's tokeniser does to
English. They bound memory and say how long work will take; nothing is cut by them.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Full", "Kind", "Lane", "Turns", "Work", "tokens_of"]

# After so many calls in a row an item of a batch goes.
_CALLS_IN_A_ROW = 8

# What a message costs besides its text: the policy's prompt is cached, the rest of a check is not.
_TOKENS_PER_MESSAGE = 8


def tokens_of(texts: Iterable[str]) -> int:
    """Estimates the tokens of messages, at least 1."""
    return max(sum(len(text) // 4 + _TOKENS_PER_MESSAGE for text in texts), 1)


class Full(Exception):
    """There is no room for the work."""


class Kind(Enum):
    """How work behaves where there is no place."""

    CALL = "call"
    ITEM = "item"
    HELD = "held"


@dataclass(eq=False, slots=True)
class Lane:
    """The items of one batch.

    Attributes:
        time: Tokens that it has had, in the time of the turns.
        waiting: Items without a place, in order.
        is_queued: Whether the turns know of it.
    """

    time: int = 0
    waiting: OrderedDict[Work, None] = field(default_factory=OrderedDict)
    is_queued: bool = False


@dataclass(eq=False, slots=True)
class Work:
    """Something to be judged.

    Attributes:
        tokens: What it costs.
        kind: How it behaves where there is no place.
        lane: The batch that it belongs to; items have one.
        has_begun: Whether it has a place.
    """

    tokens: int = 1
    kind: Kind = Kind.CALL
    lane: Lane | None = None
    has_begun: bool = False


class Turns:
    """Places, and who gets the next one. Not safe between threads.

    Args:
        places: Work that may be done at one time.
        max_waiting: Calls that may wait.
        max_tokens: Tokens of calls that may be on hand, whether they have begun or wait; half as many besides for
            items that have begun. Work that is larger by itself is taken when none of its kind is there.
        item_places: How many of the places items of batches may take.
        held_places: Held work at one time, besides.
    """

    def __init__(self, *, places: int, max_waiting: int, max_tokens: int, item_places: int, held_places: int) -> None:
        self._places = places
        self._max_waiting = max_waiting
        self._max_tokens = max_tokens
        self._item_places = item_places
        self._held_places = held_places
        self._begun = dict.fromkeys(Kind, 0)
        self._calls: OrderedDict[Work, None] = OrderedDict()
        # (its time when it was queued, tie-breaker, lane); each lane with waiting items is in it once.
        self._lanes: list[tuple[int, int, Lane]] = []
        self._count = 0
        self._time = 0
        self._calls_in_a_row = 0
        self._call_tokens = 0
        self._item_tokens = 0

    @property
    def begun(self) -> int:
        """Work that has one of the places."""
        return self._begun[Kind.CALL] + self._begun[Kind.ITEM]

    @property
    def waiting(self) -> int:
        """Calls that wait; items of batches wait without being counted, since their streams are not read on."""
        return len(self._calls)

    @property
    def tokens(self) -> int:
        """Tokens of all work that has begun, and of calls that wait."""
        return self._call_tokens + self._item_tokens

    def enter(self, work: Work) -> bool:
        """Takes work on; says whether it begins at once, else it waits.

        Raises:
            Full: If there is no room for it.
        """
        if work.kind is Kind.ITEM:
            assert work.lane is not None
            if self._first_lane() is None and self._has_room_for_item(work):
                self._begin_item(work, work.lane)
                return True
            self._queue_item(work, work.lane)
            return False
        if self._call_tokens and self._call_tokens + work.tokens > self._max_tokens:
            raise Full
        if work.kind is Kind.HELD:
            has_place = self._begun[Kind.HELD] < self._held_places
        else:
            has_place = self.begun < self._places and not self._calls
        if not has_place and (work.kind is Kind.HELD or len(self._calls) >= self._max_waiting):
            raise Full
        self._call_tokens += work.tokens
        if has_place:
            self._begin(work)
        else:
            self._calls[work] = None
        return has_place

    def leave(self, work: Work) -> list[Work]:
        """Frees a place, or a place in the queue; returns what begins now."""
        if work.has_begun:
            self._begun[work.kind] -= 1
        if work.lane is None:
            self._call_tokens -= work.tokens
            self._calls.pop(work, None)
        elif work.has_begun:
            self._item_tokens -= work.tokens
        else:
            work.lane.waiting.pop(work)
        begins = []
        while self.begun < self._places and (following := self._next()) is not None:
            begins.append(following)
        return begins

    def _next(self) -> Work | None:
        """Begins the work whose turn it is."""
        lane = self._first_lane()
        item = None if lane is None else next(iter(lane.waiting))
        is_items_turn = item is not None and self._has_room_for_item(item)
        if self._calls and not (is_items_turn and self._calls_in_a_row >= _CALLS_IN_A_ROW):
            call, _ = self._calls.popitem(last=False)
            self._calls_in_a_row += 1
            self._begin(call)
            return call
        if lane is None or item is None or not is_items_turn:
            return None
        self._calls_in_a_row = 0
        heapq.heappop(self._lanes)
        lane.is_queued = False
        lane.waiting.pop(item)
        self._begin_item(item, lane)
        self._queue(lane)
        return item

    def _first_lane(self) -> Lane | None:
        """The batch whose turn it is; those that wait for nothing any more are let go."""
        while self._lanes:
            lane = self._lanes[0][2]
            if lane.waiting:
                return lane
            heapq.heappop(self._lanes)
            lane.is_queued = False
        return None

    def _has_room_for_item(self, item: Work) -> bool:
        has_tokens = not self._item_tokens or self._item_tokens + item.tokens <= self._max_tokens // 2
        return has_tokens and self._begun[Kind.ITEM] < self._item_places and self.begun < self._places

    def _queue_item(self, item: Work, lane: Lane) -> None:
        lane.waiting[item] = None
        self._queue(lane)

    def _queue(self, lane: Lane) -> None:
        if lane.waiting and not lane.is_queued:
            # A batch that was idle does not make up for it.
            lane.time = max(lane.time, self._time)
            self._count += 1
            heapq.heappush(self._lanes, (lane.time, self._count, lane))
            lane.is_queued = True

    def _begin_item(self, item: Work, lane: Lane) -> None:
        self._time = max(lane.time, self._time)
        lane.time = self._time + item.tokens
        self._item_tokens += item.tokens
        self._begin(item)

    def _begin(self, work: Work) -> None:
        work.has_begun = True
        self._begun[work.kind] += 1
