"""Many annotated workloads at once: what the operator needs for them, at work and at rest.

A whole cluster but for containers: controllers roll the workloads, a webhook injects their Pods, fake nodes
run them on addresses of loopback, and one server answers the operator's questions for all their sidecars.
Services have no endpoints, which such addresses cannot be.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from benchmarks.injector import at_once
from benchmarks.processes import Cost, cost_of
from benchmarks.results import Row
from tests.cluster.injectors import POD_SPEC, WEBHOOKS, RunningInjector, configuration, sidecars_of
from tests.cluster.operators import AuditedPlane, Operator
from tests.operator.loads import stats_body

from openhqm_operator.api import names
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.login import from_kubeconfig
from openhqm_operator.kube.resources import ASYNC_PROXIES, CONFIG_MAPS, PODS, Object
from openhqm_operator.reconciling.belongings import digest

US = "benchmark"
NAMESPACE = "shop"
POD_CIDR = "127.64.0.0/16"
PODS_PER_NODE = 250
"""A node's share of addresses is a /24."""

ROUNDS = 3
RESYNC_SECONDS = 20.0
QUIET_SECONDS = 15.0
"""Without a write of the operator: all is done."""

LONG_SECONDS = 1200.0


async def measure(plane: AuditedPlane, folder: Path, workloads: int, idle_seconds: float) -> list[Row]:
    """The operator's rows. *plane* gives Pods addresses of POD_CIDR."""
    plane.start_controllers("--controllers=*,-endpoints-controller,-endpointslice-controller")
    plane.start_fake_nodes([f"fake-{number}" for number in range(workloads // PODS_PER_NODE + 2)])
    async with (
        Kube(await from_kubeconfig(plane.kubeconfig)) as kube,
        _injector(plane, folder / "injector"),
        Sidecars(kube) as sidecars,
    ):
        await _open_shop(kube, workloads)
        async with _operator(plane, folder) as operator:
            rolling = await _rolling(plane, kube, operator, workloads)
        await sidecars.learn()
        async with _operator(plane, folder, resync_seconds=RESYNC_SECONDS) as operator:
            return rolling + await _resting(plane, operator, workloads, idle_seconds)


async def _rolling(plane: AuditedPlane, kube: Kube, operator: Operator, workloads: int) -> list[Row]:
    """All workloads are annotated when it starts."""
    started = time.monotonic()
    await _until(lambda: _are_injected(kube, workloads))
    seconds = time.monotonic() - started
    await _quiet(plane, operator)
    cost = cost_of(operator.process.pid)
    detail = f"with the controllers' share; {cost.cpu_seconds:.0f} s CPU of the operator"
    return [
        Row(
            f"from {workloads:,} annotations to as many Pods with a sidecar", [seconds], "-", "-", "s", detail
        ),
        _resident("afterwards", cost),
    ]


async def _resting(plane: AuditedPlane, operator: Operator, workloads: int, idle_seconds: float) -> list[Row]:
    """Another process finds all done."""
    await operator.leading()
    await _quiet(plane, operator)
    resyncs = await _resyncs(operator, workloads)
    writes = await _writes(plane, operator, idle_seconds)
    many = f"{workloads:,} AsyncProxies"
    rests = f"but for its Lease; a resync each {RESYNC_SECONDS:g} s"
    return [
        Row(f"operator, full resync, {many}", resyncs, "30", "5", "s"),
        Row(f"operator, writes in {idle_seconds:g} idle seconds, {many}", [writes], "0", "0", "", rests),
        _resident(f"at rest, {many}", cost_of(operator.process.pid)),
    ]


def _resident(when: str, cost: Cost) -> Row:
    highest = f"highest {cost.peak_mebibytes:.0f} MiB"
    return Row(f"operator, resident {when}", [cost.resident_mebibytes], "200", "160", "MiB", highest)


# --- the scene -------------------------------------------------------------------------------------------


@asynccontextmanager
async def _injector(plane: AuditedPlane, folder: Path) -> AsyncIterator[None]:
    running = RunningInjector(plane, folder)
    try:
        await asyncio.to_thread(running.wait_until_ready)
        plane.request("POST", WEBHOOKS, configuration(running.port))
        yield
    finally:
        running.kill()


@asynccontextmanager
async def _operator(plane: AuditedPlane, folder: Path, **settings: object) -> AsyncIterator[Operator]:
    operator = Operator(plane, NAMESPACE, folder, namespace=None, **settings)
    try:
        yield operator
    finally:
        await asyncio.to_thread(operator.stop)


async def _open_shop(kube: Kube, workloads: int) -> None:
    """A namespace with a store's Secret, and the workloads with their Services, annotated already."""
    await kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}, manager=US)
    metadata = {"name": names.STORE_SECRET, "namespace": NAMESPACE}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}
    await kube.create(secret | {"stringData": {"url": "redis://redis"}}, manager=US)

    async def make(name: str) -> None:
        for body in (_deployment(name), _service(name)):
            await kube.create(body, manager=US)

    await at_once([lambda number=number: make(f"legacy-{number}") for number in range(workloads)])
    await _until(lambda: _are_running(kube, workloads))


