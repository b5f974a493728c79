"""A workload goes to zero and comes back on a real cluster, and its Service always has a ready endpoint.

Controllers, kwok's Pods and the endpoints of the Service are real; what the sidecars and the gateway say of
the queue is served here.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.charts.rendering import render
from tests.cluster.control_plane import ControlPlane
from tests.cluster.hook import grant_hook
from tests.operator.loads import stats_body

from openhqm_operator.api import names
from openhqm_operator.api.conditions import find
from openhqm_operator.api.status import ConditionType
from openhqm_operator.gateway.manifests import is_ready
from openhqm_operator.gateway.stage import Sleep
from openhqm_operator.injecting.platform_settings import Platform
from openhqm_operator.kube.cache import Cache
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.errors import KubeError, NotFound
from openhqm_operator.kube.events import Events
from openhqm_operator.kube.login import from_kubeconfig
from openhqm_operator.kube.resources import (
    ASYNC_PROXIES,
    CONFIG_MAPS,
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    NAMESPACES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    SERVICES,
    Key,
    Object,
)
from openhqm_operator.noticing.triggers import build_informers, caches_of
from openhqm_operator.operator_settings import LeaseSettings, OperatorSettings
from openhqm_operator.reconciling.belongings import digest
from openhqm_operator.reconciling.observe import Observer
from openhqm_operator.reconciling.observed import Options, Told, is_ours
from openhqm_operator.reconciling.reconcile import Reconciler, Work
from openhqm_operator.scaling.autoscaler import Autoscaler, Powers
from openhqm_operator.scaling.sidecar_stats import SidecarStats
from openhqm_operator.uninstall import Release, Uninstall

USER = "kubectl"
WITHIN_SECONDS = 30.0
LONG_SECONDS = 120.0
SYSTEM = "gateway-system"
PLATFORM = Platform(image="registry/openhqm:1")
_numbers = itertools.count()


class Sidecars:
    """Sidecars that have taken over the settings of their ConfigMap and hold no work."""

    def __init__(self, settings: Cache) -> None:
        self._settings = settings

    def told(self, key: Key) -> Told:
        found = self._settings.get((key.namespace, names.settings_map(key.name)))
        return Told() if found is None else Told(0, frozenset({digest(found["data"]["settings.yaml"])}), True)


class Shop:
    """A namespace with a Deployment `legacy` of one Pod, its Service, its AsyncProxy, and their operator.

    The operator's informers are real; its clock runs as fast as `pass_seconds` says.

    Attributes:
        arrivals: requests per second, done at once.
        due, held: what waits.
        gaps: versions of the Service's endpoints in which none was ready.
    """

    def __init__(self, kube: Kube, namespace: str, server: TestServer) -> None:
        self.kube = kube
        self.namespace = namespace
        self.key = Key(namespace, "legacy")
        self.accepted = self.arrivals = self.due = self.held = 0
        self.gaps: list[list[str]] = []
        self.told: list[str] = []
        self._ahead = dt.timedelta()
        self._server = server
        self._tasks: list[asyncio.Task[Any]] = []
        self._slices: dict[str, Object] = {}

    async def open(self, stack: AsyncExitStack, scaling: Mapping[str, Any], **service: Any) -> None:
        await self.kube.create(_named("v1", "Namespace", self.namespace), manager=USER)
        await self.kube.create(_deployment(self.namespace), manager=USER)
        await self.kube.create(_service(self.namespace, **service), manager=USER)
        await self.kube.create(_secret(self.namespace), manager=USER)
        await self.kube.create(_proxy(self.namespace, scaling), manager=USER)
        informers = build_informers(self.kube, self.namespace)
        self.caches = caches_of(informers)
        self._stats = await stack.enter_async_context(SidecarStats(self._address))
        self.operate(Options(gateway=PLATFORM))
        self._tasks = [asyncio.create_task(informer.run()) for informer in informers]
        for informer in informers:
            await informer.synced.wait()
        await self.until(self.is_injected)
        self._tasks.append(asyncio.create_task(self._watch_endpoints()))

    def operate(self, options: Options) -> None:
        """Have an operator begin that knows nothing but what the caches say."""
        sidecars = Sidecars(self.caches[CONFIG_MAPS])
        observer = Observer(
            self.kube,
            self.caches,
            sidecars,
            options,
            self.now,
            wants_sleep=lambda key: self.autoscaler.wants_sleep(key),
        )
        self.reconciler = Reconciler(self.kube, observer, self._post, None)
        events = Events(self.kube, instance="test")
        powers = Powers(sleep=lambda key: self.reconciler.sleeps.get(key, Sleep()))
        self.autoscaler = Autoscaler(
            self.kube,
            self.caches,
            self._stats,
            events,
            powers,
            clock=lambda: self.now().timestamp(),
            now=self.now,
        )

    async def close(self) -> None:
        ended = [task for task in self._tasks if task.done()]
        assert not ended, "nobody watched any more"
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.kube.delete(NAMESPACES, ("", self.namespace))

    def now(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC) + self._ahead

    def pass_seconds(self, seconds: float) -> None:
        self._ahead += dt.timedelta(seconds=seconds)

    def answer(self) -> Object:
        return stats_body(
            accepted=self.accepted,
            done=self.accepted - self.due,
            due=self.due,
            held=self.held,
            mean_app_seconds=0.5,
        )

    async def work(self, seconds: float = 2.0) -> None:
        """Let time pass, and the operator work once: the autoscaler's turn, then a look at everything."""
        self.pass_seconds(seconds)
        self.accepted += round(self.arrivals * seconds)
        await self.autoscaler.tick()
        await self.reconcile()
        await asyncio.sleep(0.05)

    async def reconcile(self) -> None:
        try:
            await self.reconciler(Work("AsyncProxy", self.key))
        except KubeError as exc:  # such as a lagging cache: the work queue would try again
            self.told.append(str(exc))

    async def until(self, is_so: Callable[[], Awaitable[bool]], seconds: float = 0.2) -> None:
        """Work until it is so."""
        async with asyncio.timeout(WITHIN_SECONDS):
            while not await is_so():
                await self.work(seconds)

    async def fall_asleep(self) -> None:
        await self.until(self.is_asleep, 2.0)

    # --- what is so

    async def is_injected(self) -> bool:
        """The template is labelled and rolled out."""
        deployment = await self.kube.get(DEPLOYMENTS, self.key)
        status = deployment.get("status") or {}
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        counts = {status.get(name) for name in ("replicas", "readyReplicas", "updatedReplicas")}
        return names.PROXY_LABEL in labels and counts == {1} and await self.pods() == 1

    async def is_asleep(self) -> bool:
        return await self.replicas() == 0 and await self.pods() == 0

    async def is_awake(self) -> bool:
        return await self.replicas() > 0 and not await self.ours()

    async def replicas(self) -> int:
        return int((await self.kube.get(DEPLOYMENTS, self.key))["spec"]["replicas"])

    async def pods(self) -> int:
        """Pods of the app."""
        return len([pod for pod in (await self.kube.list(PODS, self.namespace)).items if not is_ours(pod)])

    async def ours(self) -> list[str]:
        """Objects of the gateway, as Kind/name."""
        found: list[str] = []
        for resource in (DEPLOYMENTS, SERVICES, ENDPOINT_SLICES, POD_DISRUPTION_BUDGETS):
            there = (await self.kube.list(resource, self.namespace)).items
            # A controller's slices of our Service have its labels too.
            made = [one for one in there if is_ours(one) and "generateName" not in one["metadata"]]
            found += [f"{resource.kind}/{one['metadata']['name']}" for one in made]
        return sorted(found)

    async def joined(self) -> list[Object]:
        selector = f"{names.SERVICE_NAME_LABEL}=legacy,{names.SLICE_MANAGER_LABEL}={names.SLICE_MANAGER}"
        return (await self.kube.list(ENDPOINT_SLICES, self.namespace, labels=selector)).items

    async def reason(self, type: ConditionType) -> str | None:
        verdict = find(await self.kube.get(ASYNC_PROXIES, self.key), type)
        return None if verdict is None else verdict.reason

    # --- the world

    async def _watch_endpoints(self) -> None:
        """See every version of the Service's endpoints."""
        selector = f"{names.SERVICE_NAME_LABEL}=legacy"
        listing = await self.kube.list(ENDPOINT_SLICES, self.namespace, labels=selector)
        self._slices = {one["metadata"]["name"]: one for one in listing.items}
        self._look_for_gap()
        async with self.kube.watch(
            ENDPOINT_SLICES, self.namespace, labels=selector, resource_version=listing.resource_version
        ) as events:
            async for event in events:
                if event.type == "BOOKMARK":
                    continue
                name = event.object["metadata"]["name"]
                self._slices[name] = event.object
                if event.type == "DELETED":
                    del self._slices[name]
                self._look_for_gap()

    def _look_for_gap(self) -> None:
        endpoints = [one for each in self._slices.values() for one in each.get("endpoints") or ()]
        if not any(one["conditions"]["ready"] for one in endpoints):
            self.gaps.append(sorted(self._slices))

    def _address(self, pod: Mapping[str, Any]) -> str | None:
        return str(self._server.make_url(f"/{self.namespace}")) if is_ready(pod) else None

    def _post(self, regarding: Any, reason: str, note: str, *, action: str, is_warning: bool = False) -> None:
        self.told.append(f"{reason}: {note}")


