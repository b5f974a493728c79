"""A sidecar's life in a Pod, with the kubelet's calls made by the test: real processes, nothing lost.

The app in these tests exits at once when it is told to end, whatever it is doing: what the hooks are for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.harness import Clients, Process, call, journal_app, sidecar, verdict

pytestmark = pytest.mark.crash

TOKEN = "a-token-of-this-pod"
HOOK = [("OpenHQM-Pod-Token", TOKEN)]


@contextlib.asynccontextmanager
async def started(*processes: Process) -> AsyncIterator[None]:
    try:
        for process in processes:
            process.start()
            await process.listening()
        yield
    finally:
        for process in processes:
            process.kill()


def sqlite(folder: Path, name: str = "openhqm") -> str:
    return f"sqlite:///{folder / f'{name}.db'}"


async def stats(process: Process) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await call(process.health_port, "GET", "/stats")).body)
    return found


async def until(process: Process, name: str, wanted: object) -> None:
    async with asyncio.timeout(30):
        while (await stats(process))[name] != wanted:
            await asyncio.sleep(0.02)


async def stop_app(process: Process) -> int:
    """The preStop of the app's container; returns its status."""
    return (await call(process.health_port, "GET", "/app-stopping", headers=HOOK)).status


async def test_when_a_pod_ends_no_replay_is_cut_off_and_requests_are_taken_to_the_last(
    tmp_path: Path,
) -> None:
    app, journal = journal_app(tmp_path, delay_seconds=0.3)
    pod = sidecar(
        tmp_path,
        app.port,
        sqlite(tmp_path),
        pod__token=TOKEN,
        drain__accept_seconds=0.2,
        egress__concurrency=4,
    )
    clients = Clients(pod.port)

    async with started(app, pod):
        await clients.send_until(20, methods=("POST",))
        held = asyncio.create_task(call(pod.port, "POST", "/held", b"held x", [("Prefer", "wait=30")]))
        await until(pod, "waiting_clients", 1)
        ended, stopped = await asyncio.gather(
            call(pod.health_port, "GET", "/drain", headers=HOOK), stop_app(pod)
        )
        app.kill()
        unready = await call(pod.health_port, "GET", "/readyz")
        await clients.send_until(25, methods=("POST",))
        figures = await stats(pod)
        pod.signal(signal.SIGTERM)
        code = pod.wait()

        app.start()
        pod.start()
        await pod.listening()
        outcomes = await clients.outcomes()

    judged = verdict(clients, outcomes, journal)
    assert (ended.status, stopped, unready.status, (await held).status, code) == (200, 200, 503, 202, 0)
    assert (figures["draining"], figures["app_healthy"], figures["in_flight"]) == (True, False, 0)
    assert judged.answered == judged.accepted >= 25, judged
    assert (judged.dead, judged.unknown) == (0, 0), judged
    assert (judged.repeated_unsafe, judged.lost, judged.mixed) == (0, [], []), judged


async def test_a_liveness_restart_loses_nothing_and_leasing_goes_on_by_itself(tmp_path: Path) -> None:
    app, journal = journal_app(tmp_path, delay_seconds=0.05)
    pod = sidecar(
        tmp_path,
        app.port,
        sqlite(tmp_path),
        pod__token=TOKEN,
        pod__probes={"app": {"tcp": {"port": app.port}}},
        drain__accept_seconds=0.0,
        egress__concurrency=4,
    )
    clients = Clients(pod.port)

    async with started(app, pod):
        for restart in range(1, 4):
            await clients.send_until(restart * 60, in_flight=4, methods=("POST",))
            assert await stop_app(pod) == 200
            assert not (await stats(pod))["app_healthy"]
            app.kill()
            await asyncio.sleep(0.6)  # a container's restart takes longer
            app.start()
            await until(pod, "app_healthy", True)
        outcomes = await clients.outcomes()
        ready = await call(pod.health_port, "GET", "/app-ready/app")

    judged = verdict(clients, outcomes, journal)
    assert judged.answered == judged.accepted >= 180, judged
    assert (judged.dead, judged.repeated_unsafe, judged.lost, ready.status) == (0, 0, [], 200), judged


async def test_a_previous_store_is_finished_and_its_handles_stay_good(tmp_path: Path) -> None:
    app, journal = journal_app(tmp_path)
    before = sidecar(tmp_path, app.port, sqlite(tmp_path, "before"))
    clients = Clients(before.port)
    async with started(app, before):
        await clients.send_until(10, in_flight=1)
        await until(before, "backlog", 0)
        app.kill()
        await clients.send_until(30, in_flight=1)
        before.signal(signal.SIGTERM)
        assert before.wait() == 0

    after = sidecar(
        tmp_path, app.port, sqlite(tmp_path, "after"), store__previous_url=sqlite(tmp_path, "before")
    )
    clients.port = after.port
    async with started(after):
        waiting = await stats(after)
        await clients.send_until(50, in_flight=1)
        app.start()
        try:
            outcomes = await clients.outcomes()
            await until(after, "previous_backlog", 0)
            finished = await stats(after)
        finally:
            app.kill()

    judged = verdict(clients, outcomes, journal)
    assert (waiting["previous_backlog"], waiting["backlog"]) == (20, 0)
    assert (finished["backlog"], finished["requests"]["accepted"]) == (0, 20)
    assert (judged.accepted, judged.answered, judged.dead) == (50, 50, 0), judged
    assert (judged.repeated_unsafe, judged.repeated_safe, judged.lost) == (0, 0, []), judged


async def test_a_gateway_holds_what_passes_until_the_app_is_there(tmp_path: Path) -> None:
    app, _ = journal_app(tmp_path)
    gateway = sidecar(tmp_path, app.port, sqlite(tmp_path), mode="ingress", ingress__hold_seconds=30)

    async with started(gateway):
        asking = [asyncio.create_task(call(gateway.port, "GET", "/a", b"u s")) for _ in range(5)]
        await until(gateway, "held", 5)
        metrics = await call(gateway.health_port, "GET", "/metrics")
        queued = await call(gateway.port, "POST", "/a", b"u s")
        app.start()
        try:
            replies = await asyncio.gather(*asking)
        finally:
            app.kill()

    assert b"openhqm_held_requests 5.0\n" in metrics.body
    assert [reply.status for reply in replies] == [201] * 5
    assert queued.status == 202
