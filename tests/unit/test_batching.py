"""The queue keeps budget and order and loses nobody; the worker answers every waiter exactly once."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.batching import Batcher, BatchWorker, TokenQueue
from guardrail.errors import ClassificationError, DeadlineExceeded, Overloaded, Unavailable

WAIT_S = 30.0


class TestTokenQueue:
    @given(
        st.lists(st.tuples(st.integers(1, 50), st.none() | st.integers(0, 20), st.booleans()), max_size=40),
        st.lists(st.tuples(st.integers(0, 20), st.integers(1, 100)), max_size=20).map(sorted),
    )
    def test_budget_and_order_are_kept_and_nobody_is_lost(
        self, items: list[tuple[int, int | None, bool]], takes: list[tuple[int, int]]
    ) -> None:
        """Each item comes out once: in a batch in order, expired, or unwanted; only a lone item exceeds a budget."""
        queue: TokenQueue[int] = TokenQueue(max_tokens=10_000, max_requests=1_000)
        for number, (cost, deadline, _) in enumerate(items):
            queue.put(number, cost=cost, deadline=deadline)
        batched: list[int] = []
        out: list[int] = []
        for now, budget in [*takes, *((21, 10_000),) * 2]:
            taken = queue.take(now, budget, is_wanted=lambda number: items[number][2])
            assert taken.cost == sum(items[number][0] for number in taken.batch)
            assert taken.cost <= budget or len(taken.batch) == 1
            assert all((at := items[number][1]) is None or at > now for number in taken.batch)
            assert all((at := items[number][1]) is not None and at <= now for number in taken.expired)
            assert not any(items[number][2] for number in taken.unwanted)
            batched += taken.batch
            out += [*taken.batch, *taken.expired, *taken.unwanted]
        assert sorted(out) == list(range(len(items)))
        assert batched == sorted(batched)
        assert queue.queued_tokens == 0
        assert len(queue) == 0

    def test_a_batch_takes_all_that_fits_from_the_front(self) -> None:
        """The batch is the longest run that fits; a small item behind a large one does not overtake it."""
        queue: TokenQueue[str] = TokenQueue(max_tokens=100, max_requests=10)
        for name, cost in (("a", 3), ("b", 4), ("c", 9), ("d", 1)):
            queue.put(name, cost=cost)
        assert queue.take(0, 10).batch == ["a", "b"]
        assert queue.take(0, 10).batch == ["c", "d"]

    def test_an_item_above_the_budget_goes_alone(self) -> None:
        """No item waits for ever for a budget that it cannot fit."""
        queue: TokenQueue[str] = TokenQueue(max_tokens=100, max_requests=10)
        queue.put("large", cost=50)
        queue.put("small", cost=1)
        assert queue.take(0, 10).batch == ["large"]

    @pytest.mark.parametrize("limits", [{"max_tokens": 10, "max_requests": 99}, {"max_tokens": 99, "max_requests": 2}])
    def test_a_full_queue_refuses_and_says_when_to_come_back(self, limits: dict[str, int]) -> None:
        """Tokens and requests are both bounded; what was refused was not put in."""
        queue: TokenQueue[str] = TokenQueue(**limits)
        queue.put("a", cost=5)
        queue.put("b", cost=5)
        with pytest.raises(Overloaded) as caught:
            queue.put("c", cost=1)
        assert caught.value.retry_after_s > 0
        assert queue.take(0, 100).batch == ["a", "b"]

    def test_an_item_above_the_bound_is_accepted_when_nothing_waits(self) -> None:
        """A large request is served when the queue is free, rather than refused for ever."""
        queue: TokenQueue[str] = TokenQueue(max_tokens=10, max_requests=9)
        queue.put("large", cost=50)
        with pytest.raises(Overloaded):
            queue.put("small", cost=1)

    def test_retry_after_follows_the_measured_rate(self) -> None:
        """A slower engine says to come back later."""
        waits = []
        for seconds in (1.0, 10.0):
            queue: TokenQueue[str] = TokenQueue(max_tokens=100, max_requests=1)
            queue.record(100, seconds)
            queue.put("a", cost=100)
            with pytest.raises(Overloaded) as caught:
                queue.put("b", cost=1)
            waits.append(caught.value.retry_after_s)
        assert waits == [0.5, 5.0]


class Engine:
    """Doubles numbers; fails on those it is told to; blocks while its gate is shut."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.failing: set[int] = set()
        self.error: BaseException = ValueError("told to fail")

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        if self.failing & set(items):
            raise self.error
        return [2 * item for item in items]


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def worker(engine: Engine) -> Iterator[BatchWorker[int, int]]:
    worker: BatchWorker[int, int] = BatchWorker(engine, max_batch_tokens=100, max_queued_requests=50)
    yield worker
    engine.gate.set()
    worker.close(drain=False)


