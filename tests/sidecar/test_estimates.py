"""When to come back."""

from __future__ import annotations

import asyncio

from openhqm.errors import StoreUnavailable
from openhqm.estimates import DrainRate
from openhqm.stores.base import Counts


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Counting:
    """The part of a store that is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: Counts | None = Counts()

    async def counts(self) -> Counts:
        self.asked += 1
        if self.answer is None:
            raise StoreUnavailable("away")
        return self.answer


async def test_without_figures_clients_come_back_after_a_second():
    rate = DrainRate(Counting(), Clock())

    assert rate.retry_after_seconds() == 1
    assert rate.eta_seconds(3) is None
    await rate.close()


async def test_the_estimate_follows_from_backlog_and_finished_requests_per_second():
    clock = Clock()
    rate = DrainRate(Counting(), clock)
    rate.observe(Counts(accepted=100, queued=100))
    clock.now += 2
    rate.observe(Counts(accepted=100, queued=79, done=20, failed=1))

    assert rate.per_second == 10.5
    assert rate.retry_after_seconds() == 8
    assert rate.retry_after_seconds(0) == 1
    assert rate.eta_seconds(20) == 2.0
    assert rate.eta_seconds(None) is None
    assert rate.retry_after_seconds(10**9) == 300
    await rate.close()


async def test_an_app_that_stands_still_has_no_eta():
    clock = Clock()
    rate = DrainRate(Counting(), clock)
    rate.observe(Counts(queued=5))
    clock.now += 1
    rate.observe(Counts(queued=5))

    assert (rate.eta_seconds(4), rate.retry_after_seconds()) == (None, 1)
    await rate.close()


async def test_the_counts_are_read_at_most_once_a_second_and_forgotten_when_the_store_is_away():
    clock, store = Clock(), Counting()
    rate = DrainRate(store, clock)
    store.answer = Counts(queued=7)
    for _ in range(100):
        rate.retry_after_seconds()
    await asyncio.sleep(0)
    assert (store.asked, rate.backlog) == (1, 7)

    clock.now += 1
    store.answer = Counts(queued=6, done=1)
    rate.retry_after_seconds()
    await asyncio.sleep(0)
    assert rate.per_second == 1.0

    clock.now += 1
    store.answer = None
    rate.retry_after_seconds()
    await asyncio.sleep(0)
    assert (store.asked, rate.per_second) == (3, None)
    await rate.close()
