"""What becomes of Pods while something is wrong with the webhook, on real API servers.

It stands still, it is not trusted, its certificates are replaced, its replicas end in peace or not: Pods that
ask for a queue wait or never notice, and no other Pod ever waits.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import itertools
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.cluster.control_plane import ClusterFailed, ControlPlane, free_port
from tests.cluster.injectors import (
    NOW,
    TIMEOUT_SECONDS,
    WEBHOOKS,
    Routes,
    RunningInjector,
    configuration,
    deploy,
    make_pod,
    make_proxy,
    pods_of,
    sidecars_of,
    template,
    unmarked,
)

from openhqm_operator.certificates.keeper import CertificateKeeper, CertificateSettings
from openhqm_operator.certificates.rotation import (
    AUTHORITY_LIFE,
    SETTLE,
    Pair,
    make_authority,
)
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.errors import KubeError
from openhqm_operator.kube.login import from_kubeconfig
from openhqm_operator.kube.resources import MUTATING_WEBHOOKS, SECRETS

pytestmark = pytest.mark.crash

AT_ONCE_SECONDS = 2.0
"""What does not wait for the injector takes milliseconds; a machine that does much else makes them more."""

MARGIN_SECONDS = 3.0
"""For the API server to follow its webhooks' configuration, and for a slow machine."""

REFUSAL = "failed calling webhook"
PODS_PER_SECOND = 20
LONG_SECONDS = 30.0
_numbers = itertools.count()


class Load:
    """Makes Pods that ask for a queue, at a steady rate, until the block ends.

    Attributes:
        made: Pods asked for whose answer is there.
        refused: why, by the Pod's number.
        direct: numbers of those that came without a sidecar.
    """

    def __init__(self, kube: Kube, namespace: str, pod: dict[str, Any]) -> None:
        self.made = 0
        self.asked = 0
        self.refused: dict[int, str] = {}
        self.direct: list[int] = []
        self._kube = kube
        self._namespace = namespace
        self._pod = pod
        self._ending = False

    async def __aenter__(self) -> Load:
        self._running = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._ending = True
        await self._running

    async def more(self, pods: int) -> None:
        """Wait until so many more have been asked for and answered."""
        wanted = self.made + pods
        async with asyncio.timeout(LONG_SECONDS):
            while self.made < wanted:
                await asyncio.sleep(0.01)

    async def _run(self) -> None:
        started = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            while not self._ending:
                tasks.create_task(self._make(self.asked))
                self.asked += 1
                await asyncio.sleep(max(0.0, started + self.asked / PODS_PER_SECOND - time.monotonic()))

    async def _make(self, number: int) -> None:
        metadata = self._pod["metadata"] | {"name": f"load-{number}", "namespace": self._namespace}
        body = {"apiVersion": "v1", "kind": "Pod", **self._pod, "metadata": metadata}
        try:
            pod = await self._kube.create(body, manager="tests")
        except KubeError as exc:
            self.refused[number] = str(exc)
        else:
            if not sidecars_of(pod):
                self.direct.append(number)
        self.made += 1


def open_namespace(plane: ControlPlane, prefix: str = "faults") -> str:
    name = f"{prefix}-{next(_numbers)}"
    plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    with contextlib.suppress(ClusterFailed):  # a controller, where there is one, may be faster
        accounts = f"/api/v1/namespaces/{name}/serviceaccounts"
        plane.request("POST", accounts, {"metadata": {"name": "default"}})
    return name


def mark(plane: ControlPlane, namespace: str) -> dict[str, Any]:
    """A Pod that asks for a queue, once the API server asks the webhook about it."""
    pod = template(make_proxy(plane, namespace))
    plane.wait(
        "the webhook",
        "kube-apiserver",
        lambda: bool(sidecars_of(make_pod(plane, namespace, pod, query="?dryRun=All"))),
    )
    return pod


@pytest_asyncio.fixture
async def kube(api_server: ControlPlane) -> AsyncIterator[Kube]:
    async with Kube(await from_kubeconfig(api_server.kubeconfig)) as kube:
        yield kube