def _deployment(name: str) -> Object:
    metadata = {"name": name, "namespace": NAMESPACE, "annotations": {"openhqm.io/enabled": "true"}}
    labels = {"app": name}
    spec = {
        "replicas": 1,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": POD_SPEC},
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def _service(name: str) -> Object:
    spec = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": "http"}]}
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


class Sidecars:
    """Answers /stats for every Pod there is, on all of loopback and nowhere else."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._settings: dict[str, str] = {}

    async def __aenter__(self) -> Sidecars:
        app = web.Application()
        app.router.add_get("/stats", self._stats)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        listening.bind(("", names.HEALTH_PORT))
        await web.SockSite(self._runner, listening).start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()

    async def learn(self) -> None:
        """Have each sidecar take over the settings it has by now, as the kubelet brings them."""
        maps = (await self._kube.list(CONFIG_MAPS, NAMESPACE)).items
        rendered = {
            each["metadata"]["name"]: digest(each["data"][names.SETTINGS_FILE])
            for each in maps
            if names.SETTINGS_FILE in each["data"]
        }
        for pod in (await self._kube.list(PODS, NAMESPACE, labels=names.PROXY_LABEL)).items:
            proxy = pod["metadata"]["labels"][names.PROXY_LABEL]
            self._settings[pod["status"]["podIP"]] = rendered[names.settings_map(proxy)]

    async def _stats(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        address, _ = request.transport.get_extra_info("sockname")
        known = {"backlog": 0, "callbacks": {"backlog": 0}, "settings": self._settings.get(address)}
        return web.json_response(stats_body(**known))


# --- what is waited for and counted ----------------------------------------------------------------------


async def _until(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LONG_SECONDS):
        while not await is_so():
            await asyncio.sleep(2.0)  # reading a thousand Pods is work for the API server


async def _are_running(kube: Kube, pods: int) -> bool:
    found = (await kube.list(PODS, NAMESPACE, project=_phase)).items
    return found.count("Running") == pods


def _phase(pod: Object) -> Any:
    return pod["status"].get("phase")


async def _are_injected(kube: Kube, workloads: int) -> bool:
    """Whether each workload has its Pod with a sidecar and no other, and its AsyncProxy says so."""
    pods = (await kube.list(PODS, NAMESPACE, project=lambda pod: len(sidecars_of(pod)))).items
    if pods != [1] * workloads:
        return False
    return (await kube.list(ASYNC_PROXIES, NAMESPACE, project=_is_injected)).items == [True] * workloads


def _is_injected(proxy: Object) -> bool:
    conditions = (proxy.get("status") or {}).get("conditions") or ()
    return any((one["type"], one["status"]) == ("Injected", "True") for one in conditions)


async def _quiet(plane: AuditedPlane, operator: Operator) -> None:
    """Wait until the operator has written nothing for QUIET_SECONDS."""
    async with asyncio.timeout(LONG_SECONDS):
        while await _writes(plane, operator, QUIET_SECONDS):
            pass


async def _writes(plane: AuditedPlane, operator: Operator, seconds: float) -> int:
    """What the API server has from the operator within *seconds*, but for its Lease."""
    before = len(plane.writes_of({operator.user}))
    await asyncio.sleep(seconds)
    return len(plane.writes_of({operator.user})) - before


async def _resyncs(operator: Operator, workloads: int) -> list[float]:
    """Seconds that each of some resyncs takes, from all keys named to none that waits.

    Each AsyncProxy and each workload is a key; where fewer wait, something else named them.
    """
    seconds = []
    async with aiohttp.ClientSession() as session, asyncio.timeout(LONG_SECONDS):
        while len(seconds) < ROUNDS:
            await _depth(session, operator, lambda depth: depth > workloads)
            started = time.monotonic()
            await _depth(session, operator, lambda depth: depth == 0)
            seconds.append(time.monotonic() - started)
    return seconds


async def _depth(
    session: aiohttp.ClientSession, operator: Operator, is_reached: Callable[[float], bool]
) -> None:
    while True:
        async with session.get(f"http://127.0.0.1:{operator.port}/metrics") as answer:
            found = re.search(r"^openhqm_operator_queue_depth (\S+)", await answer.text(), re.MULTILINE)
        if found and is_reached(float(found[1])):
            return
        await asyncio.sleep(0.02)
