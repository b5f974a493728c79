"""Two egress loops before one app, in virtual time: the previous store goes first, slots are shared."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.sidecar import virtual_time

from openhqm.envelope import Envelope
from openhqm.errors import StoreUnavailable
from openhqm.lifecycle import Lifecycle
from openhqm.sampling import Sampler
from openhqm.settings import Settings
from openhqm.sharing import PreviousBacklog, SharingEgress, Together
from openhqm.stores.base import Answer, Counts, Lane, NewRecord, Options, Store
from openhqm.stores.memory import MemoryStore

OLD, NEW = 1, 2


class Reply:
    status = 200
    answer = Answer(b"HTTP/1.1 200 OK\r\n\r\n", b"")
    retry_after_seconds = None
    body_bytes = 0


class App:
    """Takes its time for each request and notes how many it had at once, and from which store."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.running = 0
        self.most = 0
        self.order: list[int] = []
        self.began: list[float] = []

    def begin(self, *_: object, **__: object) -> None:
        return None

    async def forward(self, envelope: Envelope, body: object, *, record_id: bytes, epoch: int) -> Reply:
        self.running += 1
        self.most = max(self.most, self.running)
        self.order.append(record_id[0])
        self.began.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.seconds)
        self.running -= 1
        return Reply()


class Bench:
    """Two stores, an app, and both loops between them."""

    def __init__(self, seconds: float = 1.0, **egress: object) -> None:
        clock = asyncio.get_running_loop().time
        self.app = App(seconds)
        self.old, self.new = (MemoryStore(Options(), clock=clock) for _ in range(2))
        settings = Settings.model_validate(
            {"store": {"url": "memory:", "require_durability": "none"}, "egress": egress}
        )
        self.backlog = PreviousBacklog()
        self.loops = [
            SharingEgress(store, settings, Lifecycle(), {"app": self.app}) for store in (self.new, self.old)
        ]
        in_use, previous = self.loops
        in_use.share(previous, self.backlog, is_previous=False)
        previous.share(in_use, self.backlog, is_previous=True)
        self.figures = Together(self.loops)
        self.sampler = Sampler(self.old)
        self.sampler.add(self.backlog.sampled)

    async def __aenter__(self) -> Bench:
        await self.old.open()
        await self.new.open()
        return self

    def start(self) -> None:
        self._tasks = [asyncio.create_task(loop.run()) for loop in (*self.loops, self.sampler)]

    async def __aexit__(self, *_: object) -> None:
        self._tasks.pop().cancel()
        await asyncio.gather(*(loop.drain(0.0) for loop in self.loops))
        await asyncio.gather(*self._tasks)
        for store in (self.old, self.new):
            assert (await store.counts()).conserved

    async def accept(self, which: int, number: int, **more: Any) -> None:
        store = self.old if which == OLD else self.new
        envelope = Envelope(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n").encode()
        start = (await store.counts()).accepted
        await store.accept(
            [
                NewRecord(bytes([which]) + (start + n).to_bytes(15, "big"), envelope, **more)
                for n in range(number)
            ]
        )

    async def finished(self, store: Store, number: int) -> None:
        async with asyncio.timeout(600):
            while (await store.counts()).done < number:
                await asyncio.sleep(0.05)


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        virtual_time.run(test(*args, **kwargs))

    return run


@pytest.mark.parametrize("concurrency", [1, 2, 8])
@in_virtual_time
async def test_what_is_in_the_previous_store_goes_first_and_slots_are_shared(concurrency: int) -> None:
    async with Bench(concurrency=concurrency) as bench:
        await bench.accept(OLD, 20)
        await bench.accept(NEW, 20)
        await bench.sampler.sample()
        bench.start()
        await bench.finished(bench.old, 20)
        await bench.finished(bench.new, 20)

    assert bench.app.most == concurrency
    assert bench.app.order == [OLD] * 20 + [NEW] * 20


@in_virtual_time
async def test_a_busy_loop_makes_room_when_the_previous_store_has_something_due() -> None:
    async with Bench(concurrency=2) as bench:
        await bench.accept(NEW, 100)
        bench.start()
        await asyncio.sleep(5.5)
        await bench.accept(OLD, 4)
        await bench.finished(bench.old, 4)
        seconds = asyncio.get_running_loop().time() - virtual_time.START
        await bench.finished(bench.new, 100)

    assert seconds < 12
    assert bench.app.most == 2


@in_virtual_time
async def test_what_waits_for_its_time_holds_nobody_up() -> None:
    async with Bench(concurrency=1) as bench:
        await bench.accept(OLD, 1, delay_seconds=60)
        await bench.accept(NEW, 10)
        bench.start()
        await bench.finished(bench.new, 10)
        assert asyncio.get_running_loop().time() - virtual_time.START < 15
        await bench.finished(bench.old, 1)

    assert bench.app.order == [NEW] * 10 + [OLD]


@in_virtual_time
async def test_both_keep_to_one_rate() -> None:
    async with Bench(0.0, concurrency=8, rate_per_second=10.0) as bench:
        await bench.accept(OLD, 30)
        await bench.accept(NEW, 30)
        bench.start()
        await bench.finished(bench.old, 30)
        await bench.finished(bench.new, 30)

    assert bench.app.began[-1] - bench.app.began[0] > 4.5


@in_virtual_time
async def test_hot_settings_reach_both_and_the_rate_stays_one() -> None:
    async with Bench(concurrency=4) as bench:
        changed = Settings.model_validate(
            {
                "store": {"url": "memory:", "require_durability": "none"},
                "egress": {"concurrency": 1, "rate_per_second": 5},
            }
        )
        for loop in bench.loops:
            loop.apply(changed)
        await bench.accept(OLD, 10)
        await bench.accept(NEW, 10)
        bench.start()
        await bench.finished(bench.old, 10)
        await bench.finished(bench.new, 10)

    assert bench.app.most == 1


@in_virtual_time
async def test_nothing_is_lost_when_leasing_stops_and_goes_on() -> None:
    """Permits of recalled lease calls come back, or slots would be gone for good."""
    async with Bench(0.2, concurrency=2) as bench:
        bench.start()
        for turn in range(20):
            await bench.accept(OLD, 2)
            await bench.accept(NEW, 2)
            await asyncio.sleep(0.13 * (turn % 4))
            for loop in bench.loops:
                loop.stop_leasing()
            await asyncio.sleep(0.01)
            for loop in bench.loops:
                loop.resume()
        await bench.finished(bench.old, 40)
        await bench.finished(bench.new, 40)
        await asyncio.sleep(3)

        assert bench.app.most <= 2
        assert bench.figures.in_flight == 0
        assert sum(loop.in_use for loop in bench.loops) <= 2


@in_virtual_time
async def test_a_previous_store_that_is_away_stops_nobody() -> None:
    async with Bench(concurrency=1) as bench:
        bench.start()
        await bench.accept(OLD, 3)
        await bench.sampler.sample()
        counts = bench.old.counts
        bench.old.counts = unavailable  # type: ignore[method-assign]
        await bench.accept(NEW, 5)
        await bench.finished(bench.new, 5)
        bench.old.counts = counts  # type: ignore[method-assign]
        await bench.finished(bench.old, 3)


async def unavailable(lane: Lane = Lane.REQUESTS) -> Counts:
    raise StoreUnavailable("the test took it away")


@in_virtual_time
async def test_the_figures_are_those_of_one_egress() -> None:
    async with Bench(concurrency=4) as bench:
        await bench.accept(OLD, 2)
        await bench.sampler.sample()
        await bench.accept(NEW, 1)
        bench.start()
        await asyncio.sleep(0.5)

        assert (bench.figures.in_flight, bench.figures.concurrency) == (3, 4)
        assert bench.figures.breaker_state == "closed"
        await bench.finished(bench.old, 2)


@pytest.mark.parametrize(
    ("counts", "due", "unfinished"),
    [
        (Counts(accepted=5, queued=3, retrying=1, running=1, delayed=2), 2, 5),
        (Counts(accepted=2, queued=2, paused=True), 0, 2),
        (Counts(accepted=2, done=2), 0, 0),
        (None, 0, 7),
    ],
)
def test_what_is_due_in_the_previous_store(counts: Counts | None, due: int, unfinished: int) -> None:
    backlog = PreviousBacklog()
    backlog.sampled(Lane.REQUESTS, Counts(accepted=7, queued=7))

    backlog.sampled(Lane.REQUESTS, counts)
    backlog.sampled(Lane.CALLBACKS, Counts(accepted=9, queued=9))

    assert (backlog.due, backlog.read()) == (due, unfinished)
