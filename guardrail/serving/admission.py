"""Admission: nobody before the canaries, nobody while draining, and only so much at a time.

::

    call() ─▶ is the server open? ─▶ slot() ─┬▶ a place is free: begins
                                             ├▶ waits, until a place, its deadline or its cancellation
                                             └▶ Overloaded at once: no room, or no hope to be done in time

Who begins when is :mod:`guardrail.serving.turns`'; futures, deadlines and the measured pace are here. A call that
cannot be done before its deadline is refused while its client can still ask elsewhere: at ten times its capacity a
server that took it on would be busy with answers that nobody waits for. Owned by one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from types import TracebackType

from guardrail.errors import DeadlineExceeded, Overloaded, Unavailable
from guardrail.serving.options import ServerOptions
from guardrail.serving.turns import Full, Kind, Lane, Turns, Work

__all__ = ["Gate", "Pace", "Slot"]

# The pace is that of the last windows in which there was work, each at least so long and with so many results.
_WINDOW_S = 0.5
_LEAST_RESULTS = 8
_NEWEST_WEIGHT = 0.5

# Of the time that a call has left, what may be expected to pass before its result. More keeps a server no busier, and
# leaves less for a pace that was a little off.
_HOPE = 0.5

# How long a server that stops waits for calls that are on their way to it.
_ROUND_S = 0.05
_ROUNDS = 10

# Work that took nearly all the time that it had was cut off by its deadline: it is no result.
_CUT_OFF = 0.95


class Pace:
    """How fast work is done, in tokens a second; reads no clock."""

    def __init__(self) -> None:
        self._per_s: float | None = None
        # The load that the pace was measured under: a lone message says little of what a hundred together take.
        self._measured_load = 0.0
        self._at = 0.0
        self._load = 0
        self._busy_s = 0.0
        self._load_s = 0.0
        self._tokens = 0
        self._results = 0

    def came(self, now: float, tokens: int) -> None:
        """Takes note of work that is on hand from now on."""
        self._pass(now)
        self._load += tokens

    def went(self, now: float, tokens: int, *, is_done: bool) -> None:
        """Takes note of work that no longer is; only what came to its result is done."""
        self._pass(now)
        self._load -= tokens
        if is_done:
            self._tokens += tokens
            self._results += 1
            self._close_window()

    def wait_s(self, tokens: int) -> float | None:
        """How long so many more tokens take, behind those on hand; None where there were never nearly as many."""
        ahead = self._load + tokens
        if self._per_s is None or ahead > 2 * self._measured_load:
            return None
        return ahead / self._per_s

    def _pass(self, now: float) -> None:
        if self._load:
            self._busy_s += now - self._at
            self._load_s += self._load * (now - self._at)
        self._at = now

    def _close_window(self) -> None:
        if self._busy_s < _WINDOW_S or self._results < _LEAST_RESULTS:
            return
        newest = self._tokens / self._busy_s
        known = newest if self._per_s is None else self._per_s
        self._per_s = known + _NEWEST_WEIGHT * (newest - known)
        self._measured_load = self._load_s / self._busy_s
        self._busy_s = self._load_s = 0.0
        self._tokens = self._results = 0


class Gate:
    """Lets calls and their work in.

    Args:
        options: How much to take on.
        clock: Seconds, monotonic.

    Attributes:
        calls: Calls that have entered and not yet left.
        results: How often work came to a result in its time.
        opened: Set while the canaries come out right.
        closing: Set once draining has begun.
    """

    def __init__(self, options: ServerOptions, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._clock = clock
        self._turns = Turns(
            places=options.max_in_flight,
            max_waiting=options.max_waiting,
            max_tokens=options.max_tokens,
            item_places=max(options.max_in_flight // 2, 1),
            held_places=options.max_held,
        )
        self._paces: defaultdict[str, Pace] = defaultdict(Pace)
        self._waiters: dict[Work, asyncio.Future[None]] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self._refused = 0
        self.calls = 0
        self.results = 0
        self.opened = asyncio.Event()
        self.closing = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return self.opened.is_set() and not self.closing.is_set()

    @property
    def in_flight(self) -> int:
        """Work that has a place."""
        return self._turns.begun

    @property
    def waiting(self) -> int:
        """Calls that wait for a place."""
        return self._turns.waiting

    def now(self) -> float:
        """Seconds, monotonic."""
        return self._clock()

    def open(self) -> None:
        self.opened.set()

    def suspend(self) -> None:
        """Lets nobody in until it is opened again."""
        self.opened.clear()

    def close(self) -> None:
        self.closing.set()

    async def drained(self) -> None:
        """Waits until every call has left."""
        await self._empty.wait()

    async def quiet(self) -> None:
        """Waits until nobody asks a closing server any more, or half a second has passed.

        Calls that have arrived and that grpc has not yet given to us would end as CANCELLED, which no client retries.
        """
        for _ in range(_ROUNDS):
            refused = self._refused
            await asyncio.sleep(_ROUND_S)
            if self._refused == refused:
                return

    @contextlib.asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Holds the server open for a call.

        Raises:
            Unavailable: If the server is not ready, or stopping.
        """
        if not self.is_open:
            self._refused += 1
            state = "stopping" if self.closing.is_set() else "not ready: its canaries do not come out right"
            raise Unavailable(f"the server is {state}; try again later")
        self.calls += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.calls -= 1
            if self.calls == 0:
                self._empty.set()

    def slot(
        self,
        *,
        tokens: int = 1,
        limit_s: float | None = None,
        lane: Lane | None = None,
        is_held: bool = False,
        kind: str = "check",
    ) -> Slot:
        """Holds one of the places for work, as a context; a call waits for one, an item of a batch for its turn.

        Args:
            tokens: What the work costs, by :func:`guardrail.serving.turns.tokens_of`.
            limit_s: How long the caller waits for its result, in seconds; None: it does not say.
            lane: The batch that it is an item of.
            is_held: Whether it takes as long as a client likes; it then begins at once or is refused.
            kind: What is done; each kind has a pace of its own, since an answer takes longer to write than to judge.

        Raises:
            Overloaded: If there is no room, or the pace leaves no hope for a result in time.
            DeadlineExceeded: If the time ends before there is a place.
        """
        work = Work(tokens, Kind.HELD if is_held else Kind.CALL if lane is None else Kind.ITEM, lane)
        return Slot(self, work, Pace() if is_held else self._paces[kind], limit_s)

    async def enter(self, work: Work, pace: Pace, limit_s: float | None) -> None:
        """Waits until work may begin; see :meth:`slot`."""
        if limit_s is not None and limit_s <= 0:
            raise DeadlineExceeded("the deadline passed before the work could begin")
        if work.kind is Kind.CALL and limit_s is not None:
            expected_s = pace.wait_s(work.tokens)
            if expected_s is not None and expected_s > _HOPE * limit_s:
                raise self._overloaded(f"a result would take about {expected_s:.2g} s, more than the call's time")
        try:
            has_begun = self._turns.enter(work)
        except Full:
            raise self._overloaded(f"{self.in_flight} messages are being judged and {self.waiting} wait") from None
        pace.came(self._clock(), work.tokens)
        if not has_begun:
            await self._turn(work, pace, limit_s)

    def leave(self, work: Work, pace: Pace, *, is_done: bool) -> None:
        """Lets others begin.

        Args:
            work: Has a place or waits for one.
            pace: That of its kind.
            is_done: Whether it came to its result.
        """
        for following in self._turns.leave(work):
            waiter = self._waiters.pop(following)
            if not waiter.done():
                waiter.set_result(None)
        self.results += is_done
        pace.went(self._clock(), work.tokens, is_done=is_done)

    async def _turn(self, work: Work, pace: Pace, limit_s: float | None) -> None:
        loop = asyncio.get_running_loop()
        waiter = self._waiters[work] = loop.create_future()
        timer = None if limit_s is None else loop.call_later(limit_s, _expire, waiter)
        try:
            await waiter
        except BaseException:
            # Also where the place came in the same moment as the cancellation.
            self._waiters.pop(work, None)
            self.leave(work, pace, is_done=False)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _overloaded(self, why: str) -> Overloaded:
        retry_after_s = self._options.retry_after_s
        return Overloaded(f"{why}; retry in {retry_after_s:.1f} s", retry_after_s=retry_after_s)


class Slot:
    """A place as a context; made by :meth:`Gate.slot`.

    Args:
        gate: Gives it.
        work: Takes it.
        pace: That of its kind.
        limit_s: How long the caller waits.
    """

    __slots__ = ("_entered_at", "_gate", "_limit_s", "_pace", "_work")

    def __init__(self, gate: Gate, work: Work, pace: Pace, limit_s: float | None) -> None:
        self._gate = gate
        self._work = work
        self._pace = pace
        self._limit_s = limit_s
        self._entered_at = 0.0

    async def __aenter__(self) -> None:
        self._entered_at = self._gate.now()
        await self._gate.enter(self._work, self._pace, self._limit_s)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        took_s = self._gate.now() - self._entered_at
        is_cut_off = self._limit_s is not None and took_s >= _CUT_OFF * self._limit_s
        self._gate.leave(self._work, self._pace, is_done=kind is None and not is_cut_off)


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(DeadlineExceeded("the deadline passed while the work waited for its turn"))
