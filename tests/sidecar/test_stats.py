"""Figures: exact counts, rates over a window, readiness that never waits for the store."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass

import pytest

from openhqm.lifecycle import Event, Happening, Lifecycle
from openhqm.stats import Phase, Stats
from openhqm.stores.base import Counts, Finish, Lane, NewRecord, Options, State
from openhqm.stores.memory import MemoryStore


@dataclass
class Egress:
    in_flight: int = 3
    concurrency: int = 8
    breaker_state: str = "closed"
    paused: bool = False


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def store() -> MemoryStore:
    store = MemoryStore(Options())
    await store.open()
    return store


async def accept(store: MemoryStore, number: int) -> None:
    await store.accept([NewRecord(id=uuid.uuid4().bytes, envelope=b"") for _ in range(number)])


async def finish_one(store: MemoryStore) -> None:
    [lease] = await store.lease(1, lease_seconds=30, wait_seconds=0)
    assert await store.settle([Finish(lease.id, lease.epoch, State.DONE)]) == [True]


async def test_rates_are_means_over_the_window(store: MemoryStore) -> None:
    clock = Clock()
    stats = Stats(store, Egress(), Lifecycle(), clock=clock)
    stats.sampled(Lane.REQUESTS, await store.counts())
    await accept(store, 20)
    await finish_one(store)
    clock.now += 4.0

    figures = await stats.read()

    assert (figures["arrival_per_second"], figures["drain_per_second"]) == (5.0, 0.25)


async def test_rates_are_not_known_before_the_window_holds_something(store: MemoryStore) -> None:
    figures = await Stats(store, Egress(), Lifecycle()).read()

    assert figures["arrival_per_second"] is None
    assert figures["mean_app_seconds"] is None


async def test_figures_for_the_autoscaler(store: MemoryStore) -> None:
    await accept(store, 3)
    await store.accept([NewRecord(id=uuid.uuid4().bytes, envelope=b"", delay_seconds=60)])
    stats = Stats(store, Egress(in_flight=2), Lifecycle(), queue="orders")
    stats.waiting_clients = lambda: 5

    figures = await stats.read()

    assert (figures["queue"], figures["backlog"], figures["due"], figures["delayed"]) == ("orders", 4, 3, 1)
    assert (figures["in_flight"], figures["concurrency"], figures["waiting_clients"]) == (2, 8, 5)
    assert figures["oldest_age_seconds"] >= 0
    assert figures["requests"]["accepted"] == 4
    assert figures["requests"]["conserved"] is True


async def test_an_ingress_alone_has_no_slots(store: MemoryStore) -> None:
    figures = await Stats(store, None, Lifecycle()).read()

    assert (figures["in_flight"], figures["concurrency"], figures["breaker"]) == (0, 0, None)


async def test_the_mean_follows_the_app(store: MemoryStore) -> None:
    lifecycle = Lifecycle()
    stats = Stats(store, Egress(), lifecycle)
    for seconds in [1.0] * 5 + [2.0] * 50:
        lifecycle.emit(Event(Happening.ANSWERED, duration_seconds=seconds))
    lifecycle.emit(Event(Happening.ACCEPTED, duration_seconds=100.0))

    figures = await stats.read()

    assert figures["mean_app_seconds"] == pytest.approx(2.0, abs=0.02)
    assert figures["events"]["request.answered"] == 55


async def test_busy_seconds_are_the_app_time_of_all_attempts(store: MemoryStore) -> None:
    lifecycle = Lifecycle()
    stats = Stats(store, Egress(), lifecycle)
    for what in (Happening.ANSWERED, Happening.RETRIED, Happening.DEAD_LETTERED, Happening.ACCEPTED):
        lifecycle.emit(Event(what, duration_seconds=1.5))

    figures = await stats.read()

    assert figures["busy_seconds"] == 4.5


async def test_readiness_tells_that_the_store_is_away_and_stays_ready(store: MemoryStore) -> None:
    """Taking the Pod out of its Service would turn an honest 503 into a connection error."""
    stats = Stats(store, Egress(breaker_state="open"), Lifecycle())
    stats.phase = Phase.SERVING

    stats.sampled(Lane.REQUESTS, None)
    during = stats.readiness()
    stats.sampled(Lane.REQUESTS, Counts())

    assert during == {
        "ready": True,
        "phase": "serving",
        "store": {"reachable": False, "durability": "none", "shared": False},
        "breaker": "open",
    }
    assert stats.readiness()["store"]["reachable"] is True


async def test_a_gateway_tells_whom_it_holds(store: MemoryStore) -> None:
    stats = Stats(store, None, Lifecycle())
    stats.held, stats.passed = lambda: 7, lambda: (9, 1)

    figures = await stats.read()

    assert (figures["passed"], figures["passing"]) == (9, 1)
    assert (figures["held"], figures["app_healthy"], figures["in_flight"]) == (7, None, 0)


@pytest.mark.parametrize(
    ("breaker", "stopping", "healthy"),
    [
        ("closed", False, True),
        ("half-open", False, False),
        ("open", False, False),
        ("closed", True, False),
    ],
)
async def test_the_app_is_healthy_while_requests_are_sent_to_it(
    store: MemoryStore, breaker: str, stopping: bool, healthy: bool
) -> None:
    stats = Stats(store, Egress(breaker_state=breaker), Lifecycle())
    stats.app_stopping = lambda: stopping

    assert (await stats.read())["app_healthy"] is healthy


@pytest.mark.parametrize(
    ("phase", "draining"), [(Phase.STARTING, False), (Phase.SERVING, False), (Phase.DRAINING, True)]
)
async def test_draining_is_said(store: MemoryStore, phase: Phase, draining: bool) -> None:
    stats = Stats(store, None, Lifecycle())
    stats.phase = phase

    assert (await stats.read())["draining"] is draining


async def test_what_the_previous_store_holds_is_counted_apart_and_exactly(store: MemoryStore) -> None:
    previous = MemoryStore(Options())
    await previous.open()
    await accept(store, 2)
    await accept(previous, 3)
    stats = Stats(store, Egress(), Lifecycle())
    before = await stats.read()
    stats.previous = previous

    both = await stats.read()
    await finish_one(previous)
    later = await stats.read()
    await previous.close()
    away = await stats.read()

    assert [figures["previous_backlog"] for figures in (before, both, later, away)] == [0, 3, 2, None]
    assert {figures["backlog"] for figures in (before, both, later, away)} == {2}


async def test_a_previous_store_that_hangs_costs_no_figures(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(lane: Lane = Lane.REQUESTS) -> Counts:
        await asyncio.Event().wait()
        return Counts()

    previous = MemoryStore(Options())
    monkeypatch.setattr(previous, "counts", hang)
    monkeypatch.setattr("openhqm.stats.PREVIOUS_SECONDS", 0.01)
    stats = Stats(store, Egress(), Lifecycle())
    stats.previous = previous

    assert (await stats.read())["previous_backlog"] is None
