"""The operator on a real API server: from an annotation to labelled Pods and back, killed at every call."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.cluster.control_plane import ControlPlane
from tests.cluster.shop import NUMBERS, Shop

from openhqm.settings import LogSettings
from openhqm_operator.api.conditions import find
from openhqm_operator.api.status import ConditionType
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.errors import Forbidden, NotFound
from openhqm_operator.kube.login import from_kubeconfig
from openhqm_operator.kube.resources import (
    ASYNC_PROXIES,
    CONFIG_MAPS,
    DEPLOYMENTS,
    SECRETS,
    SERVICES,
    Object,
)
from openhqm_operator.main import Process
from openhqm_operator.operator_settings import LeaseSettings, OperatorSettings

LONG_SECONDS = 30.0


class Killed(BaseException):
    """The operator ends here; nothing of ours catches it."""


class FatalKube(Kube):
    """A client whose process is killed at a write, *before* or after the API server has done it.

    Reads need no turn of their own: killed at one is killed after the write before it.
    """

    def __init__(self, *args: Any, writes: int, before: bool) -> None:
        super().__init__(*args)
        self._writes_left = writes
        self._before = before

    async def _write(self, *args: Any) -> Object:
        self._writes_left -= 1
        if self._writes_left < 0 and self._before:
            raise Killed
        answer = await super()._write(*args)
        if self._writes_left < 0:
            raise Killed
        return answer


class ForbiddenKube(Kube):
    """A client that may not change workloads."""

    async def apply(self, body: Object, **options: Any) -> Object:
        if body["kind"] == "Deployment":
            raise Forbidden("PATCH deployments/legacy: 403 denied by policy freeze", status=403)
        return await super().apply(body, **options)


@pytest_asyncio.fixture
async def kube(api_server: ControlPlane) -> AsyncIterator[Kube]:
    async with Kube(await from_kubeconfig(api_server.kubeconfig)) as kube:
        yield kube


@pytest.fixture
def namespace() -> str:
    return f"k3-{next(NUMBERS)}"


@pytest_asyncio.fixture
async def shop(kube: Kube, namespace: str) -> Shop:
    shop = Shop(kube, namespace)
    await shop.open()
    return shop


async def test_from_an_annotation_to_ready_and_back_byte_for_byte(shop: Shop, kube: Kube) -> None:
    before = json.dumps(await shop.spec())
    await shop.annotate(enabled="true", concurrency="2")

    await shop.converge(kube)
    during = await shop.spec()
    conditions = await shop.conditions()
    await shop.annotate(enabled=None, concurrency=None)
    await shop.converge(kube)

    template = during["template"]["metadata"]
    assert template["labels"] == {"app": "legacy", "openhqm.io/proxy": "legacy"}
    assert list(template["annotations"]) == ["openhqm.io/config-hash"]
    assert conditions["Ready"] == ("True", "Ready"), conditions
    assert json.dumps(await shop.spec()) == before
    with pytest.raises(NotFound):
        await shop.proxy()


async def test_a_service_is_switched_and_restored_byte_for_byte(kube: Kube, namespace: str) -> None:
    shop = Shop(kube, namespace)
    await shop.open(target_port=8080)
    before = json.dumps(await shop.service_spec())
    await shop.annotate(enabled="true", intercept="ServicePort")

    await shop.converge(kube)
    during = await shop.service_spec()
    await shop.annotate(enabled=None)
    await shop.converge(kube)

    assert during["ports"][0]["targetPort"] == 16080
    assert json.dumps(await shop.service_spec()) == before
    assert "annotations" not in (await kube.get(SERVICES, shop.key))["metadata"]


async def test_nothing_is_written_once_all_is_as_it_should_be(shop: Shop, kube: Kube) -> None:
    await shop.annotate(enabled="true")
    await shop.converge(kube)

    assert not await shop.look(kube)


async def test_the_workload_is_given_up_only_when_its_backlog_is_gone(shop: Shop, kube: Kube) -> None:
    await shop.annotate(enabled="true")
    await shop.converge(kube)
    await shop.annotate(enabled=None)

    for _ in range(4):
        await shop.look(kube, left=3)
    waiting = (await shop.conditions())["Draining"], (await shop.spec())["template"]["metadata"]["labels"]
    await shop.converge(kube)

    assert waiting == (("True", "Draining"), {"app": "legacy", "openhqm.io/proxy": "legacy"})
    assert "openhqm.io/proxy" not in (await shop.spec())["template"]["metadata"]["labels"]


async def test_a_previous_store_stays_in_force_until_it_is_empty(shop: Shop, kube: Kube) -> None:
    for name in ("old", "new"):
        secret = {"metadata": {"name": name, "namespace": shop.namespace}, "stringData": {"url": "redis://x"}}
        await kube.create({"apiVersion": "v1", "kind": "Secret", **secret}, manager="user")
    moving = {"secretRef": {"name": "new"}, "previousSecretRef": {"name": "old"}}
    proxy = {
        "apiVersion": ASYNC_PROXIES.api_version,
        "kind": ASYNC_PROXIES.kind,
        "metadata": {"name": "legacy", "namespace": shop.namespace},
        "spec": {"targetRef": {"kind": "Deployment", "name": "legacy"}, "store": moving},
    }
    await kube.create(proxy, manager="user")
    await shop.converge(kube)
    before = await shop.spec()
    moved = [{"op": "remove", "path": "/spec/store/previousSecretRef"}]
    await kube.patch_json(ASYNC_PROXIES, shop.key, moved, manager="user")

    for _ in range(3):
        await shop.look(kube, previous=7)
        await shop.control()
    held, during = await shop.proxy(), await shop.spec()
    await shop.converge(kube)
    after = await shop.proxy()

    assert during == before
    assert held["status"]["store"]["previousSecretRef"] == {"name": "old", "key": "url"}
    assert _accepted(held) == "FinishingPreviousStore"
    assert "store" not in after["status"]
    assert _accepted(after) == "Accepted"
    assert (await shop.spec())["template"]["metadata"] != before["template"]["metadata"]


def _accepted(proxy: dict[str, Any]) -> str:
    verdict = find(proxy, ConditionType.ACCEPTED)
    assert verdict is not None
    return verdict.reason


async def test_force_ejects_at_once_and_says_so(shop: Shop, kube: Kube) -> None:
    await shop.annotate(enabled="true")
    await shop.converge(kube)
    await shop.annotate(enabled=None, force_eject="true")

    for _ in range(4):
        await shop.look(kube, left=7)

    assert "openhqm.io/proxy" not in (await shop.spec())["template"]["metadata"]["labels"]
    assert "Forced" in shop.told


async def test_annotations_that_cannot_be_followed_touch_nothing(shop: Shop, kube: Kube) -> None:
    before = json.dumps(await shop.spec())
    await shop.annotate(enabled="true", concurency="2")

    await shop.converge(kube)

    assert (await shop.conditions())["Accepted"] == ("False", "InvalidAnnotation")
    assert json.dumps(await shop.spec()) == before
    assert (await kube.list(SECRETS, shop.namespace)).items == []


async def test_a_write_that_is_refused_is_told_where_its_owner_looks(
    api_server: ControlPlane, shop: Shop, kube: Kube
) -> None:
    await shop.annotate(enabled="true")
    async with ForbiddenKube(await from_kubeconfig(api_server.kubeconfig)) as forbidden:
        with pytest.raises(Forbidden, match="policy freeze"):
            await shop.converge(forbidden)
    assert "WriteRefused" in shop.told

    shop.told.clear()
    await shop.converge(kube)

    assert "WriteRefused" not in shop.told
    assert (await shop.conditions())["Ready"] == ("True", "Ready")


async def test_a_deleted_workload_lets_its_async_proxy_go(shop: Shop, kube: Kube) -> None:
    await shop.annotate(enabled="true")
    await shop.converge(kube)
    await kube.delete(DEPLOYMENTS, shop.key)
    await kube.delete(ASYNC_PROXIES, shop.key)  # as the garbage collector does

    await shop.look(kube)

    assert "TargetGone" in shop.told
    with pytest.raises(NotFound):
        await shop.proxy()


async def _end_state(shop: Shop) -> Object:
    """What must not depend on where the operator was killed."""
    deployment, service = await shop.spec(), await shop.kube.get(SERVICES, shop.key)
    settings = (await shop.kube.list(CONFIG_MAPS, shop.namespace)).items
    secrets = (await shop.kube.list(SECRETS, shop.namespace)).items
    proxies = (await shop.kube.list(ASYNC_PROXIES, shop.namespace)).items
    return {
        "template": deployment["template"],
        "replicas": deployment["replicas"],
        "ports": service["spec"]["ports"],
        "original": service["metadata"].get("annotations") or {},
        "settings": [one["data"] for one in settings if "settings.yaml" in one["data"]],
        "secrets": sorted(one["metadata"]["name"] for one in secrets),
        "conditions": [
            sorted((one["type"], one["status"], one["reason"]) for one in proxy["status"]["conditions"])
            for proxy in proxies
        ],
    }


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
async def test_killed_at_every_call_the_end_is_the_same(
    kube: Kube, api_server: ControlPlane, before: bool
) -> None:
    """On the way in and on the way out; *before* or after the API server did what the call asked for."""
    login = await from_kubeconfig(api_server.kubeconfig)
    ends: dict[str, list[tuple[int, Object]]] = {"in": [], "out": []}
    for writes in itertools.count():
        shop = Shop(kube, f"k3-{next(NUMBERS)}")
        await shop.open(target_port=8080)
        was_killed = False
        for way, wish in (("in", "true"), ("out", None)):
            await shop.annotate(enabled=wish, intercept="ServicePort")
            async with FatalKube(login, writes=writes, before=before) as fatal:
                try:
                    await shop.converge(fatal)
                except Killed:
                    was_killed = True
            await shop.converge(kube)
            ends[way].append((writes, _named(await _end_state(shop), shop.namespace)))
        if not was_killed:
            break

    assert writes >= 7
    for way, states in ends.items():
        for at, state in states:
            assert state == states[-1][1], f"{way}: killed at write {at}"


def _named(state: Object, namespace: str) -> Object:
    """The state with the namespace's own name taken out."""
    return {
        name: json.loads(json.dumps(value, default=sorted, sort_keys=True).replace(namespace, "NAMESPACE"))
        for name, value in state.items()
    }


