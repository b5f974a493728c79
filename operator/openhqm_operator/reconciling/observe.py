"""What is known of one AsyncProxy, its workload and what surrounds them: the whole input of a decision.

    caches (`kube/watching.py`), Secrets by name, what the sidecars say  --Observer.look-->  Observed

Of Secrets only which keys there are and the schemes of their URLs are kept: values never leave this module.
`desired.py` decides on it.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from openhqm_operator.api import names
from openhqm_operator.api.annotations import is_forced
from openhqm_operator.api.store_in_force import store_in_force
from openhqm_operator.gateway.manifests import deployment_name, is_ready, pod_labels, service_name
from openhqm_operator.injecting.interception import proxy_served
from openhqm_operator.injecting.platform_settings import Platform
from openhqm_operator.kube.cache import Cache
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
    Resource,
)
from openhqm_operator.kube.selectors import has_all, matches

POD_SECURITY_LABEL = "pod-security.kubernetes.io/enforce"


@dataclass(frozen=True, slots=True)
class Options:
    """What the cluster admin decided for all proxies.

    Args:
        has_bundled_store: a proxy without a store gets the Redis that the chart brings along.
        pod_security: level enforced in namespaces that say nothing.
        gateway: how gateways run; None: no more are made, and those there are go once their workload serves.
    """

    has_bundled_store: bool = True
    pod_security: str = "privileged"
    gateway: Platform | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """What the sidecars of one proxy last said.

    Args:
        left: requests and callbacks not finished; None: nobody said.
        settings: digests of the settings in force, one for each sidecar; None for one that does not tell.
        reaches_store: None: nobody said.
        previous: requests not finished in the store used before; None: nobody knows, or not every sidecar
            uses the stores in force yet.
    """

    left: int | None = None
    settings: frozenset[str | None] = frozenset()
    reaches_store: bool | None = None
    previous: int | None = None


class Sidecars(Protocol):
    """Knows what the sidecars last said."""

    def told(self, key: Key) -> Told:
        """What those of the AsyncProxy *key* said; an empty `Told` if nobody said anything."""
        ...


@dataclass(frozen=True, slots=True)
class GatewaySeen:
    """What there is of a proxy's gateway.

    Args:
        slices: its endpoints in Services.
        policies: NetworkPolicies that select its Pods.
        served: names of Services with ready endpoints of the app's own; looked at only while the gateway is
            in them and one of the app's Pods is Ready.
    """

    deployment: Object | None = None
    service: Object | None = None
    budget: Object | None = None
    slices: tuple[Object, ...] = ()
    pods: tuple[Object, ...] = ()
    policies: tuple[Object, ...] = ()
    served: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Observed:
    """All that a decision is made on.

    Args:
        target: the workload the AsyncProxy names; None if there is none.
        siblings: other AsyncProxies with the same target.
        pods: Pods that carry the AsyncProxy's label, without the gateway's.
        services: those that select the Pods, and those that were switched for the AsyncProxy; not ours.
        shared: names of Services that select Pods of another workload too -> that workload.
        policies: NetworkPolicies that select the Pods.
        secrets: name -> key -> scheme of its URL; a name that is missing is a Secret that is missing.
        settings_map: the ConfigMap with the settings, None if there is none.
        wants_sleep: the autoscaler finds the workload idle for long enough to go to zero.
    """

    proxy: Object
    target: Object | None
    now: dt.datetime
    options: Options = Options()
    siblings: tuple[Object, ...] = ()
    pods: tuple[Object, ...] = ()
    services: tuple[Object, ...] = ()
    shared: Mapping[str, str] = field(default_factory=dict)
    policies: tuple[Object, ...] = ()
    pod_security: str = "privileged"
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    settings_map: Object | None = None
    told: Told = Told()
    gateway: GatewaySeen = GatewaySeen()
    wants_sleep: bool = False

    @property
    def name(self) -> str:
        return str(self.proxy["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.proxy["metadata"]["namespace"])

    @property
    def is_ending(self) -> bool:
        """Whether the AsyncProxy was deleted and waits for its finalizer."""
        return "deletionTimestamp" in self.proxy["metadata"]

    @property
    def is_forced(self) -> bool:
        """Whether the backlog is given up."""
        return any(is_forced(annotations_of(obj)) for obj in (self.proxy, self.target) if obj is not None)

    @property
    def is_labelled(self) -> bool:
        """Whether the template asks for this AsyncProxy's sidecar."""
        return self.template_labels.get(names.PROXY_LABEL) == names.label_value(self.name)

    @property
    def template_labels(self) -> Mapping[str, str]:
        return template_labels_of(self.target) if self.target is not None else {}


