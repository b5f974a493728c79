"""Looks at one AsyncProxy: what is known of it, its workload and what surrounds them.

    caches (`caches.py`), Secrets by name, what the sidecars say  --Observer.look-->  Observed (`observed.py`)

Values of Secrets never leave this module.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from openhqm_operator.api import names
from openhqm_operator.api.store_in_force import store_in_force
from openhqm_operator.gateway.manifests import deployment_name, is_ready, pod_labels, service_name
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.errors import NotFound
from openhqm_operator.kube.resources import (
    ASYNC_PROXIES,
    CONFIG_MAPS,
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    NAMESPACES,
    NETWORK_POLICIES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    SECRETS,
    SERVICES,
    WORKLOADS,
    Key,
    Object,
)
from openhqm_operator.kube.selectors import matches
from openhqm_operator.reconciling.caches import Caches, target_of
from openhqm_operator.reconciling.observed import (
    GatewaySeen,
    Observed,
    Options,
    Told,
    is_ours,
    template_labels_of,
)

POD_SECURITY_LABEL = "pod-security.kubernetes.io/enforce"


class Sidecars(Protocol):
    """Knows what the sidecars last said."""

    def told(self, key: Key) -> Told:
        """What those of the AsyncProxy *key* said; an empty `Told` if nobody said anything."""
        ...


class Observer:
    """Looks at one AsyncProxy at a time.

    Args:
        kube: for Secrets, by name, and for an AsyncProxy as it is this very moment.
        clock: now, aware.
        wants_sleep: asks the autoscaler; `Autoscaler.wants_sleep`.
    """

    def __init__(
        self,
        kube: Kube,
        caches: Caches,
        sidecars: Sidecars,
        options: Options,
        clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        wants_sleep: Callable[[Key], bool] = lambda key: False,
    ) -> None:
        self._kube = kube
        self._caches = caches
        self._sidecars = sidecars
        self._options = options
        self._clock = clock
        self._wants_sleep = wants_sleep

    async def look(self, key: Key, *, fresh: bool = False) -> Observed | None:
        """Return what is known; None if there is no such AsyncProxy.

        Args:
            fresh: read the AsyncProxy from the API server: what was just written to it is then seen.

        Raises:
            KubeError: a Secret or the AsyncProxy cannot be read.
        """
        proxy = await self.fresh_proxy(key) if fresh else self._caches[ASYNC_PROXIES].get(key)
        if proxy is None:
            return None
        reference = proxy["spec"]["targetRef"]
        target = self.target(key.namespace, reference["kind"], reference["name"])
        labels = template_labels_of(target) if target is not None else {}
        services = self._services(key, labels)
        ours, pods = self._pods(key)
        return Observed(
            proxy=proxy,
            target=target,
            now=self._clock(),
            options=self._options,
            siblings=self._siblings(key, proxy),
            pods=pods,
            services=services,
            shared=self._shared(services, target),
            policies=self._policies(key.namespace, labels),
            pod_security=self._pod_security(key.namespace),
            secrets=await self._secrets(proxy),
            settings_map=self._caches[CONFIG_MAPS].get((key.namespace, names.settings_map(key.name))),
            told=self._sidecars.told(key),
            gateway=await self._gateway(key, ours, pods),
            wants_sleep=self._wants_sleep(key),
        )

    def target(self, namespace: str, kind: str, name: str) -> Object | None:
        """The workload of that kind and name."""
        resource = WORKLOADS.get(kind)
        return None if resource is None else self._caches[resource].get((namespace, name))

    def proxies_about(self, workload: Object) -> list[Object]:
        """AsyncProxies that may have been made from the workload, or have the name of one that would be."""
        namespace, name = workload["metadata"]["namespace"], workload["metadata"]["name"]
        about = self._caches[ASYNC_PROXIES].by("target", (namespace, workload["kind"], name))
        namesake = self._caches[ASYNC_PROXIES].get((namespace, name))
        return about if namesake is None or namesake in about else [*about, namesake]

    async def fresh_proxy(self, key: Key) -> Object | None:
        """The AsyncProxy as it is this very moment; None if there is none."""
        try:
            return await self._kube.get(ASYNC_PROXIES, key)
        except NotFound:
            return None

    def _siblings(self, key: Key, proxy: Object) -> tuple[Object, ...]:
        (target,) = target_of(proxy)
        others = self._caches[ASYNC_PROXIES].by("target", target)
        return tuple(other for other in others if other["metadata"]["name"] != key.name)

    def _services(self, key: Key, labels: Mapping[str, str]) -> tuple[Object, ...]:
        found = self._caches.selecting(key.namespace, labels)
        switched = self._caches[SERVICES].by("switched for", key)
        theirs = (*found, *(service for service in switched if service not in found))
        return tuple(service for service in theirs if not is_ours(service))

    def _pods(self, key: Key) -> tuple[tuple[Object, ...], tuple[Object, ...]]:
        """Pods of the gateway, and of the app."""
        pods = self._caches[PODS].by("proxy", (key.namespace, names.label_value(key.name)))
        gateways = tuple(pod for pod in pods if is_ours(pod))
        return gateways, tuple(pod for pod in pods if not is_ours(pod))

    async def _gateway(self, key: Key, pods: tuple[Object, ...], app_pods: tuple[Object, ...]) -> GatewaySeen:
        namespace, name = key
        about = (namespace, names.label_value(name))
        slices = tuple(self._caches[ENDPOINT_SLICES].by("proxy", about))
        deployment = self._caches[DEPLOYMENTS].get((namespace, deployment_name(name)))
        service = self._caches[SERVICES].get((namespace, service_name(name)))
        return GatewaySeen(
            deployment=deployment if deployment is None or is_ours(deployment) else None,
            service=service if service is None or is_ours(service) else None,
            budget=self._caches[POD_DISRUPTION_BUDGETS].get((namespace, deployment_name(name))),
            slices=slices,
            pods=pods,
            policies=self._policies(namespace, pod_labels(name)),
            served=await self._served(namespace, slices) if any(map(is_ready, app_pods)) else frozenset(),
        )

    async def _served(self, namespace: str, joined: Iterable[Object]) -> frozenset[str]:
        """Services the gateway is in that have ready endpoints beside it."""
        wanted = {one["metadata"]["labels"][names.SERVICE_NAME_LABEL] for one in joined}
        served = set()
        for service in sorted(wanted):
            selector = f"{names.SERVICE_NAME_LABEL}={service}"
            slices = (await self._kube.list(ENDPOINT_SLICES, namespace, labels=selector)).items
            if any(_has_ready(one) for one in slices if not _is_gateways(one)):
                served.add(service)
        return frozenset(served)

    def _shared(self, services: Iterable[Object], target: Object | None) -> dict[str, str]:
        shared = {}
        for service in services if target is not None else ():
            for other in self._caches.selected_by(service):
                # Pods of one with a label of ours have a sidecar on the same port.
                if other is not target and names.PROXY_LABEL not in template_labels_of(other):
                    shared[service["metadata"]["name"]] = f"{other['kind']} {other['metadata']['name']}"
        return shared

    def _policies(self, namespace: str, labels: Mapping[str, str]) -> tuple[Object, ...]:
        policies = self._caches[NETWORK_POLICIES].by("namespace", namespace)
        return tuple(policy for policy in policies if matches(policy["spec"].get("podSelector"), labels))

    def _pod_security(self, namespace: str) -> str:
        found = self._caches[NAMESPACES].get(("", namespace)) or {"metadata": {}}
        labels = found["metadata"].get("labels") or {}
        return str(labels.get(POD_SECURITY_LABEL, self._options.pod_security))

    async def _secrets(self, proxy: Object) -> dict[str, dict[str, str]]:
        namespace, found = proxy["metadata"]["namespace"], {}
        for name in sorted(secret_names(proxy)):
            try:
                secret = await self._kube.get(SECRETS, (namespace, name))
            except NotFound:
                continue
            found[name] = {key: _scheme(value) for key, value in (secret.get("data") or {}).items()}
        return found


def secret_names(proxy: Mapping[str, Any]) -> set[str]:
    """Secrets that an AsyncProxy needs, ours among them."""
    wanted = {names.handle_secret(proxy["metadata"]["name"])}
    store, in_force = proxy["spec"].get("store") or {}, store_in_force(proxy)
    if "secretRef" not in store or (in_force is not None and "secretRef" not in in_force):
        wanted.add(names.STORE_SECRET)
    for server in (store, in_force or {}, proxy["spec"].get("broker") or {}):
        wanted |= {server[part]["name"] for part in ("secretRef", "previousSecretRef") if part in server}
    return wanted


def _scheme(encoded: str) -> str:
    """The part of a URL that is no secret; empty where the value is none."""
    try:
        scheme, colon, _ = base64.b64decode(encoded).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return ""
    is_scheme = bool(colon) and len(scheme) <= 32 and scheme.replace("+", "").isalnum()
    return scheme if is_scheme else ""


def _is_gateways(endpoint_slice: Mapping[str, Any]) -> bool:
    labels = endpoint_slice["metadata"].get("labels") or {}
    return bool(labels.get(names.SLICE_MANAGER_LABEL) == names.SLICE_MANAGER)


def _has_ready(endpoint_slice: Mapping[str, Any]) -> bool:
    """Source: discovery/v1: an unknown readiness counts as ready."""
    return bool(endpoint_slice.get("ports")) and any(
        (endpoint.get("conditions") or {}).get("ready") is not False
        for endpoint in endpoint_slice.get("endpoints") or ()
    )
