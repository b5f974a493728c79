"""The memory store keeps the store contract; what is its own is tested below it."""

from collections.abc import AsyncIterator

import pytest
from tests.conformance.store_case import LONG_SECONDS, SkippingClock, StoreCase, new
from tests.conformance.store_contract import StoreContract

from openhqm.stores.base import Durability, Finish, Options, State, Store
from openhqm.stores.memory import MemoryStore


class MemoryCase:
    """Memory stores whose time can be skipped."""

    tick_seconds = 10.0
    durable = False

    def __init__(self) -> None:
        self._clock = SkippingClock()
        self._opened: list[Store] = []

    async def open(self, options: Options) -> Store:
        store = MemoryStore(options, clock=self._clock)
        await store.open()
        self._opened.append(store)
        return store

    async def pass_time(self, seconds: float) -> None:
        self._clock.skipped += seconds

    async def now(self) -> float:
        return self._clock()

    async def close(self) -> None:
        for store in self._opened:
            await store.close()


class TestMemoryStore(StoreContract):
    @pytest.fixture
    async def case(self) -> AsyncIterator[StoreCase]:
        case = MemoryCase()
        yield case
        await case.close()


def test_it_promises_no_durability() -> None:
    assert MemoryStore(Options()).abilities.durability is Durability.NONE


async def test_timers_do_not_pile_up_while_leases_are_renewed() -> None:
    """Ten thousand renewals of one lease leave a handful of heap entries."""
    store = MemoryStore(Options())
    await store.open()
    await store.accept([new()])
    [lease] = await store.lease(1, lease_seconds=LONG_SECONDS, wait_seconds=0)

    for _ in range(10_000):
        await store.extend([(lease.id, lease.epoch)], lease_seconds=LONG_SECONDS)

    assert len(store._lapsing._heap) < 100
    await store.settle([Finish(lease.id, lease.epoch, State.DONE)])
    await store.close()