def _named(version: str, kind: str, name: str, **metadata: Any) -> Object:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **metadata}}


def _deployment(namespace: str) -> Object:
    ports = [{"name": "http", "containerPort": 8080}]
    pod = {
        "metadata": {"labels": {"app": "legacy"}},
        "spec": {"containers": [{"name": "app", "image": "app", "ports": ports}]},
    }
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": "legacy"}}, "template": pod}
    return _named("apps/v1", "Deployment", "legacy", namespace=namespace) | {"spec": spec}


def _service(namespace: str, **spec: Any) -> Object:
    ports = [{"name": "web", "port": 80, "targetPort": "http"}]
    whole = {"selector": {"app": "legacy"}, "ports": ports} | spec
    return _named("v1", "Service", "legacy", namespace=namespace) | {"spec": whole}


def _secret(namespace: str) -> Object:
    return _named("v1", "Secret", names.STORE_SECRET, namespace=namespace) | {
        "stringData": {names.STORE_SECRET_KEY: "redis://store"}
    }


def _proxy(namespace: str, scaling: Mapping[str, Any]) -> Object:
    usual = {"mode": "Native", "minReplicas": 0, "maxReplicas": 5, "idleAfterSeconds": 10}
    spec = {
        "targetRef": {"kind": "Deployment", "name": "legacy"},
        "intercept": {"type": "NamedPort"},
        "scaling": {**usual, **scaling},
    }
    made = _named(ASYNC_PROXIES.api_version, ASYNC_PROXIES.kind, "legacy", namespace=namespace)
    return made | {"spec": spec}


