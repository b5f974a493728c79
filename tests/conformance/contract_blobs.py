"""Large bodies beside the records: exact, and gone when their record is."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conformance.store_case import (
    Audited,
    StoreCase,
    fresh_id,
    get_one,
    new,
    take,
    take_one,
)
from tests.conformance.store_endings import (
    done,
    failed,
)
from tests.conformance.store_fixtures import StoreFixtures

from openhqm.stores.base import (
    Answer,
    Arrival,
    BlobRef,
    Finish,
    OnLost,
    Options,
    Replay,
    State,
    Store,
    Want,
)


class BlobContract(StoreFixtures):
    """Part of `StoreContract`; also for a store whose blobs are elsewhere."""

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

    @pytest.mark.parametrize("is_carried", [False, True], ids=["publishing", "carried"])
    async def test_a_blob_is_exchanged_for_the_one_that_comes_back(
        self, store: Store, is_carried: bool
    ) -> None:
        id = fresh_id()
        sent = await _blob(store, id, "request", b"sent")
        await store.accept([new(id=id, body=sent, outbound=True)])
        if is_carried:
            await store.carried([id])
            assert not await _exists(store, sent)

        back = await _blob(store, id, "request", b"back")
        assert await store.arrive([new(id=id, body=back)]) == [Arrival.RETURNED]

        lease = await take_one(store)
        assert lease.body == back
        assert await _read(store, back) == b"back"
        assert not await _exists(store, sent)
        await store.settle([done(lease)])
        assert not await _exists(store, back)

    async def test_the_blob_of_a_known_message_is_deleted_unless_it_is_the_records(
        self, store: Store
    ) -> None:
        id = fresh_id()
        body = await _blob(store, id, "request", b"payload")
        assert await store.arrive([new(id=id, body=body)]) == [Arrival.TAKEN_IN]

        assert await store.arrive([new(id=id, body=body)]) == [Arrival.KNOWN]
        assert await _read(store, body) == b"payload"
        again = await _blob(store, id, "request", b"payload")
        assert await store.arrive([new(id=id, body=again)]) == [Arrival.KNOWN]

        lease = await take_one(store)
        assert not await _exists(store, again)
        assert await _read(store, body) == b"payload"
        await store.settle([done(lease)])
        late = await _blob(store, id, "request", b"payload")
        assert await store.arrive([new(id=id, body=late)]) == [Arrival.KNOWN]
        assert not await _exists(store, late)

    async def test_a_replay_keeps_the_blob_over_a_restart(self, case: StoreCase, options: Options) -> None:
        """Also when the dead letter that it was written for is long gone."""
        if not case.durable:
            pytest.skip("the store ends with its process")
        store = await case.open(options)
        id, again = fresh_id(), fresh_id()
        body = await _blob(store, id, "request", b"payload")
        await store.accept([new(id=id, body=body)])
        await store.settle([failed(await take_one(store))])
        await store.replay([Replay(id, again)])
        await store.purge([id])
        await store.close()

        store = await case.open(options)
        lease = await take_one(store)
        assert lease.id == again
        assert await _read(store, body) == b"payload"


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
