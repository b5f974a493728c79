"""The sweep on the memory store in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from tests.sidecar import virtual_time

from openhqm import housekeeping
from openhqm.errors import StoreUnavailable
from openhqm.housekeeping import Housekeeping
from openhqm.lifecycle import Happening, Lifecycle
from openhqm.stores.base import NewRecord, OnLost, Options, State
from openhqm.stores.memory import MemoryStore


async def start():
    store = MemoryStore(Options(), clock=asyncio.get_running_loop().time)
    await store.open()
    lifecycle, events = Lifecycle(), []
    lifecycle.listen(events.append)
    return store, Housekeeping(store, lifecycle), events


@pytest.mark.parametrize(
    ("record", "lease", "expected"),
    [
        ({"max_age_seconds": 5.0}, False, (State.EXPIRED, Happening.EXPIRED)),
        ({"on_lost": OnLost.UNKNOWN}, True, (State.FAILED, Happening.DEAD_LETTERED)),
        ({"on_lost": OnLost.REPEAT}, True, (None, Happening.RELEASED)),
    ],
    ids=["deadline", "outcome unknown", "repeated"],
)
def test_what_time_does_is_done_and_told(record, lease, expected):
    async def scene():
        store, keeper, events = await start()
        await store.accept([NewRecord(b"1" * 16, b"envelope", **record)])
        if lease:
            await store.lease(1, lease_seconds=5.0, wait_seconds=0.0)
        running = asyncio.create_task(keeper.run())
        await asyncio.sleep(7.0)
        running.cancel()
        return (await store.get([b"1" * 16]))[0], events

    found, events = virtual_time.run(scene())

    state, happening = expected
    assert state is None or found.state is state
    assert [(event.what, event.id) for event in events] == [(happening, b"1" * 16)]
    assert events[0].reason


def test_full_batches_are_followed_at_once(monkeypatch):
    monkeypatch.setattr(housekeeping, "SWEEP_LIMIT", 10)

    async def scene():
        store, keeper, events = await start()
        await store.accept([NewRecord(bytes([n]) * 16, b"e", max_age_seconds=1.0) for n in range(1, 36)])
        await asyncio.sleep(2.0)
        await keeper.sweep()
        return await store.counts(), events

    counts, events = virtual_time.run(scene())

    assert (counts.expired, len(events)) == (35, 35)


def test_store_that_comes_back_is_swept_again():
    async def scene():
        store, keeper, _ = await start()
        await store.close()
        with pytest.raises(StoreUnavailable):
            await keeper.sweep()
        running = asyncio.create_task(keeper.run())
        await asyncio.sleep(3.0)
        await store.open()
        await store.accept([NewRecord(b"1" * 16, b"e", max_age_seconds=1.0)])
        await asyncio.sleep(3.0)
        running.cancel()
        return await store.counts()

    assert virtual_time.run(scene()).expired == 1