Opener = Callable[..., Awaitable[Shop]]


@pytest_asyncio.fixture
async def kube(cluster: ControlPlane) -> AsyncIterator[Kube]:
    async with Kube(await from_kubeconfig(cluster.kubeconfig)) as kube:
        yield kube


@pytest_asyncio.fixture
async def open_shop(kube: Kube) -> AsyncIterator[Opener]:
    """Makes shops whose workloads are injected and idle."""
    shops: dict[str, Shop] = {}

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(shops[request.match_info["namespace"]].answer())

    app = web.Application()
    app.router.add_get("/{namespace}/stats", answer)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(TestServer(app))

        async def open_one(scaling: Mapping[str, Any] | None = None, **service: Any) -> Shop:
            shop = Shop(kube, f"sleepy-{next(_numbers)}", server)
            shops[shop.namespace] = shop
            await shop.open(stack, scaling or {}, **service)
            return shop

        yield open_one
        for shop in shops.values():
            await shop.close()


# --- to zero and back ------------------------------------------------------------------------------------


async def test_an_idle_workload_sleeps_and_one_queued_request_wakes_it(open_shop: Opener) -> None:
    shop = await open_shop()

    await shop.fall_asleep()
    [endpoints] = await shop.joined()
    asleep = await shop.ours()
    shop.accepted, shop.due = 1, 1
    await shop.until(lambda: _is(shop.replicas(), 1))
    shop.due, shop.arrivals = 0, 1
    await shop.until(shop.is_awake, 2.0)

    assert asleep == [
        "Deployment/legacy-openhqm-gateway",
        "EndpointSlice/legacy.legacy-openhqm-ipv4",
        "PodDisruptionBudget/legacy-openhqm-gateway",
        "Service/legacy-openhqm-app",
    ]
    assert endpoints["ports"] == [{"name": "web", "port": 16080, "protocol": "TCP"}]
    assert {one["targetRef"]["kind"] for one in endpoints["endpoints"]} == {"Pod"}
    assert all(one["nodeName"] for one in endpoints["endpoints"])
    assert shop.gaps == []


