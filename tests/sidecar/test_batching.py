"""Batches of calls to the Store, and calls that take too long; in virtual time."""

from __future__ import annotations

import asyncio
import functools

import pytest
from tests.sidecar import virtual_time

from openhqm.batching import Coalescer, Punctual
from openhqm.errors import StoreUnavailable


def in_virtual_time(test):
    @functools.wraps(test)
    def run():
        return virtual_time.run(test())

    return run


class Slow:
    """Doubles numbers, one batch at a time as slow as it is told."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.batches: list[list[int]] = []

    async def __call__(self, items):
        self.batches.append(list(items))
        await asyncio.sleep(self.seconds.pop(0) if self.seconds else 0.0)
        if 0 in items:
            raise StoreUnavailable("nought")
        return [2 * item for item in items]


@in_virtual_time
async def test_what_is_asked_in_one_tick_or_during_a_batch_goes_out_together():
    store = Slow(1.0)
    double = Coalescer(store)
    first = [double(1), double(2)]
    await asyncio.sleep(0.5)
    second = [double(3), double(4)]

    assert await asyncio.gather(*first, *second) == [2, 4, 6, 8]
    assert store.batches == [[1, 2], [3, 4]]


@in_virtual_time
async def test_two_batches_may_be_under_way_and_the_third_gathers():
    store = Slow(1.0, 1.0, 1.0)
    double = Coalescer(store, in_flight=2)
    asked = []
    for number in range(1, 6):
        asked.append(double(number))
        await asyncio.sleep(0.1)

    assert await asyncio.gather(*asked) == [2, 4, 6, 8, 10]
    assert store.batches == [[1], [2], [3, 4, 5]]


@in_virtual_time
async def test_whoever_asks_when_the_last_batch_has_just_ended_is_served():
    double = Coalescer(Slow(), in_flight=2)

    assert [await double(number) for number in range(1, 50)] == [2 * number for number in range(1, 50)]


@in_virtual_time
async def test_an_error_is_everybodys_in_the_batch_and_nobodys_after_it():
    double = Coalescer(Punctual(Slow(), 3.0))

    failed = await asyncio.gather(double(0), double(1), return_exceptions=True)

    assert [str(error) for error in failed] == ["nought", "nought"]
    assert await double(1) == 2


@in_virtual_time
async def test_a_call_that_takes_too_long_is_given_up_but_not_stopped():
    store = Slow(10.0)
    double = Coalescer(Punctual(store, 3.0))
    loop = asyncio.get_running_loop()
    began_at = loop.time()

    with pytest.raises(StoreUnavailable, match="did not finish within 3 s"):
        await double(1)
    assert loop.time() - began_at == pytest.approx(3.0)
    with pytest.raises(StoreUnavailable, match="not finished an earlier call"):
        await double(2)
    assert loop.time() - began_at == pytest.approx(3.0)
    await asyncio.sleep(8.0)

    assert await double(3) == 6
    assert store.batches == [[1], [3]]


@in_virtual_time
async def test_a_call_that_fails_after_it_was_given_up_is_over():
    store = Slow(10.0)
    double = Coalescer(Punctual(store, 3.0))

    with pytest.raises(StoreUnavailable, match="did not finish"):
        await double(0)
    await asyncio.sleep(8.0)

    assert await double(3) == 6
