"""How traffic is to reach the sidecar: which way catches all of it, and what stands against each. Pure.

    NamedPort    the app's named port moves to the sidecar      needs a name that the Services use
    ServicePort  targetPort of the Services is switched          needs Services that nobody else manages
    Redirect     an init container redirects inside the Pod      needs NET_ADMIN

Ordered by privilege. An *obstacle* rules a way out: it cannot work, or would cut traffic off. A *bypass* is
traffic that comes past the sidecar: ruled out for Auto, told to those who chose the way themselves.
Switching a Service and restoring it are JSON Patches that hold for the version of the Service looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from openhqm_operator.api.names import INTERCEPT_PORT, ORIGINAL_PORTS_ANNOTATION
from openhqm_operator.api.spec import InterceptType
from openhqm_operator.injecting.plan import AppPort
from openhqm_operator.kube.resources import Object

LADDER = (InterceptType.NAMED_PORT, InterceptType.SERVICE_PORT, InterceptType.REDIRECT)
"""The least privileged first."""

_RESTRICTING = ("baseline", "restricted")
"""Pod Security levels that refuse NET_ADMIN."""

_GIT_MARKS = {
    "argocd.argoproj.io/tracking-id": "Argo CD",
    "argocd.argoproj.io/instance": "Argo CD",
    "kustomize.toolkit.fluxcd.io/name": "Flux",
    "helm.toolkit.fluxcd.io/name": "Flux",
    "objectset.rio.cattle.io/id": "Fleet",
}
"""Labels and annotations of those who would set a changed field back."""

_GIT_MANAGERS = {
    "argocd-controller": "Argo CD",
    "argocd-application-controller": "Argo CD",
    "kustomize-controller": "Flux",
    "helm-controller": "Flux",
    "fleetagent": "Fleet",
}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What decides about the interception.

    Args:
        services: those that select the Pods.
        shared: names of Services that also select Pods of other workloads, and whose.
        policies: NetworkPolicies that select the Pods.
        pod_security: the level enforced in the namespace: privileged, baseline or restricted.
    """

    port: AppPort
    services: tuple[Object, ...] = ()
    shared: Mapping[str, str] | None = None
    policies: tuple[Object, ...] = ()
    pod_security: str = "privileged"


@dataclass(frozen=True, slots=True)
class Choice:
    """The way taken, why, and what comes past it all the same."""

    type: InterceptType
    why: str
    bypasses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Blocked:
    """No way can be taken; the message says what stands against it and what to do."""

    reason: str
    message: str


def choose(wanted: InterceptType, current: InterceptType | None, around: Surroundings) -> Choice | Blocked:
    """Decide how traffic reaches the sidecar.

    Args:
        current: in force now; Auto keeps it as long as it still catches everything, since another one
            would roll the workload.
    """
    if wanted is not InterceptType.AUTO:
        return _as_told(wanted, around)
    ladder = LADDER if current is None else (current, *(way for way in LADDER if way is not current))
    against = {way: (*_obstacles(way, around), *_bypasses(way, around)) for way in ladder}
    for way, reasons in against.items():
        if not reasons:
            return Choice(way, _praise(way, around))
    told = ". ".join(f"{way}: {'; '.join(against[way])}" for way in LADDER)
    return Blocked(
        "InterceptionBlocked",
        f"No interception catches all traffic. {told}. Remove one of these, or choose spec.intercept.type "
        "yourself to accept what bypasses the queue.",
    )


def _as_told(way: InterceptType, around: Surroundings) -> Choice | Blocked:
    if obstacles := tuple(_obstacles(way, around)):
        return Blocked("InterceptionBlocked", f"{way} was asked for, but {'; '.join(obstacles)}.")
    return Choice(way, "as asked for", tuple(_bypasses(way, around)))


def _praise(way: InterceptType, around: Surroundings) -> str:
    if way is InterceptType.REDIRECT:
        return "redirecting inside the Pod catches all traffic"
    if not any(True for _ in _aiming(around)):
        return "no Service sends traffic to the port yet"
    if way is InterceptType.NAMED_PORT:
        return f'all Services send to the port by its name "{around.port.name}"'
    return "the targetPort of all its Services can be switched"


# --- obstacles and bypasses ------------------------------------------------------------------------------


