"""The autoscaler on a real cluster: Pods come, become Ready and go; what they would say is served here."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import itertools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.cluster.control_plane import ControlPlane
from tests.operator.loads import stats_body

from openhqm_operator.api import names
from openhqm_operator.api.conditions import Verdict, find, merge
from openhqm_operator.api.status import ConditionStatus, ConditionType
from openhqm_operator.gateway.stage import Sleep
from openhqm_operator.kube.cache import Cache
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.errors import Forbidden, Invalid
from openhqm_operator.kube.events import Events
from openhqm_operator.kube.login import from_kubeconfig
from openhqm_operator.kube.resources import (
    API_SERVICES,
    ASYNC_PROXIES,
    DEPLOYMENTS,
    EVENTS,
    HORIZONTAL_POD_AUTOSCALERS,
    NAMESPACES,
    PODS,
    SCALED_OBJECTS,
    WORKLOADS,
    Key,
    Object,
    key_of,
)
from openhqm_operator.scaling.autoscaler import UNREACHABLE_SECONDS, Autoscaler, Powers
from openhqm_operator.scaling.external_metrics import (
    build_metrics_app,
    desired_from_status,
    find_front_proxy,
    let_in_only,
)
from openhqm_operator.scaling.sidecar_stats import SidecarStats

US = "test"
WITHIN_SECONDS = 20.0
_numbers = itertools.count()


class Shop:
    """A namespace with a Deployment `app`, its AsyncProxy `legacy`, and what its sidecars say.

    Attributes:
        accepted, due: of the queue, shared by all Pods.
        in_flight: by Pod.
        is_answering: whether the sidecars can be reached.
        now: monotonic seconds; a tick takes two.
    """

    def __init__(self, kube: Kube, namespace: str, powers: Powers) -> None:
        self.kube = kube
        self.namespace = namespace
        self.accepted = self.due = 0
        self.in_flight: dict[str, int] = {}
        self.is_answering = True
        self.now = 1000.0
        self.workload, self.proxy = Key(namespace, "app"), Key(namespace, "legacy")
        resources = (ASYNC_PROXIES, PODS, HORIZONTAL_POD_AUTOSCALERS, SCALED_OBJECTS, *WORKLOADS.values())
        self.caches = {resource: Cache() for resource in resources}
        self.caches[PODS].add_index("proxy", _proxy_of)
        self.events = Events(kube, instance="test")
        self._powers = powers

    async def open(self, stats: SidecarStats, replicas: int, **scaling: Any) -> None:
        """Make everything, and wait until the Pods are Ready."""
        self._stats = stats
        self.restart()
        metadata = {"name": self.namespace}
        await self.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}, manager=US)
        await self.kube.create(_deployment(self.namespace, replicas), manager="kubectl")
        await self.kube.create(_proxy(self.namespace, scaling), manager=US)
        await self.accept()
        await self.until(lambda: self.ready(replicas))

    def restart(self) -> None:
        """Another process leads from now on, with a clock of its own."""
        self.now += 5000.0
        self.autoscaler = Autoscaler(
            self.kube, self.caches, self._stats, self.events, self._powers, clock=lambda: self.now
        )

    async def accept(self) -> None:
        """Say what the operator's reconcile would."""
        proxy = await self.kube.get(ASYNC_PROXIES, self.proxy)
        verdict = Verdict.yes(ConditionType.ACCEPTED, "Accepted", "Fits.")
        conditions = merge((), [verdict], 1, dt.datetime.now(dt.UTC))
        metadata = {"name": self.proxy.name, "namespace": self.namespace}
        body = {**proxy, "metadata": metadata, "status": {"conditions": conditions}}
        await self.kube.apply_status(body, manager=names.OPERATOR_MANAGER, force=True)

    def answer(self, pod: str) -> Object:
        return stats_body(
            accepted=self.accepted,
            done=self.accepted - self.due,
            due=self.due,
            running=self.in_flight.get(pod, 0),
            mean_app_seconds=0.5,
        )

    async def tick(self, times: int = 1, *, arrivals: float = 0.0) -> None:
        """Let two seconds pass, and have the autoscaler see what is so."""
        for _ in range(times):
            self.now += 2.0
            self.accepted += int(arrivals * 2)
            await self.look()
            await self.autoscaler.tick()

    async def look(self) -> None:
        """Bring the caches in step, as informers do."""
        for resource, cache in self.caches.items():
            if resource is SCALED_OBJECTS:
                continue
            found = {key_of(one): one for one in (await self.kube.list(resource, self.namespace)).items}
            for key in list(cache):
                if key not in found:
                    cache.put(key, None)
            for key, obj in found.items():
                cache.put(key, obj)

    async def replicas(self) -> int:
        return (await self.kube.get_scale(DEPLOYMENTS, self.workload)).wanted

    async def ready(self, number: int) -> bool:
        status = (await self.kube.get(DEPLOYMENTS, self.workload)).get("status") or {}
        return int(status.get("readyReplicas", 0)) == number == int(status.get("replicas", 0))

    async def status(self) -> Object:
        found: Object = (await self.kube.get(ASYNC_PROXIES, self.proxy))["status"].get("scaling") or {}
        return found

    async def verdict(self) -> Verdict | None:
        return find(await self.kube.get(ASYNC_PROXIES, self.proxy), ConditionType.AUTOSCALING_ACTIVE)

    async def set_scaling(self, **scaling: Any) -> None:
        await self.kube.patch_merge(ASYNC_PROXIES, self.proxy, {"spec": {"scaling": scaling}}, manager=US)

    async def until(self, is_so: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(WITHIN_SECONDS):
            while not await is_so():
                await asyncio.sleep(0.05)


def _proxy_of(pod: Object) -> list[tuple[str, str]]:
    value = (pod["metadata"].get("labels") or {}).get(names.PROXY_LABEL)
    return [(pod["metadata"]["namespace"], value)] if value else []


def _deployment(namespace: str, replicas: int) -> Object:
    labels = {"app": "app", names.PROXY_LABEL: "legacy"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "app", "image": "app"}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"namespace": namespace, "name": "app"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "app"}}, "template": pod},
    }