class Caches(dict[Resource, Cache]):
    """The cache of each resource that is watched."""

    def add_indexes(self) -> None:
        """Make findable what `Observer` looks for. Before anything is in the caches, or after."""
        self[ASYNC_PROXIES].add_index("target", _target_of)
        for resource in (ASYNC_PROXIES, NETWORK_POLICIES):
            self[resource].add_index("namespace", _namespace_of)
        for resource in {PODS, ENDPOINT_SLICES} & self.keys():
            self[resource].add_index("proxy", _proxy_of)
        # A namespace may hold thousands: Services and workloads find each other by labels.
        self[SERVICES].add_index("selects", _first_selected)
        self[SERVICES].add_index("switched for", _switched_for)
        for resource in WORKLOADS.values():
            self[resource].add_index("label", _labels_of_template)

    def selecting(self, namespace: str, labels: Mapping[str, str]) -> list[Object]:
        """Services that select Pods with *labels*."""
        return [
            service
            for label in labels.items()
            for service in self[SERVICES].by("selects", (namespace, *label))
            if has_all(service["spec"]["selector"], labels)
        ]

    def selected_by(self, service: Object) -> Iterator[Object]:
        """Workloads whose Pods the Service selects."""
        for first in _first_selected(service):
            for resource in WORKLOADS.values():
                for workload in self[resource].by("label", first):
                    if has_all(service["spec"]["selector"], template_labels_of(workload)):
                        yield workload


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
        (target,) = _target_of(proxy)
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


def hash_of(pod: Mapping[str, Any]) -> str | None:
    """The configuration a Pod's sidecar was made from; None without a sidecar."""
    text = annotations_of(pod).get(names.INJECTED_ANNOTATION)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return ""
    return str(found.get("hash", "")) if isinstance(found, dict) else ""


def is_ours(obj: Mapping[str, Any]) -> bool:
    """Whether the operator made this object."""
    labels = obj["metadata"].get("labels") or {}
    return bool(labels.get(names.MANAGED_BY_LABEL) == names.MANAGED_BY)


def annotations_of(obj: Mapping[str, Any]) -> Mapping[str, str]:
    found: Mapping[str, str] = obj["metadata"].get("annotations") or {}
    return found


def template_of(workload: Mapping[str, Any]) -> Mapping[str, Any]:
    template: Mapping[str, Any] = workload["spec"]["template"]
    return template


def template_labels_of(workload: Mapping[str, Any]) -> Mapping[str, str]:
    labels: Mapping[str, str] = (template_of(workload).get("metadata") or {}).get("labels") or {}
    return labels


def _first_selected(service: Object) -> Iterable[tuple[str, str, str]]:
    """The first label a Service selects by: enough to find it, not to be sure."""
    selector = service["spec"].get("selector")
    return () if not selector else ((service["metadata"]["namespace"], *min(selector.items())),)


def _switched_for(service: Object) -> Iterable[Key]:
    proxy = proxy_served(service)
    return () if proxy is None else (Key(service["metadata"]["namespace"], proxy),)


def _labels_of_template(workload: Object) -> Iterable[tuple[str, str, str]]:
    namespace = workload["metadata"]["namespace"]
    return [(namespace, *label) for label in template_labels_of(workload).items()]


def _target_of(proxy: Object) -> tuple[tuple[str, str, str]]:
    reference = proxy["spec"]["targetRef"]
    return ((proxy["metadata"]["namespace"], reference["kind"], reference["name"]),)


def _namespace_of(obj: Object) -> tuple[str]:
    return (obj["metadata"]["namespace"],)


def _proxy_of(pod: Object) -> Iterable[tuple[str, str]]:
    value = (pod["metadata"].get("labels") or {}).get(names.PROXY_LABEL)
    return () if value is None else ((pod["metadata"]["namespace"], value),)
