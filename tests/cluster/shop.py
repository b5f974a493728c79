"""A namespace of a real API server with one workload in it, and its controllers, played by the test."""

from __future__ import annotations

import itertools
import json
from typing import Any

from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.errors import Conflict
from openhqm_operator.kube.resources import (
    ASYNC_PROXIES,
    CONFIG_MAPS,
    DEPLOYMENTS,
    PODS,
    SERVICES,
    Key,
    Object,
)
from openhqm_operator.noticing.triggers import build_informers, caches_of
from openhqm_operator.reconciling.belongings import digest
from openhqm_operator.reconciling.caches import Caches
from openhqm_operator.reconciling.observe import Observer
from openhqm_operator.reconciling.observed import Options, Told
from openhqm_operator.reconciling.reconcile import Reconciler, Work

USER = "kubectl"
NUMBERS = itertools.count()
"""For names that no other test has."""


class Sidecars:
    """Sidecars that have taken over the settings of their ConfigMap and hold no work."""

    def __init__(self, caches: Caches, left: int | None = 0, previous: int | None = 0) -> None:
        self._caches = caches
        self._left = left
        self._previous = previous

    def told(self, key: Key) -> Told:
        found = self._caches[CONFIG_MAPS].get((key.namespace, f"{key.name}-openhqm-settings"))
        if found is None:
            return Told()
        settings = frozenset({digest(found["data"]["settings.yaml"])})
        return Told(self._left, settings, True, self._previous)


class Shop:
    """A namespace with a Deployment of two Pods and its Service; plays the controllers and the webhook."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.kube = kube
        self.namespace = namespace
        self.key = Key(namespace, "legacy")
        self.told: list[str] = []

    async def open(self, target_port: int | str = "http") -> None:
        await self.kube.create(_namespace(self.namespace), manager=USER)
        await self.kube.create(_account(self.namespace), manager=USER)
        await self.kube.create(_deployment(self.namespace), manager=USER)
        await self.kube.create(_service(self.namespace, target_port), manager=USER)
        await self.control()

    async def annotate(self, **annotations: str | None) -> None:
        named = {f"openhqm.io/{name.replace('_', '-')}": value for name, value in annotations.items()}
        await self.kube.patch_merge(DEPLOYMENTS, self.key, {"metadata": {"annotations": named}}, manager=USER)

    async def control(self) -> None:
        """Bring Pods and status in line with the template, as controllers, kubelet and injector would."""
        deployment = await self.kube.get(DEPLOYMENTS, self.key)
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        for pod in (await self.kube.list(PODS, self.namespace)).items:
            if pod["metadata"]["labels"] != labels or not await self._is_current(pod):
                await self.kube.delete(
                    PODS, (self.namespace, pod["metadata"]["name"]), propagation="Background"
                )
        there = len((await self.kube.list(PODS, self.namespace)).items)
        for _ in range(deployment["spec"]["replicas"] - there):
            await self._start_pod(labels)
        replicas = deployment["spec"]["replicas"]
        status = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": replicas,
            "updatedReplicas": replicas,
        }
        await self.kube.patch_merge(
            DEPLOYMENTS, self.key, {"status": status}, manager="c", subresource="status"
        )

    async def spec(self) -> Object:
        return (await self.kube.get(DEPLOYMENTS, self.key))["spec"]

    async def service_spec(self) -> Object:
        return (await self.kube.get(SERVICES, self.key))["spec"]

    async def proxy(self) -> Object:
        return await self.kube.get(ASYNC_PROXIES, self.key)

    async def conditions(self) -> dict[str, tuple[str, str]]:
        status = (await self.proxy()).get("status") or {}
        return {one["type"]: (one["status"], one["reason"]) for one in status.get("conditions", ())}

    async def _is_current(self, pod: Object) -> bool:
        if "openhqm.io/proxy" not in pod["metadata"]["labels"]:
            return True
        wanted = (await self.proxy())["status"]["configHash"]
        return json.loads(pod["metadata"]["annotations"]["openhqm.io/injected"])["hash"] == wanted

    async def _start_pod(self, labels: dict[str, str]) -> None:
        annotations = {}
        if "openhqm.io/proxy" in labels:
            hash = (await self.proxy())["status"]["configHash"]
            annotations["openhqm.io/injected"] = json.dumps({"hash": hash})
        name = f"legacy-{next(NUMBERS)}"
        metadata = {"name": name, "namespace": self.namespace, "labels": labels, "annotations": annotations}
        spec = {"containers": [{"name": "app", "image": "app:1"}]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        await self.kube.create(pod, manager="c")
        status = {"status": {"phase": "Running", "podIP": "10.0.0.1"}}
        await self.kube.patch_merge(PODS, (self.namespace, name), status, manager="c", subresource="status")

    # --- the operator, one look after another

    async def look(self, kube: Kube, left: int | None = 0, previous: int | None = 0) -> bool:
        """One look at the workload and one at its AsyncProxy; returns whether anything was written."""
        before = sum(kube.writes.values())
        for kind in ("Deployment", "AsyncProxy"):
            caches = await self._caches()
            observer = Observer(kube, caches, Sidecars(caches, left, previous), Options())
            await Reconciler(kube, observer, self._post, self.mint)(Work(kind, self.key))
        return sum(kube.writes.values()) > before

    async def converge(self, kube: Kube) -> None:
        """Look until nothing is left to be done, with the controllers at work in between."""
        for _ in range(20):
            is_busy = await self.look(kube)
            await self.control()
            if not is_busy:
                return
        raise AssertionError("does not converge")

    async def _caches(self) -> Caches:
        informers = build_informers(self.kube, self.namespace)
        for informer in informers:
            await informer._list()
        return caches_of(informers)

    async def mint(self, namespace: str) -> None:
        metadata = {"name": "openhqm-store", "namespace": namespace}
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata,
            "stringData": {"url": "redis://x"},
        }
        try:
            await self.kube.create(secret, manager="c")
        except Conflict:
            return

    def _post(self, regarding: Any, reason: str, note: str, *, action: str, is_warning: bool = False) -> None:
        self.told.append(reason)


def _namespace(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def _account(namespace: str) -> Object:
    """No controller makes it here, and no Pod is admitted without."""
    metadata = {"name": "default", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}


def _deployment(namespace: str) -> Object:
    labels = {"app": "legacy"}
    container = {"name": "app", "image": "app:1", "ports": [{"name": "http", "containerPort": 8080}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "legacy", "namespace": namespace},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def _service(namespace: str, target_port: int | str) -> Object:
    ports = [{"name": "web", "port": 80, "targetPort": target_port}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "legacy", "namespace": namespace},
        "spec": {"selector": {"app": "legacy"}, "ports": ports},
    }
