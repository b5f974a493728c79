"""The Kubernetes resources we touch, as one table; what a path looks like. Pure.

    DEPLOYMENTS.path("shop", "legacy", "scale")   /apis/apps/v1/namespaces/shop/deployments/legacy/scale
    resource_of({"apiVersion": "v1", "kind": "Service", ...})   SERVICES

Objects are raw JSON dicts everywhere (`Object`). Those that come out of a cache are shared: never change one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

from openhqm_operator.api import spec as api

Object = dict[str, Any]
"""A Kubernetes object as it came from the API server, or as it goes there."""


class Key(NamedTuple):
    """Names an object within its resource. *namespace* is empty for cluster-wide ones."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


def key_of(obj: Mapping[str, Any]) -> Key:
    metadata = obj["metadata"]
    return Key(metadata.get("namespace", ""), metadata["name"])


@dataclass(frozen=True)
class Resource:
    """One kind of object and where the API server keeps it."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str = "") -> str:
        """Where the object, or the collection if *name* is None, is found.

        Args:
            namespace: None or empty means all namespaces, or a cluster-wide resource.
            subresource: such as `status` or `scale`; only with a name.

        Raises:
            ValueError: a namespace is missing or too much.
        """
        if namespace and not self.namespaced:
            raise ValueError(f"{self.kind} has no namespace, but {namespace!r} was given")
        if name and self.namespaced and not namespace:
            raise ValueError(f"{self.kind} {name!r} needs a namespace")
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name:
            parts.append(quote(name, safe=""))
        if subresource:
            parts.append(subresource)
        return "/".join(parts)

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


ASYNC_PROXIES = Resource(api.GROUP, api.VERSION, api.PLURAL, api.KIND)

DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
STATEFUL_SETS = Resource("apps", "v1", "statefulsets", "StatefulSet")
DAEMON_SETS = Resource("apps", "v1", "daemonsets", "DaemonSet")
REPLICA_SETS = Resource("apps", "v1", "replicasets", "ReplicaSet")

PODS = Resource("", "v1", "pods", "Pod")
SERVICES = Resource("", "v1", "services", "Service")
SECRETS = Resource("", "v1", "secrets", "Secret")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
ENDPOINT_SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
POD_DISRUPTION_BUDGETS = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
HORIZONTAL_POD_AUTOSCALERS = Resource(
    "autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler"
)
SCALED_OBJECTS = Resource("keda.sh", "v1alpha1", "scaledobjects", "ScaledObject")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
EVENTS = Resource("events.k8s.io", "v1", "events", "Event")
MUTATING_WEBHOOKS = Resource(
    "admissionregistration.k8s.io",
    "v1",
    "mutatingwebhookconfigurations",
    "MutatingWebhookConfiguration",
    namespaced=False,
)
API_SERVICES = Resource("apiregistration.k8s.io", "v1", "apiservices", "APIService", namespaced=False)
SUBJECT_ACCESS_REVIEWS = Resource(
    "authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False
)
TOKEN_REVIEWS = Resource("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", namespaced=False)

ALL = (
    ASYNC_PROXIES,
    DEPLOYMENTS,
    STATEFUL_SETS,
    DAEMON_SETS,
    REPLICA_SETS,
    PODS,
    SERVICES,
    SECRETS,
    CONFIG_MAPS,
    SERVICE_ACCOUNTS,
    NAMESPACES,
    NODES,
    ENDPOINT_SLICES,
    NETWORK_POLICIES,
    POD_DISRUPTION_BUDGETS,
    HORIZONTAL_POD_AUTOSCALERS,
    SCALED_OBJECTS,
    LEASES,
    EVENTS,
    MUTATING_WEBHOOKS,
    API_SERVICES,
    SUBJECT_ACCESS_REVIEWS,
    TOKEN_REVIEWS,
)

WORKLOADS = {resource.kind: resource for resource in (DEPLOYMENTS, STATEFUL_SETS, DAEMON_SETS)}
"""What an AsyncProxy may target, by kind."""

_BY_TYPE = {(resource.api_version, resource.kind): resource for resource in ALL}


def resource_of(obj: Mapping[str, Any]) -> Resource:
    """The resource that *obj* is one of, by its apiVersion and kind.

    Raises:
        ValueError: it is none of the table.
    """
    found = _BY_TYPE.get((obj.get("apiVersion", ""), obj.get("kind", "")))
    if found is None:
        raise ValueError(f"not a resource we know: {obj.get('apiVersion')} {obj.get('kind')}")
    return found
