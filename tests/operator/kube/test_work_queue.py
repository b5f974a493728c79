"""The work queue in virtual time."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tests.sidecar.virtual_time import run

from openhqm_operator.kube.backoff import Backoff
from openhqm_operator.kube.errors import Unavailable
from openhqm_operator.kube.work_queue import WorkQueue

STEADY = Backoff(base=1.0, limit=8.0, jitter=lambda: 1.0)


class Work:
    """A reconcile that takes *seconds*, and when it looked at which key."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.looks: list[tuple[str, float]] = []
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.most_at_once = 0
        self.errors: list[Exception] = []
        self.again: list[float] = []

    async def __call__(self, key: str) -> float | None:
        self.looks.append((key, asyncio.get_running_loop().time()))
        self.now[key] += 1
        self.most[key] = max(self.most[key], self.now[key])
        self.most_at_once = max(self.most_at_once, self.now.total())
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.now[key] -= 1
        if self.errors:
            raise self.errors.pop(0)
        return self.again.pop(0) if self.again else None

    @property
    def keys(self) -> list[str]:
        return [key for key, _ in self.looks]

    @property
    def gaps(self) -> list[float]:
        times = [at for _, at in self.looks]
        return [round(b - a, 3) for a, b in itertools.pairwise(times)]


def virtually(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def in_virtual_time() -> None:
        run(test())

    in_virtual_time.__name__ = test.__name__
    return in_virtual_time


async def working(
    work: Callable[[str], Awaitable[float | None]],
    then: Callable[[WorkQueue[str]], Coroutine[Any, Any, None]],
    workers: int = 2,
) -> None:
    queue = WorkQueue(work, workers=workers, backoff=STEADY)
    running = asyncio.create_task(queue.run())
    await then(queue)
    running.cancel()
    await asyncio.wait({running})


@virtually
async def test_a_key_named_often_is_looked_at_once() -> None:
    work = Work()

    async def then(queue: WorkQueue[str]) -> None:
        for _ in range(5):
            queue.add("a")
        queue.add("b")
        assert queue.depth == 2
        await queue.join()

    await working(work, then)

    assert work.keys == ["a", "b"]


@virtually
async def test_a_key_named_while_it_is_looked_at_is_looked_at_again_after() -> None:
    work = Work(seconds=1)

    async def then(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await asyncio.sleep(0.5)
        queue.add("a")
        queue.add("a")
        await queue.join()

    await working(work, then)

    assert work.gaps == [1.0]
    assert work.most["a"] == 1


@virtually
async def test_as_many_keys_are_looked_at_at_once_as_there_are_workers() -> None:
    work = Work(seconds=1)

    async def then(queue: WorkQueue[str]) -> None:
        for key in "abcde":
            queue.add(key)
        await queue.join()

    await working(work, then, workers=3)

    assert work.most_at_once == 3


@virtually
async def test_a_failing_key_backs_off_alone_and_starts_afresh_once_it_works() -> None:
    work = Work()
    work.errors = [LookupError("a mistake")] * 5

    async def then(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await asyncio.sleep(40)
        assert queue.failures == {}
        assert queue.delayed == 0

    with capture_logs() as logs:
        await working(work, then)

    assert work.gaps == [1, 2, 4, 8, 8]
    assert [line["event"] for line in logs] == ["reconcile.failed"] * 5


@virtually
async def test_an_overloaded_server_is_given_the_time_it_asks_for() -> None:
    work = Work()
    work.errors = [Unavailable("busy", retry_after=30.0)]

    async def then(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await asyncio.sleep(60)

    await working(work, then)

    assert work.gaps == [30.5]


@virtually
async def test_news_do_not_wait_for_the_backoff() -> None:
    work = Work()
    work.errors = [LookupError()]

    async def then(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await asyncio.sleep(0.25)
        queue.add("a")
        await asyncio.sleep(10)

    await working(work, then)

    assert work.gaps == [0.25]


@virtually
async def test_a_reconcile_says_when_to_look_again() -> None:
    work = Work()
    work.again = [30.0]

    async def then(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await asyncio.sleep(100)

    await working(work, then)

    assert work.gaps == [30.0]


@virtually
async def test_of_two_later_times_the_earlier_counts() -> None:
    work = Work()

    async def then(queue: WorkQueue[str]) -> None:
        queue.add_after("a", 20)
        queue.add_after("a", 10)
        queue.add_after("a", 30)
        await asyncio.sleep(100)

    start = 1000.0
    await working(work, then)

    assert work.looks == [("a", start + 10)]


@virtually
async def test_drained_it_finishes_what_is_active_and_nothing_else() -> None:
    work = Work(seconds=3)
    queue = WorkQueue(work, workers=1)
    running = asyncio.create_task(queue.run())
    queue.add("active")
    queue.add("ready")
    queue.add_after("later", 1)
    await asyncio.sleep(0.5)

    finished = await queue.drain(10)
    queue.add("too late")
    await running

    assert finished
    assert work.keys == ["active"]


@virtually
async def test_a_drain_does_not_wait_for_ever() -> None:
    work = Work(seconds=60)
    queue = WorkQueue(work)
    running = asyncio.create_task(queue.run())
    queue.add("slow")
    await asyncio.sleep(1)

    assert queue.busy_seconds() == 1
    assert not await queue.drain(5)

    running.cancel()
    await asyncio.wait({running})
    assert work.now.total() == 0


@virtually
async def test_a_worker_cancelled_takes_its_reconcile_with_it() -> None:
    work = Work(seconds=60)

    async def then(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await asyncio.sleep(1)

    await working(work, then)

    assert work.now.total() == 0


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 0.3, 1.0, 2.5]), st.booleans()), max_size=30
    ),
    workers=st.integers(1, 4),
)
def test_the_last_word_is_always_looked_at_and_never_by_two(
    steps: list[tuple[str, float, bool]], workers: int
) -> None:
    work = Work(seconds=0.7)
    named: dict[str, float] = {}

    async def then(queue: WorkQueue[str]) -> None:
        for key, pause, fails in steps:
            if fails:
                work.errors.append(RuntimeError())
            named[key] = asyncio.get_running_loop().time()
            queue.add(key)
            await asyncio.sleep(pause)
        await asyncio.sleep(600)
        assert queue.depth == queue.active == queue.delayed == 0

    with capture_logs():
        run(working(work, then, workers))

    assert all(most == 1 for most in work.most.values())
    assert work.most_at_once <= workers
    for key, at in named.items():
        assert max(when for seen, when in work.looks if seen == key) >= at


def test_it_needs_a_running_loop_only_to_run() -> None:
    queue: WorkQueue[str] = WorkQueue(Work())

    queue.add("a")

    assert queue.depth == 1
    with pytest.raises(RuntimeError):
        queue.add_after("a", 1)
