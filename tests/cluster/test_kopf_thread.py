"""kopf on a real API server: it tells of what it sees, ends when told to, and is missed when it fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.cluster.control_plane import ControlPlane
from tests.cluster.shop import NUMBERS, Shop

from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.login import Login, from_kubeconfig
from openhqm_operator.noticing import kopf_thread
from openhqm_operator.noticing.kopf_thread import STALLED_SECONDS, KopfEnded, KopfThread
from openhqm_operator.noticing.sightings import Sightings
from openhqm_operator.reconciling.reconcile import Work

LONG_SECONDS = 30.0


class Watched:
    """What kopf tells of is looked at as soon as it tells of it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.looks: asyncio.Queue[Work] = asyncio.Queue()
        newest = 2**63
        self.sightings = Sightings(lambda _: newest, self.looks.put_nowait, lambda *_: None, lambda: self.now)

    async def look(self, work: Work) -> None:
        async with asyncio.timeout(LONG_SECONDS):
            while await self.looks.get() != work:
                pass


@pytest_asyncio.fixture
async def login(api_server: ControlPlane) -> Login:
    return await from_kubeconfig(api_server.kubeconfig)


@pytest_asyncio.fixture
async def shop(login: Login) -> AsyncIterator[Shop]:
    async with Kube(login) as kube:
        shop = Shop(kube, f"kopf-{next(NUMBERS)}")
        await shop.open()
        yield shop


@pytest.fixture
def watched() -> Watched:
    return Watched()


def assert_no_thread_is_left() -> None:
    for thread in threading.enumerate():
        if thread.name == "kopf":
            thread.join(1.0)
            assert not thread.is_alive()


@pytest.mark.parametrize("is_clusterwide", [True, False])
async def test_it_tells_of_what_is_there_and_of_what_changes(
    login: Login, shop: Shop, watched: Watched, is_clusterwide: bool
) -> None:
    namespace = None if is_clusterwide else shop.namespace
    running = asyncio.create_task(KopfThread(login, namespace, watched.sightings).run())
    await watched.look(Work("Deployment", shop.key))

    await shop.annotate(enabled="true")
    await watched.look(Work("Deployment", shop.key))
    running.cancel()
    await asyncio.wait({running})

    assert running.cancelled()
    assert_no_thread_is_left()


async def test_one_that_fails_is_the_end(
    login: Login, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(**_: object) -> None:
        raise OSError("no more memory")

    monkeypatch.setattr(kopf_thread.kopf, "operator", fail)

    with pytest.raises(KopfEnded) as failed:
        await KopfThread(login, None, watched.sightings).run()

    assert isinstance(failed.value.__cause__, OSError)


async def test_one_that_tells_nothing_any_more_is_the_end(
    login: Login, shop: Shop, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kopf_thread, "CHECK_SECONDS", 0.05)
    running = asyncio.create_task(KopfThread(login, shop.namespace, watched.sightings).run())
    await watched.look(Work("Deployment", shop.key))

    watched.sightings.changed(Work("Deployment", shop.key), 2**62)
    watched.now = STALLED_SECONDS + 1

    with pytest.raises(KopfEnded, match="has not told of a change for 151 s"):
        await asyncio.wait_for(running, LONG_SECONDS)
    assert_no_thread_is_left()


async def test_a_thread_that_stands_still_is_the_end(
    login: Login, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing changes, so that kopf owes nothing."""
    now, is_blocking, may_go_on = 0.0, threading.Event(), threading.Event()

    async def block(**_: object) -> None:
        is_blocking.set()
        may_go_on.wait(LONG_SECONDS)

    monkeypatch.setattr(kopf_thread.kopf, "operator", block)
    monkeypatch.setattr(kopf_thread, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(kopf_thread, "STOP_SECONDS", 0.05)
    thread = KopfThread(login, None, watched.sightings, lambda: now)
    running = asyncio.create_task(thread.run())
    assert await asyncio.to_thread(is_blocking.wait, LONG_SECONDS)
    early = thread.complaint(STALLED_SECONDS)
    now = STALLED_SECONDS + 1

    with pytest.raises(KopfEnded, match="has stood still for 151 s"):
        await asyncio.wait_for(running, LONG_SECONDS)
    may_go_on.set()

    assert early is None
    assert thread.complaint(STALLED_SECONDS) == "kopf's thread has stood still for 151 s"
    assert_no_thread_is_left()
