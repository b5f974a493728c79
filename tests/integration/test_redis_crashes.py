"""Nothing accepted is lost with the records in Redis, whoever dies, hangs or comes back late."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.integration.harness import Clients, call, journal_app, sidecar, supervised, verdict
from tests.integration.test_crashes import (
    ACCEPTED,
    AT_RISK,
    CONCURRENCY,
    assert_nothing_lost_or_mixed,
    assert_safe_when_killed_at,
)
from tests.services import RedisServer

pytestmark = [pytest.mark.crash, pytest.mark.external_service]

LEASE_SECONDS = 2.0
MakeRedis = Callable[[str], RedisServer]


# Not everysec: while its disk is behind, it keeps what it acknowledged in memory for up to two seconds.
@pytest.mark.parametrize("appendfsync", ["always", "no"])
async def test_redis_killed_under_load(tmp_path: Path, make_redis: MakeRedis, appendfsync: str) -> None:
    """Clients get 503 while it is away, none waits long, and all that was accepted is answered."""
    redis = make_redis(appendfsync)
    app, journal = journal_app(tmp_path, delay_seconds=0.005)
    app.start()
    await app.listening()
    process = sidecar(
        tmp_path, app.port, redis.url, egress__concurrency=CONCURRENCY, egress__lease_seconds=LEASE_SECONDS
    )
    clients = Clients(process.port)

    async def kill_twice() -> None:
        for goal in (300, 600):
            await clients.until_accepted(goal)
            redis.kill()
            await asyncio.sleep(0.5)
            redis.restart()

    try:
        async with supervised(process, crash_free=lambda: None) as exits:
            await asyncio.gather(clients.send_until(ACCEPTED), kill_twice())
            outcomes = await clients.outcomes()
    finally:
        app.kill()

    found = verdict(clients, outcomes, journal)
    assert exits == []
    assert_nothing_lost_or_mixed(found)
    assert found.repeated_unsafe == 0, found
    assert found.dead == found.unknown <= 2 * AT_RISK, found


async def test_sidecar_stopped_beyond_its_lease_changes_nothing_when_it_wakes(
    tmp_path: Path, make_redis: MakeRedis
) -> None:
    """Another sidecar takes over; what the zombie brings back is refused and counted."""
    redis = make_redis("everysec")
    app, journal = journal_app(tmp_path, delay_seconds=0.1)
    app.start()
    await app.listening()
    folders = [tmp_path / "zombie", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    settings = {"egress__concurrency": CONCURRENCY, "egress__lease_seconds": LEASE_SECONDS}
    zombie, other = (sidecar(folder, app.port, redis.url, **settings) for folder in folders)
    clients = Clients(other.port)

    try:
        zombie.start()
        other.start()
        await zombie.listening()
        await other.listening()
        sending = asyncio.create_task(clients.send_until(ACCEPTED, methods=("PUT",)))
        await clients.until_accepted(50)
        zombie.signal(signal.SIGSTOP)
        await asyncio.sleep(3 * LEASE_SECONDS)
        zombie.signal(signal.SIGCONT)
        await sending
        outcomes = await clients.outcomes(timeout_seconds=150, in_flight=64)
        stats = json.loads((await call(zombie.health_port, "GET", "/stats")).body)
    finally:
        for process in (zombie, other, app):
            process.kill()

    found = verdict(clients, outcomes, journal)
    assert_nothing_lost_or_mixed(found)
    assert found.dead == 0, found
    assert 1 <= found.repeated_safe <= AT_RISK, found
    assert stats["requests"]["stale_settlements"] >= 1


@pytest.mark.parametrize("step", ["claimed", "sent-body", "before-store", "after-store"])
async def test_sidecar_killed_at_a_step_and_another_takes_over(
    tmp_path: Path, make_redis: MakeRedis, step: str
) -> None:
    redis = make_redis("everysec")

    await assert_safe_when_killed_at(step, tmp_path, redis.url, egress__lease_seconds=LEASE_SECONDS)
