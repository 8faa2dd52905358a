"""Who may begin: places, the queue, turns of batches, deadlines, and the pace that says what is hopeless."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.errors import DeadlineExceeded, Overloaded, Unavailable
from guardrail.serving.admission import Gate, Pace
from guardrail.serving.options import ServerOptions
from guardrail.serving.turns import Full, Kind, Lane, Turns, Work, tokens_of


def turns(*, places: int = 4, max_waiting: int = 4, max_tokens: int = 1000, held_places: int = 1) -> Turns:
    return Turns(
        places=places,
        max_waiting=max_waiting,
        max_tokens=max_tokens,
        item_places=max(places // 2, 1),
        held_places=held_places,
    )


def item(lane: Lane, tokens: int = 1) -> Work:
    return Work(tokens, Kind.ITEM, lane)


class TestTokens:
    def test_a_quarter_of_the_code_points(self) -> None:
        """Code points, not bytes: what is cheap to count, the same in every script, and never nothing."""
        assert tokens_of(["x" * 400]) - tokens_of([""]) == 100
        assert tokens_of(["é" * 400]) == tokens_of(["x" * 400])
        assert tokens_of([]) == 1


class TestCalls:
    def test_they_begin_wait_and_are_refused(self) -> None:
        """In this order, by how much there is room for."""
        queue = turns(places=2, max_waiting=1)
        assert [queue.enter(Work()) for _ in range(3)] == [True, True, False]
        with pytest.raises(Full):
            queue.enter(Work())
        assert (queue.begun, queue.waiting) == (2, 1)

    def test_who_came_first_goes_first(self) -> None:
        """And one at a time, as places become free."""
        queue = turns(places=1)
        first, second, third = Work(), Work(), Work()
        assert [queue.enter(work) for work in (first, second, third)] == [True, False, False]
        assert queue.leave(first) == [second]
        assert queue.leave(second) == [third]
        assert queue.leave(third) == []
        assert (queue.begun, queue.waiting, queue.tokens) == (0, 0, 0)

    def test_one_that_goes_away_leaves_no_trace(self) -> None:
        """Its room is free at once, and its turn is the next one's."""
        queue = turns(places=1, max_waiting=1, max_tokens=20)
        first, gone, other = Work(10), Work(10), Work(10)
        queue.enter(first)
        queue.enter(gone)
        with pytest.raises(Full):
            queue.enter(other)
        assert queue.leave(gone) == []
        assert not queue.enter(other)
        assert queue.leave(first) == [other]

    def test_tokens_are_bounded_too(self) -> None:
        """A few large texts fill the queue; one that is larger than the bound is taken alone."""
        queue = turns(max_tokens=100)
        large = Work(500)
        assert queue.enter(large)
        with pytest.raises(Full):
            queue.enter(Work(1))
        queue.leave(large)
        assert queue.enter(Work(60))
        with pytest.raises(Full):
            queue.enter(Work(60))
        assert queue.enter(Work(40))