async def test_one_held_request_wakes_it_too(open_shop: Opener) -> None:
    shop = await open_shop()

    await shop.fall_asleep()
    shop.held = 1
    await shop.until(lambda: _is(shop.replicas(), 1))
    shop.held, shop.arrivals = 0, 1
    await shop.until(shop.is_awake, 2.0)

    assert shop.gaps == []


async def test_it_sleeps_and_wakes_again_and_again(open_shop: Opener) -> None:
    shop = await open_shop()

    for _ in range(3):
        await shop.fall_asleep()
        shop.held = 1
        await shop.until(lambda: _is(shop.pods(), 1))
        shop.held = 0

    assert shop.gaps == []


async def test_asleep_nothing_is_written(open_shop: Opener) -> None:
    shop = await open_shop()
    await shop.fall_asleep()
    for _ in range(5):
        await shop.work()
    before = shop.kube.writes.copy()

    for _ in range(20):
        await shop.work()

    assert shop.kube.writes == before


async def test_the_gateways_pods_may_be_replaced_while_it_sleeps(open_shop: Opener) -> None:
    shop = await open_shop()
    await shop.fall_asleep()
    old = {pod["metadata"]["name"] for pod in (await shop.kube.list(PODS, shop.namespace)).items}

    for name in sorted(old):
        await shop.kube.delete(PODS, (shop.namespace, name))
        await shop.until(lambda gone=name: _has_replaced(shop, gone))

    assert await shop.is_asleep()
    assert shop.gaps == []


async def test_work_that_comes_before_it_sleeps_keeps_it_awake(open_shop: Opener) -> None:
    shop = await open_shop()

    await shop.until(lambda: _is(_count_ready(shop), 2), 1.0)
    shop.accepted, shop.due = 1, 1
    await shop.work()
    shop.due, shop.arrivals = 0, 1
    while await shop.ours():
        await shop.work(2.0)
        assert await shop.replicas() >= 1

    assert shop.gaps == []


# --- out of the question ---------------------------------------------------------------------------------


async def test_a_headless_service_is_refused_with_a_reason(open_shop: Opener) -> None:
    shop = await open_shop(clusterIP="None")

    for _ in range(15):
        await shop.work()

    assert await shop.replicas() == 1
    assert await shop.reason(ConditionType.AUTOSCALING_ACTIVE) == "HeadlessService"
    assert await shop.ours() == []


async def test_what_is_refused_while_it_sleeps_wakes_first(open_shop: Opener) -> None:
    shop = await open_shop()
    await shop.fall_asleep()

    change = {"spec": {"internalTrafficPolicy": "Local"}}
    await shop.kube.patch_merge(SERVICES, shop.key, change, manager=USER)
    await shop.until(shop.is_awake, 2.0)

    assert await shop.reason(ConditionType.AUTOSCALING_ACTIVE) == "InternalTrafficLocal"
    assert shop.gaps == []