# --- it stands still -------------------------------------------------------------------------------------


@pytest.fixture
def injector(cluster: ControlPlane, tmp_path: Path) -> Iterator[RunningInjector]:
    running = RunningInjector(cluster, tmp_path)
    running.wait_until_ready()
    yield running
    assert [line for line in running.stop() if line["level"] not in ("info", "warning")] == []


@pytest.fixture
def namespace(cluster: ControlPlane, injector: RunningInjector) -> Iterator[str]:
    """A namespace of a cluster with controllers, whose Pods go by that injector."""
    name = open_namespace(cluster)
    cluster.request("POST", WEBHOOKS, configuration(injector.port, name, name))
    yield name
    cluster.request("DELETE", f"{WEBHOOKS}/{name}")


async def test_while_the_injector_stands_still_its_own_pods_are_refused_in_time_and_no_others(
    cluster: ControlPlane, injector: RunningInjector, namespace: str
) -> None:
    pod = mark(cluster, namespace)
    injector.pause()
    try:
        refusal = asyncio.create_task(asyncio.to_thread(_refusal, cluster, namespace, pod))
        plain = [
            await asyncio.to_thread(_seconds, cluster, namespace, unmarked(pod), f"plain-{number}")
            for number in range(10)
        ]
        text, seconds = await refusal
    finally:
        injector.resume()

    assert REFUSAL in text
    assert "context deadline exceeded" in text
    assert seconds <= TIMEOUT_SECONDS + MARGIN_SECONDS
    assert max(plain) <= AT_ONCE_SECONDS
    assert sidecars_of(make_pod(cluster, namespace, pod, name="after"))


def _refusal(plane: ControlPlane, namespace: str, pod: dict[str, Any]) -> tuple[str, float]:
    started = time.monotonic()
    with pytest.raises(ClusterFailed) as caught:
        make_pod(plane, namespace, pod, name="refused")
    return str(caught.value), time.monotonic() - started


def _seconds(plane: ControlPlane, namespace: str, pod: dict[str, Any], name: str) -> float:
    started = time.monotonic()
    make_pod(plane, namespace, pod, name=name)
    return time.monotonic() - started


def test_a_rollout_that_met_a_still_injector_goes_on_by_itself(
    cluster: ControlPlane, injector: RunningInjector, namespace: str
) -> None:
    pod = mark(cluster, namespace)
    injector.pause()
    try:
        deploy(cluster, namespace, pod)
        cluster.wait("a word", "kube-controller-manager", lambda: _is_told(cluster, namespace))
        assert pods_of(cluster, namespace) == []
    finally:
        injector.resume()

    cluster.wait("Pods", "kube-controller-manager", lambda: len(pods_of(cluster, namespace)) == 2)

    assert all(sidecars_of(pod) for pod in pods_of(cluster, namespace))


def _is_told(plane: ControlPlane, namespace: str) -> bool:
    """Whether the ReplicaSet says what it waits for."""
    sets = plane.request("GET", f"/apis/apps/v1/namespaces/{namespace}/replicasets")["items"]
    conditions = [c for each in sets for c in each["status"].get("conditions", ())]
    return any(REFUSAL in c["message"] for c in conditions)


# --- the release: two replicas behind one address, certificates that the operator keeps ------------------