def occupy(worker: BatchWorker[int, int], engine: Engine) -> Future[int]:
    """Shuts the engine's gate with one item inside, so that what follows waits in the queue."""
    engine.gate.clear()
    engine.entered.clear()
    future = worker.submit(0, cost=1)
    assert engine.entered.wait(WAIT_S)
    return future


class TestBatchWorker:
    def test_results_belong_to_their_items_and_waiting_ones_share_a_batch(
        self, worker: BatchWorker[int, int], engine: Engine
    ) -> None:
        """Result i belongs to item i, and what has gathered runs together."""
        first = occupy(worker, engine)
        futures = [worker.submit(number, cost=10) for number in range(1, 13)]
        engine.gate.set()
        assert [future.result(WAIT_S) for future in (first, *futures)] == [2 * number for number in range(13)]
        assert engine.batches == [[0], list(range(1, 11)), [11, 12]]

    async def test_futures_can_be_awaited_from_an_event_loop(self, worker: BatchWorker[int, int]) -> None:
        """A coroutine awaits a result without blocking its loop."""
        assert await asyncio.wait_for(asyncio.wrap_future(worker.submit(21, cost=1)), WAIT_S) == 42

    def test_a_failing_item_fails_alone(self, worker: BatchWorker[int, int], engine: Engine) -> None:
        """A batch that fails is run again in halves until the item at fault is by itself."""
        engine.failing = {5}
        occupy(worker, engine)
        futures = [worker.submit(number, cost=1) for number in range(1, 9)]
        engine.gate.set()
        wait(futures, WAIT_S)
        assert [future.exception() is None for future in futures] == [number != 5 for number in range(1, 9)]
        assert isinstance(futures[4].exception(), ValueError)
        assert worker.submit(1, cost=1).result(WAIT_S) == 2

    def test_a_wrong_number_of_results_is_an_error_for_all(self) -> None:
        """Nobody is given another's answer."""
        worker: BatchWorker[int, int] = BatchWorker(lambda items: [1] * (len(items) + 1), max_batch_tokens=10)
        with pytest.raises(ClassificationError, match="expected 1 results from a batch, got 2"):
            worker.submit(1, cost=1).result(WAIT_S)
        worker.close()

    def test_a_cancelled_item_is_never_run(self, worker: BatchWorker[int, int], engine: Engine) -> None:
        """Work that nobody waits for is dropped, and its future counts as done for those who wait on it."""
        occupy(worker, engine)
        futures = [worker.submit(number, cost=1) for number in (1, 2, 3)]
        assert futures[1].cancel()
        engine.gate.set()
        _, not_done = wait(futures, WAIT_S)
        assert not not_done
        assert engine.batches[1:] == [[1, 3]]
        with pytest.raises(CancelledError):
            futures[1].result()

    def test_an_item_that_waited_past_its_deadline_is_told_so(self, engine: Engine) -> None:
        """The deadline is read on the worker's clock when the batch is taken, and the item is not run."""
        now = [0.0]
        worker: BatchWorker[int, int] = BatchWorker(engine, max_batch_tokens=10, clock=lambda: now[0])
        occupy(worker, engine)
        late, patient = worker.submit(1, cost=1, deadline=5.0), worker.submit(2, cost=1)
        now[0] = 6.0
        engine.gate.set()
        with pytest.raises(DeadlineExceeded):
            late.result(WAIT_S)
        assert patient.result(WAIT_S) == 4
        assert engine.batches[1:] == [[2]]
        worker.close()

    def test_a_full_queue_refuses_at_once(self, worker: BatchWorker[int, int], engine: Engine) -> None:
        """Overload is told to the one who comes, not to those who wait."""
        occupy(worker, engine)
        futures = [worker.submit(1, cost=1) for _ in range(50)]
        with pytest.raises(Overloaded):
            worker.submit(1, cost=1)
        engine.gate.set()
        assert [future.result(WAIT_S) for future in futures] == [2] * 50

    @pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
    def test_a_crash_answers_everybody_and_nothing_is_accepted_after_it(
        self, worker: BatchWorker[int, int], engine: Engine, error: BaseException
    ) -> None:
        """Those in the batch and those in the queue get Unavailable, and so does whoever comes later."""
        engine.failing, engine.error = {0}, error
        running = occupy(worker, engine)
        waiting = [worker.submit(number, cost=60) for number in (1, 2, 3)]
        engine.gate.set()
        for future in (running, *waiting):
            with pytest.raises(Unavailable):
                future.result(WAIT_S)
        assert not worker.is_alive
        with pytest.raises(Unavailable):
            worker.submit(1, cost=1)

    def test_close_runs_what_waits(self, worker: BatchWorker[int, int], engine: Engine) -> None:
        """A draining close answers all, then accepts nothing."""
        occupy(worker, engine)
        futures = [worker.submit(number, cost=60) for number in (1, 2, 3)]
        engine.gate.set()
        worker.close(drain=True)
        assert [future.result(0) for future in futures] == [2, 4, 6]
        assert not worker.is_alive
        with pytest.raises(Unavailable):
            worker.submit(1, cost=1)

    def test_close_without_draining_fails_what_waits(self, worker: BatchWorker[int, int], engine: Engine) -> None:
        """What was not begun is refused; what runs still gets its result."""
        running = occupy(worker, engine)
        waiting = worker.submit(1, cost=1)
        waiting.add_done_callback(lambda _: engine.gate.set())
        worker.close(drain=False)
        assert running.result(0) == 0
        with pytest.raises(Unavailable):
            waiting.result(0)

    def test_close_gives_up_on_an_engine_that_hangs(self, worker: BatchWorker[int, int], engine: Engine) -> None:
        """Nobody waits for ever: when the thread does not end in time, even the running batch is answered, once."""
        running = occupy(worker, engine)
        waiting = worker.submit(1, cost=1)
        worker.close(timeout_s=0.01)
        for future in (running, waiting):
            with pytest.raises(Unavailable):
                future.result(0)
        engine.gate.set()
        worker.close()
        assert isinstance(running.exception(0), Unavailable)

    def test_every_request_of_many_threads_ends_exactly_once(self) -> None:
        """With failures, passed deadlines and cancellations mixed in, each of 10,000 requests ends in one way, once."""
        count = 10_000
        engine = Engine()
        engine.failing = set(range(0, count, 7))
        worker: BatchWorker[int, int] = BatchWorker(engine, max_batch_tokens=50, max_queued_requests=count)
        ended: list[int] = []
        futures: dict[int, Future[int]] = {}

        def submit(numbers: range) -> None:
            for number in numbers:
                deadline = time.monotonic() - 1 if number % 13 == 0 else None
                futures[number] = worker.submit(number, cost=1 + number % 9, deadline=deadline)
                futures[number].add_done_callback(lambda _, number=number: ended.append(number))
                if number % 11 == 0:
                    futures[number].cancel()

        threads = [threading.Thread(target=submit, args=(range(start, count, 4),)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        worker.close(drain=True)
        assert sorted(ended) == list(range(count))
        for number, future in futures.items():
            if future.cancelled():
                assert number % 11 == 0
            elif number % 13 == 0:
                assert isinstance(future.exception(0), DeadlineExceeded)
            elif number % 7 == 0:
                assert isinstance(future.exception(0), ValueError)
            else:
                assert future.result(0) == 2 * number


class TestBatcher:
    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 2**32), st.booleans())
    def test_each_of_500_requests_ends_exactly_once_on_a_fake_clock(self, seed: int, drains: bool) -> None:
        """Failures, deadlines and cancellations fall anywhere, also into a running batch; the test moves the clock."""
        rng = random.Random(seed)
        now = [0.0]
        futures: dict[int, Future[int]] = {}
        deadlines: dict[int, float | None] = {}
        ended: list[int] = []
        ran: list[int] = []
        cancelled: set[int] = set()

        def cancel_some() -> None:
            for number in rng.sample(sorted(futures), min(len(futures), rng.randint(0, 3))):
                if futures[number].cancel():
                    cancelled.add(number)

        def run_batch(numbers: Sequence[int]) -> list[int]:
            assert all((limit := deadlines[n]) is None or limit > started[0] for n in numbers)
            assert not cancelled & set(numbers)
            now[0] += rng.random() * 0.01
            cancel_some()
            if rng.random() < 0.05:
                raise MemoryError  # of the batch, not of one request: its halves are run again
            if any(number % 7 == 0 for number in numbers):
                raise ValueError
            ran.extend(numbers)
            return [2 * number for number in numbers]

        batcher: Batcher[int, int] = Batcher(
            run_batch, max_batch_tokens=40, max_queued_tokens=400, max_queued_requests=60, clock=lambda: now[0]
        )
        started = [0.0]
        count = 0
        while count < 500:
            action = rng.random()
            if action < 0.7:
                deadlines[count] = now[0] + rng.random() * 0.05 if rng.random() < 0.3 else None
                try:
                    future = batcher.submit(count, cost=rng.randint(1, 50), deadline=deadlines[count])
                except Overloaded:
                    ended.append(count)  # refused at once: that is its end
                else:
                    future.add_done_callback(lambda _, number=count: ended.append(number))
                    futures[count] = future
                count += 1
            elif action < 0.8:
                cancel_some()
            elif action < 0.9:
                now[0] += rng.random() * 0.02
            else:
                started[0] = now[0]
                batcher.run_next()
        batcher.close(drain=drains)
        with pytest.raises(Unavailable):
            batcher.submit(count, cost=1)
        started[0] = now[0]
        while batcher.run_next():
            started[0] = now[0]
        assert sorted(ended) == list(range(count))
        assert len(ran) == len(set(ran))
        for number, future in futures.items():
            if future.cancelled():
                assert number in cancelled
                continue
            error = future.exception(0)
            if error is None:
                assert future.result(0) == 2 * number
            elif isinstance(error, DeadlineExceeded):
                assert deadlines[number] is not None
            elif isinstance(error, Unavailable):
                assert not drains
            else:
                assert isinstance(error, MemoryError) or number % 7 == 0

    def test_a_batch_closes_on_its_budget_or_its_first_items_age(self) -> None:
        """Nothing waits: no time; a full budget: now; else when the first item has waited long enough."""
        queue: TokenQueue[str] = TokenQueue(max_tokens=100, max_requests=10)
        assert queue.closes_in(0.0, 10, 0.5) is None
        queue.put("a", cost=4, now=1.0)
        queue.put("b", cost=4, now=1.4)
        assert queue.closes_in(1.2, 10, 0.5) == pytest.approx(0.3)
        assert queue.closes_in(2.0, 10, 0.5) == pytest.approx(-0.5)
        queue.put("c", cost=2, now=1.4)
        assert queue.closes_in(1.4, 10, 0.5) == 0.0

    def test_a_worker_waits_for_company(self) -> None:
        """Items that come one after another within the wait share a batch."""
        engine = Engine()
        worker: BatchWorker[int, int] = BatchWorker(engine, max_batch_tokens=3, max_wait_s=30.0)
        futures = [worker.submit(number, cost=1) for number in range(3)]  # the third fills the budget
        assert [future.result(5) for future in futures] == [0, 2, 4]
        assert engine.batches == [[0, 1, 2]]
        worker.close()