def _proxy(namespace: str, scaling: Object) -> Object:
    return {
        "apiVersion": ASYNC_PROXIES.api_version,
        "kind": ASYNC_PROXIES.kind,
        "metadata": {"namespace": namespace, "name": "legacy"},
        "spec": {"targetRef": {"kind": "Deployment", "name": "app"}, "scaling": scaling},
    }


def _autoscaler(namespace: str) -> Object:
    resource = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}
    return {
        "apiVersion": HORIZONTAL_POD_AUTOSCALERS.api_version,
        "kind": HORIZONTAL_POD_AUTOSCALERS.kind,
        "metadata": {"namespace": namespace, "name": "theirs"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "app"},
            "maxReplicas": 5,
            "metrics": [{"type": "Resource", "resource": resource}],
        },
    }


@pytest_asyncio.fixture
async def kube(cluster: ControlPlane) -> AsyncIterator[Kube]:
    async with Kube(await from_kubeconfig(cluster.kubeconfig)) as kube:
        yield kube


Opener = Callable[..., Awaitable[Shop]]


@pytest_asyncio.fixture
async def open_shop(kube: Kube) -> AsyncIterator[Opener]:
    """Makes shops whose sidecars answer."""
    shops: dict[str, Shop] = {}

    async def answer(request: web.Request) -> web.Response:
        shop = shops[request.match_info["namespace"]]
        if not shop.is_answering:
            raise web.HTTPServiceUnavailable
        return web.json_response(shop.answer(request.match_info["pod"]))

    async def open_one(replicas: int = 2, powers: Powers = Powers(), **scaling: Any) -> Shop:  # noqa: B008
        shop = Shop(kube, f"shop-{next(_numbers)}", powers)
        shops[shop.namespace] = shop
        await shop.open(stats, replicas, **({"mode": "Native", "maxReplicas": 20} | scaling))
        return shop

    app = web.Application()
    app.router.add_get("/{namespace}/{pod}/stats", answer)
    async with TestServer(app) as server:

        def address(pod: Any) -> str:
            return str(server.make_url(f"/{pod['metadata']['namespace']}/{pod['metadata']['name']}"))

        async with SidecarStats(address) as stats:
            yield open_one
    for shop in shops.values():
        await kube.delete(NAMESPACES, ("", shop.namespace))


# --- Native -----------------------------------------------------------------------------------------------


