"""Batches by token budget: a pure queue, the futures around it, and the worker thread around those.

::

    submit(item, cost) ──▶ TokenQueue ──take(now, budget)──▶ run_batch(items) ──▶ each item's future
      any thread or loop     bounded, in order                 one thread, blocking

A batch closes when what waits fills its budget, or when its first item has waited for ``max_wait_s``. Costs are tokens;
times are seconds on one monotonic clock. The queue reads no clock: ``now`` is passed in. Every item that was accepted
ends in exactly one of: result, error, deadline, or its own cancellation.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from guardrail import instruments
from guardrail.errors import ClassificationError, DeadlineExceeded, Overloaded, Unavailable

__all__ = ["BatchWorker", "Batcher", "Taken", "TokenQueue"]

logger = logging.getLogger("guardrail")

T = TypeVar("T")
R = TypeVar("R")

# What a full queue says before a batch has been timed, and the limits of what it says after.
_FIRST_RETRY_S = 1.0
_RETRY_RANGE_S = (0.05, 60.0)

# Weight of the newest batch in the running mean of tokens per second.
_RATE_WEIGHT = 0.2


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    item: T
    cost: int
    deadline: float | None
    arrived: float


@dataclass(frozen=True, slots=True)
class Taken(Generic[T]):
    """What came out of a queue.

    Attributes:
        batch: To be run now, in the order it was put in.
        expired: Those whose deadline has passed.
        unwanted: Those that nobody waits for any more.
        cost: Tokens of the batch.
    """

    batch: list[T]
    expired: list[T]
    unwanted: list[T]
    cost: int


class TokenQueue(Generic[T]):
    """Items in order, bounded by tokens and by number; closes batches by a token budget. Not thread-safe.

    Args:
        max_tokens: Tokens that may wait; an item that is larger by itself is accepted when nothing waits.
        max_requests: Items that may wait.
    """

    def __init__(self, *, max_tokens: int, max_requests: int) -> None:
        if max_tokens < 1 or max_requests < 1:
            raise ValueError(f"expected room for a token and a request, got {max_tokens} and {max_requests}")
        self._max_tokens = max_tokens
        self._max_requests = max_requests
        self._entries: deque[_Entry[T]] = deque()
        self._tokens = 0
        self._tokens_per_s: float | None = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait."""
        return self._tokens

    def put(self, item: T, *, cost: int, deadline: float | None = None, now: float = 0.0) -> None:
        """Puts an item at the end.

        Args:
            item: What waits.
            cost: Its tokens, at least 1.
            deadline: When it expires; None: never.
            now: The time.

        Raises:
            Overloaded: If there is no room; says when to come back.
        """
        if cost < 1:
            raise ValueError(f"expected a cost of at least 1 token, got {cost}")
        is_full = self._entries and self._tokens + cost > self._max_tokens
        if is_full or len(self._entries) >= self._max_requests:
            wait_s = self._retry_after_s()
            raise Overloaded(
                f"queue holds {len(self._entries)}/{self._max_requests} requests and "
                f"{self._tokens}/{self._max_tokens} tokens; retry in {wait_s:.2f} s",
                retry_after_s=wait_s,
            )
        self._entries.append(_Entry(item, cost, deadline, now))
        self._tokens += cost

    def closes_in(self, now: float, budget: int, max_wait_s: float) -> float | None:
        """Returns in how many seconds the next batch closes, 0 or less where it has; None where nothing waits."""
        if not self._entries:
            return None
        if self._tokens >= budget:
            return 0.0
        return self._entries[0].arrived + max_wait_s - now

    def take(self, now: float, budget: int, *, is_wanted: Callable[[T], bool] = lambda _: True) -> Taken[T]:
        """Takes the next batch, and all that has expired or that nobody wants any more.

        The batch is the longest run from the front whose costs fit the budget; a first item above it goes alone.

        Args:
            now: The time; an item expires when its deadline is reached.
            budget: Tokens.
            is_wanted: Whether somebody still waits for an item.
        """
        unwanted: list[T] = []
        expired: list[T] = []
        waiting: deque[_Entry[T]] = deque()
        for entry in self._entries:
            if not is_wanted(entry.item):
                unwanted.append(entry.item)
            elif entry.deadline is not None and entry.deadline <= now:
                expired.append(entry.item)
            else:
                waiting.append(entry)
        batch: list[T] = []
        cost = 0
        while waiting and (not batch or cost + waiting[0].cost <= budget):
            entry = waiting.popleft()
            batch.append(entry.item)
            cost += entry.cost
        self._entries = waiting
        self._tokens = sum(entry.cost for entry in waiting)
        return Taken(batch, expired, unwanted, cost)

    def clear(self) -> list[T]:
        """Takes everything out."""
        items = [entry.item for entry in self._entries]
        self._entries.clear()
        self._tokens = 0
        return items

    def record(self, tokens: int, seconds: float) -> None:
        """Takes note of how long a batch took, for what a full queue says."""
        if tokens > 0 and seconds > 0:
            rate = tokens / seconds
            known = rate if self._tokens_per_s is None else self._tokens_per_s
            self._tokens_per_s = known + _RATE_WEIGHT * (rate - known)

    def _retry_after_s(self) -> float:
        """When half of what waits now will have been taken, at the rate of the last batches."""
        if self._tokens_per_s is None:
            return _FIRST_RETRY_S
        least, most = _RETRY_RANGE_S
        return min(max(self._tokens / 2 / self._tokens_per_s, least), most)


