"""Large bodies, closing and opening again, and a walk through it all."""

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
    get_one,
    new,
    reach_its_wait,
    take,
    take_one,
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
    Answer,
    BlobRef,
    Existing,
    Finish,
    Lane,
    OnLost,
    Options,
    Record,
    Release,
    Replay,
    Retry,
    State,
    Store,
    Want,
)


class LifeContract(StoreFixtures):
    """Part of `StoreContract`."""

    # -- blobs

    async def test_a_large_body_goes_through_as_a_blob(self, store: Store) -> None:
        id, data = fresh_id(), bytes(range(256)) * 3000
        body = await _blob(store, id, "request", data)
        await store.accept([new(id=id, body=body)])

        lease = await take_one(store)
        assert lease.body == body
        assert await _read(store, body) == data
        answer = await _blob(store, id, f"answer-{lease.epoch}", data[::-1])
        await store.settle([done(lease, Answer(b"h", answer))])

        held = await get_one(store, id, Want.ANSWER)
        assert held.answer == Answer(b"h", answer)
        assert await _read(store, answer) == data[::-1]
        assert not await _exists(store, body)

    async def test_blobs_are_deleted_with_their_record(self, case: StoreCase) -> None:
        tick = case.tick_seconds
        options = Options(answer_ttl_seconds=2 * tick)
        store: Any = Audited(await case.open(options), options)
        cancelled, purged, aged = fresh_id(), fresh_id(), fresh_id()
        bodies = {id: await _blob(store, id, "request", b"x" * 1000) for id in (cancelled, purged, aged)}
        await store.accept([new(id=id, body=body) for id, body in bodies.items()])

        await store.cancel(cancelled)
        one, two = await take(store, 2)
        answer = await _blob(store, aged, "answer-1", b"y")
        await store.settle([failed(one), done(two, Answer(b"h", answer))])
        assert await _exists(store, bodies[purged])
        await store.purge([purged])
        await case.pass_time(3 * tick)
        await store.sweep()

        assert [await _exists(store, ref) for ref in (*bodies.values(), answer)] == [False] * 4
        assert (await store.counts()).bytes == 0

    async def test_the_blob_of_a_refused_answer_is_deleted(self, store: Store, case: StoreCase) -> None:
        record = new(on_lost=OnLost.REPEAT)
        await store.accept([record])
        await take_one(store, lease_seconds=case.tick_seconds)
        await case.pass_time(1.5 * case.tick_seconds)
        await store.sweep()
        holder = await take_one(store)
        late = await _blob(store, record.id, "answer-1", b"late")
        kept = await _blob(store, record.id, "answer-2", b"kept")

        refused = await store.settle([Finish(record.id, 1, State.DONE, Answer(b"h", late))])
        settled = await store.settle([done(holder, Answer(b"h", kept))])
        repeated = await store.settle([done(holder, Answer(b"h", kept))])

        assert (refused, settled, repeated) == ([False], [True], [False])
        assert not await _exists(store, late)
        assert await _read(store, kept) == b"kept"

    async def test_a_replay_takes_the_blob_over(self, store: Store) -> None:
        id, again = fresh_id(), fresh_id()
        body = await _blob(store, id, "request", b"payload")
        await store.accept([new(id=id, body=body)])
        await store.settle([failed(await take_one(store))])

        await store.replay([Replay(id, again)])
        await store.purge([id])

        lease = await take_one(store)
        assert lease.body == body
        assert await _read(store, body) == b"payload"
        await store.settle([done(lease)])
        assert not await _exists(store, body)

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


async def _blob(store: Store, id: bytes, part: str, data: bytes) -> BlobRef:
    writer = await store.blobs.write(id, part)
    for start in range(0, len(data), 100_000):
        await writer.write(data[start : start + 100_000])
    return await writer.commit()


async def _read(store: Store, ref: BlobRef) -> bytes:
    return b"".join([chunk async for chunk in store.blobs.read(ref)])


async def _exists(store: Store, ref: BlobRef) -> bool:
    try:
        await _read(store, ref)
    except KeyError:
        return False
    return True


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
