"""Leases that wait ahead of the slots: when there are some, and that whatever stops them, they are not sent.

In virtual time. The tests of the first part hold whichever way a request takes. The app of the second
takes it on inside `begin`, as the forwarder does on kept connections: what is begun counts as sent, even
if it is stopped in the same turn of the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.sidecar import egress_bench
from tests.sidecar.egress_bench import Bench, Reply, changed, in_virtual_time
from tests.sidecar.ways import Way

from openhqm.stores.base import Extension, State

SLOTS = 8


@pytest.fixture(params=Way)
def way(request, monkeypatch):
    monkeypatch.setattr(egress_bench.App, "way", request.param)


in_every_way = pytest.mark.usefixtures("way")


async def with_leases_ahead(bench, *, requests=400):
    """Have *bench* work until leases wait ahead, on an app that comes to a halt then; returns the ids.

    Eight attempts of 1 ms end while a lease call of 10 ms is under way, more than eight slots may hold.
    """
    bench.store.lease_takes_seconds = 0.01
    ids = await bench.accept(requests)
    while bench.egress.ahead < 8:
        await asyncio.sleep(0.0005)
    bench.app.script = [halt := asyncio.Event()]
    while bench.app.running < 8:
        await asyncio.sleep(0.0005)
    assert bench.app.most_running == 8
    return ids, halt


def short_attempts(**egress):
    return Bench(0.001, egress={"concurrency": 8, **egress})


@in_every_way
@in_virtual_time
async def test_slots_wait_for_the_store_only_until_it_is_known_to_be_slower_than_the_app():
    loop = asyncio.get_running_loop()
    async with short_attempts() as bench:
        bench.store.lease_takes_seconds = 0.004
        ids = await bench.accept(2000)
        for id in ids[:1000]:
            await bench.final(id)
        half = loop.time()
        for id in ids[1000:]:
            await bench.final(id)

    # 8 slots of 1 ms take 125 ms; without leases ahead each batch of them waits 4 ms and it takes 625.
    assert loop.time() - half < 0.4
    assert bench.app.most_running == 8


@in_every_way
@in_virtual_time
async def test_nothing_is_leased_ahead_where_attempts_are_long():
    async with Bench(5.0, egress={"concurrency": 4}) as bench:
        bench.store.lease_takes_seconds = 0.01
        ids = await bench.accept(40)
        most = 0
        for _ in range(100):
            await asyncio.sleep(0.5)
            most = max(most, bench.egress.ahead)
        for id in ids:
            await bench.final(id)

    assert most <= 1


@in_every_way
@in_virtual_time
async def test_drain_gives_back_what_waits_ahead():
    async with short_attempts() as bench:
        _, halt = await with_leases_ahead(bench)
        sent = len(bench.app.calls)
        bench.egress.stop_leasing()
        halt.set()
        await bench.egress.quiet()
        counts = await bench.store.counts()

    assert (bench.egress.ahead, counts.running, len(bench.app.calls)) == (0, 0, sent)
    assert counts.conserved


@in_every_way
@in_virtual_time
async def test_pause_gives_back_what_waits_ahead():
    async with short_attempts() as bench:
        ids, halt = await with_leases_ahead(bench)
        sent = len(bench.app.calls)
        bench.egress.apply(changed(bench.settings, paused=True))
        halt.set()
        await asyncio.sleep(5.0)
        assert (bench.egress.ahead, len(bench.app.calls)) == (0, sent)
        bench.egress.apply(bench.settings)
        bench.egress._dispatcher.wake()
        records = [await bench.final(id) for id in ids]

    assert {(record.state, record.attempts) for record in records} == {(State.DONE, 1)}


@in_every_way
@in_virtual_time
async def test_what_waits_ahead_of_an_app_that_came_to_a_halt_is_given_back():
    """Another process may run it; here it is leased again when there is a slot."""
    async with short_attempts(lease_seconds=30.0) as bench:
        ids, halt = await with_leases_ahead(bench)
        await asyncio.sleep(15.0)
        assert bench.egress.ahead == 0
        assert (await bench.store.counts()).running == 8
        halt.set()
        records = [await bench.final(id) for id in ids]

    assert {(record.state, record.attempts) for record in records} == {(State.DONE, 1)}
    assert len(bench.app.calls) == len(ids)


@in_every_way
@in_virtual_time
async def test_request_cancelled_while_it_waits_ahead_is_not_sent():
    async with short_attempts() as bench:
        _, halt = await with_leases_ahead(bench)
        id = bench.egress._dispatcher._ahead[-1].lease.id
        await bench.store.cancel(id)
        bench.egress._dispatcher.renew_soon()
        await asyncio.sleep(0.1)
        halt.set()
        record = await bench.final(id)

    assert (record.state, record.attempts) == (State.CANCELLED, 0)
    assert id not in {called for _, called, _ in bench.app.calls}


class Call:
    """A request at the app, which answers it later or never."""

    def __init__(self, app: App, tell: Callable[[], None]) -> None:
        self._app = app
        self._tell = tell

    def answer(self) -> None:
        if self in self._app.open:
            self._app.open.remove(self)
            self._tell()

    def outcome(self) -> Reply:
        return Reply(200)

    def cancel(self) -> None:
        if self in self._app.open:
            self._app.open.remove(self)


class App:
    """Takes a millisecond for a request until it is halted."""

    def __init__(self) -> None:
        self.is_halted = False
        self.begun: list[tuple[float, bytes]] = []
        self.open: list[Call] = []

    def begin(
        self, envelope: Any, body: Any, tell: Callable[[], None], *, record_id: bytes, epoch: int
    ) -> Call:
        loop = asyncio.get_running_loop()
        self.begun.append((loop.time(), record_id))
        self.open.append(call := Call(self, tell))
        if not self.is_halted:
            loop.call_later(0.001, call.answer)
        return call

    def go_on(self) -> None:
        self.is_halted = False
        for call in list(self.open):
            call.answer()

    def sent_since(self, begun: int) -> set[bytes]:
        return {id for _, id in self.begun[begun:]}


@asynccontextmanager
async def halted() -> AsyncIterator[tuple[Bench, App, int]]:
    """A bench whose app was fast and came to a halt, and how many requests were sent until then."""
    bench, app = Bench(200, egress={"concurrency": SLOTS}), App()
    bench.egress._runners = {"app": app}
    async with bench:
        bench.store.lease_takes_seconds = 0.01
        ids = await bench.accept(400)
        for id in ids[:200]:
            await bench.final(id)
        app.is_halted = True
        await asyncio.sleep(0.1)
        assert bench.egress.in_flight == SLOTS
        yield bench, app, len(app.begun)


async def nothing_to_lease(*_: Any, wait_seconds: float, **__: Any) -> Sequence[Any]:
    await asyncio.sleep(wait_seconds)
    return []


def leased(bench: Bench) -> set[bytes]:
    return {held.lease.id for held in bench.egress._dispatcher._held}


@in_virtual_time
async def test_leases_the_store_says_are_lost_are_not_sent():
    """The attempts stopped first free slots for those whose own answer is read next."""
    async with halted() as (bench, app, begun):
        assert bench.egress.ahead > 0
        held = leased(bench)
        extend = bench.store.extend

        async def all_lost(leases: Sequence[Any], **_: Any) -> list[Extension]:
            return [Extension.LOST] * len(leases)

        bench.store.lease, bench.store.extend = nothing_to_lease, all_lost
        bench.egress._dispatcher.renew_soon()
        await asyncio.sleep(0.05)
        bench.store.extend = extend

        assert bench.egress.in_flight == 0
        assert not app.sent_since(begun) & held


@in_virtual_time
async def test_cancelled_requests_are_final_at_once_and_not_sent():
    async with halted() as (bench, app, begun):
        assert bench.egress.ahead > 0
        held = leased(bench)
        bench.store.lease = nothing_to_lease
        for id in held:
            await bench.store.cancel(id)
        bench.egress._dispatcher.renew_soon()
        await asyncio.sleep(0.05)

        assert not app.sent_since(begun) & held
        records = await bench.store.get(list(held))
        assert {record.state for record in records if record} == {State.CANCELLED}


@in_virtual_time
async def test_process_that_stood_still_sends_none_of_its_old_leases():
    async with halted() as (bench, app, begun):
        ahead = {held.lease.id for held in bench.egress._dispatcher._ahead}
        assert ahead
        bench.store.lease = nothing_to_lease
        bench.loop.now += 60.0
        await bench.store.sweep()  # another process, meanwhile
        for call in list(app.open):
            call.answer()  # sockets are read before timers

        assert not app.sent_since(begun) & ahead


@in_virtual_time
async def test_leases_that_come_behind_a_pause_are_not_sent():
    async with halted() as (bench, app, begun):
        bench.egress._dispatcher._give_back()
        bench.store.lease_takes_seconds = 0.05
        bench.egress._dispatcher.wake()
        await asyncio.sleep(0.001)
        bench.egress.apply(changed(bench.settings, paused=True))
        app.go_on()
        await asyncio.sleep(3)

        assert app.sent_since(begun) == set()


@in_virtual_time
async def test_nothing_waits_ahead_of_a_rate():
    """Its permits count when leases are taken: those ahead would begin all at once."""
    bench, app = Bench(200, egress={"concurrency": SLOTS, "rate_per_second": 8.0}), App()
    bench.egress._runners = {"app": app}
    async with bench:
        bench.store.lease_takes_seconds = 0.01
        await bench.accept(200)
        await asyncio.sleep(10)
        assert bench.egress._dispatcher._most_leased == SLOTS


@in_virtual_time
async def test_more_slots_begin_what_waits_ahead():
    async with halted() as (bench, app, begun):
        ahead = bench.egress.ahead
        assert ahead > 0
        bench.store.broken = frozenset({"lease"})
        bench.egress.apply(changed(bench.settings, concurrency=2 * SLOTS))

        assert len(app.sent_since(begun)) == ahead
        bench.store.broken = frozenset()
        app.go_on()


@in_virtual_time
async def test_halted_app_keeps_no_request_from_other_processes_for_long():
    async with halted() as (bench, app, _):
        await asyncio.sleep(1.1)
        assert bench.egress.ahead == 0
        assert (await bench.store.counts()).running == SLOTS
        app.go_on()
