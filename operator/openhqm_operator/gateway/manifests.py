"""The objects that stand in for a workload at zero, as manifests. Pure.

    Deployment   two Pods of the sidecar's image, mode ingress: they queue into the backlog of the sidecars,
                 hold what cannot be queued until the app is there, and then pass it on
    Service      leads to the app's own Pods alone: where the gateway passes requests to
    budget       a drained node leaves one Pod
    slices       endpoints of the user's Services: one for each Service and address family

All belong to the AsyncProxy and go with it. `stage.py` says which of them are there when,
`reconciling/standing_in.py` compares them with what is there.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from openhqm_operator.api import names
from openhqm_operator.api.spec import InterceptType, Spec
from openhqm_operator.injecting.plan import AppPort, drain_seconds
from openhqm_operator.injecting.platform_settings import Platform
from openhqm_operator.injecting.sidecar_container import Sidecar, build_sidecar_container, build_volumes
from openhqm_operator.kube.owned import owned_metadata
from openhqm_operator.kube.resources import (
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    POD_DISRUPTION_BUDGETS,
    SERVICES,
    Object,
)

REPLICAS = 2

HOLD_SECONDS = 60
"""For this long a request that cannot be queued waits for the app to start, unless the AsyncProxy says how
long; then 503 with Retry-After. Few clients wait longer."""

SPARE_SECONDS = 5
"""From the end of the drain to the kill."""

_FAMILIES = {"IPv4": 4, "IPv6": 6}
_SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
"""Source: RFC 1035, which a Service's name must obey and a workload's need not."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """What makes one workload's gateway.

    Args:
        proxy: the AsyncProxy.
        selector: labels of all the app's Pods and of no other.
        hash: names the configuration; another one makes the Pods anew.
    """

    proxy: Object
    spec: Spec
    port: AppPort
    selector: Mapping[str, str]
    hash: str

    @property
    def name(self) -> str:
        return str(self.proxy["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.proxy["metadata"]["namespace"])


def deployment_name(proxy: str) -> str:
    return names.child_name(proxy, names.GATEWAY)


def service_name(proxy: str) -> str:
    """Name of the Service that leads to the app's own Pods."""
    name = names.child_name(proxy, "app")
    if _SERVICE_NAME.fullmatch(name):
        return name
    return f"openhqm-app-{hashlib.sha256(proxy.encode()).hexdigest()[:16]}"


def slice_name(proxy: str, service: str, family: str) -> str:
    """Unlike a proxy's, a Service's name has no dot, so no two pairs get the same name."""
    return names.child_name(f"{proxy}.{service}", family.lower(), limit=253)


def pod_labels(proxy: str) -> dict[str, str]:
    """Labels of a gateway's Pods: those it is found by, and the one that keeps the webhook away."""
    return {**_selector(proxy), names.MANAGED_BY_LABEL: names.MANAGED_BY, names.INJECT_LABEL: "disabled"}


def _selector(proxy: str) -> dict[str, str]:
    return {names.PROXY_LABEL: names.label_value(proxy), names.COMPONENT_LABEL: names.GATEWAY}


def build_service(gateway: Gateway) -> Object:
    """Return the Service that leads to the app's own Pods.

    Straight to the app's port: what the gateway has let pass is not decided about again by a sidecar.
    """
    port = {"name": "http", "port": gateway.port.number, "targetPort": gateway.port.number, "protocol": "TCP"}
    return {
        "apiVersion": SERVICES.api_version,
        "kind": SERVICES.kind,
        "metadata": owned_metadata(gateway.proxy, service_name(gateway.name), names.GATEWAY),
        "spec": {"type": "ClusterIP", "selector": dict(gateway.selector), "ports": [port]},
    }


def build_budget(gateway: Gateway) -> Object:
    """Return the PodDisruptionBudget."""
    return {
        "apiVersion": POD_DISRUPTION_BUDGETS.api_version,
        "kind": POD_DISRUPTION_BUDGETS.kind,
        "metadata": owned_metadata(gateway.proxy, deployment_name(gateway.name), names.GATEWAY),
        "spec": {"minAvailable": 1, "selector": {"matchLabels": _selector(gateway.name)}},
    }


def build_deployment(gateway: Gateway, platform: Platform) -> Object:
    """Return the Deployment."""
    selector = {"matchLabels": _selector(gateway.name)}
    made: Object = {
        "apiVersion": DEPLOYMENTS.api_version,
        "kind": DEPLOYMENTS.kind,
        "metadata": owned_metadata(gateway.proxy, deployment_name(gateway.name), names.GATEWAY),
        "spec": {
            "replicas": REPLICAS,
            "selector": selector,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": {
                    "labels": pod_labels(gateway.name),
                    "annotations": {names.HASH_ANNOTATION: gateway.hash},
                },
                "spec": _pod_spec(gateway, platform, selector),
            },
        },
    }
    made["metadata"]["annotations"] = {names.MANIFEST_ANNOTATION: _digest(made)}
    return made


