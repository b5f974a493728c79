"""Whole operators on a real API server that keeps an audit log: who wrote what, when leaders are killed.

Each operator is a process with a user of its own, and the log is the API server's: what is said here about
writes holds for all that a process did, kopf included.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio
import yaml
from tests.cluster.conftest import CRD
from tests.cluster.operators import AuditedPlane, Operator, Write
from tests.cluster.shop import NUMBERS, Shop
from tests.cluster.toolbox import Toolbox

from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.errors import NotFound
from openhqm_operator.kube.login import from_kubeconfig
from openhqm_operator.kube.resources import ASYNC_PROXIES, CONFIG_MAPS, DEPLOYMENTS
from openhqm_operator.noticing.sightings import LATE_SECONDS

pytestmark = pytest.mark.crash

TAKEOVER_SECONDS = 20.0
LONG_SECONDS = 60.0


class Operators:
    """Those of one test; ended with it."""

    def __init__(self, plane: AuditedPlane, shop: Shop, folder: Path) -> None:
        self.all: list[Operator] = []
        self._plane = plane
        self._shop = shop
        self._folder = folder

    def start(self, **settings: object) -> Operator:
        self.all.append(Operator(self._plane, self._shop.namespace, self._folder, **settings))
        return self.all[-1]

    async def pair(self) -> tuple[Operator, Operator]:
        """The leader and a standby that is ready to be it."""
        leader = self.start()
        await leader.leading()
        standby = self.start()
        await standby.ready()
        return leader, standby

    def writes(self) -> list[Write]:
        return self._plane.writes_of({operator.user for operator in self.all})

    def end(self) -> None:
        for operator in self.all:
            if operator.process.poll() is None:
                operator.kill()


@pytest.fixture(scope="module")
def plane(toolbox: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditedPlane]:
    plane = AuditedPlane(tmp_path_factory.mktemp("audited"), toolbox)
    try:
        plane.start()
        plane.install_definition(yaml.safe_load(CRD.read_text()))
        yield plane
    finally:
        plane.stop()


@pytest_asyncio.fixture
async def shop(plane: AuditedPlane) -> AsyncIterator[Shop]:
    async with Kube(await from_kubeconfig(plane.kubeconfig)) as kube:
        shop = Shop(kube, f"failover-{next(NUMBERS)}")
        await shop.open()
        await shop.mint(shop.namespace)
        yield shop


@pytest.fixture
def operators(plane: AuditedPlane, shop: Shop, tmp_path: Path) -> Iterator[Operators]:
    operators = Operators(plane, shop, tmp_path)
    yield operators
    operators.end()


async def ask_for(shop: Shop, concurrency: int) -> None:
    await shop.annotate(enabled="true", concurrency=str(concurrency))


async def followed(shop: Shop, concurrency: int, seconds: float = LONG_SECONDS) -> float:
    """Wait until the sidecars are told of it; returns the seconds that took."""
    started = time.monotonic()
    async with asyncio.timeout(seconds):
        while True:
            with suppress(NotFound):
                found = await shop.kube.get(CONFIG_MAPS, (shop.namespace, "legacy-openhqm-settings"))
                if f"concurrency: {concurrency}\n" in found["data"]["settings.yaml"]:
                    return time.monotonic() - started
            await asyncio.sleep(0.05)


async def settled(shop: Shop, concurrency: int) -> None:
    """Wait until the status says that the spec is the one in force."""
    await followed(shop, concurrency)
    async with asyncio.timeout(LONG_SECONDS):
        while True:
            proxy = await shop.proxy()
            accepted = (await shop.conditions()).get("Accepted")
            if accepted == ("True", "Accepted") and (
                proxy["status"]["observedGeneration"] == proxy["metadata"]["generation"]
            ):
                break
            await asyncio.sleep(0.1)
    assert proxy["spec"]["settings"]["egress"]["concurrency"] == concurrency
    assert len((await shop.kube.list(ASYNC_PROXIES, shop.namespace)).items) == 1


def assert_one_writer_at_a_time(writes: list[Write]) -> None:
    """Whoever has written after somebody else has taken over was not fenced."""
    turns = [user for user, _ in itertools.groupby(one.user for one in writes)]
    assert len(turns) == len(set(turns)), turns


async def test_a_killed_leader_is_followed_within_20_seconds(operators: Operators, shop: Shop) -> None:
    leader, standby = await operators.pair()
    await ask_for(shop, 2)
    await followed(shop, 2)

    leader.kill()
    await ask_for(shop, 3)
    seconds = await followed(shop, 3)

    writes = operators.writes()
    assert seconds <= TAKEOVER_SECONDS
    assert {one.user for one in writes} == {leader.user, standby.user}
    assert_one_writer_at_a_time(writes)


async def test_a_leader_told_to_end_is_followed_within_3_seconds(operators: Operators, shop: Shop) -> None:
    leader, standby = await operators.pair()
    await ask_for(shop, 2)
    await followed(shop, 2)

    leader.process.send_signal(signal.SIGTERM)
    await ask_for(shop, 3)
    seconds = await followed(shop, 3)

    assert seconds <= 3.0
    assert await standby.is_leading()
    assert await asyncio.to_thread(leader.process.wait, 10) == 0, leader.log()
    assert_one_writer_at_a_time(operators.writes())


async def test_leaders_killed_every_5_seconds_leave_the_right_end(operators: Operators, shop: Shop) -> None:
    await operators.pair()
    edits = 0
    for _ in range(6):
        until = time.monotonic() + 5.0
        while time.monotonic() < until:
            edits += 1
            await ask_for(shop, edits)
            await asyncio.sleep(0.2)
        for operator in operators.all:
            if operator.process.poll() is None and await operator.is_leading():
                operator.kill()
                operators.start()

    await settled(shop, edits)

    writes = operators.writes()
    assert len({one.user for one in writes}) >= 2
    assert_one_writer_at_a_time(writes)


async def test_an_api_server_that_stops_for_30_seconds_is_waited_for(
    operators: Operators, shop: Shop, plane: AuditedPlane
) -> None:
    leader, standby = await operators.pair()
    await ask_for(shop, 2)
    await followed(shop, 2)

    plane.pause("kube-apiserver")
    await asyncio.sleep(30.0)
    plane.resume("kube-apiserver")
    if leader.process.poll() is not None:
        operators.start()  # as its Pod would
    await ask_for(shop, 3)
    await settled(shop, 3)

    assert_one_writer_at_a_time(operators.writes())
    assert standby.process.poll() is None, standby.log()


async def test_a_change_is_followed_because_kopf_tells_of_it(operators: Operators, shop: Shop) -> None:
    operator = operators.start()
    await ask_for(shop, 2)
    await settled(shop, 2)

    seconds = []
    for concurrency in range(3, 13):
        await ask_for(shop, concurrency)
        seconds.append(await followed(shop, concurrency))

    # Without kopf the annotation would be looked at that late, and then the AsyncProxy made from it.
    assert max(seconds) < LATE_SECONDS, (seconds, operator.log())


async def test_an_idle_operator_writes_nothing_however_often_it_looks_again(
    operators: Operators, shop: Shop
) -> None:
    operator = operators.start(resync_seconds=1.0)
    await ask_for(shop, 2)
    await settled(shop, 2)
    await _quiet(operators)
    before = operators.writes()

    await asyncio.sleep(5.0)

    assert operators.writes() == before
    assert await operator.is_leading()


async def _quiet(operators: Operators) -> None:
    """Wait until nothing was written for 2 s: Events may come late."""
    async with asyncio.timeout(LONG_SECONDS):
        while True:
            before = len(operators.writes())
            await asyncio.sleep(2.0)
            if len(operators.writes()) == before:
                return


async def test_kopf_leaves_finalizers_of_others_and_ours_alone(operators: Operators, shop: Shop) -> None:
    others = "kopf.zalando.org/KopfFinalizerMarker"
    await ask_for(shop, 2)
    operators.start()
    await settled(shop, 2)
    change = {"metadata": {"finalizers": [others]}}
    await shop.kube.patch_merge(DEPLOYMENTS, shop.key, change, manager="another operator")
    await ask_for(shop, 3)
    await settled(shop, 3)
    await _quiet(operators)

    deployment = await shop.kube.get(DEPLOYMENTS, shop.key)
    assert deployment["metadata"]["finalizers"] == [others]
    assert (await shop.proxy())["metadata"]["finalizers"] == ["openhqm.io/finalizer"]
    assert not any("kopf" in name for name in deployment["metadata"]["annotations"])