class _Job(Generic[T, R]):
    """An item and its waiter, who is answered once: by the worker's thread or by whoever closes it."""

    __slots__ = ("_is_settled", "_lock", "future", "item")

    def __init__(self, item: T) -> None:
        self.item = item
        self.future: Future[R] = Future()
        self._lock = threading.Lock()
        self._is_settled = False

    def start(self) -> bool:
        """Marks the item as running; false where its waiter has cancelled or was answered."""
        with self._lock:
            self._is_settled = self._is_settled or not self.future.set_running_or_notify_cancel()
            return not self._is_settled

    def answer(self, result: R) -> None:
        if self._settle():
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        if self._settle():
            self.future.set_exception(error)

    def _settle(self) -> bool:
        # The lock is not held while the future calls back.
        with self._lock:
            if self._is_settled:
                return False
            self._is_settled = True
            return self.future.running() or self.future.set_running_or_notify_cancel()


class Batcher(Generic[T, R]):
    """Runs submitted items in batches, each batch when :meth:`run_next` is called.

    A batch that fails is run again in halves, so that the item at fault fails alone.

    Args:
        run_batch: Blocks; result i belongs to item i.
        max_batch_tokens: A batch closes before it would cost more.
        max_wait_s: How long a first item waits for company.
        max_queued_tokens: Tokens that may wait.
        max_queued_requests: Items that may wait.
        clock: Seconds, monotonic; deadlines are on it.
    """

    def __init__(
        self,
        run_batch: Callable[[Sequence[T]], Sequence[R]],
        *,
        max_batch_tokens: int,
        max_wait_s: float = 0.0,
        max_queued_tokens: int = 1_000_000,
        max_queued_requests: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_batch = run_batch
        self._max_batch_tokens = max_batch_tokens
        self._max_wait_s = max_wait_s
        self._clock = clock
        # The lock of _wake owns all that follows; run_batch is called without it.
        self._wake = threading.Condition()
        self._queue: TokenQueue[_Job[T, R]] = TokenQueue(max_tokens=max_queued_tokens, max_requests=max_queued_requests)
        self._in_flight: list[_Job[T, R]] = []
        self._is_closing = False
        instruments.add_queue(self)

    @property
    def is_alive(self) -> bool:
        """Whether items are accepted."""
        return not self._is_closing

    @property
    def queued_requests(self) -> int:
        """Items that wait."""
        with self._wake:
            return len(self._queue)

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait."""
        with self._wake:
            return self._queue.queued_tokens

    def submit(self, item: T, *, cost: int, deadline: float | None = None) -> Future[R]:
        """Puts an item into the queue; may be called from any thread. Cancelling the future before its batch drops it.

        Args:
            item: For ``run_batch``.
            cost: Its tokens, at least 1.
            deadline: On the worker's clock; an item that still waits then ends in ``DeadlineExceeded``.

        Raises:
            Overloaded: If the queue is full.
            Unavailable: If the worker is closed or lost.
        """
        job: _Job[T, R] = _Job(item)
        with self._wake:
            if not self.is_alive:
                raise Unavailable("the batch worker is closed" if self._is_closing else "the batch worker is lost")
            self._queue.put(job, cost=cost, deadline=deadline, now=self._clock())
            self._wake.notify()
        return job.future

    def halve_batches(self) -> None:
        """Halves the budget of the batches to come, down to one token; for a batch that memory did not hold."""
        self._max_batch_tokens = max(self._max_batch_tokens // 2, 1)

    def close(self, *, drain: bool = True) -> None:
        """Accepts nothing more.

        Args:
            drain: Whether what waits is left for :meth:`run_next`; otherwise it fails with ``Unavailable``.
        """
        with self._wake:
            self._is_closing = True
            dropped = [] if drain else self._queue.clear()
            self._wake.notify_all()
        _fail_all(dropped, Unavailable("the batch worker was closed before this request was run"))

    def run_next(self) -> bool:
        """Runs one batch of what waits, now; false where nothing waits."""
        with self._wake:
            if not self._queue:
                return False
            taken = self._queue.take(
                self._clock(), self._max_batch_tokens, is_wanted=lambda job: not job.future.cancelled()
            )
            self._in_flight = [*taken.unwanted, *taken.expired, *taken.batch]
        _fail_all(taken.unwanted, Unavailable("cancelled"))  # tells concurrent.futures.wait of the cancellation
        _fail_all(taken.expired, DeadlineExceeded("the deadline passed while the request waited for its batch"))
        live = [job for job in taken.batch if job.start()]
        if live:
            started = self._clock()
            self._run(live)
            seconds = self._clock() - started
            with self._wake:
                self._queue.record(taken.cost, seconds)
            instruments.tell(instruments.BatchRan(len(live), taken.cost, seconds))
        with self._wake:
            self._in_flight = []
        return True

    def _run(self, jobs: list[_Job[T, R]]) -> None:
        results = None
        try:
            results = self._run_batch([job.item for job in jobs])
        except Exception as exc:
            if len(jobs) == 1:
                jobs[0].fail(exc)
                return
        # Outside the handler: the error's frames hold the failed batch's tensors, which the halves may need room for.
        if results is None:
            middle = len(jobs) // 2
            self._run(jobs[:middle])
            self._run(jobs[middle:])
            return
        if len(results) != len(jobs):
            error = ClassificationError(f"expected {len(jobs)} results from a batch, got {len(results)}")
            _fail_all(jobs, error)
            return
        for job, result in zip(jobs, results, strict=True):
            job.answer(result)


class BatchWorker(Batcher[T, R]):
    """Runs batches on a thread of its own, as soon as each closes.

    A crash of the thread answers everybody who waits, and nothing is accepted after it.

    Args:
        run_batch: Blocks; result i belongs to item i.
        name: The thread's name.
        **options: Those of :class:`Batcher`.
    """

    def __init__(
        self, run_batch: Callable[[Sequence[T]], Sequence[R]], *, name: str = "guardrail-batches", **options: Any
    ) -> None:
        super().__init__(run_batch, **options)
        self._has_crashed = False
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether items are accepted: false after close, a crash, or in a forked child, which has no such thread."""
        return super().is_alive and self._thread.is_alive() and not self._has_crashed

    def close(self, *, drain: bool = True, timeout_s: float | None = None) -> None:
        """Stops the thread; nobody who waits is left without an answer. Closing twice does nothing more.

        Args:
            drain: Whether what waits is still run; otherwise it fails with ``Unavailable``.
            timeout_s: How long to wait for the thread; what has no answer then fails with ``Unavailable``.
        """
        super().close(drain=drain)
        if threading.current_thread() is self._thread:
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            with self._wake:
                dropped = [*self._in_flight, *self._queue.clear()]
            _fail_all(dropped, Unavailable(f"the batch worker did not end within {timeout_s} s of its closing"))

    def _serve(self) -> None:
        try:
            while self._wait():
                self.run_next()
        except BaseException as exc:
            # Logged, not raised: the waiters have the news, and a thread has nobody to raise to.
            logger.critical("the batch worker crashed: %s", type(exc).__name__)
            self._has_crashed = True
        finally:
            with self._wake:
                self._has_crashed = self._has_crashed or not self._is_closing
                left = [*self._in_flight, *self._queue.clear()]
                self._in_flight = []
            _fail_all(left, Unavailable("the batch worker crashed; the request was not judged"))

    def _wait(self) -> bool:
        """Waits until a batch closes; false once the worker is closed and nothing waits."""
        with self._wake:
            while not self._is_closing:
                left_s = self._queue.closes_in(self._clock(), self._max_batch_tokens, self._max_wait_s)
                if left_s is not None and left_s <= 0:
                    return True
                self._wake.wait(left_s)
            return len(self._queue) > 0


def _fail_all(jobs: Sequence[_Job[T, R]], error: BaseException) -> None:
    for job in jobs:
        job.fail(error)
