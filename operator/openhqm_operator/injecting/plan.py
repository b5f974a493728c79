"""What is decided before a Pod is touched: which port is the app's, what stands against it, the hash. Pure.

    Pod spec, spec.port ---find_app_port---> AppPort ---check_pod---> nothing, or why not
    Spec, interception, AppPort ---config_hash---> names the configuration that new Pods get

The operator asks for a workload's template, the injector for each Pod (`injection.py`); both get the same
answers. All questions raise NotInjectable, whose message says what to do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic.fields import FieldInfo

from openhqm.settings import Settings, is_structural
from openhqm_operator.api.names import (
    ADMIN_PORT,
    BYPASS_PORT,
    HEALTH_PORT,
    INTERCEPT_PORT,
    NO_TOKEN_VOLUME,
    REDIRECT_CONTAINER,
    SETTINGS_VOLUME,
    SIDECAR_CONTAINER,
)
from openhqm_operator.api.spec import InterceptType, Spec

OUR_PORTS = (INTERCEPT_PORT, BYPASS_PORT, HEALTH_PORT, ADMIN_PORT)
OUR_VOLUMES = (SETTINGS_VOLUME, NO_TOKEN_VOLUME)
"""DATA_VOLUME may be the Pod's own: then an embedded store survives the Pod."""

MESH_CONTAINERS = frozenset({"istio-proxy", "linkerd-proxy", "daprd"})
"""Proxies that other webhooks put beside the app, often before we see the Pod: never the app."""

_DEFAULTS = Settings()

_LAYOUT = 1
"""Grows when Pods of unchanged proxies must be made anew; that rolls every workload."""


