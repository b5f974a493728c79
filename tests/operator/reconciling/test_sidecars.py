"""What sidecars say is summed up, asked from real servers, and told on when it matters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from tests.operator.objects import pod, proxy

from openhqm_operator.api import names
from openhqm_operator.kube.cache import Cache
from openhqm_operator.kube.resources import (
    ASYNC_PROXIES,
    DAEMON_SETS,
    DEPLOYMENTS,
    NETWORK_POLICIES,
    PODS,
    SERVICES,
    STATEFUL_SETS,
    Key,
)
from openhqm_operator.reconciling.caches import Caches
from openhqm_operator.reconciling.observed import Told
from openhqm_operator.reconciling.sidecars import Figures, SidecarWatch, sum_up

KEY = Key("shop", "legacy")


def stats(backlog: int = 0, **changes: Any) -> dict[str, Any]:
    whole = {
        "backlog": backlog,
        "callbacks": {"backlog": 0},
        "store": {"reachable": True},
        "settings": "digest",
        "version": "1",
    }
    return whole | changes


def figures(**changes: Any) -> Figures:
    return Figures.model_validate(stats(**changes))


def test_the_largest_count_is_what_is_left() -> None:
    told = sum_up([figures(backlog=3), figures(backlog=2, callbacks={"backlog": 4})], is_rolled_out=True)

    assert told == Told(6, frozenset({"digest"}), True, 0)


def test_what_the_store_used_before_still_holds_counts_too() -> None:
    assert sum_up([figures(backlog=1, previous_backlog=2)], is_rolled_out=True).left == 3
    assert sum_up([figures(previous_backlog=None)], is_rolled_out=True).left is None


def test_a_silent_sidecar_may_still_have_old_settings() -> None:
    assert sum_up([figures(), None], is_rolled_out=True).settings == frozenset({"digest", None})


def test_nothing_is_known_where_nobody_answers() -> None:
    assert sum_up([None, None], is_rolled_out=True) == Told()
    assert sum_up([], is_rolled_out=True) == Told()


def test_a_store_that_is_away_leaves_the_count_unknown() -> None:
    away = Figures.model_validate({"error": "no", "store": {"reachable": False}})

    assert sum_up([away], is_rolled_out=True) == Told(None, frozenset({None}), False, None)


class Sidecar:
    """A health port whose answer the test sets."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = stats()
        self.status = 200

    async def stats(self, _: web.Request) -> web.Response:
        return web.json_response(self.answer, status=self.status)


@pytest.fixture
def sidecar() -> Sidecar:
    return Sidecar()


@pytest_asyncio.fixture
async def port(sidecar: Sidecar) -> AsyncIterator[int]:
    app = web.Application()
    app.add_routes([web.get("/stats", sidecar.stats)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@pytest.fixture
def caches() -> Caches:
    resources = (
        ASYNC_PROXIES, PODS, SERVICES, NETWORK_POLICIES, DEPLOYMENTS, STATEFUL_SETS, DAEMON_SETS,
    )  # fmt: skip
    found = Caches({resource: Cache() for resource in resources})
    found.add_indexes()
    found[ASYNC_PROXIES].put(KEY, proxy())
    running = pod("a", "hash")
    running["status"]["podIP"] = "127.0.0.1"
    found[PODS].put(Key("shop", "a"), running)
    return found


async def test_news_of_the_store_are_told_once(sidecar: Sidecar, port: int, caches: Caches) -> None:
    changed: list[Key] = []
    watch = SidecarWatch(caches[ASYNC_PROXIES], caches[PODS], changed.append, port=port)

    async with aiohttp.ClientSession() as session:
        await watch.ask(session, [KEY])
        sidecar.answer = stats(backlog=5)
        await watch.ask(session, [KEY])
        sidecar.answer, sidecar.status = {"error": "no", "store": {"reachable": False}}, 503
        await watch.ask(session, [KEY])

    assert watch.told(KEY).reaches_store is False
    assert changed == [KEY, KEY]


async def test_while_it_drains_every_count_is_news(sidecar: Sidecar, port: int, caches: Caches) -> None:
    changed: list[Key] = []
    ending = proxy()
    ending["metadata"]["deletionTimestamp"] = "x"
    caches[ASYNC_PROXIES].put(KEY, ending)
    watch = SidecarWatch(caches[ASYNC_PROXIES], caches[PODS], changed.append, port=port)

    async with aiohttp.ClientSession() as session:
        for backlog in (5, 4, 4, 0):
            sidecar.answer = stats(backlog=backlog)
            await watch.ask(session, [KEY])

    assert watch.told(KEY).left == 0
    assert len(changed) == 3


@pytest.mark.parametrize(
    ("others", "known"),
    [
        ({}, 2),
        ({"b": pod("b", None)}, 2),
        ({"b": pod("b", "earlier")}, None),
        ({"b": pod("b", "earlier", deletionTimestamp="x")}, None),
        (
            {"b": pod("b", None, labels={"openhqm.io/proxy": "legacy", names.MANAGED_BY_LABEL: "openhqm"})},
            None,
        ),
    ],
)
async def test_the_previous_store_counts_once_all_use_the_stores_in_force(
    sidecar: Sidecar, port: int, caches: Caches, others: dict[str, Any], known: int | None
) -> None:
    """One of an earlier configuration may still put work there; so may a gateway's."""
    changed: list[Key] = []
    caches[ASYNC_PROXIES].put(KEY, proxy() | {"status": {"configHash": "hash"}})
    for name, other in others.items():
        caches[PODS].put(Key("shop", name), other)
    sidecar.answer = stats(previous_backlog=2)
    watch = SidecarWatch(caches[ASYNC_PROXIES], caches[PODS], changed.append, port=port)

    async with aiohttp.ClientSession() as session:
        await watch.ask(session, [KEY])
        first = watch.told(KEY).previous
        sidecar.answer = stats(previous_backlog=0)
        await watch.ask(session, [KEY])

    assert first == known
    assert watch.told(KEY).previous == (0 if known else None)
    assert len(changed) == (2 if known else 1)


async def test_what_is_no_answer_of_ours_is_silence(sidecar: Sidecar, port: int, caches: Caches) -> None:
    sidecar.answer = {"hello": "world"}
    changed: list[Key] = []
    watch = SidecarWatch(caches[ASYNC_PROXIES], caches[PODS], changed.append, port=port)

    async with aiohttp.ClientSession() as session:
        await watch.ask(session, [KEY])
        await watch.ask(session, [KEY])

    assert watch.told(KEY) == Told()
    assert changed == [KEY], "that nobody answers is news once"


async def test_a_proxy_that_is_gone_is_forgotten(port: int, caches: Caches) -> None:
    watch = SidecarWatch(caches[ASYNC_PROXIES], caches[PODS], lambda key: None, port=port)
    async with aiohttp.ClientSession() as session:
        await watch.ask(session, [KEY])
        caches[ASYNC_PROXIES].put(KEY, None)
        await watch.ask(session, [])

    assert watch.told(KEY) == Told(was_asked=False)