class Release:
    """Two injectors behind one address, and the operator's hands on their certificates.

    Args:
        is_due: whether the CA is to be replaced from `NOW - SETTLE` on.

    Attributes:
        now: the keeper's time of day.
    """

    def __init__(self, plane: ControlPlane, kube: Kube, folder: Path, *, is_due: bool) -> None:
        self.plane = plane
        self.kube = kube
        self.name = open_namespace(plane, "release")
        self.shop = open_namespace(plane)
        self.injectors: list[RunningInjector] = []
        # Certificates have to be good by the API server's clock too: what is old was made long ago.
        self.now = NOW - SETTLE - (AUTHORITY_LIFE * 2 / 3 if is_due else dt.timedelta())
        self._folder = folder
        self._health_port = free_port()
        self._stack = contextlib.AsyncExitStack()

    def keeper(self, **settings: Any) -> CertificateKeeper:
        known = CertificateSettings(
            namespace=self.name,
            webhook=self.name,
            hosts=("127.0.0.1",),
            injector_labels="app=injector",
            injector_health_port=self._health_port,
            **settings,
        )
        return CertificateKeeper(self.kube, known, lambda: self.now)

    async def open(self, **settings: object) -> None:
        """Start all of it."""
        addresses = ("127.0.0.2", "127.0.0.3")
        port = free_port()
        self.routes = await self._stack.enter_async_context(Routes([(each, port) for each in addresses]))
        self.plane.request("POST", WEBHOOKS, configuration(self.routes.port, self.name, self.shop))
        await self.keeper().look()
        self.now = NOW - SETTLE
        await self.keeper().look()  # a leaf lives for three months, the CA for years
        for address in addresses:
            self._add_pod(address)
            injector = RunningInjector(
                self.plane,
                self._folder / address,
                address=address,
                leaf=await self.leaf(),
                port=port,
                health_port=self._health_port,
                certificate_check_seconds=0.1,
                **settings,
            )
            self.injectors.append(injector)
        for injector in self.injectors:
            await asyncio.to_thread(injector.wait_until_ready)
        self.pod = await asyncio.to_thread(mark, self.plane, self.shop)

    async def close(self) -> None:
        self.plane.request("DELETE", f"{WEBHOOKS}/{self.name}")
        for injector in self.injectors:
            if injector.process.poll() is None:
                log = await asyncio.to_thread(injector.stop)
                assert [line for line in log if line["level"] not in ("info", "warning")] == []
        await self._stack.aclose()

    def load(self) -> Load:
        return Load(self.kube, self.shop, self.pod)

    async def leaf(self) -> Pair:
        secret = await self.kube.get(SECRETS, (self.name, "openhqm-injector-tls"))
        return Pair(*(base64.b64decode(secret["data"][key]) for key in ("tls.crt", "tls.key")))

    async def trusted(self) -> bytes:
        webhook = await self.kube.get(MUTATING_WEBHOOKS, ("", self.name))
        return base64.b64decode(webhook["webhooks"][0]["clientConfig"]["caBundle"])

    async def distrust(self) -> None:
        """Somebody writes the CA of something else into the configuration."""
        wrong = base64.b64encode(make_authority("another", NOW).certificate).decode()
        operation = {"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": wrong}
        await self.kube.patch_json(MUTATING_WEBHOOKS, ("", self.name), [operation], manager="somebody")

    async def until_refused(self, reason: str) -> None:
        """Wait until the API server has followed a change of the configuration."""
        async with asyncio.timeout(LONG_SECONDS):
            while True:
                text = await self.try_pod()
                if reason in text:
                    return

    async def try_pod(self) -> str:
        """Make a Pod; returns why it was refused, or nothing."""
        load = self.load()
        await load._make(10_000 + next(_numbers))
        assert load.direct == []
        return "".join(load.refused.values())

    def _add_pod(self, address: str) -> None:
        pods = f"/api/v1/namespaces/{self.name}/pods"
        name = f"injector-{address.replace('.', '-')}"
        metadata = {"name": name, "labels": {"app": "injector"}}
        spec = {"containers": [{"name": "injector", "image": "i"}]}
        pod = self.plane.request("POST", pods, {"metadata": metadata, "spec": spec})
        pod["status"] = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        self.plane.request("PUT", f"{pods}/{name}/status", pod)


@pytest_asyncio.fixture
async def release(
    api_server: ControlPlane, kube: Kube, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Release]:
    release = Release(api_server, kube, tmp_path, is_due=getattr(request, "param", False))
    await release.open(drain_seconds=1.0)
    yield release
    await release.close()