async def test_a_burst_grows_the_workload_and_its_end_shrinks_it_again(open_shop: Opener) -> None:
    shop = await open_shop(2)
    writing = asyncio.create_task(shop.events.run())

    await shop.tick(10, arrivals=80)
    grown = await shop.replicas()
    await shop.until(lambda: shop.ready(grown))
    await shop.tick(50)
    kept = await shop.replicas()
    await shop.tick(60)
    shrunk = await shop.replicas()
    await shop.tick()

    # 80 a second of half a second each, four at once, at 70 %: 14.3.
    assert (grown, kept, shrunk) == (15, 15, 1)
    status = await shop.status()
    assert status["originalReplicas"] == 2
    assert (status["currentReplicas"], status["desiredReplicas"]) == (1, 1)
    assert "lastScaleTime" in status
    assert await shop.verdict() == Verdict.yes(
        ConditionType.AUTOSCALING_ACTIVE, "Scaling", "The replicas follow arrivals and backlog."
    )
    await shop.events.flush(5)
    writing.cancel()
    notes = [
        one["note"]
        for one in (await shop.kube.list(EVENTS, shop.namespace)).items
        if one["reason"] == "Scaled"
    ]
    assert any("From 2 to 15 replicas for a need of 14.3: 80.0/s arrive" in note for note in notes)


async def test_the_replicas_are_ours_and_the_condition_beside_the_operators(open_shop: Opener) -> None:
    shop = await open_shop(2)

    await shop.tick(3, arrivals=80)

    managed = (await shop.kube.get(DEPLOYMENTS, shop.workload))["metadata"]["managedFields"]
    owners = {one["manager"]: one["fieldsV1"].get("f:spec", {}) for one in managed}
    assert "f:replicas" in owners[names.AUTOSCALER_MANAGER]
    proxy = await shop.kube.get(ASYNC_PROXIES, shop.proxy)
    accepted = find(proxy, ConditionType.ACCEPTED)
    assert accepted is not None
    assert accepted.status is ConditionStatus.TRUE


async def test_nothing_is_written_while_nothing_changes(open_shop: Opener) -> None:
    shop = await open_shop(3)
    await shop.tick(4, arrivals=16)
    before = shop.kube.writes.copy()

    await shop.tick(20, arrivals=16)

    assert shop.kube.writes == before


async def test_paused_the_replicas_are_left_alone(open_shop: Opener) -> None:
    shop = await open_shop(2, paused=True)

    await shop.tick(4, arrivals=80)

    verdict = await shop.verdict()
    assert await shop.replicas() == 2
    assert verdict is not None
    assert (verdict.status, verdict.reason) == (ConditionStatus.TRUE, "Paused")


async def test_a_schedule_raises_the_least(open_shop: Opener) -> None:
    schedule = {"name": "always", "start": "* * * * *", "durationSeconds": 3600, "minReplicas": 6}
    shop = await open_shop(2, schedules=[schedule])

    await shop.tick(3)
    await shop.tick()

    assert await shop.replicas() == 6
    assert (await shop.status())["activeSchedule"] == "always"


async def test_a_paused_deployment_is_left_alone(open_shop: Opener) -> None:
    shop = await open_shop(2)
    await shop.kube.patch_merge(DEPLOYMENTS, shop.workload, {"spec": {"paused": True}}, manager=US)

    await shop.tick(4, arrivals=80)

    verdict = await shop.verdict()
    assert await shop.replicas() == 2
    assert verdict is not None
    assert verdict.reason == "WorkloadPaused"


async def test_sidecars_that_cannot_be_reached_hold_the_replicas_and_are_told_of(open_shop: Opener) -> None:
    shop = await open_shop(3)
    await shop.tick(3, arrivals=16)
    shop.is_answering = False

    await shop.tick(3)
    soon = await shop.verdict()
    await shop.tick(int(UNREACHABLE_SECONDS))
    later = await shop.verdict()
    shop.is_answering = True
    await shop.tick(3, arrivals=16)

    assert await shop.replicas() == 3
    assert soon is not None and later is not None  # noqa: PT018
    assert (soon.reason, later.reason, later.status) == ("Scaling", "StatsUnreachable", ConditionStatus.FALSE)
    again = await shop.verdict()
    assert again is not None
    assert again.reason == "Scaling"


