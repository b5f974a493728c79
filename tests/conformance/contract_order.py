"""Keys, callbacks and dead letters: records that follow from others."""

from __future__ import annotations

import asyncio
import itertools
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
    ANSWER,
    KEYED,
    Ending,
    done,
    end_expired_by_lease,
    every_ending,
    failed,
    mortal,
)
from tests.conformance.store_fixtures import StoreFixtures

from openhqm.stores.base import (
    Accepted,
    Existing,
    Finish,
    Idempotency,
    Lane,
    NewRecord,
    OnLost,
    Options,
    Replay,
    Retry,
    State,
    Store,
    Want,
)


class OrderContract(StoreFixtures):
    """Part of `StoreContract`."""

    # -- keys

    async def test_equal_keys_run_in_order_one_at_a_time(self, store: Store) -> None:
        records = [new(key=key) for key in (b"a", b"b", b"a", b"b", b"a")]
        await store.accept(records[:2])
        await store.accept(records[2:])

        rounds = []
        while leases := await take(store, 10):
            rounds.append([records.index(_by_id(records, lease.id)) for lease in leases])
            await store.settle([done(lease) for lease in leases])

        assert rounds == [[0, 1], [2, 3], [4]]

    async def test_order_within_a_key_comes_before_priority_and_delay(
        self, store: Store, case: StoreCase
    ) -> None:
        first = new(key=b"k", priority=0, delay_seconds=3 * case.tick_seconds)
        second, other = new(key=b"k", priority=9), new(priority=4)
        await store.accept([first, second, other])

        early = await take(store, 5)
        await case.pass_time(3.5 * case.tick_seconds)
        due = await take(store, 5)
        await store.settle([done(due[0])])

        assert [lease.id for lease in early] == [other.id]
        assert [lease.id for lease in due] == [first.id]
        assert [lease.id for lease in await take(store, 5)] == [second.id]

    async def test_backoff_blocks_its_own_key_only(self, store: Store, case: StoreCase) -> None:
        first, second, other = new(key=b"a"), new(key=b"a"), new(key=b"b")
        await store.accept([first, second, other])
        lease = await take_one(store)

        await store.settle([Retry(lease.id, lease.epoch, 2 * case.tick_seconds)])

        assert [found.id for found in await take(store, 5)] == [other.id]
        await case.pass_time(2.5 * case.tick_seconds)
        again = await take_one(store)
        assert again.id == first.id
        await store.settle([done(again)])
        assert (await take_one(store)).id == second.id

    @every_ending
    async def test_a_final_record_lets_the_next_of_its_key_run(
        self, store: Store, case: StoreCase, end: Ending, state: State
    ) -> None:
        first, second = mortal(end, case, key=b"k"), new(key=b"k")
        await store.accept([first])

        await end(store, case, first)
        await store.accept([second])
        third = mortal(end, case, key=b"j")
        fourth = new(key=b"j")

        assert (await take_one(store)).id == second.id
        await store.accept([third, fourth])
        if end is end_expired_by_lease:
            await case.pass_time(3 * case.tick_seconds)
            await take(store)
        else:
            await end(store, case, third)
        held = await get_one(store, fourth.id)
        assert held.state is State.RUNNING or (await take_one(store)).id == fourth.id

    async def test_cancelling_in_the_middle_keeps_the_order_of_the_rest(self, store: Store) -> None:
        records = [new(key=b"k") for _ in range(3)]
        await store.accept(records)
        lease = await take_one(store)

        await store.cancel(records[1].id)

        assert await take(store) == []
        await store.settle([done(lease)])
        assert (await take_one(store)).id == records[2].id

    async def test_a_key_is_never_held_twice(self, raw: Store, options: Options) -> None:
        records = [new(key=b"%d" % (n % 5)) for n in range(100)]
        await raw.accept(records)
        running: set[bytes] = set()
        order: dict[bytes, list[int]] = {}
        place = {record.id: n for n, record in enumerate(records)}

        async def consume() -> None:
            while leases := await take(raw, 2, wait_seconds=0.1):
                for lease in leases:
                    assert lease.key is not None
                    assert lease.key not in running
                    running.add(lease.key)
                    order.setdefault(lease.key, []).append(place[lease.id])
                await asyncio.sleep(0)
                for lease in leases:
                    running.discard(lease.key or b"")
                    await raw.settle([done(lease)])

        await asyncio.gather(*(consume() for _ in range(4)))

        assert sorted(itertools.chain(*order.values())) == list(range(100))
        assert all(places == sorted(places) for places in order.values())
        await audit(raw, options)

    # -- callbacks

    @every_ending
    async def test_every_ending_puts_one_callback(
        self, store: Store, case: StoreCase, end: Ending, state: State
    ) -> None:
        record = mortal(end, case, callback=b"call me")
        await store.accept([record])
        assert (await store.counts(Lane.CALLBACKS)).accepted == 0

        await end(store, case, record)

        assert (await get_one(store, record.id)).state is state
        [lease] = await take(store, 5, lane=Lane.CALLBACKS)
        assert (lease.parent, lease.envelope, lease.body) == (record.id, b"call me", b"")
        assert lease.id != record.id
        held = await get_one(store, lease.id)
        assert (held.lane, held.parent) == (Lane.CALLBACKS, record.id)

    async def test_poison_puts_a_callback_too(self, store: Store, case: StoreCase) -> None:
        record = new(on_lost=OnLost.REPEAT, max_claims=1, callback=b"c")
        await store.accept([record])
        await take_one(store, lease_seconds=case.tick_seconds)

        await case.pass_time(1.5 * case.tick_seconds)
        await store.sweep()

        assert (await take_one(store, lane=Lane.CALLBACKS)).parent == record.id

    async def test_no_callback_is_put_where_none_was_asked_or_nothing_is_final(self, store: Store) -> None:
        await store.accept([new(), new(callback=b"c")])
        silent, retried = await take(store, 2)

        await store.settle([done(silent), Retry(retried.id, retried.epoch, 0.0)])

        assert await take(store, 5, lane=Lane.CALLBACKS) == []

    async def test_callbacks_are_leased_retried_and_dead_lettered_like_requests(
        self, store: Store, case: StoreCase
    ) -> None:
        record = new(callback=b"c")
        await store.accept([record])
        await store.cancel(record.id)

        lapsed = await take_one(store, lane=Lane.CALLBACKS, lease_seconds=case.tick_seconds)
        await case.pass_time(1.5 * case.tick_seconds)
        await store.sweep()
        retried = await take_one(store, lane=Lane.CALLBACKS)
        await store.settle([Retry(retried.id, retried.epoch, 0.0)])
        given_up = await take_one(store, lane=Lane.CALLBACKS)
        await store.settle([Finish(given_up.id, given_up.epoch, State.FAILED, reason="gone")])
        again = fresh_id()
        assert await store.replay([Replay(lapsed.id, again)]) == [True]

        assert (given_up.attempt, given_up.claims) == (3, 1)
        replayed = await take_one(store, lane=Lane.CALLBACKS)
        assert (replayed.id, replayed.parent, replayed.envelope) == (again, record.id, b"c")
        assert (await store.counts(Lane.CALLBACKS)).failed == 1
        assert (await store.counts()).failed == 0

    # -- dead letters

    async def test_a_replayed_dead_letter_runs_as_a_new_record(self, store: Store, case: StoreCase) -> None:
        record = new(body=b"b", priority=2, idempotency=KEYED, callback=b"c", max_age_seconds=5000.0)
        await store.accept([record])
        await store.settle([failed(await take_one(store))])
        again = fresh_id()

        assert await store.replay([Replay(record.id, again, max_age_seconds=900.0)]) == [True]

        counts = await store.counts()
        assert (counts.accepted, counts.replayed, counts.failed, counts.dead_letters) == (2, 1, 1, 0)
        fresh, old = await get_one(store, again), await get_one(store, record.id, Want.ANSWER | Want.REQUEST)
        assert (fresh.state, fresh.replay_of, fresh.replayed_as) == (State.QUEUED, record.id, None)
        assert (fresh.attempts, old.replayed_as, old.reason) == (0, again, "attempts-used-up")
        assert fresh.deadline == pytest.approx(fresh.accepted_at + 900.0, abs=1e-3)
        assert (old.state, old.answer, old.request) == (State.FAILED, ANSWER, (record.envelope, b"b"))
        lease = await take_one(store)
        assert (lease.id, lease.epoch, lease.attempt) == (again, 1, 1)
        assert (lease.envelope, lease.body, lease.priority) == (record.envelope, b"b", 2)
        await store.settle([done(lease)])
        parents = [callback.parent for callback in await take(store, 5, lane=Lane.CALLBACKS)]
        assert parents == [record.id, again]
        assert await store.accept([new(idempotency=KEYED)]) == [Existing(record.id)]

    async def test_a_dead_letter_is_replayed_once(self, store: Store) -> None:
        record = new()
        await store.accept([record])
        await store.settle([failed(await take_one(store))])
        again = Replay(record.id, fresh_id())

        results = await store.replay([again, Replay(record.id, fresh_id()), again])

        assert results == [True, False, True]
        assert await store.replay([Replay(record.id, fresh_id())]) == [False]
        assert (await store.counts()).replayed == 1

    async def test_a_replay_that_fails_is_a_dead_letter_itself(self, store: Store) -> None:
        record, second, third = new(body=b"b"), fresh_id(), fresh_id()
        await store.accept([record])
        await store.settle([failed(await take_one(store))])
        await store.replay([Replay(record.id, second)])
        await store.settle([failed(await take_one(store))])

        assert await store.replay([Replay(second, third)]) == [True]

        assert (await take_one(store)).body == b"b"
        assert (await store.counts()).dead_letters == 0
        page = await store.list(states=[State.FAILED])
        assert [(r.replay_of, r.replayed_as) for r in page.records] == [(None, second), (record.id, third)]

    async def test_only_dead_letters_are_replayed(self, store: Store) -> None:
        finished, queued = new(), new()
        await store.accept([finished, queued])
        await store.settle([done(await take_one(store))])

        replays = [Replay(id, fresh_id()) for id in (finished.id, queued.id, fresh_id())]

        assert await store.replay(replays) == [False, False, False]

    async def test_a_replay_stands_last_in_the_line_of_its_key(self, store: Store) -> None:
        first, second = new(key=b"k"), new(key=b"k")
        await store.accept([first, second])
        await store.settle([failed(await take_one(store))])
        again = fresh_id()

        await store.replay([Replay(first.id, again)])

        lease = await take_one(store)
        assert lease.id == second.id
        assert await take(store) == []
        await store.settle([done(lease)])
        last = await take_one(store)
        assert (last.id, last.key) == (again, b"k")

    async def test_a_replay_is_admitted_when_the_backlog_is_full(self, case: StoreCase) -> None:
        options = Options(max_backlog=1)
        store: Any = Audited(await case.open(options), options)
        record = new()
        await store.accept([record])
        await store.settle([failed(await take_one(store))])
        await store.accept([new()])

        assert await store.replay([Replay(record.id, fresh_id())]) == [True]

    async def test_purging_deletes_final_records_only(self, store: Store) -> None:
        records = [new(idempotency=Idempotency(bytes([n]) * 32, b"f" * 32)) for n in range(4)]
        await store.accept(records)
        one, two, _running = await take(store, 3)
        await store.settle([failed(one), done(two)])

        purged = await store.purge([record.id for record in records] + [fresh_id()])

        assert purged == 2
        held = await store.get([record.id for record in records])
        assert [record and record.state for record in held] == [None, None, State.RUNNING, State.QUEUED]
        counts = await store.counts()
        assert (counts.failed, counts.done, counts.dead_letters) == (1, 1, 0)
        again = new(idempotency=records[0].idempotency)
        assert await store.accept([again]) == [Accepted(again.id)]


def _by_id(records: list[NewRecord], id: bytes) -> NewRecord:
    return next(record for record in records if record.id == id)