# --- it is not trusted -----------------------------------------------------------------------------------


async def test_with_a_wrong_ca_its_own_pods_are_refused_until_the_operator_looks(release: Release) -> None:
    trusted = await release.trusted()
    await release.distrust()
    await release.until_refused("x509: certificate signed by unknown authority")
    plain = await asyncio.to_thread(_seconds, release.plane, release.shop, unmarked(release.pod), "plain")

    assert await release.keeper().look()

    assert plain <= AT_ONCE_SECONDS
    assert await release.trusted() == trusted
    async with asyncio.timeout(MARGIN_SECONDS):
        while await release.try_pod():
            await asyncio.sleep(0.05)


async def test_a_wrong_ca_is_healed_within_the_time_between_two_looks(release: Release) -> None:
    look_seconds = 1.0
    keeping = asyncio.create_task(release.keeper(look_seconds=look_seconds).run())
    trusted = await release.trusted()

    await release.distrust()
    async with asyncio.timeout(look_seconds + MARGIN_SECONDS):
        while await release.trusted() != trusted or await release.try_pod():
            await asyncio.sleep(0.05)

    keeping.cancel()
    await asyncio.wait({keeping})


# --- its certificates are replaced -----------------------------------------------------------------------


@pytest.mark.parametrize("release", [True], ids=["due"], indirect=True)
async def test_a_ca_is_replaced_under_load_and_no_pod_notices(release: Release) -> None:
    keeper, old = release.keeper(), await release.trusted()
    async with release.load() as load:
        await _served(release, load)

        assert await keeper.look()
        both = await release.trusted()
        await _served(release, load)
        assert not await keeper.look(), "not everybody can know the new CA yet"

        release.now = NOW
        assert await keeper.look()
        await _served(release, load)
        for injector in release.injectors:  # each node's kubelet in its own time
            assert not await keeper.look(), "one still shows the old leaf"
            injector.mount(await release.leaf())
            await _served(release, load)

        assert await keeper.look()
        await _served(release, load)

    assert len(both) > len(old)
    assert old in both
    assert old not in await release.trusted()
    assert (load.refused, load.direct) == ({}, [])


async def _served(release: Release, load: Load) -> None:
    """A second of Pods, in which the API server learns of the step before; and newcomers trust all replicas.

    Connections outlive what they were made with, so Pods alone do not show what a new one would meet.
    """
    await load.more(PODS_PER_SECOND)
    trusting = ssl.create_default_context(cadata=(await release.trusted()).decode())
    for address, port in release.routes.behind:
        _, writer = await asyncio.open_connection(address, port, ssl=trusting, server_hostname="127.0.0.1")
        writer.close()
        await writer.wait_closed()


# --- its replicas end ------------------------------------------------------------------------------------


async def test_a_replica_that_is_told_to_end_refuses_no_pod(release: Release) -> None:
    leaving, _ = release.injectors
    async with release.load() as load:
        await load.more(PODS_PER_SECOND)
        leaving.process.terminate()
        await load.more(PODS_PER_SECOND // 2)  # so long the routes still lead there
        del release.routes.behind[0]

        log = await asyncio.to_thread(leaving.ended)
        await load.more(PODS_PER_SECOND)

    assert [line["event"] for line in log][-1] == "drain.finished"
    assert (load.refused, load.direct) == ({}, [])


async def test_a_replica_that_is_killed_refuses_pods_only_while_routes_lead_there(release: Release) -> None:
    async with release.load() as load:
        await load.more(PODS_PER_SECOND)
        before = load.asked
        release.injectors[0].kill()
        await load.more(PODS_PER_SECOND // 2)
        del release.routes.behind[0]
        after = load.asked
        await load.more(2 * PODS_PER_SECOND)

    refused = set(load.refused)
    # Of those on their way when it died, and every other new connection after.
    assert refused <= set(range(before - 2, after))
    assert len(refused) < after - before + 2, "the other replica answers"
    assert load.direct == []