async def test_who_was_faster_is_not_overwritten(open_shop: Opener) -> None:
    """The cache says 15, somebody has just made it 9: that is decided on at the next tick."""
    shop = await open_shop(2)
    await shop.tick(2, arrivals=80)
    first = await shop.replicas()
    await shop.look()
    await shop.kube.patch_merge(DEPLOYMENTS, shop.workload, {"spec": {"replicas": 9}}, manager="kubectl")
    shop.now += 2
    shop.accepted += 400

    await shop.autoscaler.tick()

    assert first == 15
    assert await shop.replicas() == 9


async def test_pods_with_work_in_flight_survive_a_scale_in(open_shop: Opener) -> None:
    shop = await open_shop(5, down={"windowSeconds": 0})
    await shop.look()
    busy = sorted(key.name for key in shop.caches[PODS])[2]
    shop.in_flight = {busy: 4}

    await shop.tick(4)
    await shop.until(lambda: shop.ready(1))
    await shop.look()

    [survivor] = [key.name for key in shop.caches[PODS]]
    assert survivor == busy


async def test_a_refused_scale_is_told(open_shop: Opener, cluster: ControlPlane) -> None:
    shop = await open_shop(2)
    policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolic"
    for path, body in _refusing(shop.namespace):
        cluster.request("POST", policies + path, body)

    await shop.until(lambda: is_refused(shop))
    await shop.tick(4, arrivals=80)

    verdict = await shop.verdict()
    assert verdict is not None
    assert (verdict.status, verdict.reason) == (ConditionStatus.FALSE, "ScaleRefused")
    assert "no more replicas" in verdict.message
    assert await shop.replicas() == 2


async def is_refused(shop: Shop) -> bool:
    """Whether the policy is in force: that takes the API server a moment."""
    scale = await shop.kube.get_scale(DEPLOYMENTS, shop.workload)
    try:
        await shop.kube.apply_scale(
            DEPLOYMENTS,
            shop.workload,
            3,
            resource_version=scale.resource_version,
            manager=US,
            force=True,
            dry_run=True,
        )
    except (Forbidden, Invalid):
        return True
    return False


def _refusing(namespace: str) -> list[tuple[str, Object]]:
    """A policy that lets nobody in *namespace* ask for more than 2 replicas."""
    rule = {
        "apiGroups": ["apps"],
        "apiVersions": ["v1"],
        "operations": ["UPDATE"],
        "resources": ["deployments/scale"],
    }
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    policy = {
        "metadata": {"name": namespace},
        "spec": {
            "matchConstraints": {"resourceRules": [rule]},
            "validations": [{"expression": "object.spec.replicas <= 2", "message": "no more replicas"}],
        },
    }
    binding = {
        "policyName": namespace,
        "validationActions": ["Deny"],
        "matchResources": {"namespaceSelector": selector},
    }
    return [("ies", policy), ("ybindings", {"metadata": {"name": namespace}, "spec": binding})]


async def test_a_new_leader_goes_on_where_the_old_one_was(open_shop: Opener) -> None:
    """A new leader has no figures of its own yet and neither grows nor shrinks before it has."""
    shop = await open_shop(3)
    await shop.tick(10, arrivals=80)
    grown = await shop.replicas()

    shop.restart()
    await shop.tick(1)
    at_first = await shop.replicas()
    await shop.tick(40)
    within_the_window = await shop.replicas()
    await shop.tick(40)

    assert (grown, at_first, within_the_window, await shop.replicas()) == (15, 15, 15, 1)
    assert (await shop.status())["originalReplicas"] == 3


# --- never two writers ------------------------------------------------------------------------------------


async def test_a_foreign_hpa_stops_us_until_it_is_gone(open_shop: Opener) -> None:
    shop = await open_shop(2)
    await shop.kube.create(_autoscaler(shop.namespace), manager="kubectl")

    await shop.tick(4, arrivals=80)
    during, verdict = await shop.replicas(), await shop.verdict()
    await shop.kube.delete(HORIZONTAL_POD_AUTOSCALERS, (shop.namespace, "theirs"))
    await shop.tick(4, arrivals=80)

    assert during == 2
    assert verdict is not None
    assert (verdict.status, verdict.reason) == (ConditionStatus.FALSE, "ExternalAutoscalerFound")
    assert "HorizontalPodAutoscaler theirs" in verdict.message
    assert await shop.replicas() == 15