class TestBatches:
    def test_they_have_a_share(self) -> None:
        """However many items wait, a call finds a place."""
        queue = turns(places=4)
        lane = Lane()
        assert [queue.enter(item(lane)) for _ in range(6)] == [True, True, False, False, False, False]
        assert queue.enter(Work())
        assert queue.enter(Work())

    def test_they_have_tokens_of_their_own(self) -> None:
        """However large a batch's items are, a call's text finds room; one that is too large is taken alone."""
        queue = turns(places=8, max_tokens=100)
        lane = Lane()
        large, other = item(lane, 500), item(lane, 10)
        assert queue.enter(large)
        assert not queue.enter(other)
        assert queue.enter(Work(100))
        assert queue.leave(large) == [other]
        assert queue.enter(item(lane, 40))
        assert not queue.enter(item(lane, 1))

    def test_items_wait_without_end_and_keep_their_order(self) -> None:
        """A batch is not refused: its stream is not read on."""
        queue = turns(places=2)
        lane = Lane()
        items = [item(lane) for _ in range(50)]
        for work in items:
            queue.enter(work)
        current, order = items[0], [items[0]]
        while following := queue.leave(current):
            (current,) = following
            order.append(current)
        assert order == items

    def test_calls_go_first(self) -> None:
        """Where both wait for one place."""
        queue = turns(places=1)
        lane = Lane()
        first, waiting_item, call = item(lane), item(lane), Work()
        for work in (first, waiting_item, call):
            queue.enter(work)
        assert queue.leave(first) == [call]
        assert queue.leave(call) == [waiting_item]

    def test_many_calls_do_not_shut_a_batch_out(self) -> None:
        """After eight calls in a row an item goes."""
        queue = turns(places=1, max_waiting=100)
        lane = Lane()
        current: Work = Work()
        queue.enter(current)
        queue.enter(item(lane))
        kinds = []
        for _ in range(20):
            queue.enter(Work())
        for _ in range(12):
            (current,) = queue.leave(current)
            kinds.append(current.kind)
        assert kinds.index(Kind.ITEM) == 8

    def test_batches_take_turns_by_their_tokens(self) -> None:
        """A stream of large items gets as many tokens as one of small items, not as many items."""
        queue = turns(places=1)
        large, small = Lane(), Lane()
        current = item(large, 40)
        queue.enter(current)
        for _ in range(200):
            queue.enter(item(large, 40))
            queue.enter(item(small, 10))
        had: Counter[int] = Counter()
        for _ in range(100):
            (current,) = queue.leave(current)
            had[current.tokens] += 1
        assert had[10] == pytest.approx(4 * had[40], abs=4)

    def test_a_batch_that_was_idle_does_not_make_up_for_it(self) -> None:
        """A newcomer takes turns; it does not go first until it has had as much as the others."""
        queue = turns(places=1)
        old, new = Lane(), Lane()
        current = item(old, 10)
        queue.enter(current)
        for _ in range(50):
            queue.enter(item(old, 10))
            (current,) = queue.leave(current)
        for _ in range(20):
            queue.enter(item(old, 10))
            queue.enter(item(new, 10))
        lanes = []
        for _ in range(10):
            (current,) = queue.leave(current)
            lanes.append(current.lane)
        assert lanes.count(new) == pytest.approx(5, abs=1)

    def test_what_was_cancelled_does_not_stop_the_others(self) -> None:
        """A batch whose waiting items are gone is forgotten; the next one begins at once."""
        queue = turns(places=2)
        first, gone = Lane(), Lane()
        running, waiting = item(first), item(gone)
        queue.enter(running)
        queue.enter(waiting)
        queue.leave(running)
        queue.leave(waiting)
        assert queue.enter(item(Lane()))


class TestHeld:
    def test_it_has_places_of_its_own_and_never_waits(self) -> None:
        """Streams that stay open for an hour cost calls no place."""
        queue = turns(places=1, held_places=1)
        held = Work(kind=Kind.HELD)
        assert queue.enter(held)
        with pytest.raises(Full):
            queue.enter(Work(kind=Kind.HELD))
        assert queue.enter(Work())
        queue.leave(held)
        assert queue.enter(Work(kind=Kind.HELD))


@dataclass
class Model:
    """What a caller knows of the turns: who begins, who waits, who is gone."""

    queue: Turns
    begun: list[Work] = field(default_factory=list)
    waiting: list[Work] = field(default_factory=list)

    def enter(self, work: Work) -> None:
        with suppress(Full):
            (self.begun if self.queue.enter(work) else self.waiting).append(work)

    def leave(self, work: Work) -> None:
        (self.begun if work in self.begun else self.waiting).remove(work)
        for following in self.queue.leave(work):
            self.waiting.remove(following)
            self.begun.append(following)


