"""Watches what decisions rest on, and says whose decision a change concerns.

    informers (`kube/watching.py`) -> caches -> Observer
              \\-> a change -> Work of each AsyncProxy and workload it may concern -> the work queue
    kopf (`handlers.py`) -> `sightings.py`: AsyncProxies and workloads themselves -^

Naming a key too often costs a look at caches; not naming one costs until the next resync. So whatever cannot
be told apart cheaply is named: a NetworkPolicy names all AsyncProxies of its namespace.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from openhqm_operator.api import names
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.resources import (
    ASYNC_PROXIES,
    CONFIG_MAPS,
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    HORIZONTAL_POD_AUTOSCALERS,
    NAMESPACES,
    NETWORK_POLICIES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    SCALED_OBJECTS,
    SERVICES,
    WORKLOADS,
    Key,
    Object,
    Resource,
)
from openhqm_operator.kube.watching import Informer
from openhqm_operator.noticing.sightings import Sightings
from openhqm_operator.reconciling.caches import Caches
from openhqm_operator.reconciling.observed import annotations_of
from openhqm_operator.reconciling.reconcile import Work

_OURS = f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}"
_OUR_SLICES = f"{names.SLICE_MANAGER_LABEL}={names.SLICE_MANAGER}"
_PREFIX = f"{names.GROUP}/"
_WATCHED = {ASYNC_PROXIES.kind: ASYNC_PROXIES, **WORKLOADS}
"""What kopf watches too."""


def build_informers(kube: Kube, namespace: str | None) -> list[Informer]:
    """One informer for each resource, keeping what is needed of it."""
    own = f"metadata.name={namespace}" if namespace else ""
    return [
        Informer(kube, ASYNC_PROXIES, namespace=namespace, project=_without_managers),
        *(
            Informer(kube, workload, namespace=namespace, project=_without_managers)
            for workload in WORKLOADS.values()
        ),
        Informer(kube, PODS, namespace=namespace, labels=names.PROXY_LABEL, project=_needed_of_pod),
        # Whole: who manages the ports is in the managedFields.
        Informer(kube, SERVICES, namespace=namespace),
        Informer(kube, NETWORK_POLICIES, namespace=namespace, project=_without_managers),
        Informer(kube, CONFIG_MAPS, namespace=namespace, labels=_OURS, project=_without_managers),
        Informer(kube, NAMESPACES, fields=own, project=_without_managers),
        Informer(kube, HORIZONTAL_POD_AUTOSCALERS, namespace=namespace, project=_without_managers),
        Informer(kube, SCALED_OBJECTS, namespace=namespace, project=_without_managers, optional=True),
        Informer(kube, ENDPOINT_SLICES, namespace=namespace, labels=_OUR_SLICES, project=_without_managers),
        Informer(kube, POD_DISRUPTION_BUDGETS, namespace=namespace, labels=_OURS, project=_without_managers),
    ]


def caches_of(informers: Iterable[Informer]) -> Caches:
    """Their caches, with the indexes that are looked up."""
    caches = Caches({informer.resource: informer.cache for informer in informers})
    caches.add_indexes()
    caches[ASYNC_PROXIES].add_index("label", _label_of)
    return caches


def _without_managers(obj: Object) -> Object:
    """Less than half of an object, usually."""
    obj["metadata"].pop("managedFields", None)
    return obj


def _needed_of_pod(pod: Object) -> Object:
    """The spec is the largest part, and only where the Pod runs matters of it."""
    spec = pod.get("spec") or {}
    return {**_without_managers(pod), "spec": {name: spec[name] for name in ("nodeName",) if name in spec}}


def _label_of(proxy: Object) -> tuple[tuple[str, str]]:
    metadata = proxy["metadata"]
    return ((metadata["namespace"], names.label_value(metadata["name"])),)


class Triggers:
    """Turns changes into work.

    Args:
        add: takes a key to look at; `WorkQueue.add`.
        add_after: takes a key to look at within so many seconds; `WorkQueue.add_after`.

    Attributes:
        sightings: to be told of what kopf sees.
    """

    def __init__(
        self, caches: Caches, add: Callable[[Work], None], add_after: Callable[[Work, float], None]
    ) -> None:
        self._caches = caches
        self._add = add
        self._add_after = add_after
        self.sightings = Sightings(self._cached, self._look, self._look_later, time.monotonic)

    def listen(self, informers: Iterable[Informer]) -> None:
        """Be told of every change."""
        concerning = {
            ASYNC_PROXIES: self._of_proxy,
            PODS: self._of_labelled,
            CONFIG_MAPS: self._of_labelled,
            ENDPOINT_SLICES: self._of_labelled,
            POD_DISRUPTION_BUDGETS: self._of_labelled,
            SERVICES: self._of_service,
            NETWORK_POLICIES: self._of_namespace,
            NAMESPACES: self._of_namespace,
        }
        for informer in informers:
            if informer.resource in WORKLOADS.values():
                self._follow(informer, self._of_workload(informer.resource))
            elif informer.resource in concerning:
                self._follow(informer, concerning[informer.resource])

    def everything(self) -> None:
        """Name all there is to look at."""
        for key in self._caches[ASYNC_PROXIES]:
            self._add(Work(ASYNC_PROXIES.kind, key))
        for resource in WORKLOADS.values():
            for workload in self._caches[resource].values():
                self._look(Work(resource.kind, _key(workload)))

    def proxy(self, key: Key) -> None:
        """Name one AsyncProxy."""
        self._add(Work(ASYNC_PROXIES.kind, key))

    # --- what kopf tells of, once the caches have it

    def _cached(self, work: Work) -> int | None:
        found = self._caches[_WATCHED[work.kind]].get(work.key)
        return None if found is None else _version(found)

    def _look(self, work: Work) -> None:
        if self._is_ours(work):
            self._add(work)

    def _look_later(self, work: Work, seconds: float) -> None:
        if self._is_ours(work):
            self._add_after(work, seconds)

    def _is_ours(self, work: Work) -> bool:
        """Whether it is an AsyncProxy, or a workload that says or said that it wants one."""
        if work.kind == ASYNC_PROXIES.kind or work.key in self._caches[ASYNC_PROXIES]:
            return True
        workload = self._caches[_WATCHED[work.kind]].get(work.key)
        return workload is not None and any(name.startswith(_PREFIX) for name in annotations_of(workload))

    # --- what our informers tell of

    def _follow(self, informer: Informer, concerned: _Concerned) -> None:
        def changed(key: Key, before: Object | None, after: Object | None) -> None:
            for work in concerned(key, before, after):
                self._add(work)

        informer.on_change(changed)

    def _of_proxy(self, key: Key, before: Object | None, after: Object | None) -> Iterator[Work]:
        if after is not None:
            self.sightings.changed(Work(ASYNC_PROXIES.kind, key), _version(after))
            return
        yield Work(ASYNC_PROXIES.kind, key)
        if before is not None:
            # Its rivals may take its place, and a workload waited for its name.
            reference = before["spec"]["targetRef"]
            yield from self._targeting(key.namespace, reference["kind"], reference["name"])
            yield from (Work(kind, key) for kind in WORKLOADS)

    def _of_workload(self, resource: Resource) -> _Concerned:
        def concerned(key: Key, before: Object | None, after: Object | None) -> Iterator[Work]:
            if after is not None:
                self.sightings.changed(Work(resource.kind, key), _version(after))
            yield from self._targeting(key.namespace, resource.kind, key.name)
            if resource is DEPLOYMENTS:
                yield from self._of_labelled(key, before, after)  # a gateway

        return concerned

    def _targeting(self, namespace: str, kind: str, name: str) -> Iterator[Work]:
        for proxy in self._caches[ASYNC_PROXIES].by("target", (namespace, kind, name)):
            yield Work(ASYNC_PROXIES.kind, _key(proxy))

    def _of_labelled(self, key: Key, before: Object | None, after: Object | None) -> Iterator[Work]:
        for obj in (before, after):
            value = ((obj or {"metadata": {}})["metadata"].get("labels") or {}).get(names.PROXY_LABEL)
            for proxy in self._caches[ASYNC_PROXIES].by("label", (key.namespace, value)):
                yield Work(ASYNC_PROXIES.kind, _key(proxy))

    def _of_service(self, key: Key, before: Object | None, after: Object | None) -> Iterator[Work]:
        for service in (before, after):
            for workload in self._caches.selected_by(service) if service is not None else ():
                yield from self._targeting(key.namespace, workload["kind"], workload["metadata"]["name"])

    def _of_namespace(self, key: Key, before: Object | None, after: Object | None) -> Iterator[Work]:
        for proxy in self._caches[ASYNC_PROXIES].by("namespace", key.namespace or key.name):
            yield Work(ASYNC_PROXIES.kind, _key(proxy))


_Concerned = Callable[[Key, Object | None, Object | None], Iterable[Work]]


def _version(obj: Object) -> int:
    return int(obj["metadata"]["resourceVersion"])


def _key(obj: Object) -> Key:
    return Key(obj["metadata"]["namespace"], obj["metadata"]["name"])