async def test_hpa_mode_without_our_metrics_api_and_keda_mode_without_keda_are_refused(
    open_shop: Opener,
) -> None:
    shop = await open_shop(2, mode="HPA")

    await shop.tick(3, arrivals=80)
    hpa = await shop.verdict()
    await shop.set_scaling(mode="KEDA")
    await shop.tick(3, arrivals=80)
    keda = await shop.verdict()

    assert hpa is not None and keda is not None  # noqa: PT018
    assert (hpa.reason, keda.reason) == ("ExternalMetricsDisabled", "KedaMissing")
    assert await shop.replicas() == 2


async def test_off_forgets_the_condition_but_not_what_the_replicas_were(open_shop: Opener) -> None:
    shop = await open_shop(2)
    await shop.tick(4, arrivals=80)

    await shop.set_scaling(mode="Off")
    await shop.tick(3)

    assert await shop.verdict() is None
    assert await shop.status() == {"originalReplicas": 2}
    assert await shop.replicas() == 15


async def test_a_proxy_on_its_way_out_is_not_scaled(open_shop: Opener) -> None:
    shop = await open_shop(2)
    await shop.kube.patch_merge(
        ASYNC_PROXIES, shop.proxy, {"metadata": {"finalizers": [names.FINALIZER]}}, manager=US
    )
    await shop.kube.delete(ASYNC_PROXIES, shop.proxy)

    await shop.tick(4, arrivals=80)

    assert await shop.replicas() == 2
    await shop.kube.patch_merge(ASYNC_PROXIES, shop.proxy, {"metadata": {"finalizers": None}}, manager=US)


# --- zero -------------------------------------------------------------------------------------------------


async def test_zero_waits_for_the_gateway_and_one_request_wakes_the_app(open_shop: Opener) -> None:
    has_gateway: set[Key] = set()
    powers = Powers(sleep=lambda key: Sleep(key in has_gateway))
    shop = await open_shop(1, powers, minReplicas=0, idleAfterSeconds=10)

    await shop.tick(8)
    waiting, wants = await shop.replicas(), shop.autoscaler.wants_sleep(shop.proxy)
    told = await shop.verdict()
    has_gateway.add(shop.proxy)
    await shop.tick(2)
    asleep = await shop.replicas()
    await shop.kube.create(_gateway_pod(shop.namespace), manager=US)
    shop.accepted, shop.due = shop.accepted + 1, 1
    await shop.tick(3)

    assert (waiting, wants, asleep) == (1, True, 0)
    assert told is not None
    assert (told.status, told.reason) == (ConditionStatus.TRUE, "GatewayStarting")
    assert await shop.replicas() == 1


async def test_a_workload_at_zero_wakes_when_nobody_can_say_what_its_gateway_holds(open_shop: Opener) -> None:
    shop = await open_shop(1, Powers(sleep=lambda key: Sleep(True)), minReplicas=0, idleAfterSeconds=10)
    await shop.kube.create(_gateway_pod(shop.namespace), manager=US)
    await shop.tick(8)
    asleep = await shop.replicas()
    shop.is_answering = False

    await shop.tick(6)
    kept = await shop.replicas()
    await shop.tick(5)

    assert (asleep, kept, await shop.replicas()) == (0, 0, 1)


async def test_what_never_may_go_to_zero_says_why_and_is_scaled_all_the_same(open_shop: Opener) -> None:
    never = Sleep(False, "HeadlessService", "The workload cannot go to zero: its Service is headless.")
    shop = await open_shop(2, Powers(sleep=lambda key: never), minReplicas=0, idleAfterSeconds=10)

    await shop.tick(4, arrivals=80)
    grown = await shop.replicas()
    await shop.tick(100)

    verdict = await shop.verdict()
    assert verdict is not None
    assert (verdict.status, verdict.reason) == (ConditionStatus.FALSE, "HeadlessService")
    assert (grown, await shop.replicas()) == (15, 1)


def _gateway_pod(namespace: str) -> Object:
    labels = {names.PROXY_LABEL: "legacy", names.COMPONENT_LABEL: names.GATEWAY}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": "gateway", "labels": labels},
        "spec": {"containers": [{"name": "gateway", "image": "gateway"}]},
    }


