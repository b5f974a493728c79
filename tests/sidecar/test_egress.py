"""Egress and its dispatcher on the memory store, in virtual time: what is sent, settled and told."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json

import pytest
from tests.sidecar import virtual_time
from tests.sidecar.egress_bench import HEAD, App, Bench, Reply, changed, in_virtual_time
from tests.sidecar.ways import Way

from openhqm.dispatcher import Dispatcher, Held, Stop
from openhqm.egress import attempt_note
from openhqm.errors import (
    AnswerTooLarge,
    AppAnswerInvalid,
    AppConnectionLost,
    AppTimeout,
    AppUnreachable,
)
from openhqm.lifecycle import Event, Happening
from openhqm.stores.base import Answer, Finish, Lane, Lease, NewRecord, OnLost, State


@pytest.fixture(autouse=True, params=Way)
def way(request, monkeypatch):
    """Every test holds whichever way a request takes."""
    monkeypatch.setattr(App, "way", request.param)


def notes(record):
    return [json.loads(line) for line in record.history.splitlines()]


@in_virtual_time
async def test_answer_is_stored_and_told():
    async with Bench(201) as bench:
        record = await bench.final(await bench.accept())

    assert (record.state, record.reason, record.attempts) == (State.DONE, "", 1)
    assert record.answer == Answer(HEAD % 201, b"answer")
    assert bench.told() == [Happening.LEASED, Happening.ANSWERED]
    assert (bench.events[1].status, bench.events[1].attempt, bench.events[1].body_bytes) == (201, 1, 6)
    [note] = notes(record)
    assert note == {"attempt": 1, "at": 1000.0, "outcome": "answered", "status": 201, "duration_seconds": 0}


@in_virtual_time
async def test_request_that_ended_leaves_no_garbage():
    """A circle of a lease and its call would live until the collector comes, at 2 us for each request."""
    gc.collect()
    gc.disable()
    try:
        async with Bench(200) as bench:
            await bench.final(await bench.accept())

        assert not [each for each in gc.get_objects() if isinstance(each, Held)]
    finally:
        gc.enable()


@in_virtual_time
async def test_busy_app_is_asked_again_after_backoff():
    async with Bench(503, Reply(429, retry_after_seconds=30.0), 200) as bench:
        record = await bench.final(await bench.accept())

    assert (record.state, record.attempts) == (State.DONE, 3)
    assert [note["outcome"] for note in notes(record)] == ["retried", "retried", "answered"]
    first, second, third = (at for at, _, _ in bench.app.calls)
    assert second - first == pytest.approx(1.0, abs=0.1)
    assert third - second == pytest.approx(30.0, abs=0.1)


@in_virtual_time
async def test_last_answer_is_kept_when_the_attempts_are_used_up():
    async with Bench(503, retry={"max_attempts": 3}) as bench:
        record = await bench.final(await bench.accept())

    assert (record.state, record.reason, record.attempts) == (State.FAILED, "attempts-used-up", 3)
    assert record.answer == Answer(HEAD % 503, b"answer")
    assert bench.told().count(Happening.DEAD_LETTERED) == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AppConnectionLost("reset"), "outcome-unknown"),
        (AppTimeout("slow"), "outcome-unknown"),
        (AppAnswerInvalid("garbage"), "invalid-answer"),
        (AnswerTooLarge("big"), "answer-too-large"),
    ],
)
@in_virtual_time
async def test_post_without_an_answer_is_set_aside(error, reason):
    async with Bench(error) as bench:
        record = await bench.final(await bench.accept())

    assert (record.state, record.reason, record.attempts) == (State.FAILED, reason, 1)
    assert record.answer is None
    assert len(bench.app.calls) == 1
    assert notes(record)[0]["error"] == str(error)


@pytest.mark.parametrize("request_", [{"method": b"PUT"}, {"repeat": True}])
@in_virtual_time
async def test_request_that_may_be_repeated_is(request_):
    async with Bench(AppConnectionLost("reset"), 200) as bench:
        record = await bench.final(await bench.accept(**request_))

    assert (record.state, record.attempts) == (State.DONE, 2)


@in_virtual_time
async def test_refused_connection_burns_no_attempt():
    async with Bench(AppUnreachable("refused"), AppUnreachable("refused"), 200) as bench:
        record = await bench.final(await bench.accept())

    assert (record.state, record.attempts, record.claims) == (State.DONE, 1, 0)
    assert bench.told().count(Happening.RELEASED) == 2


@in_virtual_time
async def test_open_breaker_lets_the_queue_wait():
    """While the app refuses, it is asked about once per pause, and nothing is lost or burned."""
    async with Bench(AppUnreachable("refused"), breaker={"failures": 3, "max_open_seconds": 8.0}) as bench:
        ids = await bench.accept(20)
        await asyncio.sleep(60)
        calls_while_down = len(bench.app.calls)
        bench.app.script = [200]
        records = [await bench.final(id) for id in ids]

    assert calls_while_down <= bench.settings.egress.concurrency + 2 + 60 / 8 + 4
    assert {(record.state, record.attempts) for record in records} == {(State.DONE, 1)}


@in_virtual_time
async def test_health_path_is_the_probe_when_there_is_one():
    healthy, asked = [], []

    async def probe():
        asked.append(asyncio.get_running_loop().time())
        return bool(healthy)

    async with Bench(AppUnreachable("refused"), probe_app=probe, breaker={"failures": 1}) as bench:
        id = await bench.accept()
        await asyncio.sleep(20)
        assert len(bench.app.calls) == 1
        healthy.append(True)
        bench.app.script = [200]
        await bench.final(id)

    assert [round(b - a) for a, b in itertools.pairwise(asked)][:3] == [2, 4, 8]


@in_virtual_time
async def test_rate_limit_spaces_requests():
    async with Bench(200, egress={"rate_per_second": 2.0, "concurrency": 8}) as bench:
        for id in await bench.accept(7):
            await bench.final(id)

    times = [at for at, _, _ in bench.app.calls]
    assert times[-1] - times[0] == pytest.approx(3.0, abs=0.05)


@in_virtual_time
async def test_idle_time_costs_no_rate_tokens():
    """A lease call that brings nothing gives its token back."""
    async with Bench(200, egress={"rate_per_second": 0.1}) as bench:
        await asyncio.sleep(65.0)
        id = await bench.accept()
        await bench.final(id)

    assert bench.app.calls[0][0] - virtual_time.START < 66.0


@in_virtual_time
async def test_no_more_than_concurrency_run_at_once_and_all_slots_are_used():
    async with Bench(0.05, egress={"concurrency": 4}) as bench:
        started = bench.loop.time()
        for id in await bench.accept(40):
            await bench.final(id)
        elapsed_seconds = bench.loop.time() - started

    assert bench.app.most_running == 4
    assert elapsed_seconds == pytest.approx(40 * 0.05 / 4, rel=0.05)


@in_virtual_time
async def test_slots_are_filled_by_one_lease_call():
    async with Bench(0.05, egress={"concurrency": 16}) as bench:
        asked = []
        lease = bench.store.lease

        async def counted(limit, **more):
            leases = await lease(limit, **more)
            asked.append(len(leases))
            return leases

        bench.store.lease = counted
        ids = await bench.accept(16)
        await bench.final(ids[-1])

    assert [number for number in asked if number] in ([16], [1, 15])


@in_virtual_time
async def test_slots_that_come_free_during_a_lease_call_are_leased_by_another():
    async with Bench(0.25, egress={"concurrency": 4}) as bench:
        lease = bench.store.lease
        asking = []
        asked_together = set()
        most_leased = []

        async def slow_lease(limit, **more):
            asking.append(limit)
            asked_together.add(len(asking))
            most_leased.append(sum(asking) + bench.egress.in_flight + bench.egress.ahead)
            await asyncio.sleep(0.2)
            leases = await lease(limit, **more)
            asking.remove(limit)
            return leases

        bench.store.lease = slow_lease
        for id in await bench.accept(2) + await bench.accept(20):
            await bench.final(id)

    assert asked_together == {1, 2}
    assert max(most_leased) <= 2 * 4
    assert bench.app.most_running == 4


@in_virtual_time
async def test_half_open_breaker_sends_one_request_whatever_lease_calls_bring():
    async with Bench(AppUnreachable("refused"), 5.0, breaker={"failures": 1}) as bench:
        lease = bench.store.lease

        async def slow_lease(limit, **more):
            await asyncio.sleep(0.5)
            return await lease(limit, **more)

        ids = await bench.accept()
        await asyncio.sleep(0.1)
        bench.store.lease = slow_lease
        await bench.accept(20)
        await asyncio.sleep(6.0)
        running_while_half_open = bench.app.most_running
        await bench.final(ids)

    assert running_while_half_open == 1


@in_virtual_time
async def test_corrupt_envelope_is_a_dead_letter_at_once():
    async with Bench(200) as bench:
        await bench.store.accept([NewRecord(b"c" * 16, b"not an envelope", b"")])
        record = await bench.final(b"c" * 16)

    assert (record.state, record.reason, bench.app.calls) == (State.FAILED, "corrupt", [])


@in_virtual_time
async def test_target_that_nothing_serves_is_a_dead_letter():
    async with Bench(200) as bench:
        record = await bench.final(await bench.accept(target="endpoint:crm"))

    assert (record.state, record.reason, bench.app.calls) == (State.FAILED, "unknown-target", [])


@in_virtual_time
async def test_fault_of_ours_stops_one_request_and_not_the_queue():
    async with Bench(ZeroDivisionError("bug"), 200) as bench:
        first = await bench.final(await bench.accept())
        second = await bench.final(await bench.accept())

    assert (first.state, first.reason) == (State.FAILED, "outcome-unknown")
    assert second.state is State.DONE


@in_virtual_time
async def test_fault_of_ours_after_the_answer_does_the_same():
    class NoReply:
        status = 200

    async with Bench(NoReply(), 200) as bench:
        first = await bench.final(await bench.accept())
        second = await bench.final(await bench.accept())

    assert (first.state, first.reason) == (State.FAILED, "outcome-unknown")
    assert second.state is State.DONE


@in_virtual_time
async def test_lease_is_kept_while_the_app_is_slow():
    async with Bench(500.0, egress={"lease_seconds": 30.0}) as bench:
        id = await bench.accept()
        while bench.app.running or not bench.app.calls:
            await bench.store.sweep()
            await asyncio.sleep(1.0)
        record = await bench.final(id)

    assert (record.state, record.attempts, record.claims, len(bench.app.calls)) == (State.DONE, 1, 0, 1)


@in_virtual_time
async def test_lost_lease_drops_the_result():
    """Somebody else settled the record: our call is stopped and changes nothing."""
    async with Bench(500.0) as bench:
        id = await bench.accept()
        await asyncio.sleep(1.0)
        theirs = Finish(id, bench.app.calls[0][2], State.DONE, Answer(b"theirs"))
        await bench.store.settle([theirs])
        await asyncio.sleep(bench.settings.egress.lease_seconds / 3)
        assert bench.app.interrupted == 1
        assert bench.told()[-1] is Happening.LEASE_LOST
        record = await bench.record(id)

    assert record.answer == Answer(b"theirs")


@in_virtual_time
async def test_answer_for_a_lease_that_is_gone_is_refused_and_told():
    async with Bench(5.0) as bench:
        id = await bench.accept()
        await asyncio.sleep(1.0)
        await bench.store.settle([Finish(id, bench.app.calls[0][2], State.DONE, Answer(b"theirs"))])
        await asyncio.sleep(5.0)
        counts = await bench.store.counts()

    assert (await bench.record(id)).answer == Answer(b"theirs")
    assert counts.stale_settlements >= 1
    assert bench.told() == [Happening.LEASED, Happening.LEASE_LOST]


@in_virtual_time
async def test_cancelling_a_running_request_stops_the_call():
    async with Bench(500.0) as bench:
        id = await bench.accept()
        await asyncio.sleep(1.0)
        await bench.store.cancel(id)
        bench.egress.on_event(Event(Happening.CANCEL_REQUESTED, id))
        record = await bench.final(id)
        elapsed_seconds = bench.loop.time() - bench.app.calls[0][0]
        follower = await bench.accept()
        bench.app.script = [200]
        assert (await bench.final(follower)).state is State.DONE

    assert (record.state, record.may_have_run, bench.app.interrupted) == (State.CANCELLED, True, 1)
    assert elapsed_seconds < 2.0
    assert bench.told()[1] is Happening.CANCELLED


@in_virtual_time
async def test_call_is_abandoned_when_the_lease_cannot_be_renewed():
    async with Bench(500.0, egress={"lease_seconds": 30.0}) as bench:
        await bench.accept()
        await asyncio.sleep(1.0)
        bench.store.broken = frozenset({"extend"})
        await bench.app.was_interrupted.wait()
        abandoned_after_seconds = bench.loop.time() - bench.app.calls[0][0]
        bench.store.broken = frozenset()

    assert 20.0 <= abandoned_after_seconds < 30.0


@in_virtual_time
async def test_answer_is_kept_while_the_store_is_away():
    async with Bench(1.0) as bench:
        id = await bench.accept()
        await asyncio.sleep(0.5)
        bench.store.broken = frozenset({"lease", "settle"})
        await asyncio.sleep(15.0)
        assert (await bench.record(id)).state is State.RUNNING
        bench.store.broken = frozenset()
        record = await bench.final(id)

    assert (record.state, record.attempts, len(bench.app.calls)) == (State.DONE, 1, 1)


@in_virtual_time
async def test_unsettled_answers_are_bounded_while_the_store_cannot_settle():
    async with Bench(200, egress={"concurrency": 4}) as bench:
        bench.store.broken = frozenset({"settle"})
        ids = await bench.accept(500)
        await asyncio.sleep(5.0)
        assert len(bench.app.calls) == 4 + 64
        bench.store.broken = frozenset()
        records = [await bench.final(id) for id in ids]

    assert {record.state for record in records} == {State.DONE}


@in_virtual_time
async def test_retry_that_would_come_after_the_deadline_is_not_scheduled():
    async with Bench(503) as bench:
        record = await bench.final(await bench.accept(max_age_seconds=0.5))

    assert (record.state, record.reason, record.attempts) == (State.FAILED, "deadline", 1)
    assert record.answer == Answer(HEAD % 503, b"answer")


@in_virtual_time
async def test_deadline_is_checked_once_more_before_the_attempt():
    """The process stood still between lease and attempt."""
    loop = asyncio.get_running_loop()

    def stand_still(step):
        loop.now += 10.0 if step == "claimed" else 0.0

    async with Bench(200, checkpoint=stand_still) as bench:
        record = await bench.final(await bench.accept(max_age_seconds=5.0))

    assert (record.state, record.attempts, bench.app.calls) == (State.EXPIRED, 0, [])
    assert bench.told() == [Happening.LEASED, Happening.EXPIRED]


@in_virtual_time
async def test_retries_are_held_back_while_the_app_fails_broadly():
    """What is held back is released: it waits, and burns no attempt."""
    async with Bench(429, retry={"max_attempts": 20, "max_backoff_seconds": 5.0}) as bench:
        await bench.accept(100)
        await asyncio.sleep(60.0)
        bench.app.script = [200]
        await asyncio.sleep(120.0)
        counts = await bench.store.counts()

    retries = len([at for at, _, _ in bench.app.calls if at < 1060.0]) - 100
    assert 30 <= retries <= 60 + 0.1 * 100 + 40
    assert counts.done == 100


@in_virtual_time
async def test_drain_lets_what_is_in_flight_finish():
    async with Bench(5.0, egress={"concurrency": 2}) as bench:
        ids = await bench.accept(10)
        await asyncio.sleep(1.0)
        await bench.egress.drain(20.0)
        states = [(await bench.record(id)).state for id in ids]

    assert states == [State.DONE] * 2 + [State.QUEUED] * 8
    assert bench.app.interrupted == 0


@pytest.mark.parametrize(
    ("method", "state", "reason"),
    [(b"POST", State.FAILED, "outcome-unknown"), (b"PUT", State.RETRYING, "")],
)
@in_virtual_time
async def test_drain_judges_what_it_interrupts_like_a_lost_connection(method, state, reason):
    async with Bench(500.0) as bench:
        id = await bench.accept(method=method)
        await asyncio.sleep(1.0)
        await bench.egress.drain(2.0)
        record = await bench.record(id)

    assert (record.state, record.reason, record.attempts) == (state, reason, 1)
    assert bench.app.interrupted == 1


@in_virtual_time
async def test_leases_that_arrive_during_a_drain_are_released():
    async with Bench(200) as bench:
        await asyncio.sleep(0.5)  # a lease call is waiting in the store
        bench.egress.stop_leasing()
        id = await bench.accept()
        await bench.egress.quiet()
        record = await bench.record(id)
        assert (record.state, record.attempts, bench.app.calls) == (State.QUEUED, 0, [])
        bench.egress.resume()
        assert (await bench.final(id)).state is State.DONE


@in_virtual_time
async def test_drain_of_an_idle_process_takes_no_time():
    """The lease call that waits in the store is cancelled, not waited for."""
    async with Bench(200) as bench:
        await asyncio.sleep(0.5)
        began_at = bench.loop.time()
        await bench.egress.drain(20.0)
        assert bench.loop.time() == began_at


@in_virtual_time
async def test_a_loop_that_is_cancelled_while_it_is_told_to_stop_ends():
    bench = Bench(200)
    await bench.store.open()
    running = asyncio.create_task(bench.egress.run())
    await asyncio.sleep(0.5)

    bench.egress.stop_leasing()
    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running


@in_virtual_time
async def test_stop_and_resume():
    async with Bench(200) as bench:
        bench.egress.stop_leasing()
        await bench.egress.quiet()
        id = await bench.accept()
        await asyncio.sleep(5.0)
        assert bench.app.calls == []
        bench.egress.resume()
        await bench.final(id)


@in_virtual_time
async def test_paused_store_leases_nothing():
    async with Bench(200) as bench:
        await bench.store.pause(True)
        id = await bench.accept()
        await asyncio.sleep(5.0)
        assert bench.app.calls == []
        await bench.store.pause(False)
        assert (await bench.final(id)).state is State.DONE


@in_virtual_time
async def test_pausing_by_settings_sends_nothing_until_it_is_taken_back():
    async with Bench(200) as bench:
        running = bench.settings
        bench.egress.apply(changed(running, paused=True))
        id = await bench.accept()
        await asyncio.sleep(5.0)
        assert bench.app.calls == []
        bench.egress.apply(running)
        assert (await bench.final(id)).state is State.DONE


@in_virtual_time
async def test_cancelling_the_loop_leaves_leases_to_lapse():
    """As a crash does: R4 judges them, nothing is settled on the way out."""
    bench = Bench(500.0)
    await bench.store.open()
    running = asyncio.create_task(bench.egress.run())
    id = await bench.accept(on_lost=OnLost.UNKNOWN)
    await asyncio.sleep(1.0)

    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await asyncio.sleep(bench.settings.egress.lease_seconds)
    await bench.store.sweep()

    record = await bench.record(id)
    assert (record.state, record.reason) == (State.FAILED, "outcome-unknown")
    assert bench.app.interrupted == 1


@in_virtual_time
async def test_settlement_under_way_survives_cancellation():
    bench = Bench(200)
    await bench.store.open()
    settle, entered = bench.store.settle, asyncio.Event()

    async def slow_settle(settlements):
        entered.set()
        await asyncio.sleep(1.0)
        return await settle(settlements)

    bench.store.settle = slow_settle
    running = asyncio.create_task(bench.egress.run())
    id = await bench.accept()
    await entered.wait()

    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running

    assert (await bench.record(id)).state is State.DONE


@in_virtual_time
async def test_handler_targets_are_served():
    async with Bench(200) as bench:
        record = await bench.final(await bench.accept(target="handler:echo"))

    assert record.state is State.DONE


@pytest.mark.parametrize("status", [200, 404, 500])
@in_virtual_time
async def test_an_ordinary_answer_is_settled_as_any_other(status):
    """What is decided in one step for most answers is what the table and the breaker come to."""
    settled = []
    for checkpoint in (None, lambda step: None):  # somebody who watches the steps gets all of them
        async with Bench(status, checkpoint=checkpoint) as bench:
            record = await bench.final(await bench.accept())
        breaker = bench.egress._breaker
        answered = bench.events[-1]
        note = json.loads(record.history)
        note["at"] = round(note["at"] - record.started_at, 6)
        settled.append((record.state, record.attempts, record.reason, record.answer, note))
        settled[-1] += (answered.what, answered.status, answered.attempt, answered.body_bytes)
        settled[-1] += (breaker._calls, breaker._failed, bench.egress._budget.failing_share)

    assert settled[0] == settled[1]


@in_virtual_time
async def test_checkpoints_come_in_the_order_of_the_steps():
    steps = []

    async with Bench(200, checkpoint=steps.append) as bench:
        await bench.final(await bench.accept())

    assert steps == ["claimed", "before-store", "after-store", "after-ack"]


@in_virtual_time
async def test_figures_follow_the_work():
    async with Bench(5.0, egress={"concurrency": 3}) as bench:
        assert (bench.egress.in_flight, bench.egress.concurrency) == (0, 3)
        ids = await bench.accept(2)
        await asyncio.sleep(1.0)
        assert bench.egress.in_flight == 2
        await bench.final(ids[1])
        assert bench.egress.in_flight == 0


@pytest.mark.parametrize("concurrency", [1, 2, 9, 20])
@in_virtual_time
async def test_concurrency_can_be_changed_while_work_is_under_way(concurrency):
    async with Bench(1.0, egress={"concurrency": 5}) as bench:
        ids = await bench.accept(60)
        await asyncio.sleep(0.5)
        bench.egress.apply(changed(bench.settings, concurrency=concurrency))
        await asyncio.sleep(1.0)
        bench.app.most_running = 0
        await asyncio.sleep(1.25)
        assert (bench.app.running, bench.egress.in_flight) == (concurrency, concurrency)
        for id in ids:
            await bench.final(id)

    assert bench.app.most_running == concurrency


@in_virtual_time
async def test_leases_for_slots_that_are_gone_are_released():
    async with Bench(1.0, egress={"concurrency": 8}) as bench:
        await asyncio.sleep(0.5)  # a lease call for eight waits in the store
        bench.egress.apply(changed(bench.settings, concurrency=2))
        for id in await bench.accept(8):
            assert (await bench.final(id)).attempts == 1

    assert bench.app.most_running == 2


@in_virtual_time
async def test_rate_can_be_changed():
    async with Bench(200, egress={"rate_per_second": 0.001}) as bench:
        ids = await bench.accept(20)
        await asyncio.sleep(5.0)
        assert len(bench.app.calls) == 1
        bench.egress.apply(changed(bench.settings, rate_per_second=0.0))
        for id in ids:
            await bench.final(id)

    assert bench.app.calls[-1][0] - bench.app.calls[0][0] < 7.0


@in_virtual_time
async def test_lease_interrupted_before_its_slot_turned_to_it_is_not_sent():
    """The client cancels, or the drain ends, between the lease call and the first step of the slot."""
    async with Bench(200) as bench:
        dispatcher = bench.egress._dispatcher
        assert isinstance(dispatcher, Dispatcher)
        taken = bench.egress.taken

        def interrupt(batch):
            taken(batch)
            for held in batch:
                dispatcher._interrupt(held, Stop.DRAIN)
            bench.egress.taken = taken

        bench.egress.taken = interrupt
        record = await bench.final(await bench.accept())

    assert (record.state, record.attempts, len(bench.app.calls)) == (State.DONE, 1, 1)
    assert (record.claims, record.epoch) == (0, 2)


@in_virtual_time
async def test_kill_wins_over_a_cancellation_of_the_same_moment():
    bench = Bench(500.0)
    await bench.store.open()
    running = asyncio.create_task(bench.egress.run())
    id = await bench.accept()
    await asyncio.sleep(1.0)
    extend = bench.store.extend

    async def extend_and_kill(leases, **more):
        running.cancel()
        return await extend(leases, **more)

    bench.store.extend = extend_and_kill
    await bench.store.cancel(id)
    bench.egress.on_event(Event(Happening.CANCEL_REQUESTED, id))

    with contextlib.suppress(asyncio.CancelledError):
        await running

    assert bench.app.interrupted == 1
    assert (await bench.record(id)).state is State.RUNNING


def test_attempt_note_is_short_and_holds_no_zeroes():
    lease = Lease(b"i" * 16, 3, 2, 0, b"", b"", 0.0, None)

    note = json.loads(attempt_note(lease, "timeout", at=12.3456, duration_seconds=1.5, error="x" * 1000))

    assert note == {
        "attempt": 2,
        "at": 12.346,
        "outcome": "timeout",
        "duration_seconds": 1.5,
        "error": "x" * 200,
    }


@in_virtual_time
async def test_callback_lane_is_left_alone():
    async with Bench(200) as bench:
        await bench.final(await bench.accept(callback=b"{}"))
        await asyncio.sleep(2.0)
        assert (await bench.store.counts(Lane.CALLBACKS)).queued == 1
