"""What is accepted, admitted, refused, or known already."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from tests.conformance.store_case import (
    Audited,
    StoreCase,
    audit,
    fresh_id,
    get_one,
    new,
    take,
    take_one,
)
from tests.conformance.store_endings import (
    KEYED,
    ODD_BYTES,
    Ending,
    done,
    every_ending,
    mortal,
)
from tests.conformance.store_fixtures import StoreFixtures

from openhqm.stores.base import (
    Accepted,
    Answer,
    Existing,
    Finish,
    Idempotency,
    Lane,
    Options,
    Refusal,
    Refused,
    State,
    Store,
    Want,
)


class AcceptContract(StoreFixtures):
    """Part of `StoreContract`."""

    # -- accept

    @pytest.mark.parametrize("data", ODD_BYTES)
    async def test_bytes_come_back_exactly(self, store: Store, data: bytes) -> None:
        record = new(envelope=b"e" + data, body=data, key=b"k" + data[:500], callback=b"c" + data)
        await store.accept([record])

        lease = await take_one(store)
        await store.settle([Finish(lease.id, lease.epoch, State.FAILED, Answer(b"h" + data, data), "why")])
        held = await get_one(store, record.id, Want.ANSWER | Want.REQUEST)
        callback = await take_one(store, lane=Lane.CALLBACKS)

        assert (lease.id, lease.envelope, lease.body) == (record.id, record.envelope, data)
        assert (lease.key, held.key) == (record.key, record.key)
        assert held.request == (record.envelope, data)
        assert held.answer == Answer(b"h" + data, data)
        assert (callback.envelope, callback.body) == (record.callback, b"")

    async def test_a_new_record_is_queued_and_readable(self, store: Store, case: StoreCase) -> None:
        before = await case.now()
        record = new(priority=7, key=b"k", max_age_seconds=1000.0)

        results = await store.accept([record])

        held = await get_one(store, record.id)
        assert results == [Accepted(record.id)]
        assert (held.state, held.lane, held.priority, held.key) == (State.QUEUED, Lane.REQUESTS, 7, b"k")
        assert (held.attempts, held.claims, held.epoch) == (0, 0, 0)
        assert held.accepted_at == pytest.approx(before, abs=30)
        assert held.ready_at == pytest.approx(held.accepted_at, abs=1e-3)
        assert held.deadline == pytest.approx(held.accepted_at + 1000.0, abs=1e-3)
        assert (held.started_at, held.finished_at, held.expires_at) == (None, None, None)
        assert (held.request, held.answer, held.reason, held.history) == (None, None, "", b"")

    async def test_heavy_parts_are_read_only_when_wanted(self, store: Store) -> None:
        record = new(body=b"body")
        await store.accept([record])

        light, heavy = await get_one(store, record.id), await get_one(store, record.id, Want.REQUEST)

        assert light.request is None
        assert heavy.request == (record.envelope, b"body")

    async def test_results_come_in_the_order_of_the_arguments(self, store: Store) -> None:
        records = [new() for _ in range(30)]

        results = await store.accept(records)
        found = await store.get([records[7].id, fresh_id(), records[3].id])

        assert results == [Accepted(record.id) for record in records]
        assert [record and record.id for record in found] == [records[7].id, None, records[3].id]

    async def test_nothing_asked_is_nothing_done(self, store: Store) -> None:
        assert list(await store.accept([])) == []
        assert list(await store.settle([])) == []
        assert list(await store.extend([], lease_seconds=1.0)) == []
        assert list(await store.get([])) == []
        assert list(await store.replay([])) == []
        assert await store.purge([]) == 0

    async def test_accepting_an_id_again_changes_nothing(self, store: Store) -> None:
        record = new(body=b"first")
        await store.accept([record, replace(record, body=b"same batch")])
        lease = await take_one(store)

        while_running = await store.accept([replace(record, body=b"running")])
        await store.settle([done(lease)])
        when_final = await store.accept([replace(record, body=b"final")])

        assert while_running == when_final == [Accepted(record.id)]
        assert lease.body == b"first"
        assert (await store.counts()).accepted == 1
        assert await take(store) == []

    async def test_records_accepted_at_the_same_time_are_all_kept(self, raw: Store, options: Options) -> None:
        records = [new(body=str(n).encode()) for n in range(200)]

        results = await asyncio.gather(*(raw.accept([record]) for record in records))

        assert results == [[Accepted(record.id)] for record in records]
        leases = await take(raw, 200)
        assert {lease.id: lease.body for lease in leases} == {r.id: r.body for r in records}
        await audit(raw, options)

    # -- admission

    async def test_records_beyond_max_backlog_are_refused(self, case: StoreCase) -> None:
        options = Options(max_backlog=3)
        store: Any = Audited(await case.open(options), options)
        records = [new(callback=b"c") for _ in range(4)]

        results = await store.accept(records)

        assert results == [*(Accepted(r.id) for r in records[:3]), Refused(Refusal.BACKLOG_FULL)]
        assert await store.get([records[3].id]) == [None]
        lease = await take_one(store)
        assert await store.accept([records[3]]) == [Refused(Refusal.BACKLOG_FULL)]
        await store.settle([done(lease)])
        assert await store.accept([records[3]]) == [Accepted(records[3].id)]

    async def test_bytes_are_counted_with_room_for_every_answer(self, case: StoreCase) -> None:
        options = Options(max_bytes=1000, answer_reserve_bytes=100)
        store: Any = Audited(await case.open(options), options)
        small, large = new(envelope=b"e" * 50, body=b"b" * 50), new(envelope=b"", body=b"b" * 701)

        assert await store.accept([small, large]) == [Accepted(small.id), Refused(Refusal.BYTES_FULL)]
        assert (await store.counts()).bytes == 200
        assert await store.accept([replace(large, body=b"b" * 700)]) == [Accepted(large.id)]
        assert await store.accept([new(envelope=b"")]) == [Refused(Refusal.BYTES_FULL)]

    async def test_answers_are_stored_even_when_admission_is_full(self, case: StoreCase) -> None:
        options = Options(max_bytes=500, answer_reserve_bytes=100)
        store: Any = Audited(await case.open(options), options)
        record = new(envelope=b"e" * 400, callback=b"c")
        await store.accept([record])

        assert await store.settle([done(await take_one(store), Answer(b"h", b"a" * 5000))]) == [True]

        assert (await get_one(store, record.id, Want.ANSWER)).answer == Answer(b"h", b"a" * 5000)
        assert await store.accept([new(envelope=b"")]) == [Refused(Refusal.BYTES_FULL)]
        callback = await take_one(store, lane=Lane.CALLBACKS)
        await store.settle([done(callback, None)])
        await store.purge([record.id])
        assert await store.accept([new(envelope=b"")]) != [Refused(Refusal.BYTES_FULL)]

    async def test_what_is_held_already_is_never_refused_as_full(self, case: StoreCase) -> None:
        options = Options(max_backlog=1)
        store: Any = Audited(await case.open(options), options)
        record = new(idempotency=KEYED)
        await store.accept([record])

        assert await store.accept([record]) == [Accepted(record.id)]
        assert await store.accept([new(idempotency=KEYED)]) == [Existing(record.id)]

    # -- idempotency

    async def test_the_same_key_and_body_names_the_first_record(self, store: Store) -> None:
        record, again = new(idempotency=KEYED), new(idempotency=KEYED)

        assert await store.accept([record, again]) == [Accepted(record.id), Existing(record.id)]
        lease = await take_one(store)
        assert await store.accept([again]) == [Existing(record.id)]
        await store.settle([done(lease)])
        assert await store.accept([again]) == [Existing(record.id)]
        assert (await store.counts()).accepted == 1

    async def test_the_same_key_with_another_body_is_refused(self, store: Store) -> None:
        record = new(idempotency=KEYED)
        other = new(idempotency=Idempotency(KEYED.scope, b"g" * 32))

        results = await store.accept([record, other])

        assert results == [Accepted(record.id), Refused(Refusal.IDEMPOTENCY_MISMATCH)]
        assert await store.get([other.id]) == [None]

    async def test_other_keys_do_not_meet(self, store: Store) -> None:
        records = [new(idempotency=Idempotency(bytes([n]) * 32, b"f" * 32)) for n in range(3)]

        assert await store.accept(records) == [Accepted(record.id) for record in records]

    @every_ending
    async def test_a_key_is_freed_only_by_a_record_that_never_ran(
        self, store: Store, case: StoreCase, end: Ending, state: State
    ) -> None:
        record, again = mortal(end, case, idempotency=KEYED), new(idempotency=KEYED)
        await store.accept([record])

        await end(store, case, record)
        results = await store.accept([again])

        ended = await get_one(store, record.id)
        never_ran = state in (State.CANCELLED, State.EXPIRED) and not ended.may_have_run
        assert results == [Accepted(again.id) if never_ran else Existing(record.id)]
        assert never_ran == (ended.attempts == 0)
