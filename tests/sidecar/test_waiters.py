"""Waiting for records: prompt when notices come, right when they do not."""

from __future__ import annotations

import asyncio

import pytest

from openhqm.errors import StoreUnavailable
from openhqm.handles import IdMint
from openhqm.stores.base import Answer, Finish, NewRecord, Options, State
from openhqm.stores.memory import MemoryStore
from openhqm.waiters import Waiters

mint = IdMint()


class Forgetful(MemoryStore):
    """A store whose notices are all lost; it counts how often it is read."""

    def __init__(self) -> None:
        super().__init__(Options())
        self.reads: list[int] = []
        self.away = False
        self.refusals = 0

    def watch(self, listener):
        return super().watch(lambda changes: None)

    async def get(self, ids, *args):
        if self.away:
            self.refusals += 1
            raise StoreUnavailable("away")
        self.reads.append(len(ids))
        return await super().get(ids, *args)


@pytest.fixture
async def store():
    store = MemoryStore(Options())
    await store.open()
    return store


async def accept(store) -> bytes:
    id = mint()
    await store.accept([NewRecord(id, b"{}\n")])
    return id


async def finish(store) -> None:
    for lease in await store.lease(100, lease_seconds=30, wait_seconds=0):
        await store.settle([Finish(lease.id, lease.epoch, State.DONE, Answer(b"head", b"body"))])


async def test_a_wait_ends_when_the_record_does(store):
    waiters = Waiters(store)
    waiters.open()
    id = await accept(store)
    waiting = asyncio.create_task(waiters.final(id, 30))
    await asyncio.sleep(0)
    await finish(store)

    record = await waiting

    assert record.answer == Answer(b"head", b"body")
    await waiters.close()


async def test_a_record_that_is_final_already_needs_no_wait(store):
    waiters = Waiters(store)
    id = await accept(store)
    await finish(store)

    assert (await waiters.final(id, 30)).state is State.DONE
    await waiters.close()


async def test_a_wait_that_runs_out_brings_the_record_as_it_is(store):
    waiters = Waiters(store)
    id = await accept(store)

    assert (await waiters.final(id, 0.01)).state is State.QUEUED
    assert (await waiters.final(id, 0)).state is State.QUEUED
    assert await waiters.final(mint(), 30) is None
    await waiters.close()


async def test_lost_notices_cost_one_batched_read():
    store = Forgetful()
    await store.open()
    waiters = Waiters(store, reread_seconds=0.01)
    waiters.open()
    ids = [await accept(store) for _ in range(50)]
    waiting = [asyncio.create_task(waiters.final(id, 30)) for id in ids]
    while not store.reads:
        await asyncio.sleep(0)
    store.away = True
    while store.refusals < 2:
        await asyncio.sleep(0)
    store.away = False
    await finish(store)

    records = await asyncio.gather(*waiting)

    assert {record.state for record in records} == {State.DONE}
    assert set(store.reads) == {50}
    assert len(store.reads) <= 4
    await waiters.close()


async def test_draining_ends_all_waits_and_later_ones_only_read(store):
    waiters = Waiters(store)
    waiters.open()
    id = await accept(store)
    waiting = asyncio.create_task(waiters.final(id, 30))
    await asyncio.sleep(0)

    waiters.drain()

    assert (await waiting).state is State.QUEUED
    assert (await waiters.final(id, 30)).state is State.QUEUED
    await waiters.close()


async def test_changes_are_told_once_each_until_final():
    store = Forgetful()
    await store.open()
    waiters = Waiters(store, reread_seconds=0.01)
    id = await accept(store)
    seen = []

    async for record in waiters.changes(id, idle_seconds=0.05):
        seen.append(record and record.state)
        if record is None:
            await finish(store)

    assert seen == [State.QUEUED, None, State.DONE]
    await waiters.close()


async def test_all_who_wait_for_one_record_are_counted(store):
    waiters = Waiters(store)
    waiters.open()
    id = await accept(store)
    waiting = [asyncio.create_task(waiters.final(id, 30)) for _ in range(2)]
    await asyncio.sleep(0)

    counted = waiters.waiting
    waiters.drain()
    await asyncio.gather(*waiting)

    assert (counted, waiters.waiting) == (2, 0)
    await waiters.close()


async def test_who_stops_waiting_is_forgotten(store):
    waiters = Waiters(store, reread_seconds=0.001)
    waiters.open()
    id = await accept(store)
    waiting = asyncio.create_task(waiters.final(id, 30))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    changes = waiters.changes(id, idle_seconds=30)
    await anext(changes)
    await changes.aclose()

    assert waiters.waiting == 0
    await waiters.close()