async def test_scaling_turned_off_while_it_sleeps_wakes_it(open_shop: Opener) -> None:
    shop = await open_shop()
    await shop.fall_asleep()

    change = {"spec": {"scaling": {"mode": "Off"}}}
    await shop.kube.patch_merge(ASYNC_PROXIES, shop.key, change, manager=USER)
    await shop.until(shop.is_awake, 2.0)

    assert shop.gaps == []


async def test_gateways_turned_off_while_it_sleeps_wake_it_and_go(open_shop: Opener) -> None:
    """As after `helm upgrade --set gateway.enabled=false`: another operator, with other settings."""
    shop = await open_shop()
    await shop.fall_asleep()

    shop.operate(Options(gateway=None))
    await shop.until(shop.is_awake, 2.0)

    assert await shop.reason(ConditionType.AUTOSCALING_ACTIVE) == "GatewayDisabled"
    assert await shop.ours() == []
    assert shop.gaps == []


async def test_gateways_turned_off_while_one_has_joined_go_and_the_workload_stays(open_shop: Opener) -> None:
    shop = await open_shop()
    await shop.until(lambda: _is(_count_ready(shop), 2), 1.0)

    shop.operate(Options(gateway=None))
    while await shop.ours():
        await shop.work(2.0)
        assert await shop.replicas() == 1

    assert shop.gaps == []


async def test_an_ejected_workload_wakes_first_and_nothing_of_ours_stays(open_shop: Opener) -> None:
    shop = await open_shop()
    await shop.fall_asleep()

    await shop.kube.delete(ASYNC_PROXIES, shop.key)
    await shop.until(lambda: _is_gone(shop), 2.0)
    await shop.until(lambda: _is(shop.ours(), []))

    template = (await shop.kube.get(DEPLOYMENTS, shop.key))["spec"]["template"]["metadata"]
    assert names.PROXY_LABEL not in template["labels"]
    assert await shop.replicas() == 1
    assert shop.gaps == []


async def test_the_uninstall_hook_wakes_a_workload_before_it_gives_it_back(
    open_shop: Opener, cluster: ControlPlane
) -> None:
    """With the rights the chart gives it. Nobody tells what is queued: that is given up, but not the app."""
    shop = await open_shop()
    await shop.fall_asleep()
    await shop.kube.create(_named("v1", "Namespace", SYSTEM), manager=USER)
    login = await from_kubeconfig(grant_hook(cluster, render(namespace=SYSTEM), SYSTEM))
    settings = OperatorSettings(
        lease=LeaseSettings(namespace=SYSTEM), namespace=shop.namespace, gateway=PLATFORM
    )
    release = Release(webhook=f"openhqm-{SYSTEM}", operator="openhqm-operator", drain_seconds=0.0)

    async with Kube(login) as hook, asyncio.timeout(LONG_SECONDS):
        left = await Uninstall(settings, release, hook).run()

    assert left == []
    assert shop.gaps == []
    assert await shop.replicas() == 1
    assert await shop.ours() == []
    template = (await shop.kube.get(DEPLOYMENTS, shop.key))["spec"]["template"]["metadata"]
    assert names.PROXY_LABEL not in template["labels"]
    proxy = await shop.kube.get(ASYNC_PROXIES, shop.key)
    assert not proxy["metadata"].get("finalizers")


async def _is(found: Awaitable[Any], wanted: Any) -> bool:
    return bool(await found == wanted)


async def _ready(shop: Shop) -> set[str]:
    """Pods of the gateway that are ready endpoints of the Service."""
    return {
        one["targetRef"]["name"]
        for each in await shop.joined()
        for one in each.get("endpoints") or ()
        if one["conditions"]["ready"]
    }


async def _count_ready(shop: Shop) -> int:
    return len(await _ready(shop))


async def _has_replaced(shop: Shop, gone: str) -> bool:
    ready = await _ready(shop)
    return len(ready) == 2 and gone not in ready


async def _is_gone(shop: Shop) -> bool:
    try:
        await shop.kube.get(ASYNC_PROXIES, shop.key)
    except NotFound:
        return True
    return False
