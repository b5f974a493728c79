"""The caches that are looked at, and the indexes by which what belongs together is found. Pure.

Filled by `kube/watching.py`; `noticing/triggers.py` says which resources and what is kept of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from openhqm_operator.api import names
from openhqm_operator.injecting.interception import proxy_served
from openhqm_operator.kube.cache import Cache
from openhqm_operator.kube.resources import (
    ASYNC_PROXIES,
    ENDPOINT_SLICES,
    NETWORK_POLICIES,
    PODS,
    SERVICES,
    WORKLOADS,
    Key,
    Object,
    Resource,
)
from openhqm_operator.kube.selectors import has_all
from openhqm_operator.reconciling.observed import template_labels_of


class Caches(dict[Resource, Cache]):
    """The cache of each resource that is watched."""

    def add_indexes(self) -> None:
        """Make findable what `Observer` looks for. Before anything is in the caches, or after."""
        self[ASYNC_PROXIES].add_index("target", target_of)
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


def target_of(proxy: Object) -> tuple[tuple[str, str, str]]:
    """Namespace, kind and name of the one workload that an AsyncProxy names; for the index "target"."""
    reference = proxy["spec"]["targetRef"]
    return ((proxy["metadata"]["namespace"], reference["kind"], reference["name"]),)


def _namespace_of(obj: Object) -> tuple[str]:
    return (obj["metadata"]["namespace"],)


def _proxy_of(pod: Object) -> Iterable[tuple[str, str]]:
    value = (pod["metadata"].get("labels") or {}).get(names.PROXY_LABEL)
    return () if value is None else ((pod["metadata"]["namespace"], value),)