class NotInjectable(Exception):
    """The Pod cannot get a sidecar.

    Attributes:
        reason: one CamelCase word, for conditions and metrics.
        message: what stands against it and what to do, as a sentence.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class AppPort:
    """The TCP port the app listens on.

    Args:
        container: the app's.
        name: the containerPort's name, if it has one.
    """

    container: str
    name: str | None
    number: int


# --- the app's port --------------------------------------------------------------------------------------


def find_app_port(pod_spec: Mapping[str, Any], port: int | str | None) -> AppPort:
    """Return the port that *port*, an AsyncProxy's `spec.port`, means in this Pod.

    Args:
        port: a name or a number; None: the only TCP port declared. A number need not be declared where
            there is one container: containerPorts only inform.

    Raises:
        NotInjectable: there is none, or more than one.
    """
    declared = list(_declared_ports(pod_spec))
    if isinstance(port, str):
        found = [candidate for candidate in declared if candidate.name == port]
        if not found:
            raise NotInjectable(
                "PortNotFound", f'no container has a TCP port named "{port}"; {_seen(declared)}'
            )
        return found[0]
    if isinstance(port, int):
        return _numbered(port, declared, pod_spec)
    if not declared:
        raise NotInjectable("NoTcpPort", _no_port(pod_spec))
    if len({(candidate.container, candidate.number) for candidate in declared}) > 1:
        raise NotInjectable("PortAmbiguous", f"say with spec.port which port is the app's; {_seen(declared)}")
    return _named_first(declared)


def _declared_ports(pod_spec: Mapping[str, Any]) -> Iterator[AppPort]:
    for container in _app_containers(pod_spec):
        for port in container.get("ports") or ():
            if port.get("protocol", "TCP") == "TCP":
                yield AppPort(container["name"], port.get("name"), port["containerPort"])


def _app_containers(pod_spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [each for each in pod_spec.get("containers") or () if each["name"] not in MESH_CONTAINERS]


def _numbered(number: int, declared: list[AppPort], pod_spec: Mapping[str, Any]) -> AppPort:
    if found := [candidate for candidate in declared if candidate.number == number]:
        return _named_first(found)
    containers = _app_containers(pod_spec)
    if len(containers) == 1:
        return AppPort(containers[0]["name"], None, number)
    raise NotInjectable(
        "PortNotFound",
        f"no container declares TCP port {number}, and there is more than one: add it to the ports of the "
        f"one that listens on it; {_seen(declared)}",
    )


def _named_first(ports: list[AppPort]) -> AppPort:
    return next((port for port in ports if port.name), ports[0])


def _seen(declared: list[AppPort]) -> str:
    if not declared:
        return "the Pod declares no TCP ports"
    shown = ", ".join(
        f"{port.container}: {port.number}{f' ({port.name})' * bool(port.name)}" for port in declared
    )
    return f"the Pod declares {shown}"


def _no_port(pod_spec: Mapping[str, Any]) -> str:
    if any(container.get("ports") for container in _app_containers(pod_spec)):
        return "the Pod declares no TCP port, and only HTTP over TCP can be queued"
    return "the Pod declares no port: say with spec.port which one the app listens on"


# --- what stands against it ------------------------------------------------------------------------------


def check_pod(pod_spec: Mapping[str, Any], port: AppPort, intercept: InterceptType) -> None:
    """Check that a Pod without a sidecar can get one.

    Raises:
        NotInjectable: the first thing that stands against it.
    """
    if pod_spec.get("hostNetwork"):
        raise NotInjectable(
            "HostNetwork", "Pods with hostNetwork share their ports with the node: set hostNetwork to false"
        )
    if _is_windows(pod_spec):
        raise NotInjectable("WindowsNode", "the sidecar runs on Linux nodes only")
    _check_names(pod_spec)
    _check_ports(pod_spec, port)
    if intercept is InterceptType.REDIRECT:
        check_mesh(pod_spec)
    else:
        _check_host_port(pod_spec, port)
    if intercept is InterceptType.NAMED_PORT and port.name is None:
        raise NotInjectable(
            "PortHasNoName",
            f"interception NamedPort needs a name for port {port.number} of container {port.container}: name "
            "it, or choose ServicePort",
        )


def _is_windows(pod_spec: Mapping[str, Any]) -> bool:
    system = (pod_spec.get("os") or {}).get("name")
    return "windows" in (system, (pod_spec.get("nodeSelector") or {}).get("kubernetes.io/os"))


def _check_names(pod_spec: Mapping[str, Any]) -> None:
    containers = {each["name"] for each in _all_containers(pod_spec)}
    volumes = {each["name"] for each in pod_spec.get("volumes") or ()}
    taken = containers & {SIDECAR_CONTAINER, REDIRECT_CONTAINER} or volumes.intersection(OUR_VOLUMES)
    if taken:
        raise NotInjectable("NameTaken", f'the Pod has a container or volume named "{min(taken)}": rename it')


def _check_ports(pod_spec: Mapping[str, Any], port: AppPort) -> None:
    used = {each["containerPort"] for one in _all_containers(pod_spec) for each in one.get("ports") or ()}
    if clash := (used | {port.number}).intersection(OUR_PORTS):
        raise NotInjectable("PortClash", f"port {min(clash)} is the sidecar's: let the app use another one")


def _check_host_port(pod_spec: Mapping[str, Any], port: AppPort) -> None:
    for container in _app_containers(pod_spec):
        for each in container.get("ports") or ():
            if each["containerPort"] == port.number and each.get("hostPort"):
                raise NotInjectable(
                    "HostPort",
                    f"port {port.number} is also port {each['hostPort']} of the node, which leads past the "
                    "sidecar: remove hostPort, or choose interception Redirect",
                )


def check_mesh(pod_spec: Mapping[str, Any]) -> None:
    """Check that nobody else redirects the Pod's traffic.

    Raises:
        NotInjectable: a mesh's proxy does.
    """
    meshes = MESH_CONTAINERS & {container["name"] for container in _all_containers(pod_spec)} - {"daprd"}
    if meshes:
        raise NotInjectable(
            "MeshRedirects",
            f"{min(meshes)} redirects the Pod's traffic already: choose interception NamedPort or "
            "ServicePort",
        )


def _all_containers(pod_spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*(pod_spec.get("initContainers") or ()), *(pod_spec.get("containers") or ())]


# --- the hash --------------------------------------------------------------------------------------------


def config_hash(spec: Spec, intercept: InterceptType, port: AppPort) -> str:
    """Name the configuration of a Pod's sidecar: equal names mean that no Pod need be made anew.

    Only what a running sidecar cannot take over counts. Images do not: they are the cluster's, and come with
    the next deploy. What is left out counts as its default, so that a default made visible changes nothing.
    """
    known = {
        "layout": _LAYOUT,
        "intercept": intercept.value,
        "port": asdict(port),
        "store": spec.store and spec.store.model_dump(mode="json"),
        "broker": spec.broker and spec.broker.model_dump(mode="json"),
        "readiness": spec.readiness.value,
        "settings": _structural_settings(spec),
    }
    text = json.dumps(known, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def drain_seconds(spec: Spec) -> int:
    """How long the sidecar may take to end, in whole seconds."""
    drain = spec.settings and spec.settings.drain
    return int(drain.timeout_seconds if drain else _DEFAULTS.drain.timeout_seconds)


def _structural_settings(spec: Spec) -> dict[str, Any]:
    found: dict[str, Any] = {"drain.timeout_seconds": drain_seconds(spec)}
    given = spec.settings.model_dump(mode="json", exclude_none=True) if spec.settings else {}
    for area, values in given.items():
        fields: dict[str, FieldInfo] = type(getattr(_DEFAULTS, area)).model_fields
        for name, value in values.items():
            if is_structural(fields[name]) and value != fields[name].default:
                found[f"{area}.{name}"] = value
    return found
