"""The store contract: records that a broker carries."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from tests.conformance.store_case import (
    LONG_SECONDS,
    StoreCase,
    fresh_id,
    get_one,
    new,
    reach_its_wait,
    take,
    take_one,
)
from tests.conformance.store_endings import ANSWER, KEYED, ODD_BYTES, done
from tests.conformance.store_fixtures import StoreFixtures

from openhqm.stores.base import (
    Accepted,
    Answer,
    Arrival,
    Existing,
    Finish,
    Lane,
    NewRecord,
    OnLost,
    Options,
    Outbound,
    Refusal,
    Refused,
    Release,
    Replay,
    Retry,
    Stage,
    State,
    Store,
    Want,
)


async def hand_out(
    store: Store, limit: int = 10, *, hold_seconds: float = LONG_SECONDS, wait_seconds: float = 0.0
) -> Sequence[Outbound]:
    return await store.outbound(limit, hold_seconds=hold_seconds, wait_seconds=wait_seconds)


def outbound(**changes: object) -> NewRecord:
    return new(outbound=True, **changes)


async def carried(store: Store, **changes: object) -> NewRecord:
    """A record that the broker has."""
    record = outbound(**changes)
    await store.accept([record])
    assert [each.id for each in await hand_out(store)] == [record.id]
    assert await store.carried([record.id]) == [True]
    return record


def back(record: NewRecord, **changes: object) -> NewRecord:
    """The message of *record*, as intake makes it."""
    fields = {name: getattr(record, name) for name in NewRecord.__slots__}
    return NewRecord(**{**fields, "outbound": False, "idempotency": None, **changes})


class OutboundContract(StoreFixtures):
    # publishing

    async def test_an_outbound_record_is_queued_and_not_leased(self, store: Store) -> None:
        record = outbound()
        assert await store.accept([record]) == [Accepted(record.id)]
        assert await take(store) == []
        found = await get_one(store, record.id)
        assert (found.state, found.stage, found.position) == (State.QUEUED, Stage.PUBLISHING, None)
        counts = await store.counts()
        assert (counts.queued, counts.publishing, counts.carried, counts.delayed) == (1, 1, 0, 0)
        assert counts.oldest_ready_at is None

    async def test_it_is_handed_out_as_it_was_accepted(self, store: Store, case: StoreCase) -> None:
        before = await case.now()
        record = outbound(body=b"\x00body", key=b"k", priority=7, deadline=before + LONG_SECONDS)
        await store.accept([record])
        [found] = await hand_out(store)
        assert (found.id, found.envelope, found.body) == (record.id, record.envelope, b"\x00body")
        assert (found.key, found.priority) == (b"k", 7)
        assert found.deadline == pytest.approx(record.deadline)
        assert before <= found.accepted_at <= await case.now()

    async def test_they_are_handed_out_in_order_of_acceptance(self, store: Store) -> None:
        records = [outbound(priority=number % 10) for number in range(12)]
        await store.accept(records)
        found = [*await hand_out(store, 5), *await hand_out(store, 20)]
        assert [each.id for each in found] == [record.id for record in records]

    async def test_one_that_is_handed_out_is_hidden_for_a_while(self, store: Store, case: StoreCase) -> None:
        record = outbound()
        await store.accept([record])
        [first] = await hand_out(store, hold_seconds=2 * case.tick_seconds)
        assert await hand_out(store) == []
        await case.pass_time(3 * case.tick_seconds)
        assert await hand_out(store) == [first]

    async def test_one_whose_hold_ended_goes_before_younger_ones(self, store: Store, case: StoreCase) -> None:
        older, younger = outbound(), outbound()
        await store.accept([older])
        await hand_out(store, hold_seconds=case.tick_seconds)
        await store.accept([younger])
        await case.pass_time(2 * case.tick_seconds)
        assert [each.id for each in await hand_out(store)] == [older.id, younger.id]

    async def test_waiting_ends_when_one_is_accepted(self, raw: Store) -> None:
        waiting = asyncio.create_task(hand_out(raw, wait_seconds=5.0))
        await reach_its_wait()
        record = outbound()
        await raw.accept([record])
        assert [each.id for each in await waiting] == [record.id]

    async def test_waiting_ends_when_a_hold_ends(self, raw: Store, case: StoreCase) -> None:
        record = outbound()
        await raw.accept([record])
        await hand_out(raw, hold_seconds=2 * case.tick_seconds)
        waiting = asyncio.create_task(hand_out(raw, wait_seconds=5.0))
        await reach_its_wait()
        await case.pass_time(3 * case.tick_seconds)
        assert [each.id for each in await waiting] == [record.id]

    async def test_waiting_ends_empty(self, store: Store) -> None:
        assert await hand_out(store, wait_seconds=0.01) == []

    async def test_a_paused_store_hands_out_none(self, store: Store) -> None:
        await store.accept([outbound()])
        await store.pause(True)
        assert await hand_out(store) == []
        await store.pause(False)
        assert len(await hand_out(store)) == 1

    async def test_idempotency_holds_for_outbound_records(self, store: Store) -> None:
        record = outbound(idempotency=KEYED)
        await store.accept([record])
        assert await store.accept([outbound(idempotency=KEYED)]) == [Existing(record.id)]

    async def test_admission_counts_them(self, case: StoreCase) -> None:
        store = await case.open(Options(max_backlog=1))
        await carried(store)
        assert await store.accept([outbound()]) == [Refused(Refusal.BACKLOG_FULL)]

    async def test_what_the_broker_refuses_becomes_a_dead_letter(self, store: Store) -> None:
        record = outbound(body=b"too large")
        await store.accept([record])
        await hand_out(store)
        refused = Finish(record.id, 0, State.FAILED, reason="refused-by-broker", sent=False)
        assert await store.settle([refused]) == [True]
        found = await get_one(store, record.id, Want.REQUEST)
        assert (found.state, found.attempts, found.stage) == (State.FAILED, 0, Stage.HERE)
        assert found.request == (record.envelope, b"too large")
        assert await hand_out(store) == []

    async def test_a_dead_letter_is_replayed_through_the_broker(self, store: Store) -> None:
        record = outbound(body=b"body")
        await store.accept([record])
        await store.settle([Finish(record.id, 0, State.FAILED, sent=False)])
        again = fresh_id()
        assert await store.replay([Replay(record.id, again, outbound=True)]) == [True]
        [found] = await hand_out(store)
        assert (found.id, found.body) == (again, b"body")
        assert await take(store) == []

    # carried

    async def test_a_carried_record_has_no_request_here(self, store: Store) -> None:
        record = outbound(body=b"x" * 1000)
        await store.accept([record])
        held = (await store.counts()).bytes
        assert await store.carried([record.id]) == [True]
        found = await get_one(store, record.id, Want.REQUEST)
        assert (found.state, found.stage, found.request) == (State.QUEUED, Stage.CARRIED, None)
        counts = await store.counts()
        assert (counts.queued, counts.publishing, counts.carried, counts.delayed) == (1, 0, 1, 0)
        assert counts.bytes == held - 1000 - len(record.envelope)
        assert await take(store) == []
        assert await hand_out(store) == []

    async def test_carried_is_said_once_and_of_publishing_records_only(self, store: Store) -> None:
        record, ordinary, cancelled = outbound(), new(), outbound()
        await store.accept([record, ordinary, cancelled])
        await store.cancel(cancelled.id)
        ids = [record.id, ordinary.id, cancelled.id, fresh_id(), record.id]
        assert await store.carried(ids) == [True, False, False, False, False]

    @pytest.mark.parametrize("is_carried", [False, True], ids=["publishing", "carried"])
    async def test_cancelling_one_that_is_away_counts_as_an_attempt(
        self, store: Store, is_carried: bool
    ) -> None:
        record = outbound(idempotency=KEYED, callback=b"callback")
        await store.accept([record])
        if is_carried:
            await store.carried([record.id])
        found = await store.cancel(record.id)
        assert found is not None
        assert (found.state, found.attempts, found.may_have_run) == (State.CANCELLED, 1, True)
        assert (found.stage, await hand_out(store)) == (Stage.HERE, [])
        # Its outcome is not known, so its key stays taken.
        assert await store.accept([outbound(idempotency=KEYED)]) == [Existing(record.id)]
        assert (await store.counts(Lane.CALLBACKS)).queued == 1

    @pytest.mark.parametrize("is_carried", [False, True], ids=["publishing", "carried"])
    async def test_one_that_is_away_expires(self, store: Store, case: StoreCase, is_carried: bool) -> None:
        record = outbound(max_age_seconds=2 * case.tick_seconds)
        await store.accept([record])
        if is_carried:
            await store.carried([record.id])
        await case.pass_time(3 * case.tick_seconds)
        changes = await store.sweep()
        assert [(change.id, change.state) for change in changes] == [(record.id, State.EXPIRED)]
        found = await get_one(store, record.id)
        assert (found.attempts, found.may_have_run) == (1, True)
        counts = await store.counts()
        assert (counts.publishing, counts.carried, counts.expired) == (0, 0, 1)

    async def test_one_that_is_too_late_is_not_handed_out(self, store: Store, case: StoreCase) -> None:
        await store.accept([outbound(max_age_seconds=case.tick_seconds)])
        await case.pass_time(2 * case.tick_seconds)
        assert await hand_out(store) == []
        assert (await store.counts()).expired == 1

    # settled from outside

    @pytest.mark.parametrize("is_carried", [False, True], ids=["publishing", "carried"])
    async def test_an_answer_from_outside_ends_it_once(self, store: Store, is_carried: bool) -> None:
        record = outbound(callback=b"callback")
        await store.accept([record])
        if is_carried:
            await store.carried([record.id])
        answers = [Finish(record.id, 0, State.DONE, Answer(b"head", body)) for body in (b"one", b"two")]
        assert await store.settle(answers) == [True, False]
        found = await get_one(store, record.id, Want.ANSWER)
        assert (found.state, found.attempts, found.stage) == (State.DONE, 1, Stage.HERE)
        assert found.answer == Answer(b"head", b"one")
        counts = await store.counts()
        assert (counts.done, counts.publishing, counts.carried, counts.stale_settlements) == (1, 0, 0, 1)
        assert (await store.counts(Lane.CALLBACKS)).queued == 1

    async def test_one_that_failed_away_has_no_request_to_replay(self, store: Store) -> None:
        record = await carried(store)
        assert await store.settle([Finish(record.id, 0, State.FAILED, reason="given-up")]) == [True]
        assert await store.replay([Replay(record.id, fresh_id())]) == [False]
        assert (await store.counts()).dead_letters == 1

    async def test_only_an_end_is_settled_at_epoch_0(self, store: Store) -> None:
        record = await carried(store)
        assert await store.settle([Retry(record.id, 0, 0.0), Release(record.id, 0)]) == [False, False]
        assert (await store.counts()).stale_settlements == 2

    async def test_epoch_0_is_nothing_for_a_record_that_is_here(self, store: Store) -> None:
        waiting, leased = new(), new()
        await store.accept([leased, waiting])
        lease = await take_one(store)
        ends = [Finish(id, 0, State.DONE, ANSWER) for id in (waiting.id, lease.id)]
        assert await store.settle(ends) == [False, False]

    # back

    @pytest.mark.parametrize("body", ODD_BYTES)
    async def test_one_that_comes_back_can_be_leased(self, store: Store, body: bytes) -> None:
        record = await carried(store, body=body, priority=3)
        assert await store.arrive([back(record)]) == [Arrival.RETURNED]
        lease = await take_one(store)
        assert (lease.id, lease.epoch, lease.attempt) == (record.id, 1, 1)
        assert (lease.envelope, lease.body, lease.priority) == (record.envelope, body, 3)
        assert await store.settle([done(lease)]) == [True]
        counts = await store.counts()
        assert (counts.accepted, counts.done, counts.carried) == (1, 1, 0)

    async def test_it_may_come_back_before_it_is_known_to_be_carried(self, store: Store) -> None:
        record = outbound(body=b"b")
        await store.accept([record])
        await hand_out(store)
        assert await store.arrive([back(record)]) == [Arrival.RETURNED]
        assert await store.carried([record.id]) == [False]
        assert (await take_one(store)).body == b"b"
        assert await hand_out(store) == []

    async def test_it_comes_back_once(self, store: Store) -> None:
        record = await carried(store)
        assert await store.arrive([back(record), back(record)]) == [Arrival.RETURNED, Arrival.KNOWN]
        lease = await take_one(store)
        assert await store.arrive([back(record)]) == [Arrival.KNOWN]
        await store.settle([done(lease)])
        assert await store.arrive([back(record)]) == [Arrival.KNOWN]
        assert await take(store) == []

    async def test_one_that_was_cancelled_meanwhile_stays_so(self, store: Store) -> None:
        record = await carried(store)
        await store.cancel(record.id)
        assert await store.arrive([back(record)]) == [Arrival.KNOWN]
        assert await take(store) == []

    async def test_a_delay_goes_on_after_the_return(self, store: Store, case: StoreCase) -> None:
        record = await carried(store, delay_seconds=3 * case.tick_seconds)
        assert await store.arrive([back(record)]) == [Arrival.RETURNED]
        assert await take(store) == []
        assert (await store.counts()).delayed == 1
        await case.pass_time(4 * case.tick_seconds)
        assert (await take_one(store)).id == record.id

    async def test_a_return_wakes_who_waits_to_lease(self, raw: Store) -> None:
        record = await carried(raw)
        waiting = asyncio.create_task(take(raw, wait_seconds=5.0))
        await reach_its_wait()
        await raw.arrive([back(record)])
        assert [lease.id for lease in await waiting] == [record.id]

    async def test_a_return_asks_for_no_admission(self, case: StoreCase) -> None:
        store = await case.open(Options(max_backlog=1))
        record = await carried(store)
        assert await store.arrive([back(record)]) == [Arrival.RETURNED]

    async def test_a_key_waits_for_its_first_record_wherever_it_is(self, store: Store) -> None:
        first = await carried(store, key=b"k")
        second = new(key=b"k")
        await store.accept([second, new(key=b"other")])
        assert [lease.key for lease in await take(store, 5)] == [b"other"]
        await store.arrive([back(first)])
        lease = await take_one(store)
        assert lease.id == first.id
        assert await take(store) == []
        await store.settle([done(lease)])
        assert (await take_one(store)).id == second.id

    async def test_a_key_goes_on_when_its_first_record_ends_away(self, store: Store) -> None:
        first = await carried(store, key=b"k")
        second = await carried(store, key=b"k")
        assert await store.arrive([back(second)]) == [Arrival.RETURNED]
        assert await take(store) == []
        await store.cancel(first.id)
        assert (await take_one(store)).id == second.id

    # from elsewhere

    async def test_an_unknown_message_becomes_a_record(self, store: Store, case: StoreCase) -> None:
        deadline = await case.now() + LONG_SECONDS
        record = new(body=b"b", key=b"k", on_lost=OnLost.REPEAT, deadline=deadline)
        assert await store.arrive([record, record]) == [Arrival.TAKEN_IN, Arrival.KNOWN]
        lease = await take_one(store)
        assert (lease.id, lease.body, lease.key) == (record.id, b"b", b"k")
        assert lease.deadline == pytest.approx(deadline)
        assert (await store.counts()).accepted == 1

    async def test_an_unknown_one_that_is_too_late_is_not_stored(self, store: Store, case: StoreCase) -> None:
        record = new(deadline=await case.now() - 1.0)
        assert await store.arrive([record]) == [Arrival.TOO_LATE]
        assert await store.get([record.id]) == [None]
        assert (await store.counts()).accepted == 0

    async def test_unknown_ones_ask_for_admission(self, case: StoreCase) -> None:
        store = await case.open(Options(max_backlog=1))
        first, second = new(), new()
        assert await store.arrive([first, second]) == [Arrival.TAKEN_IN, Refused(Refusal.BACKLOG_FULL)]
        await store.settle([done(await take_one(store))])
        assert await store.arrive([second]) == [Arrival.TAKEN_IN]

    # what stays

    async def test_stages_outlive_the_process(self, case: StoreCase, options: Options) -> None:
        if not case.durable:
            pytest.skip("this store ends with its process")
        store = await case.open(options)
        away = await carried(store, body=b"away", deadline=await case.now() + LONG_SECONDS)
        waiting = outbound(body=b"waiting")
        await store.accept([waiting])
        await hand_out(store, hold_seconds=case.tick_seconds)
        await store.close()
        await case.pass_time(2 * case.tick_seconds)
        store = await case.open(options)
        counts = await store.counts()
        assert (counts.publishing, counts.carried, counts.conserved) == (1, 1, True)
        assert [each.id for each in await hand_out(store)] == [waiting.id]
        assert await store.arrive([back(away)]) == [Arrival.RETURNED]
        assert (await take_one(store)).body == b"away"