# --- HPA --------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def metrics_api(cluster: ControlPlane, kube: Kube) -> AsyncIterator[None]:
    """Our external metrics API, registered as the chart does."""
    pair = cluster.authority.issue("metrics", hosts=["metrics.openhqm-system.svc"])
    front_proxy = await find_front_proxy(kube)
    runner = web.AppRunner(build_metrics_app(desired_from_status(kube), front_proxy))
    await runner.setup()
    assert runner.server is not None
    connections: list[Any] = []

    def accept() -> Any:
        connections.append(runner.server())  # type: ignore[misc]
        return connections[-1]

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pair.certificate, pair.key)
    let_in_only(front_proxy, tls)
    server = await asyncio.get_running_loop().create_server(accept, cluster.address, ssl=tls)
    ca = base64.b64encode(cluster.authority.bundle).decode()
    for path, body in _registration(cluster.address, server.sockets[0].getsockname()[1], ca):
        cluster.request("POST", path, body)
    yield
    await kube.delete(API_SERVICES, ("", "v1beta1.external.metrics.k8s.io"))
    await kube.delete(NAMESPACES, ("", "openhqm-system"))
    server.close()
    for connection in connections:
        # The API server keeps them open, and TLS would wait for its goodbye beyond the end of the test.
        if connection.transport is not None:
            connection.transport.abort()
    await runner.cleanup()


def _registration(address: str, port: int, ca: str) -> list[tuple[str, Object]]:
    place = {"namespace": "openhqm-system", "name": "metrics"}
    reader = {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole",
        "name": "openhqm-metrics-reader",
    }
    account = {"kind": "ServiceAccount", "namespace": "kube-system", "name": "horizontal-pod-autoscaler"}
    rule = {"apiGroups": ["external.metrics.k8s.io"], "resources": ["*"], "verbs": ["get", "list"]}
    roles = "/apis/rbac.authorization.k8s.io/v1"
    api_service = {
        "group": "external.metrics.k8s.io",
        "version": "v1beta1",
        "service": {**place, "port": 443},
        "caBundle": ca,
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
    }
    slices = "/apis/discovery.k8s.io/v1/namespaces/openhqm-system/endpointslices"
    return [
        ("/api/v1/namespaces", {"metadata": {"name": "openhqm-system"}}),
        (
            "/api/v1/namespaces/openhqm-system/services",
            {"metadata": place, "spec": {"ports": [{"name": "https", "port": 443}]}},
        ),
        (
            slices,
            {
                "metadata": {**place, "labels": {"kubernetes.io/service-name": "metrics"}},
                "addressType": "IPv4",
                "ports": [{"name": "https", "port": port}],
                "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
            },
        ),
        (f"{roles}/clusterroles", {"metadata": {"name": reader["name"]}, "rules": [rule]}),
        (
            f"{roles}/clusterrolebindings",
            {"metadata": {"name": reader["name"]}, "roleRef": reader, "subjects": [account]},
        ),
        (
            "/apis/apiregistration.k8s.io/v1/apiservices",
            {"metadata": {"name": "v1beta1.external.metrics.k8s.io"}, "spec": api_service},
        ),
    ]


@pytest.mark.usefixtures("metrics_api")
async def test_an_hpa_executes_our_number_and_native_mode_takes_over_from_it(open_shop: Opener) -> None:
    shop = await open_shop(2, Powers(has_external_metrics=True), mode="HPA", down={"windowSeconds": 10})

    await shop.tick(4, arrivals=80)
    await shop.until(lambda: shop.ready(15))
    ours = (shop.namespace, "legacy-openhqm-scaling")
    made = await shop.kube.get(HORIZONTAL_POD_AUTOSCALERS, ours)
    managers = {
        one["manager"]
        for one in (await shop.kube.get(DEPLOYMENTS, shop.workload))["metadata"]["managedFields"]
    }
    await shop.tick(40)
    await shop.until(lambda: shop.ready(1))
    await shop.set_scaling(mode="Native")
    await shop.tick(4, arrivals=80)

    assert made["metadata"]["ownerReferences"][0]["name"] == "legacy"
    assert names.AUTOSCALER_MANAGER not in managers
    assert await shop.replicas() >= 13
    assert not (await shop.kube.list(HORIZONTAL_POD_AUTOSCALERS, shop.namespace)).items
    assert (await shop.status())["originalReplicas"] == 2
