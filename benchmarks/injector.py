"""How long the injector lets a Pod wait: its own process behind a real API server with many AsyncProxies.

At its door, asked over TLS as the API server asks; and as whoever makes Pods sees it, against Pods that go by
no webhook. Pods come at fixed moments, whether or not those before are answered, so that waiting is part of
the figure.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from benchmarks.processes import cost_of
from benchmarks.results import Row
from tests.cluster.control_plane import ControlPlane
from tests.cluster.injectors import (
    AUTHORITY,
    WEBHOOKS,
    RunningInjector,
    configuration,
    sidecars_of,
    unmarked,
)
from tests.operator.pods import legacy, proxy

from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.login import from_kubeconfig

US = "benchmark"
NAMESPACE = "shop"
HASH = "0123"
ROUNDS = 3
AT_ONCE = 16
WARM_UP_SECONDS = 2.0

Ask = Callable[[int], Awaitable[None]]
"""Has the Pod of that number looked at; raises if it does not come with its sidecar."""


async def at_once(works: Sequence[Callable[[], Awaitable[Any]]], limit: int = AT_ONCE) -> None:
    """Do all of them, a few at a time."""
    slots = asyncio.Semaphore(limit)

    async def one(work: Callable[[], Awaitable[Any]]) -> None:
        async with slots:
            await work()

    await asyncio.gather(*(one(work) for work in works))


async def measure(plane: ControlPlane, folder: Path, proxies: int, rate: float, seconds: float) -> list[Row]:
    """The injector's rows: *rate* Pods a second for *seconds* in all, of *proxies* workloads."""
    async with Kube(await from_kubeconfig(plane.kubeconfig)) as kube:
        await _open_shop(kube, proxies)
        injector = RunningInjector(plane, folder)
        await asyncio.to_thread(injector.wait_until_ready)
        pods = [_pod(number % proxies) for number in range(proxies)]
        try:
            return [
                await _at_the_door(injector, pods, rate, seconds),
                await _as_seen_by_clients(plane, kube, injector, pods, rate, seconds),
            ]
        finally:
            await asyncio.to_thread(injector.stop)


async def _open_shop(kube: Kube, proxies: int) -> None:
    """A namespace with that many AsyncProxies, whose status is as an operator left it."""
    await kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}, manager=US)
    account = {"name": "legacy", "namespace": NAMESPACE}
    await kube.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}, manager=US)

    async def make(number: int) -> None:
        body = proxy()
        body["metadata"]["name"] = body["spec"]["targetRef"]["name"] = f"legacy-{number}"
        body["status"] = {"intercept": "NamedPort", "configHash": HASH}
        await kube.create(body, manager=US)
        await kube.apply_status({**body, "spec": {}}, manager=US, force=True)

    await at_once([lambda number=number: make(number) for number in range(proxies)])


def _pod(number: int) -> dict[str, Any]:
    """A Pod of one of the workloads, with as much in it as Pods usually have."""
    pod = legacy()
    pod["metadata"]["labels"]["openhqm.io/proxy"] = f"legacy-{number}"
    pod["metadata"]["annotations"]["openhqm.io/config-hash"] = HASH
    pod["spec"]["containers"][0]["env"] = [{"name": f"SETTING_{i}", "value": "x" * 60} for i in range(60)]
    return pod


async def _at_the_door(
    injector: RunningInjector, pods: Sequence[dict[str, Any]], rate: float, seconds: float
) -> Row:
    reviews = [_review(pod) for pod in pods]
    context = ssl.create_default_context(cadata=AUTHORITY.certificate.decode())
    url = f"https://{injector.address}:{injector.port}/inject"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:

        async def ask(number: int) -> None:
            async with session.post(url, data=reviews[number % len(reviews)]) as response:
                answer: Any = await response.json()
            if "patch" not in answer["response"]:
                raise RuntimeError(f"not injected: {answer}")

        await _waits(ask, rate, WARM_UP_SECONDS)
        before = cost_of(injector.process.pid)
        rounds = [await _waits(ask, rate, seconds / ROUNDS) for _ in range(ROUNDS)]
        after = cost_of(injector.process.pid)
    each = 1000 * (after.cpu_seconds - before.cpu_seconds) / sum(map(len, rounds))
    detail = (
        f"{_spread(rounds)}; {each:.2f} ms CPU each; {after.resident_mebibytes:.0f} MiB resident; "
        f"{len(pods):,} AsyncProxies"
    )
    work = f"injector, p99 at its door, {rate:g} Pods/s"
    return Row(work, [_share(each, 0.99) for each in rounds], "20", "5", "ms", detail)