class TestForAnyOrder:
    @settings(max_examples=300, deadline=None)
    @given(
        places=st.integers(1, 5),
        steps=st.lists(st.tuples(st.sampled_from("ciil"), st.integers(0, 30), st.integers(1, 40)), max_size=120),
    )
    def test_bounds_hold_and_nobody_is_lost(self, places: int, steps: list[tuple[str, int, int]]) -> None:
        """Whatever comes and goes: never too much at once, no place empty while somebody could use it, and when all
        have left, all have been served."""
        queue = turns(places=places, max_waiting=5, max_tokens=100)
        lanes = [Lane() for _ in range(3)]
        model = Model(queue)
        for what, number, tokens in steps:
            if what == "c":
                model.enter(Work(tokens))
            elif what == "i":
                model.enter(item(lanes[number % 3], tokens))
            elif everybody := [*model.begun, *model.waiting]:
                model.leave(everybody[number % len(everybody)])
            items = [work for work in model.begun if work.kind is Kind.ITEM]
            calls_waiting = [work for work in model.waiting if work.kind is Kind.CALL]
            assert queue.begun == len(model.begun) <= places
            assert len(items) <= max(places // 2, 1)
            assert queue.waiting == len(calls_waiting) <= 5
            assert queue.tokens == sum(work.tokens for work in [*model.begun, *calls_waiting])
            calls = [work for work in [*model.begun, *calls_waiting] if work.kind is Kind.CALL]
            assert sum(work.tokens for work in calls) <= 100
            assert sum(work.tokens for work in items) <= 50
            assert not (calls_waiting and len(model.begun) < places)
        while model.begun:
            model.leave(model.begun[0])
        assert not model.waiting


class TestPace:
    def test_it_is_what_was_done_in_the_time_with_work(self) -> None:
        """Ten tokens every 0.1 s: 300 take 3 s. Idle time does not count."""
        pace, now = Pace(), 0.0
        pace.came(now, 290)
        for _ in range(20):
            now += 0.1
            pace.went(now, 10, is_done=True)
            pace.came(now, 10)
        assert pace.wait_s(10) == pytest.approx(3.0)
        pace.went(now, 290, is_done=False)
        pace.came(now + 100, 290)
        assert pace.wait_s(10) == pytest.approx(3.0)

    def test_it_says_nothing_of_a_load_that_it_has_not_seen(self) -> None:
        """A model that was asked one at a time may well take a hundred at once."""
        pace, now = Pace(), 0.0
        assert pace.wait_s(1) is None
        for _ in range(20):
            pace.came(now, 10)
            now += 0.1
            pace.went(now, 10, is_done=True)
        assert pace.wait_s(10) is not None
        assert pace.wait_s(1000) is None

    def test_what_came_to_no_result_is_not_done(self) -> None:
        """Half of the work was given up: the other half is the pace."""
        pace, now = Pace(), 0.0
        pace.came(now, 100)
        for number in range(40):
            pace.came(now, 10)
            now += 0.1
            pace.went(now, 10, is_done=number % 2 == 0)
        assert pace.wait_s(0) == pytest.approx(2.0, rel=0.1)

    def test_it_follows_a_change(self) -> None:
        """A machine that became slower is believed within a few windows."""
        pace, now = Pace(), 0.0
        pace.came(now, 100)
        for seconds in (0.1, 1.0):
            for _ in range(100):
                now += seconds
                pace.went(now, 10, is_done=True)
                pace.came(now, 10)
        assert pace.wait_s(0) == pytest.approx(10.0, rel=0.01)


def gate(**options: int) -> Gate:
    built = Gate(ServerOptions(**options))  # type: ignore[arg-type]
    built.open()
    return built


class TestGate:
    async def test_a_place_is_free_again_after_an_error(self) -> None:
        """Whatever ends the work."""
        door = gate(max_in_flight=1, max_waiting=0)
        with pytest.raises(KeyError):
            async with door.slot():
                raise KeyError
        async with door.slot():
            assert door.in_flight == 1
        assert door.in_flight == 0

    async def test_one_that_waits_is_let_in(self) -> None:
        """As soon as the one before it leaves."""
        door = gate(max_in_flight=1)

        async def work() -> int:
            async with door.slot(limit_s=60):
                return door.in_flight

        async with door.slot():
            waiting = asyncio.create_task(work())
            await asyncio.sleep(0)
            assert door.waiting == 1
        assert await waiting == 1
        assert (door.in_flight, door.waiting) == (0, 0)

    async def test_waiting_ends_with_the_deadline(self) -> None:
        """The work never begins, and its room in the queue is free."""
        door = gate(max_in_flight=1, max_waiting=1)
        async with door.slot():
            with pytest.raises(DeadlineExceeded, match="waited for its turn"):
                async with door.slot(limit_s=0.01):
                    pytest.fail("it began")
            assert door.waiting == 0
        with pytest.raises(DeadlineExceeded, match="before the work could begin"):
            async with door.slot(limit_s=0):
                pytest.fail("it began")

    async def test_a_cancelled_waiter_costs_nothing(self) -> None:
        """Neither while it waits nor where its turn came in the same moment."""
        door = gate(max_in_flight=1)

        async def work() -> None:
            async with door.slot():
                pytest.fail("it began")

        for is_late in (False, True):
            holder = door.slot()
            await holder.__aenter__()
            waiting = asyncio.create_task(work())
            await asyncio.sleep(0)
            if is_late:
                await holder.__aexit__(None, None, None)
                waiting.cancel()
            else:
                waiting.cancel()
                await asyncio.sleep(0)
                await holder.__aexit__(None, None, None)
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert (door.in_flight, door.waiting) == (0, 0)

    async def test_a_full_gate_says_when_to_come_back(self) -> None:
        """At once, with the numbers that say why."""
        door = gate(max_in_flight=1, max_waiting=0)
        async with door.slot():
            with pytest.raises(Overloaded, match=r"1 messages are being judged and 0 wait; retry in 1\.0 s"):
                async with door.slot():
                    pytest.fail("it began")

    async def test_what_cannot_be_done_in_time_is_refused(self) -> None:
        """A call with a short deadline behind a long queue hears so at once; one that has time is taken."""
        now = 0.0
        door = Gate(ServerOptions(max_in_flight=1, max_waiting=100), clock=lambda: now)
        holder = door.slot(tokens=100)
        await holder.__aenter__()
        for _ in range(20):  # a hundred tokens a second, with two hundred on hand
            following = door.slot(tokens=100)
            entering = asyncio.create_task(following.__aenter__())
            await asyncio.sleep(0)
            now += 1.0
            await holder.__aexit__(None, None, None)
            await entering
            holder = following
        with pytest.raises(Overloaded, match="would take about 2 s, more than the call's time"):
            await door.slot(tokens=100, limit_s=1.0).__aenter__()
        patient = asyncio.create_task(door.slot(tokens=100, limit_s=60.0).__aenter__())
        await asyncio.sleep(0)
        await holder.__aexit__(None, None, None)
        await patient

    async def test_each_kind_has_its_own_pace(self) -> None:
        """Answers that take long to write say nothing of how soon a message is judged."""
        now = 0.0
        door = Gate(ServerOptions(max_in_flight=100), clock=lambda: now)
        for _ in range(20):
            async with door.slot(tokens=100, limit_s=60.0, kind="generate"):
                now += 10.0
        with pytest.raises(Overloaded):
            await door.slot(tokens=100, limit_s=1.0, kind="generate").__aenter__()
        async with door.slot(tokens=100, limit_s=1.0):
            assert door.in_flight == 1

    async def test_a_result_that_came_too_late_is_none(self) -> None:
        """Work that its deadline cut off must not make the pace look good, or the queue would never get shorter."""
        now = 0.0
        door = Gate(ServerOptions(max_in_flight=100), clock=lambda: now)
        for _ in range(20):
            async with door.slot(tokens=100, limit_s=1.0):
                now += 1.0
        async with door.slot(tokens=100, limit_s=0.01):
            pass  # nothing is known of the pace, so it was tried

    async def test_nobody_enters_a_gate_that_is_not_open(self) -> None:
        """Before the canaries and after closing; the message says which."""
        door = Gate(ServerOptions())
        with pytest.raises(Unavailable, match="canaries"):
            async with door.call():
                pytest.fail("it entered")
        door.open()
        async with door.call():
            assert door.calls == 1
        door.close()
        with pytest.raises(Unavailable, match="stopping"):
            async with door.call():
                pytest.fail("it entered")