# --- the whole process -----------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def operator(api_server: ControlPlane, kube: Kube, shop: Shop) -> AsyncIterator[Process]:
    """The whole operator, looking after the shop's namespace; its store's Secret is there already."""
    await shop.mint(shop.namespace)
    settings = OperatorSettings(
        lease=LeaseSettings(namespace=shop.namespace),
        namespace=shop.namespace,
        host="127.0.0.1",
        health_port=0,
        log=LogSettings(),
    )
    process = Process(settings, await from_kubeconfig(api_server.kubeconfig))
    task = asyncio.create_task(process.run())
    await process.listening.wait()
    yield process
    process.stop()
    await asyncio.wait_for(task, LONG_SECONDS)


async def until(shop: Shop, type: str, status: str) -> dict[str, tuple[str, str]]:
    """Poll until the condition is so."""
    async with asyncio.timeout(LONG_SECONDS):
        while True:
            try:
                conditions = await shop.conditions()
            except NotFound:
                conditions = {}
            if conditions.get(type, ("", ""))[0] == status:
                return conditions
            await shop.control()
            await asyncio.sleep(0.1)


async def test_the_process_follows_an_annotation(operator: Process, shop: Shop, kube: Kube) -> None:
    await shop.annotate(enabled="true")

    conditions = await until(shop, "Injected", "True")

    assert conditions["Accepted"] == ("True", "Accepted")


async def test_fifty_edits_in_a_second_settle_as_the_last_one(
    operator: Process, shop: Shop, kube: Kube
) -> None:
    await shop.annotate(enabled="true")
    await until(shop, "Injected", "True")

    for number in range(1, 51):
        await shop.annotate(concurrency=str(number))
    async with asyncio.timeout(LONG_SECONDS):
        while True:
            spec = (await shop.proxy())["spec"]
            settings = await kube.get(CONFIG_MAPS, (shop.namespace, "legacy-openhqm-settings"))
            if "concurrency: 50" in settings["data"]["settings.yaml"]:
                break
            await asyncio.sleep(0.1)

    assert spec["settings"]["egress"]["concurrency"] == 50
    await until(shop, "Injected", "True")
    version = (await shop.proxy())["metadata"]["resourceVersion"]
    await asyncio.sleep(3)
    assert (await shop.proxy())["metadata"]["resourceVersion"] == version, "somebody still writes"
