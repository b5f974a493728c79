"""Nothing accepted is lost with the backlog in a broker, whichever of the three dies."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest
from tests.integration.harness import Clients, call, journal_app, sidecar, supervised, verdict
from tests.integration.test_crashes import ACCEPTED, AT_RISK, CONCURRENCY, assert_nothing_lost_or_mixed
from tests.services import NatsServer

pytestmark = [pytest.mark.crash, pytest.mark.external_service]


async def test_broker_and_sidecar_killed_under_load(tmp_path: Path) -> None:
    """The Store acknowledges while the broker is away; what either forgot to say is said again."""
    nats = NatsServer(tmp_path / "nats")
    nats.start()
    app, journal = journal_app(tmp_path, delay_seconds=0.005)
    app.start()
    await app.listening()
    store = f"sqlite:///{tmp_path}/openhqm.db"
    process = sidecar(
        tmp_path, app.port, store, egress__concurrency=CONCURRENCY, broker__url=f"{nats.url}/backlog"
    )
    clients = Clients(process.port)

    async def kill_broker() -> None:
        for goal in (250, 550):
            await clients.until_accepted(goal)
            nats.kill()
            await clients.until_accepted(goal + 100)
            nats.start()

    async def kill_sidecar() -> None:
        for goal in (300, 450, 800):
            await clients.until_accepted(goal)
            process.signal(signal.SIGKILL)

    try:
        async with supervised(process, crash_free=lambda: None) as exits:
            await asyncio.gather(clients.send_until(ACCEPTED), kill_broker(), kill_sidecar())
            outcomes = await clients.outcomes()
            stats = json.loads((await call(process.health_port, "GET", "/stats")).body)
    finally:
        app.kill()
        nats.stop()

    found = verdict(clients, outcomes, journal)
    assert len(exits) == 3
    assert_nothing_lost_or_mixed(found)
    assert found.repeated_unsafe == 0, found
    assert found.dead == found.unknown <= 3 * AT_RISK, found
    assert stats["events"]["request.returned"] > 0
    assert stats["requests"]["conserved"]
    assert (stats["broker_backlog"], stats["requests"]["carried"]) == (0, 0)