def _review(pod: dict[str, Any]) -> bytes:
    request = {"uid": "u", "operation": "CREATE", "kind": {"kind": "Pod"}, "namespace": NAMESPACE}
    review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}
    return json.dumps(review | {"request": request | {"object": pod}}).encode()


async def _as_seen_by_clients(
    plane: ControlPlane,
    kube: Kube,
    injector: RunningInjector,
    pods: Sequence[dict[str, Any]],
    rate: float,
    seconds: float,
) -> Row:
    """Whole Pod creates, in turns with Pods that ask for nothing."""
    asked = {True: pods, False: [unmarked(pod) for pod in pods]}
    waits: dict[bool, list[list[float]]] = {True: [], False: []}
    async with _in_force(plane, kube, injector, pods[0]):
        for _ in range(ROUNDS):
            for is_marked, taken in waits.items():
                ask = _creating(kube, asked[is_marked], is_marked)
                taken.append(await _waits(ask, rate, seconds / ROUNDS))
    direct = sorted(_share(each, 0.99) for each in waits[False])[ROUNDS // 2]
    detail = f"{_spread(waits[True])}; without a webhook p99 {direct:.1f} ms; {_heard(plane)}"
    work = f"Pod create by the injector, p99, {rate:g} Pods/s"
    return Row(work, [_share(each, 0.99) for each in waits[True]], "-", "-", "ms", detail)


@asynccontextmanager
async def _in_force(
    plane: ControlPlane, kube: Kube, injector: RunningInjector, pod: dict[str, Any]
) -> AsyncIterator[None]:
    """Within the block the API server asks the injector."""
    made = configuration(injector.port)
    plane.request("POST", WEBHOOKS, made)
    while not sidecars_of(await kube.create(pod, manager=US, dry_run=True)):
        await asyncio.sleep(0.05)
    yield
    plane.request("DELETE", f"{WEBHOOKS}/{made['metadata']['name']}")


def _creating(kube: Kube, pods: Sequence[dict[str, Any]], is_marked: bool) -> Ask:
    async def ask(number: int) -> None:
        made = await kube.create(pods[number % len(pods)], manager=US)
        if bool(sidecars_of(made)) != is_marked:
            raise RuntimeError(f"not as asked for: {made['metadata']}")

    return ask


async def _waits(ask: Ask, rate: float, seconds: float) -> list[float]:
    """Ask *rate* times a second; returns milliseconds from the planned moment to the whole answer, sorted."""
    start, taken = time.perf_counter() + 0.1, []

    async def one(number: int, planned: float) -> None:
        await ask(number)
        taken.append(1000 * (time.perf_counter() - planned))

    async with asyncio.TaskGroup() as tasks:
        for number in range(int(rate * seconds)):
            planned = start + number / rate
            await asyncio.sleep(max(0.0, planned - time.perf_counter()))
            tasks.create_task(one(number, planned))
    return sorted(taken)


def _share(waits: Sequence[float], share: float) -> float:
    return waits[int(len(waits) * share)]


def _spread(rounds: Sequence[Sequence[float]]) -> str:
    together = sorted(wait for waits in rounds for wait in waits)
    return f"p50 {_share(together, 0.5):.1f}, max {together[-1]:.1f} ms"


def _heard(plane: ControlPlane) -> str:
    """How many webhook calls took at most 25 ms by the API server's own count, whose buckets are coarse."""
    name = "apiserver_admission_webhook_admission_duration_seconds"
    lines = plane.request("GET", "/metrics")["text"].splitlines()
    ours = [line for line in lines if line.startswith(name) and 'name="pods.openhqm.io"' in line]
    within = _sum(line for line in ours if 'le="0.025"' in line)
    of = _sum(line for line in ours if line.startswith(f"{name}_count"))
    return f"API server: {100 * within / of:.1f} % of its calls within 25 ms"


def _sum(lines: Iterable[str]) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)