def _pod_spec(gateway: Gateway, platform: Platform, selector: Object) -> Object:
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": selector,
    }
    spec: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": drain_seconds(gateway.spec) + SPARE_SECONDS,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "topologySpreadConstraints": [spread],
        "containers": [_container(gateway, platform)],
        "volumes": build_volumes(gateway.name),
    }
    if platform.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in platform.pull_secrets]
    return spec


def _container(gateway: Gateway, platform: Platform) -> Object:
    """The sidecar's container, so that store, handles and queue are its own, without ties to a Pod."""
    sidecar = Sidecar(
        gateway.namespace,
        gateway.name,
        gateway.spec,
        gateway.port,
        InterceptType.SERVICE_PORT,
        probes={},
        token="",
    )
    container = build_sidecar_container(sidecar, platform)
    del container["restartPolicy"], container["lifecycle"]
    command, *rest = container["args"]
    url = f"http://{service_name(gateway.name)}.{gateway.namespace}.svc:{gateway.port.number}"
    ours = {"OPENHQM_APP__URL": url, "OPENHQM_INGRESS__HOLD_SECONDS": str(_hold_seconds(gateway.spec))}
    kept = [one for one in container["env"] if one["name"] not in {*ours, "OPENHQM_POD__TOKEN"}]
    return {
        **container,
        "args": [command, "--mode", "ingress", *rest],
        "env": [*({"name": name, "value": value} for name, value in ours.items()), *kept],
    }


def _hold_seconds(spec: Spec) -> int:
    """A sidecar holds nothing by default, its app is there; here that would be an error at once."""
    asked: int = spec.settings.ingress.hold_seconds if spec.settings and spec.settings.ingress else 0
    return asked or HOLD_SECONDS


def _digest(made: Object) -> str:
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]


# --- endpoints of the user's Services ----------------------------------------------------------------------


def app_ports(service: Mapping[str, Any], port: AppPort) -> list[Object]:
    """Ports of a Service that lead to the app, whether switched to the sidecar or not."""
    targets = {port.number, port.name, names.INTERCEPT_PORT} - {None}
    return [
        one
        for one in service["spec"].get("ports") or ()
        if one.get("protocol", "TCP") == "TCP" and (one.get("targetPort") or one["port"]) in targets
    ]


def build_slices(proxy: Object, service: Object, port: AppPort, pods: Iterable[Object]) -> list[Object]:
    """Return the endpoints with which the gateway's *pods* join *service*, one slice for each family."""
    ports = [
        {"name": one.get("name") or "", "port": names.INTERCEPT_PORT, "protocol": "TCP"}
        | {field: one[field] for field in ("appProtocol",) if field in one}
        for one in app_ports(service, port)
    ]
    families = service["spec"].get("ipFamilies") or ["IPv4"]
    known = list(pods)
    return [_slice(proxy, service["metadata"]["name"], family, ports, known) for family in families]


def refresh_slice(proxy: Object, present: Mapping[str, Any], pods: Iterable[Object]) -> Object:
    """Return a slice with its endpoints brought up to date and all else as it is."""
    service = present["metadata"]["labels"][names.SERVICE_NAME_LABEL]
    return _slice(proxy, service, present["addressType"], present.get("ports") or [], pods)


def _slice(proxy: Object, service: str, family: str, ports: list[Object], pods: Iterable[Object]) -> Object:
    name = proxy["metadata"]["name"]
    metadata = owned_metadata(proxy, slice_name(name, service, family), names.GATEWAY)
    metadata["labels"] |= {
        names.SERVICE_NAME_LABEL: service,
        names.SLICE_MANAGER_LABEL: names.SLICE_MANAGER,
    }
    return {
        "apiVersion": ENDPOINT_SLICES.api_version,
        "kind": ENDPOINT_SLICES.kind,
        "metadata": metadata,
        "addressType": family,
        "ports": ports,
        "endpoints": [
            _endpoint(pod, address)
            for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))
            if (address := _address(pod, family)) is not None
        ],
    }


def _endpoint(pod: Object, address: str) -> Object:
    metadata, is_ending = pod["metadata"], "deletionTimestamp" in pod["metadata"]
    serving = is_ready(pod)
    endpoint = {
        "addresses": [address],
        "conditions": {"ready": serving and not is_ending, "serving": serving, "terminating": is_ending},
        "targetRef": {
            "kind": "Pod",
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
    }
    node = (pod.get("spec") or {}).get("nodeName")
    return endpoint if node is None else {**endpoint, "nodeName": node}


def _address(pod: Mapping[str, Any], family: str) -> str | None:
    status = pod.get("status") or {}
    if status.get("phase") in ("Succeeded", "Failed"):
        return None
    found = [one["ip"] for one in status.get("podIPs") or ()] or [status.get("podIP")]
    fitting = (ip for ip in found if ip and ipaddress.ip_address(ip).version == _FAMILIES[family])
    return next(fitting, None)


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether a Pod says that it is Ready."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
