"""What every store must do, told as tests; a store's own test file subclasses and supplies `case`.

    class TestMemoryStore(StoreContract):
        @pytest.fixture
        async def case(self) -> AsyncIterator[StoreCase]: ...

The `store` fixture is audited: after every transition of every test the counters must add up and
agree with the records (design R9). `raw` is the same store unaudited, for concurrent callers.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.conformance.store_case import (
    Audited,
    StoreCase,
    all_records,
    audit,
    eventually,
    fresh_id,
    get_one,
    new,
    take,
    take_one,
)
from tests.conformance.store_model import walk

from openhqm.errors import StoreUnavailable
from openhqm.stores.base import (
    Accepted,
    Answer,
    BlobRef,
    Change,
    Existing,
    Extension,
    Finish,
    Idempotency,
    Lane,
    Lease,
    NewRecord,
    OnLost,
    Options,
    Record,
    Refusal,
    Refused,
    Release,
    Replay,
    Retry,
    Settlement,
    State,
    Store,
    Want,
)

ODD_BYTES = [
    pytest.param(b"", id="empty"),
    pytest.param(b"\x00", id="nul"),
    pytest.param(bytes(range(256)), id="every-byte"),
    pytest.param(b"\xff\xfe\xc3(\r\n\r\n\x1a'\"\\%s{}", id="not-utf8"),
    pytest.param(b"caf\xc3\xa9 " * 20_000, id="large"),
]
KEYED = Idempotency(b"s" * 32, b"f" * 32)
ANSWER = Answer(b"200\r\nx: \xff\r\n\r\n", b"\x00answer")


def done(lease: Lease, answer: Answer | None = ANSWER) -> Finish:
    return Finish(lease.id, lease.epoch, State.DONE, answer)


def failed(lease: Lease, reason: str = "attempts-used-up") -> Finish:
    return Finish(lease.id, lease.epoch, State.FAILED, ANSWER, reason)


def settlements(id: bytes, epoch: int) -> list[Settlement]:
    """One of each kind."""
    return [
        Finish(id, epoch, State.DONE, Answer(b"late", b"late")),
        Finish(id, epoch, State.FAILED, reason="late"),
        Retry(id, epoch, 0.0, b"late"),
        Release(id, epoch),
    ]


async def end_done(store: Store, case: StoreCase, record: NewRecord) -> None:
    await store.settle([done(await take_one(store))])


async def end_failed(store: Store, case: StoreCase, record: NewRecord) -> None:
    await store.settle([failed(await take_one(store))])


async def end_cancelled_unsent(store: Store, case: StoreCase, record: NewRecord) -> None:
    await store.cancel(record.id)


async def end_cancelled_by_runner(store: Store, case: StoreCase, record: NewRecord) -> None:
    lease = await take_one(store)
    await store.cancel(record.id)
    await store.settle([Retry(lease.id, lease.epoch, 0.0)])


async def end_cancelled_at_release(store: Store, case: StoreCase, record: NewRecord) -> None:
    lease = await take_one(store)
    await store.cancel(record.id)
    await store.settle([Release(lease.id, lease.epoch)])


async def end_expired_by_sweep(store: Store, case: StoreCase, record: NewRecord) -> None:
    await case.pass_time(3 * case.tick_seconds)
    await store.sweep()


async def end_expired_by_lease(store: Store, case: StoreCase, record: NewRecord) -> None:
    await case.pass_time(3 * case.tick_seconds)
    assert await take(store) == []


async def end_outcome_unknown(store: Store, case: StoreCase, record: NewRecord) -> None:
    await take_one(store, lease_seconds=case.tick_seconds)
    await case.pass_time(2 * case.tick_seconds)
    await store.sweep()


Ending = Callable[[Store, StoreCase, NewRecord], Awaitable[None]]

ENDINGS: list[tuple[Ending, State]] = [
    (end_done, State.DONE),
    (end_failed, State.FAILED),
    (end_cancelled_unsent, State.CANCELLED),
    (end_cancelled_by_runner, State.CANCELLED),
    (end_cancelled_at_release, State.CANCELLED),
    (end_expired_by_sweep, State.EXPIRED),
    (end_expired_by_lease, State.EXPIRED),
    (end_outcome_unknown, State.FAILED),
]
every_ending = pytest.mark.parametrize(
    ("end", "state"), ENDINGS, ids=[ending.__name__[4:] for ending, _ in ENDINGS]
)


def mortal(end: Ending, case: StoreCase, **changes: Any) -> NewRecord:
    """A record that can come to *end*."""
    age = 2 * case.tick_seconds if end in (end_expired_by_sweep, end_expired_by_lease) else 0.0
    return new(max_age_seconds=age, **changes)


class StoreContract:
    """Subclass per store; override `case`."""

    @pytest.fixture
    def options(self) -> Options:
        return Options(answer_ttl_seconds=7200.0, dead_letter_ttl_seconds=72_000.0)

    @pytest.fixture
    async def case(self) -> StoreCase:
        raise NotImplementedError("a store's test class supplies its case")

    @pytest.fixture
    async def raw(self, case: StoreCase, options: Options) -> Store:
        return await case.open(options)

    @pytest.fixture
    def store(self, raw: Store, options: Options) -> Store:
        return Audited(raw, options)  # type: ignore[return-value]

    # ---------------------------------------------------------------- accept

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

    # ------------------------------------------------------------- admission

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

    # ----------------------------------------------------------- idempotency

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

    # ----------------------------------------------------------------- lease

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
        # The waiter must be waiting, not just created, when the cause comes.
        await asyncio.sleep(0.02)

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
        await asyncio.sleep(0.02)

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

    # ----------------------------------------------------------------- lapse

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

    # ---------------------------------------------------------------- extend

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

    # ---------------------------------------------------------------- settle

    async def test_an_answer_is_kept_and_the_request_dropped(self, store: Store, case: StoreCase) -> None:
        record = new(body=b"b")
        await store.accept([record])
        lease = await take_one(store)

        assert await store.settle([replace(done(lease), note=b'{"attempt":1}')]) == [True]

        held = await get_one(store, record.id, Want.ANSWER | Want.REQUEST)
        assert (held.state, held.answer, held.request) == (State.DONE, ANSWER, None)
        assert (held.attempts, held.reason) == (1, "")
        assert held.history.splitlines() == [b'{"attempt":1}']
        assert held.finished_at is not None
        assert held.expires_at == pytest.approx(held.finished_at + 7200.0, abs=1e-3)
        counts = await store.counts()
        assert (counts.done, counts.running, counts.backlog) == (1, 0, 0)

    async def test_a_failed_record_keeps_request_answer_and_reason(self, store: Store) -> None:
        record = new(body=b"b")
        await store.accept([record])

        await store.settle([failed(await take_one(store))])

        held = await get_one(store, record.id, Want.ANSWER | Want.REQUEST)
        assert (held.state, held.reason) == (State.FAILED, "attempts-used-up")
        assert (held.request, held.answer) == ((record.envelope, b"b"), ANSWER)
        assert held.expires_at == pytest.approx(held.finished_at + 72_000.0, abs=1e-3)
        assert (await store.counts()).dead_letters == 1

    @pytest.mark.parametrize("state", [State.CANCELLED, State.EXPIRED])
    async def test_egress_may_find_a_record_cancelled_or_expired(self, store: Store, state: State) -> None:
        record = new(body=b"b")
        await store.accept([record])
        lease = await take_one(store)

        assert await store.settle([Finish(lease.id, lease.epoch, state, sent=False)]) == [True]

        held = await get_one(store, record.id, Want.ANSWER | Want.REQUEST)
        assert (held.state, held.attempts, held.may_have_run) == (state, 0, False)
        assert (held.answer, held.request) == (None, None)

    async def test_a_final_record_never_changes_again(self, store: Store) -> None:
        record = new()
        await store.accept([record])
        lease = await take_one(store)
        await store.settle([done(lease)])
        before = await get_one(store, record.id, Want.ANSWER)

        refused = [await store.settle([late]) for late in settlements(lease.id, lease.epoch)]
        cancelled = await store.cancel(record.id)

        assert refused == [[False]] * 4
        assert cancelled is not None
        assert cancelled.state is State.DONE
        assert await get_one(store, record.id, Want.ANSWER) == before
        assert (await store.counts()).stale_settlements == 4

    @pytest.mark.parametrize("kind", range(4), ids=["done", "failed", "retry", "release"])
    async def test_an_old_epoch_settles_nothing(self, store: Store, case: StoreCase, kind: int) -> None:
        record = new(on_lost=OnLost.REPEAT)
        await store.accept([record])
        zombie = await take_one(store, lease_seconds=case.tick_seconds)
        await case.pass_time(1.5 * case.tick_seconds)
        await store.sweep()

        unleased = await store.settle([settlements(record.id, zombie.epoch)[kind]])
        holder = await take_one(store)
        leased = await store.settle([settlements(record.id, zombie.epoch)[kind]])
        extended = await store.extend([(record.id, zombie.epoch)], lease_seconds=60.0)

        assert (unleased, leased, extended) == ([False], [False], [Extension.LOST])
        assert (await store.counts()).stale_settlements == 3
        assert await store.settle([done(holder)]) == [True]
        assert (await get_one(store, record.id, Want.ANSWER)).answer == ANSWER

    async def test_an_epoch_from_the_future_settles_nothing(self, store: Store) -> None:
        await store.accept([new()])
        lease = await take_one(store)

        for late in settlements(lease.id, lease.epoch + 1):
            assert await store.settle([late]) == [False]
        assert await store.settle([done(lease)]) == [True]

    async def test_a_batch_is_settled_one_by_one(self, store: Store) -> None:
        await store.accept([new() for _ in range(3)])
        one, two, three = await take(store, 3)

        results = await store.settle(
            [
                done(one),
                done(one, Answer(b"other")),
                Finish(fresh_id(), 1, State.DONE),
                Retry(two.id, two.epoch, 0.0),
                Release(two.id, two.epoch),
                Release(three.id, three.epoch),
            ]
        )

        assert results == [True, False, False, True, False, True]
        assert (await get_one(store, one.id, Want.ANSWER)).answer == ANSWER
        counts = await store.counts()
        assert (counts.done, counts.retrying, counts.queued) == (1, 1, 1)

    async def test_a_retry_waits_its_time_and_counts_as_an_attempt(
        self, store: Store, case: StoreCase
    ) -> None:
        record = new(on_lost=OnLost.UNKNOWN)
        await store.accept([record])
        notes = [b'{"attempt":1,"error":"\xc3\xa9"}', b'{"attempt":2}', b'{"attempt":3}']

        for attempt, note in enumerate(notes, 1):
            lease = await take_one(store)
            assert (lease.attempt, lease.epoch, lease.claims) == (attempt, attempt, 0)
            assert await store.settle([Retry(lease.id, lease.epoch, 2 * case.tick_seconds, note)]) == [True]
            assert await take(store) == []
            await case.pass_time(2.5 * case.tick_seconds)

        held = await get_one(store, record.id)
        assert (held.state, held.attempts) == (State.RETRYING, 3)
        assert held.history.splitlines() == notes

    async def test_a_release_returns_the_record_to_its_former_state(
        self, store: Store, case: StoreCase
    ) -> None:
        record = new()
        await store.accept([record])

        lease = await take_one(store)
        await store.settle([Release(lease.id, lease.epoch)])
        never_sent = await get_one(store, record.id)
        lease = await take_one(store)
        await store.settle([Retry(lease.id, lease.epoch, 0.0)])
        lease = await take_one(store)
        await store.settle([Release(lease.id, lease.epoch)])
        sent_before = await get_one(store, record.id)

        assert (never_sent.state, never_sent.attempts) == (State.QUEUED, 0)
        assert (sent_before.state, sent_before.attempts) == (State.RETRYING, 1)
        assert (await take_one(store)).attempt == 2

    async def test_a_released_record_keeps_its_place(self, store: Store) -> None:
        records = [new() for _ in range(3)]
        await store.accept(records)
        first = await take_one(store)

        await store.settle([Release(first.id, first.epoch)])

        assert [lease.id for lease in await take(store, 3)] == [record.id for record in records]

    async def test_a_release_can_wait(self, store: Store, case: StoreCase) -> None:
        await store.accept([new()])
        lease = await take_one(store)

        await store.settle([Release(lease.id, lease.epoch, 2 * case.tick_seconds)])

        assert await take(store) == []
        await case.pass_time(2.5 * case.tick_seconds)
        assert len(await take(store)) == 1

    # ---------------------------------------------------------------- cancel

    async def test_a_queued_record_is_cancelled_at_once(self, store: Store) -> None:
        record, other = new(body=b"b"), new()
        await store.accept([record, other])

        cancelled = await store.cancel(record.id)

        held = await get_one(store, record.id, Want.REQUEST)
        assert cancelled is not None
        assert (cancelled.state, cancelled.may_have_run) == (State.CANCELLED, False)
        assert (held.state, held.request) == (State.CANCELLED, None)
        assert [lease.id for lease in await take(store, 5)] == [other.id]

    @pytest.mark.parametrize("where", ["delayed", "key-blocked"])
    async def test_a_record_that_waits_is_cancelled_at_once(self, store: Store, where: str) -> None:
        first, record = new(key=b"k"), new(key=b"k", delay_seconds=3600.0 if where == "delayed" else 0.0)
        await store.accept([first, record] if where == "key-blocked" else [record])

        cancelled = await store.cancel(record.id)

        assert cancelled is not None
        assert cancelled.state is State.CANCELLED

    async def test_a_retrying_record_that_is_cancelled_may_have_run(self, store: Store) -> None:
        record = new()
        await store.accept([record])
        lease = await take_one(store)
        await store.settle([Retry(lease.id, lease.epoch, 3600.0)])

        cancelled = await store.cancel(record.id)

        assert cancelled is not None
        assert (cancelled.state, cancelled.may_have_run) == (State.CANCELLED, True)

    @pytest.mark.parametrize(
        ("settle", "state", "may_have_run"),
        [
            (lambda lease: Retry(lease.id, lease.epoch, 0.0), State.CANCELLED, True),
            (lambda lease: Release(lease.id, lease.epoch), State.CANCELLED, False),
            (lambda lease: Finish(lease.id, lease.epoch, State.CANCELLED), State.CANCELLED, True),
            (done, State.DONE, False),
            (failed, State.FAILED, False),
        ],
        ids=["retry", "release", "cancelled", "done", "failed"],
    )
    async def test_the_runner_of_a_cancelled_record_is_told_and_may_still_answer(
        self, store: Store, settle: Callable[[Lease], Settlement], state: State, may_have_run: bool
    ) -> None:
        record = new()
        await store.accept([record])
        lease = await take_one(store)

        asked = await store.cancel(record.id)
        found = await store.extend([(lease.id, lease.epoch)], lease_seconds=60.0)
        settled = await store.settle([settle(lease)])

        assert asked is not None
        assert (asked.state, asked.cancel_requested) == (State.RUNNING, True)
        assert found == [Extension.CANCEL_REQUESTED]
        assert settled == [True]
        held = await get_one(store, record.id)
        assert (held.state, held.may_have_run) == (state, may_have_run)

    @pytest.mark.parametrize(
        ("on_lost", "state"), [(OnLost.REPEAT, State.CANCELLED), (OnLost.UNKNOWN, State.FAILED)]
    )
    async def test_a_cancelled_record_whose_runner_is_lost_does_not_run_again(
        self, store: Store, case: StoreCase, on_lost: OnLost, state: State
    ) -> None:
        record = new(on_lost=on_lost)
        await store.accept([record])
        await take_one(store, lease_seconds=case.tick_seconds)
        await store.cancel(record.id)

        await case.pass_time(1.5 * case.tick_seconds)
        await store.sweep()

        held = await get_one(store, record.id)
        assert (held.state, held.attempts, held.claims) == (state, 1, 1)

    async def test_what_is_not_held_cannot_be_cancelled(self, store: Store) -> None:
        assert await store.cancel(fresh_id()) is None

    # -------------------------------------------------------------- deadline

    @pytest.mark.parametrize("by", ["sweep", "lease"])
    @pytest.mark.parametrize("where", ["queued", "delayed", "key-blocked", "retrying", "backing-off"])
    async def test_a_waiting_record_expires_at_its_deadline(
        self, store: Store, case: StoreCase, where: str, by: str
    ) -> None:
        tick = case.tick_seconds
        delay = 100 * tick if where == "delayed" else 0.0
        record = new(body=b"b", max_age_seconds=4 * tick, key=b"k", delay_seconds=delay)
        if where == "key-blocked":
            await store.accept([new(key=b"k")])
            await take_one(store)
        await store.accept([record])
        if where in ("retrying", "backing-off"):
            lease = await take_one(store)
            await store.settle([Retry(lease.id, lease.epoch, 0.0 if where == "retrying" else 100 * tick)])

        await case.pass_time(5 * tick)
        leases = await take(store, 5) if by == "lease" else []
        changes = await store.sweep()

        held = await get_one(store, record.id, Want.REQUEST)
        assert leases == []
        assert (held.state, held.request) == (State.EXPIRED, None)
        assert held.may_have_run == (where in ("retrying", "backing-off"))
        assert by == "lease" or list(changes) == [Change(record.id, State.EXPIRED)]

    async def test_the_earlier_deadline_counts(self, store: Store, case: StoreCase) -> None:
        now, tick = await case.now(), case.tick_seconds
        by_age = new(max_age_seconds=2 * tick, deadline=now + 1000 * tick)
        by_date = new(max_age_seconds=1000 * tick, deadline=now + 2 * tick)
        neither = new()
        await store.accept([by_age, by_date, neither])

        await case.pass_time(3 * tick)

        assert [lease.id for lease in await take(store, 5)] == [neither.id]
        assert (await store.counts()).expired == 2

    async def test_a_running_record_does_not_expire(self, store: Store, case: StoreCase) -> None:
        await store.accept([new(max_age_seconds=2 * case.tick_seconds)])
        lease = await take_one(store)

        await case.pass_time(3 * case.tick_seconds)

        assert list(await store.sweep()) == []
        assert await store.settle([done(lease)]) == [True]

    # ------------------------------------------------------------------ keys

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

    # ------------------------------------------------------------- callbacks

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

    # ---------------------------------------------------------- dead letters

    async def test_a_replayed_dead_letter_runs_as_a_new_record(self, store: Store, case: StoreCase) -> None:
        record = new(body=b"b", priority=2, idempotency=KEYED, callback=b"c", max_age_seconds=5000.0)
        await store.accept([record])
        await store.settle([failed(await take_one(store))])
        again = fresh_id()

        assert await store.replay([Replay(record.id, again, max_age_seconds=900.0)]) == [True]

        counts = await store.counts()
        assert (counts.accepted, counts.replayed, counts.failed, counts.dead_letters) == (2, 1, 1, 0)
        fresh, old = await get_one(store, again), await get_one(store, record.id, Want.ANSWER | Want.REQUEST)
        assert (fresh.state, fresh.replay_of, fresh.attempts) == (State.QUEUED, record.id, 0)
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

    # --------------------------------------------------------- times to live

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

    # ----------------------------------------------------------------- pause

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

    # ---------------------------------------------------------- reading back

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
        dead = await store.list(states=[State.FAILED], want=Want.REQUEST | Want.ANSWER)
        unfinished = await store.list(states=[State.RUNNING, State.QUEUED], limit=100)

        assert list(itertools.chain(*pages)) == [record.id for record in records]
        assert [len(page) for page in pages if page] == [10, 10, 5]
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

    # ----------------------------------------------------------------- watch

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
        await asyncio.sleep(0.02)
        record = new()

        await raw.accept([record])
        async with asyncio.timeout(5):
            [lease] = await waiting
        await other.settle([done(lease)])
        await eventually(lambda: Change(record.id, State.DONE) in noticed)
        stop()

        assert (await get_one(raw, record.id)).state is State.DONE

    # ---------------------------------------------------------------- secret

    async def test_a_secret_is_put_once(self, store: Store) -> None:
        assert await store.secret("handle-key", b"\x00first") == b"\x00first"
        assert await store.secret("handle-key", b"second") == b"\x00first"
        assert await store.secret("other", b"third") == b"third"

    # ----------------------------------------------------------------- blobs

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

    # -------------------------------------------------------- open and close

    async def test_closing_ends_a_waiting_lease(self, raw: Store) -> None:
        waiting = asyncio.create_task(take(raw, 5, wait_seconds=60))
        await asyncio.sleep(0.02)

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

    # ----------------------------------------------------------- random walk

    @pytest.mark.parametrize("seed", range(4))
    async def test_a_random_walk_agrees_with_the_model(self, case: StoreCase, seed: int) -> None:
        await walk(case, random.Random(seed), steps=200)


def _by_id(records: list[NewRecord], id: bytes) -> NewRecord:
    return next(record for record in records if record.id == id)


def _guarded(leases: list[int], strict: list[int]) -> int:
    """Index of the one lease that may be out of order, the first out of order or 0."""
    return next((n for n, (got, due) in enumerate(zip(leases, strict, strict=True)) if got != due), 0)


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
