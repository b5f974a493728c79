"""The health port: what Kubernetes, Prometheus and the autoscaler get."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestClient, TestServer

from openhqm.errors import SettingsError
from openhqm.health import build_health_app, listen
from openhqm.lifecycle import Lifecycle
from openhqm.stats import Phase, Stats
from openhqm.stores.base import Options
from openhqm.stores.memory import MemoryStore


@pytest.fixture
async def store() -> MemoryStore:
    store = MemoryStore(Options())
    await store.open()
    return store


@pytest.fixture
def stats(store: MemoryStore) -> Stats:
    return Stats(store, None, Lifecycle())


@pytest.fixture
async def client(stats: Stats) -> AsyncIterator[TestClient]:
    app = build_health_app(stats, lambda: b"openhqm_up 1\n")
    async with TestClient(TestServer(app)) as client:
        yield client


@pytest.mark.parametrize(
    ("phase", "livez", "readyz", "startupz"),
    [
        (Phase.STARTING, 200, 503, 503),
        (Phase.SERVING, 200, 200, 200),
        (Phase.DRAINING, 200, 503, 200),
    ],
)
async def test_probes_follow_the_phase(
    client: TestClient, stats: Stats, phase: Phase, livez: int, readyz: int, startupz: int
) -> None:
    stats.phase = phase

    statuses = [(await client.get(path)).status for path in ("/livez", "/readyz", "/startupz")]

    assert statuses == [livez, readyz, startupz]


async def test_readiness_says_why(client: TestClient, stats: Stats) -> None:
    stats.phase = Phase.DRAINING

    answer = await client.get("/readyz")

    assert (await answer.json())["phase"] == "draining"


async def test_metrics_are_passed_on_as_prometheus_reads_them(client: TestClient) -> None:
    answer = await client.get("/metrics")

    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert await answer.read() == b"openhqm_up 1\n"


async def test_stats_without_a_store_are_a_503_that_says_so(client: TestClient, store: MemoryStore) -> None:
    await store.close()

    answer = await client.get("/stats")

    assert answer.status == 503
    assert (await answer.json())["error"]


async def test_nothing_can_be_changed_here(client: TestClient) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/stats"):
        assert (await client.post(path)).status == 405


async def test_listen_picks_a_free_port_and_tells_it(stats: Stats) -> None:
    runner, port = await listen(build_health_app(stats, lambda: b""), "health", "127.0.0.1", 0)
    try:
        async with ClientSession() as session, session.get(f"http://127.0.0.1:{port}/livez") as answer:
            assert answer.status == 200
    finally:
        await runner.cleanup()


async def test_a_taken_port_is_named(stats: Stats) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(SettingsError, match=rf"^health\.port: cannot listen on 127\.0\.0\.1:{port}: "):
            await listen(build_health_app(stats, lambda: b""), "health", "127.0.0.1", port)