def _obstacles(way: InterceptType, around: Surroundings) -> Iterator[str]:
    port = around.port
    if way is InterceptType.REDIRECT:
        if around.pod_security in _RESTRICTING:
            yield f"the namespace enforces Pod Security {around.pod_security}, which refuses NET_ADMIN"
        return
    if way is InterceptType.NAMED_PORT and port.name is None:
        yield f"port {port.number} of container {port.container} has no name"
    policy = _cutting(around.policies, port, is_named=way is InterceptType.NAMED_PORT)
    if policy is not None:
        yield (
            f"NetworkPolicy {policy} lets traffic reach port {port.number} but not the sidecar's port "
            f"{INTERCEPT_PORT}: allow it too"
        )


def _bypasses(way: InterceptType, around: Surroundings) -> Iterator[str]:
    if way is InterceptType.REDIRECT:
        return
    for service, service_port in _aiming(around):
        name = service["metadata"]["name"]
        if service["spec"].get("clusterIP") == "None":
            yield f"Service {name} is headless, its clients connect to the Pods' port {around.port.number}"
        elif way is InterceptType.NAMED_PORT and _target(service_port) == around.port.number:
            yield f"Service {name} sends to port {around.port.number} by number, not by name"
        elif way is InterceptType.SERVICE_PORT and not is_switched(service_port):
            yield from _unswitchable(service, service_port, around)


def _unswitchable(service: Object, service_port: Object, around: Surroundings) -> Iterator[str]:
    name = service["metadata"]["name"]
    if manager := manager_of(service):
        yield (
            f"Service {name} is managed by {manager}: set targetPort of its port {service_port['port']} to "
            f"{INTERCEPT_PORT} there"
        )
    elif other := (around.shared or {}).get(name):
        yield f"Service {name} also sends to Pods of {other}, which have no sidecar"


def _aiming(around: Surroundings) -> Iterator[tuple[Object, Object]]:
    """Services and their ports that lead to the app's port, or led there before they were switched."""
    targets = {around.port.number, around.port.name, INTERCEPT_PORT} - {None}
    for service in around.services:
        for service_port in _tcp_ports(service):
            if _target(service_port) in targets:
                yield service, service_port


def _tcp_ports(service: Mapping[str, Any]) -> list[Object]:
    return [port for port in service["spec"].get("ports") or () if port.get("protocol", "TCP") == "TCP"]


def _target(service_port: Mapping[str, Any]) -> int | str:
    target: int | str = service_port.get("targetPort") or service_port["port"]
    return target


def manager_of(service: Mapping[str, Any]) -> str | None:
    """Who would set a changed targetPort of this Service back; None if nobody would."""
    metadata = service["metadata"]
    marks = {**(metadata.get("labels") or {}), **(metadata.get("annotations") or {})}
    for mark, manager in _GIT_MARKS.items():
        if mark in marks:
            return manager
    for owner in metadata.get("ownerReferences") or ():
        if owner.get("controller"):
            return f"{owner['kind']} {owner['name']}"
    for entry in metadata.get("managedFields") or ():
        if entry["manager"] in _GIT_MANAGERS:
            return _GIT_MANAGERS[entry["manager"]]
        ports = ((entry.get("fieldsV1") or {}).get("f:spec") or {}).get("f:ports")
        if ports is not None and entry.get("operation") == "Apply":
            return f"server-side apply of {entry['manager']}"
    return None


# --- NetworkPolicies -------------------------------------------------------------------------------------


def _cutting(policies: Iterable[Object], port: AppPort, *, is_named: bool) -> str | None:
    """The policy that lets traffic to the app through and would not let it reach the sidecar.

    Args:
        is_named: the app's port name will mean the sidecar's port.
    """
    rules = [
        (policy["metadata"]["name"], rule)
        for policy in policies
        if "Ingress" in (policy["spec"].get("policyTypes") or ("Ingress",))
        for rule in policy["spec"].get("ingress") or ()
    ]
    name = port.name if is_named else None
    if any(not rule.get("from") and lets(rule, INTERCEPT_PORT, name) for _, rule in rules):
        return None
    for policy, rule in rules:
        if lets(rule, port.number, port.name) and not lets(rule, INTERCEPT_PORT, name):
            return str(policy)
    return None


