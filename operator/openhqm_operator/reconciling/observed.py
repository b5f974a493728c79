"""What is known of one AsyncProxy, its workload and what surrounds them: the whole input of a decision. Pure.

`observe.py` looks, `desired.py` decides on it. Of Secrets only which keys there are and the schemes of their
URLs are known.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openhqm_operator.api import names
from openhqm_operator.api.annotations import is_forced
from openhqm_operator.injecting.platform_settings import Platform
from openhqm_operator.kube.resources import (
    Object,
)


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
        was_asked: whether this process has asked them yet; a new leader knows nothing, which is no silence.
    """

    left: int | None = None
    settings: frozenset[str | None] = frozenset()
    reaches_store: bool | None = None
    previous: int | None = None
    was_asked: bool = True


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
