"""Who gets which record, for how long, and what becomes of a lapsed lease."""

from __future__ import annotations

import asyncio

import pytest
from tests.conformance.store_case import (
    StoreCase,
    audit,
    fresh_id,
    get_one,
    new,
    reach_its_wait,
    take,
    take_one,
)
from tests.conformance.store_endings import (
    done,
    failed,
)
from tests.conformance.store_fixtures import StoreFixtures

from openhqm.stores.base import (
    Change,
    Extension,
    Lane,
    Lease,
    OnLost,
    Options,
    Release,
    Replay,
    Retry,
    State,
    Store,
    Want,
)


class LeaseContract(StoreFixtures):
    """Part of `StoreContract`."""

    # -- lease

    async def test_records_are_leased_in_order_of_acceptance(self, store: Store) -> None:
        records = [new() for _ in range(20)]
        await store.accept(records[:12])
        await store.accept(records[12:])

        leases = [*await take(store, 5), *await take(store, 5), *await take(store, 100)]

        assert [lease.id for lease in leases] == [record.id for record in records]

    async def test_a_lease_says_what_it_is(self, store: Store) -> None:
        record = new(body=b"b", priority=3, key=b"k", max_age_seconds=500.0)
        await store.accept([record])

        lease = await take_one(store)

        held = await get_one(store, record.id)
        assert (lease.epoch, lease.attempt, lease.claims) == (1, 1, 0)
        assert (lease.priority, lease.key, lease.parent) == (3, b"k", None)
        assert lease.accepted_at == pytest.approx(held.accepted_at, abs=1e-3)
        assert lease.deadline == pytest.approx(held.deadline, abs=1e-3)
        assert (held.state, held.epoch) == (State.RUNNING, 1)
        assert held.started_at is not None

    async def test_consumers_never_share_a_lease(self, raw: Store, options: Options) -> None:
        records = [new() for _ in range(300)]
        await raw.accept(records)
        taken: list[bytes] = []

        async def consume(limit: int) -> None:
            while leases := await take(raw, limit):
                taken.extend(lease.id for lease in leases)

        await asyncio.gather(*(consume(limit) for limit in (1, 2, 3, 5, 7, 11, 13, 17)))

        assert sorted(taken) == sorted(record.id for record in records)
        await audit(raw, options)

    @pytest.mark.parametrize("at_once", [1, 5, 48])
    async def test_priority_is_strict_but_one_lease_in_eight_goes_to_the_oldest(
        self, store: Store, at_once: int
    ) -> None:
        low, high = [new(priority=1) for _ in range(20)], [new(priority=8) for _ in range(60)]
        await store.accept([*low, *high])

        leases: list[Lease] = []
        while len(leases) < 48:
            leases += await take(store, min(at_once, 48 - len(leases)))

        by_priority = {p: [lease.id for lease in leases if lease.priority == p] for p in (1, 8)}
        assert by_priority[1] == [record.id for record in low[:6]]
        assert by_priority[8] == [record.id for record in high[:42]]

    async def test_all_priorities_are_ordered(self, store: Store) -> None:
        records = [new(priority=priority) for priority in (9, 0, 8, 1, 7, 2, 6)]
        await store.accept(records)

        leases = [(await take_one(store)).priority for _ in records]

        strict = sorted((record.priority for record in records), reverse=True)
        without_guard = [p for p in leases if p != leases[_guarded(leases, strict)]]
        assert without_guard == sorted(without_guard, reverse=True)
        assert sorted(leases, reverse=True) == strict

    async def test_an_empty_store_returns_at_once_when_not_waiting(self, store: Store) -> None:
        async with asyncio.timeout(2):
            assert await take(store, 10) == []

    async def test_waiting_ends_without_a_record(self, store: Store) -> None:
        async with asyncio.timeout(5):
            assert await take(store, 10, wait_seconds=0.05) == []

    @pytest.mark.parametrize("cause", ["accept", "release", "retry", "key", "replay", "resume", "callback"])
    async def test_a_waiting_lease_sees_work_come(self, raw: Store, cause: str) -> None:
        first = new(key=b"k", callback=b"c")
        second = new(key=b"k")
        lane = Lane.CALLBACKS if cause == "callback" else Lane.REQUESTS
        leases: list[Lease] = []
        if cause != "accept":
            await raw.accept([first])
            leases = [*await take(raw)]
        if cause == "key":
            await raw.accept([second])
        if cause == "replay":
            await raw.settle([failed(leases[0])])
        if cause == "resume":
            await raw.pause(True)
            await raw.accept([new()])
        waiting = asyncio.create_task(take(raw, 5, wait_seconds=30, lane=lane))
        await reach_its_wait()

        match cause:
            case "accept":
                await raw.accept([first])
            case "release":
                await raw.settle([Release(leases[0].id, leases[0].epoch)])
            case "retry":
                await raw.settle([Retry(leases[0].id, leases[0].epoch, 0.0)])
            case "key" | "callback":
                await raw.settle([done(leases[0])])
            case "replay":
                await raw.replay([Replay(first.id, fresh_id())])
            case "resume":
                await raw.pause(False)

        async with asyncio.timeout(5):
            assert len(await waiting) == 1

    async def test_a_waiting_lease_gets_a_delayed_record_when_it_is_due(self, raw: Store) -> None:
        record = new(delay_seconds=0.2)
        await raw.accept([record])

        async with asyncio.timeout(10):
            [lease] = await take(raw, wait_seconds=30)

        assert lease.id == record.id

    async def test_a_waiting_lease_that_is_cancelled_takes_nothing(self, raw: Store) -> None:
        waiting = asyncio.create_task(take(raw, wait_seconds=30))
        await reach_its_wait()

        waiting.cancel()
        await asyncio.wait([waiting])
        await raw.accept([new()])

        assert len(await take(raw)) == 1

    async def test_a_delayed_record_is_leased_when_it_is_due(self, store: Store, case: StoreCase) -> None:
        tick = case.tick_seconds
        delayed = new(delay_seconds=3 * tick)
        at_time = new(not_before=await case.now() + 3 * tick)
        later_counts = new(delay_seconds=6 * tick, not_before=await case.now())
        await store.accept([delayed, at_time, later_counts])

        early = await take(store, 5)
        await case.pass_time(3.5 * tick)
        due = await take(store, 5)

        assert early == []
        assert {lease.id for lease in due} == {delayed.id, at_time.id}
        await case.pass_time(3 * tick)
        assert [lease.id for lease in await take(store, 5)] == [later_counts.id]

    # -- lapse

    async def test_a_lapsed_record_is_leased_again(self, store: Store, case: StoreCase) -> None:
        record = new(on_lost=OnLost.REPEAT)
        await store.accept([record])
        first = await take_one(store, lease_seconds=case.tick_seconds)
        assert await take(store) == []

        await case.pass_time(1.5 * case.tick_seconds)
        changes = await store.sweep()
        held = await get_one(store, record.id)
        second = await take_one(store)

        assert list(changes) == [Change(record.id, State.RETRYING)]
        assert (held.state, held.attempts, held.claims, held.epoch) == (State.RETRYING, 1, 1, 1)
        assert (second.id, second.epoch, second.attempt, second.claims) == (first.id, 2, 2, 1)

    async def test_a_lease_is_judged_only_when_it_ran_out(self, store: Store, case: StoreCase) -> None:
        await store.accept([new(on_lost=OnLost.REPEAT), new(on_lost=OnLost.UNKNOWN)])
        await take(store, 2)
        await case.pass_time(case.tick_seconds)

        assert list(await store.sweep()) == []
        assert (await store.counts()).running == 2

    async def test_a_lapsed_record_that_must_not_repeat_is_a_dead_letter(
        self, store: Store, case: StoreCase
    ) -> None:
        record = new(body=b"b", on_lost=OnLost.UNKNOWN)
        await store.accept([record])
        await take_one(store, lease_seconds=case.tick_seconds)

        await case.pass_time(1.5 * case.tick_seconds)
        changes = await store.sweep()

        held = await get_one(store, record.id, Want.REQUEST | Want.ANSWER)
        assert list(changes) == [Change(record.id, State.FAILED, Lane.REQUESTS, "outcome-unknown")]
        assert (held.state, held.reason) == (State.FAILED, "outcome-unknown")
        assert (held.attempts, held.claims) == (1, 1)
        assert held.request == (record.envelope, b"b")
        assert held.answer is None
        assert (await store.counts()).dead_letters == 1

    async def test_lapsing_too_often_is_poison(self, store: Store, case: StoreCase) -> None:
        record = new(on_lost=OnLost.REPEAT, max_claims=3)
        await store.accept([record])

        for _ in range(3):
            await take_one(store, lease_seconds=case.tick_seconds)
            await case.pass_time(1.5 * case.tick_seconds)
            await store.sweep()

        held = await get_one(store, record.id)
        assert (held.state, held.reason, held.claims) == (State.FAILED, "poison", 3)

    async def test_a_sweep_judges_no_more_than_its_limit(self, store: Store, case: StoreCase) -> None:
        await store.accept([new(on_lost=OnLost.REPEAT) for _ in range(7)])
        await take(store, 7, lease_seconds=case.tick_seconds)
        await case.pass_time(1.5 * case.tick_seconds)

        assert [len(await store.sweep(limit=3)) for _ in range(4)] == [3, 3, 1, 0]

    @pytest.mark.parametrize("act", ["extend", "settle"])
    async def test_a_holder_may_act_until_its_lapsed_lease_is_judged(
        self, store: Store, case: StoreCase, act: str
    ) -> None:
        await store.accept([new()])
        lease = await take_one(store, lease_seconds=case.tick_seconds)
        await case.pass_time(1.5 * case.tick_seconds)

        if act == "extend":
            assert await store.extend([(lease.id, 1)], lease_seconds=3600.0) == [Extension.HELD]
        else:
            assert await store.settle([done(lease)]) == [True]

        assert list(await store.sweep()) == []

    # -- extend

    async def test_an_extended_lease_does_not_lapse(self, store: Store, case: StoreCase) -> None:
        await store.accept([new(), new()])
        kept, lost = await take(store, 2, lease_seconds=4 * case.tick_seconds)

        await store.extend([(kept.id, kept.epoch)], lease_seconds=3600.0)
        await case.pass_time(5 * case.tick_seconds)
        changes = await store.sweep()

        assert [change.id for change in changes] == [lost.id]
        assert await store.settle([done(kept)]) == [True]

    async def test_extending_shortens_too(self, store: Store, case: StoreCase) -> None:
        """An extension counts from now, so a lease can be cut short."""
        await store.accept([new()])
        lease = await take_one(store)

        await store.extend([(lease.id, lease.epoch)], lease_seconds=case.tick_seconds)
        await case.pass_time(1.5 * case.tick_seconds)

        assert len(await store.sweep()) == 1

    async def test_what_is_not_held_cannot_be_extended(self, store: Store) -> None:
        records = [new() for _ in range(4)]
        await store.accept(records)
        finished, released, held = await take(store, 3)
        await store.settle([done(finished), Release(released.id, released.epoch, 3600.0)])

        asked = [(finished.id, 1), (released.id, 1), (held.id, 0), (held.id, 2), (fresh_id(), 1)]
        found = await store.extend([*asked, (held.id, 1)], lease_seconds=60.0)

        assert found == [*[Extension.LOST] * 5, Extension.HELD]
        assert (await store.counts()).stale_settlements == 5


def _guarded(leases: list[int], strict: list[int]) -> int:
    """Index of the one lease that may be out of order, the first out of order or 0."""
    return next((n for n, (got, due) in enumerate(zip(leases, strict, strict=True)) if got != due), 0)
