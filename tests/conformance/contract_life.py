"""Closing and opening again, and a walk through it all."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from tests.conformance.store_case import (
    Audited,
    StoreCase,
    all_records,
    fresh_id,
    new,
    reach_its_wait,
    take,
)
from tests.conformance.store_endings import (
    KEYED,
    done,
    failed,
)
from tests.conformance.store_fixtures import StoreFixtures
from tests.conformance.store_model import walk

from openhqm.errors import StoreUnavailable
from openhqm.stores.base import (
    Accepted,
    Existing,
    Lane,
    Options,
    Record,
    Release,
    Retry,
    Store,
    Want,
)


class LifeContract(StoreFixtures):
    """Part of `StoreContract`."""

    # -- open and close

    async def test_closing_ends_a_waiting_lease(self, raw: Store) -> None:
        waiting = asyncio.create_task(take(raw, 5, wait_seconds=60))
        await reach_its_wait()

        async with asyncio.timeout(5):
            await raw.close()
            assert await waiting == []

    async def test_a_closed_store_is_unavailable(self, raw: Store) -> None:
        await raw.close()

        for call in (
            lambda: raw.accept([new()]),
            lambda: take(raw),
            lambda: raw.settle([Release(fresh_id(), 1)]),
            lambda: raw.get([fresh_id()]),
            lambda: raw.counts(),
            lambda: raw.sweep(),
        ):
            with pytest.raises(StoreUnavailable):
                await call()

    async def test_what_was_asked_before_closing_is_finished(self, case: StoreCase, options: Options) -> None:
        store = await case.open(options)
        records = [new() for _ in range(20)]
        asked = [asyncio.ensure_future(store.accept([record])) for record in records]
        await asyncio.sleep(0)

        await store.close()
        results = await asyncio.gather(*asked, return_exceptions=True)

        if not case.durable:
            return
        kept = await (await case.open(options)).get([record.id for record in records])
        accepted = [result == [Accepted(r.id)] for result, r in zip(results, records, strict=True)]
        assert all(record is not None for record, ok in zip(kept, accepted, strict=True) if ok)

    async def test_everything_is_there_after_reopening(self, case: StoreCase, options: Options) -> None:
        if not case.durable:
            pytest.skip("the store ends with its process")
        store: Any = Audited(await case.open(options), options)
        await _fill(store)
        before = await _everything(store)
        await store.close()

        reopened: Any = Audited(await case.open(options), options)

        assert await _everything(reopened) == before
        assert list(await reopened.accept([new(idempotency=KEYED)])) == [
            Existing(before[Lane.REQUESTS][1][0].id)
        ]
        assert await take(reopened, 50) == []
        await reopened.pause(False)
        assert len(await take(reopened, 50)) == 3

    # -- random walk

    @pytest.mark.parametrize("seed", range(4))
    async def test_a_random_walk_agrees_with_the_model(self, case: StoreCase, seed: int) -> None:
        await walk(case, random.Random(seed), steps=200)


async def _fill(store: Store) -> None:
    """Records in every state that does not need a lease to be held, and a paused lane."""
    finished = new(body=b"b" * 100, idempotency=KEYED, callback=b"c")
    dead, retried, queued = new(body=b"dead"), new(), new(priority=1)
    blocked, delayed, cancelled = new(key=b"k"), new(key=b"k", delay_seconds=9e5), new()
    await store.accept([finished, dead, retried, queued, blocked, delayed, cancelled])
    leases = {lease.id: lease for lease in await take(store, 3)}
    await store.settle(
        [
            done(leases[finished.id]),
            failed(leases[dead.id]),
            Retry(retried.id, leases[retried.id].epoch, 0.0, b'{"attempt":1}'),
        ]
    )
    await store.cancel(cancelled.id)
    await store.pause(True)


async def _everything(store: Store) -> dict[Lane, tuple[Any, list[Record]]]:
    return {
        lane: (await store.counts(lane), await all_records(store, lane, Want.ANSWER | Want.REQUEST))
        for lane in Lane
    }
