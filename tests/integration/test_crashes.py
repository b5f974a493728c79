"""Nothing accepted is lost when a process is killed, at any step; repeats happen only where R4 says.

Each case runs real processes, at least 1,000 accepted requests, half POST and half PUT.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from tests.integration.checker import Verdict
from tests.integration.harness import Clients, journal_app, sidecar, supervised, verdict

pytestmark = pytest.mark.crash

ACCEPTED = 1000
CONCURRENCY = 8
AT_RISK = 2 * CONCURRENCY + 64
"""Most requests whose outcome one kill can leave unknown: those in flight, those leased ahead of a slot, and
those whose result waits for its commit (`dispatcher.py` holds at most that many)."""
STEPS_BEFORE_SENDING = ["claimed"]
STEPS_WHILE_SENT = ["sent-head", "sent-body", "got-head", "got-body", "before-store"]
STEPS_AFTER_STORING = ["after-store"]


def stores(folder: Path) -> str:
    return f"sqlite:///{folder / 'openhqm.db'}"


def assert_nothing_lost_or_mixed(found: Verdict) -> None:
    assert found.accepted >= ACCEPTED
    assert found.lost == [], found
    assert found.mixed == [], found
    assert found.altered == [], found
    assert found.invented == [], found
    assert found.unanswered_runs == [], found


async def assert_safe_when_killed_at(step: str, folder: Path, store: str, **settings: object) -> None:
    """Run a sidecar that is killed the 300th time it passes *step*, and judge what came of it all."""
    app, journal = journal_app(folder)
    app.start()
    await app.listening()
    process = sidecar(folder, app.port, store, crash=(step, 300), egress__concurrency=CONCURRENCY, **settings)
    clients = Clients(process.port)

    try:
        async with supervised(process, crash_free=lambda: process.arguments.__setitem__(-1, "null")) as exits:
            await clients.send_until(ACCEPTED)
            outcomes = await clients.outcomes()
    finally:
        app.kill()

    found = verdict(clients, outcomes, journal)
    assert exits == [-signal.SIGKILL]
    assert_nothing_lost_or_mixed(found)
    assert found.repeated_unsafe == 0, found
    assert found.repeated_safe <= AT_RISK, found
    assert found.dead == found.unknown <= AT_RISK, found


@pytest.mark.parametrize("step", STEPS_BEFORE_SENDING + STEPS_WHILE_SENT + STEPS_AFTER_STORING)
async def test_sidecar_killed_at_each_step_of_a_replay(tmp_path: Path, step: str) -> None:
    """At most the requests held at the kill end as outcome unknown (POST) or run again (PUT)."""
    await assert_safe_when_killed_at(step, tmp_path, stores(tmp_path))


async def test_sidecar_killed_again_and_again_under_load(tmp_path: Path) -> None:
    app, journal = journal_app(tmp_path, delay_seconds=0.005)
    app.start()
    await app.listening()
    process = sidecar(tmp_path, app.port, stores(tmp_path), egress__concurrency=CONCURRENCY)
    clients = Clients(process.port)

    async def kill_every_200_accepted() -> None:
        for goal in (200, 400, 600, 800):
            await clients.until_accepted(goal)
            process.signal(signal.SIGKILL)
            await asyncio.sleep(0.1)

    try:
        async with supervised(process, crash_free=lambda: None) as exits:
            await asyncio.gather(clients.send_until(ACCEPTED), kill_every_200_accepted())
            outcomes = await clients.outcomes()
    finally:
        app.kill()

    found = verdict(clients, outcomes, journal)
    assert exits == [-signal.SIGKILL] * 4
    assert_nothing_lost_or_mixed(found)
    assert found.repeated_unsafe == 0, found
    assert found.repeated_safe <= 4 * AT_RISK, found
    assert found.dead == found.unknown <= 4 * AT_RISK, found


async def test_sigterm_under_load_finishes_what_is_in_flight(tmp_path: Path) -> None:
    """A planned stop repeats nothing and sets nothing aside: in-flight work ends, the rest waits."""
    app, journal = journal_app(tmp_path, delay_seconds=0.02)
    app.start()
    await app.listening()
    process = sidecar(
        tmp_path, app.port, stores(tmp_path), egress__concurrency=CONCURRENCY, drain__accept_seconds=0.2
    )
    clients = Clients(process.port)

    async def stop_midway() -> None:
        await clients.until_accepted(ACCEPTED // 2)
        process.signal(signal.SIGTERM)

    try:
        async with supervised(process, crash_free=lambda: None) as exits:
            await asyncio.gather(clients.send_until(ACCEPTED), stop_midway())
            outcomes = await clients.outcomes()
    finally:
        app.kill()

    found = verdict(clients, outcomes, journal)
    assert exits == [0]
    assert_nothing_lost_or_mixed(found)
    assert (found.repeated_unsafe, found.repeated_safe, found.dead) == (0, 0, 0), found
