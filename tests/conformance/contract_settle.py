"""How a lease ends, and how a record ends without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.conformance.store_case import (
    StoreCase,
    fresh_id,
    get_one,
    new,
    take,
    take_one,
)
from tests.conformance.store_endings import (
    ANSWER,
    done,
    failed,
    settlements,
)
from tests.conformance.store_fixtures import StoreFixtures

from openhqm.stores.base import (
    Answer,
    Change,
    Extension,
    Finish,
    Lease,
    OnLost,
    Release,
    Retry,
    Settlement,
    State,
    Store,
    Want,
)


class SettleContract(StoreFixtures):
    """Part of `StoreContract`."""

    # -- settle

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

    # -- cancel

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

    # -- deadline

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