def lets(rule: Mapping[str, Any], number: int, name: str | None) -> bool:
    """Whether a rule of a NetworkPolicy is about this port."""
    ports = rule.get("ports")
    return not ports or any(_covers(port, number, name) for port in ports)


def _covers(policy_port: Mapping[str, Any], number: int, name: str | None) -> bool:
    if policy_port.get("protocol", "TCP") != "TCP":
        return False
    first = policy_port.get("port")
    if first is None:
        return True
    if isinstance(first, str):
        return first == name
    return bool(first <= number <= policy_port.get("endPort", first))


# --- switching Services ----------------------------------------------------------------------------------


def is_switched(service_port: Mapping[str, Any]) -> bool:
    """Whether this port of a Service leads to the sidecar."""
    return service_port.get("targetPort") == INTERCEPT_PORT


def may_switch(service: Object, shared: Mapping[str, str]) -> bool:
    """Whether the Service's ports are ours to switch: nobody sets them back, no other Pods depend on them."""
    name = service["metadata"]["name"]
    return service["spec"].get("clusterIP") != "None" and manager_of(service) is None and name not in shared


def switching(service: Object, proxy: str, port: AppPort) -> list[Object]:
    """JSON Patch that leads the Service's ports for the app to the sidecar; empty if they are led there.

    What they were stays in an annotation, beside the name of the AsyncProxy it is done for.
    """
    originals = _originals(service, proxy)
    operations: list[Object] = []
    for index, service_port in enumerate(service["spec"].get("ports") or ()):
        target = _target(service_port)
        if service_port.get("protocol", "TCP") == "TCP" and target in (port.number, port.name):
            originals[_port_id(service_port)] = target
            operations.append(_set_target(index, INTERCEPT_PORT))
    return _patch(service, operations, {"proxy": proxy, "ports": originals}) if operations else []


def restoring(service: Object, proxy: str) -> list[Object]:
    """JSON Patch that makes the Service's ports what they were before *proxy*; empty if nothing was done.

    A port that somebody else has changed since is left as it is.
    """
    originals = _originals(service, proxy)
    if not originals and not _is_for(service, proxy):
        return []
    operations = [
        _set_target(index, originals[_port_id(service_port)])
        for index, service_port in enumerate(service["spec"].get("ports") or ())
        if is_switched(service_port) and _port_id(service_port) in originals
    ]
    return _patch(service, operations, None)


def proxy_served(service: Mapping[str, Any]) -> str | None:
    """Name of the AsyncProxy that the Service was switched for, if it was."""
    served: str | None = _record(service).get("proxy")
    return served


def _originals(service: Object, proxy: str) -> dict[str, int | str]:
    record = _record(service)
    return dict(record["ports"]) if record.get("proxy") == proxy else {}


def _is_for(service: Object, proxy: str) -> bool:
    return bool(_record(service).get("proxy") == proxy)


def _record(service: Mapping[str, Any]) -> dict[str, Any]:
    """What the annotation says; one that is not ours to read says nothing."""
    text = (service["metadata"].get("annotations") or {}).get(ORIGINAL_PORTS_ANNOTATION)
    try:
        record = json.loads(text) if text else {}
    except ValueError:
        return {}
    is_ours = isinstance(record, dict) and isinstance(record.get("ports"), dict)
    return record if is_ours else {}


def _port_id(service_port: Mapping[str, Any]) -> str:
    """What tells a Service's ports apart, whatever their order."""
    return f"{service_port['port']}/{service_port.get('protocol', 'TCP')}"


def _set_target(index: int, target: int | str) -> Object:
    return {"op": "add", "path": f"/spec/ports/{index}/targetPort", "value": target}


def _patch(service: Object, operations: list[Object], record: Object | None) -> list[Object]:
    metadata = service["metadata"]
    path = "/metadata/annotations/" + ORIGINAL_PORTS_ANNOTATION.replace("/", "~1")
    unchanged = {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]}
    if record is None:
        return [unchanged, *operations, {"op": "remove", "path": path}]
    noted = {"op": "add", "path": path, "value": json.dumps(record, sort_keys=True)}
    if not metadata.get("annotations"):
        # A patch cannot add to a map that is not there.
        return [unchanged, {"op": "add", "path": "/metadata/annotations", "value": {}}, noted, *operations]
    return [unchanged, noted, *operations]
