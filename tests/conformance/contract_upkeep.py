"""Times to live, pausing, reading back, noticing, secrets."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from tests.conformance.store_case import (
    Audited,
    StoreCase,
    eventually,
    get_one,
    new,
    reach_its_wait,
    take,
    take_one,
)
from tests.conformance.store_endings import (
    ANSWER,
    KEYED,
    done,
    failed,
)
from tests.conformance.store_fixtures import StoreFixtures

from openhqm.stores.base import (
    CURSOR_BYTES,
    Accepted,
    Change,
    Lane,
    Options,
    Release,
    Retry,
    State,
    Store,
    Want,
)


class UpkeepContract(StoreFixtures):
    """Part of `StoreContract`."""

    # -- times to live

    async def test_final_records_are_deleted_after_their_time(self, case: StoreCase) -> None:
        tick = case.tick_seconds
        options = Options(answer_ttl_seconds=3 * tick, dead_letter_ttl_seconds=9 * tick)
        store: Any = Audited(await case.open(options), options)
        finished, dead = new(body=b"b", idempotency=KEYED), new(body=b"b")
        await store.accept([finished, dead])
        one, two = await take(store, 2)
        await store.settle([done(one), failed(two)])

        await case.pass_time(1.5 * tick)
        assert list(await store.sweep()) == []
        assert (await get_one(store, finished.id, Want.ANSWER)).answer == ANSWER
        await case.pass_time(2 * tick)
        assert list(await store.sweep()) == []
        assert await store.get([finished.id]) == [None]
        assert (await get_one(store, dead.id)).state is State.FAILED
        again = new(idempotency=KEYED)
        assert await store.accept([again]) == [Accepted(again.id)]
        await store.cancel(again.id)
        await case.pass_time(7 * tick)
        await store.sweep()

        assert await store.get([dead.id, again.id]) == [None, None]
        counts = await store.counts()
        assert (counts.done, counts.failed, counts.dead_letters, counts.bytes) == (1, 1, 0, 0)

    async def test_unfinished_records_have_no_time_to_live(self, case: StoreCase) -> None:
        options = Options(answer_ttl_seconds=case.tick_seconds, dead_letter_ttl_seconds=case.tick_seconds)
        store: Any = Audited(await case.open(options), options)
        await store.accept([new() for _ in range(3)])
        await take_one(store)

        await case.pass_time(3 * case.tick_seconds)
        await store.sweep()

        assert (await store.counts()).backlog == 3

    # -- pause

    async def test_a_paused_lane_leases_nothing(self, store: Store) -> None:
        record = new(callback=b"c")
        await store.accept([record, new()])
        await store.cancel(record.id)

        await store.pause(True)

        assert await take(store, 5, wait_seconds=0.02) == []
        assert (await store.counts()).paused
        assert not (await store.counts(Lane.CALLBACKS)).paused
        assert len(await take(store, 5, lane=Lane.CALLBACKS)) == 1
        await store.pause(False)
        assert len(await take(store, 5)) == 1

    # -- reading back

    async def test_records_are_listed_in_order_and_in_pages(self, store: Store) -> None:
        records = [new() for _ in range(25)]
        await store.accept(records)
        leases = await take(store, 4)
        await store.settle([failed(lease) for lease in leases[:3]])

        pages, cursor = [], b""
        while True:
            page = await store.list(cursor=cursor, limit=10)
            pages.append([record.id for record in page.records])
            cursor = page.cursor
            if not cursor:
                break
            assert len(cursor) == CURSOR_BYTES
        beyond = await store.list(cursor=b"\x7f" + b"\xff" * 7)
        dead = await store.list(states=[State.FAILED], want=Want.REQUEST | Want.ANSWER)
        unfinished = await store.list(states=[State.RUNNING, State.QUEUED], limit=100)

        assert list(itertools.chain(*pages)) == [record.id for record in records]
        assert [len(page) for page in pages if page] == [10, 10, 5]
        assert not beyond.records
        assert [record.id for record in dead.records] == [lease.id for lease in leases[:3]]
        assert all(record.answer == ANSWER and record.request for record in dead.records)
        assert len(unfinished.records) == 22
        assert (dead.cursor, unfinished.cursor) == (b"", b"")

    async def test_dead_letters_are_paged(self, store: Store) -> None:
        await store.accept([new() for _ in range(7)])
        await store.settle([failed(lease) for lease in await take(store, 7)])

        found, cursor = [], b""
        for _ in range(4):
            page = await store.list(states=[State.FAILED], cursor=cursor, limit=2)
            found += [record.id for record in page.records]
            cursor = page.cursor

        assert len(set(found)) == len(found) == 7
        assert cursor == b""

    async def test_counts_tell_what_is_delayed(self, store: Store, case: StoreCase) -> None:
        tick = case.tick_seconds
        await store.accept([new(), new(delay_seconds=3 * tick), new(key=b"k"), new(key=b"k")])

        assert (await store.counts()).delayed == 2
        await case.pass_time(4 * tick)
        assert (await store.counts()).delayed == 1
        await take(store, 5)
        assert (await store.counts()).delayed == 1

    async def test_counts_tell_how_long_the_first_in_line_waits(self, store: Store) -> None:
        assert (await store.counts()).oldest_ready_at is None
        first = new(priority=1)
        await store.accept([new(delay_seconds=3600.0), first, new(priority=9)])
        accepted_at = (await get_one(store, first.id)).accepted_at

        assert (await store.counts()).oldest_ready_at == pytest.approx(accepted_at, abs=0.5)
        await take(store, 5)
        assert (await store.counts()).oldest_ready_at is None

    async def test_position_is_estimated_for_waiting_records_only(self, store: Store) -> None:
        records = [new() for _ in range(5)]
        await store.accept(records)

        positions = [record and record.position for record in await store.get([r.id for r in records])]
        lease = await take_one(store)

        assert positions in ([0, 1, 2, 3, 4], [None] * 5)
        assert (await get_one(store, lease.id)).position is None

    # -- watch

    async def test_every_change_of_state_is_noticed(self, store: Store, case: StoreCase) -> None:
        noticed: list[Change] = []
        stop = store.watch(noticed.extend)
        record, other = new(callback=b"c"), new()
        await store.accept([record, other])

        lease, second = await take(store, 2)
        await store.settle([Retry(lease.id, lease.epoch, 0.0), Release(second.id, second.epoch)])
        lease = await take_one(store)
        await store.settle([failed(lease, "used-up")])
        await store.cancel(other.id)
        expected = [
            (record.id, State.RUNNING),
            (record.id, State.RETRYING),
            (record.id, State.FAILED),
            (other.id, State.RUNNING),
            (other.id, State.QUEUED),
            (other.id, State.CANCELLED),
        ]
        await eventually(lambda: {(change.id, change.state) for change in noticed} >= set(expected))
        stop()
        await store.accept([late := new()])
        await store.cancel(late.id)

        told = [(change.id, change.state) for change in noticed]
        assert [change for change in told if change[0] == record.id][-1] == (record.id, State.FAILED)
        assert Change(record.id, State.FAILED, Lane.REQUESTS, "used-up") in noticed
        assert late.id not in {change.id for change in noticed}

    async def test_a_notice_comes_after_the_commit(self, store: Store) -> None:
        record = new()
        found: asyncio.Queue[State] = asyncio.Queue()
        reads: set[asyncio.Task[None]] = set()

        async def read() -> None:
            found.put_nowait((await get_one(store, record.id)).state)

        stop = store.watch(lambda changes: reads.add(asyncio.ensure_future(read())))
        await store.accept([record])
        await store.cancel(record.id)

        async with asyncio.timeout(5):
            assert await found.get() is State.CANCELLED
        stop()
        await asyncio.gather(*reads)

    async def test_another_process_sees_changes_and_work(self, raw: Store, case: StoreCase) -> None:
        if not raw.abilities.shared:
            pytest.skip("the store belongs to one process")
        other = await case.open(Options())
        noticed: list[Change] = []
        stop = other.watch(noticed.extend)
        waiting = asyncio.create_task(take(other, wait_seconds=30))
        await reach_its_wait()
        record = new()

        await raw.accept([record])
        async with asyncio.timeout(5):
            [lease] = await waiting
        await other.settle([done(lease)])
        await eventually(lambda: Change(record.id, State.DONE) in noticed)
        stop()

        assert (await get_one(raw, record.id)).state is State.DONE

    # -- secret

    async def test_a_secret_is_put_once(self, store: Store) -> None:
        assert await store.secret("handle-key", b"\x00first") == b"\x00first"
        assert await store.secret("handle-key", b"second") == b"\x00first"
        assert await store.secret("other", b"third") == b"third"
