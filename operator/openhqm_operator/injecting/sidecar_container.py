"""The sidecar's container and volumes, as they stand in an injected Pod. Pure.

A native sidecar: an init container that stays. It runs as a user of its own, without capabilities, on a
read-only root, and passes Pod Security `restricted`. An empty volume lies over the place where the app's
ServiceAccount token would be mounted: whoever breaks the sidecar must not speak as the app.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from openhqm_operator.api.names import (
    ADMIN_PORT,
    DATA_VOLUME,
    HANDLE_SECRET_KEY,
    HEALTH_PORT,
    HEALTH_PORT_NAME,
    INTERCEPT_PORT,
    INTERCEPT_PORT_NAME,
    NO_TOKEN_VOLUME,
    SETTINGS_FILE,
    SETTINGS_FOLDER,
    SETTINGS_VOLUME,
    SIDECAR_CONTAINER,
    STORE_SECRET,
    STORE_SECRET_KEY,
    handle_secret,
    queue_name,
    settings_map,
)
from openhqm_operator.api.spec import InterceptType, SecretRef, Server, Spec
from openhqm_operator.injecting.plan import AppPort
from openhqm_operator.injecting.platform_settings import Platform
from openhqm_operator.injecting.probes import DRAIN_PATH, build_hook
from openhqm_operator.kube.resources import Object

DATA_FOLDER = "/data"
TOKEN_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - where Kubernetes mounts one

_NO_TOKEN = {"name": NO_TOKEN_VOLUME, "mountPath": TOKEN_FOLDER, "readOnly": True}


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What makes one Pod's sidecar.

    Args:
        intercept: never Auto.
        probes: per container, what the sidecar relays of its readiness.
        token: lets the kubelet's hooks in.
    """

    namespace: str
    proxy: str
    spec: Spec
    port: AppPort
    intercept: InterceptType
    probes: dict[str, Object]
    token: str


def build_sidecar_container(sidecar: Sidecar, platform: Platform) -> Object:
    """Return the sidecar's container."""
    return {
        "name": SIDECAR_CONTAINER,
        "image": platform.image,
        "imagePullPolicy": platform.pull_policy,
        "restartPolicy": "Always",
        "args": ["serve", "--config", f"{SETTINGS_FOLDER}/{SETTINGS_FILE}"],
        "ports": _ports(sidecar.intercept),
        "env": _environment(sidecar, platform),
        "resources": platform.resources.model_dump(mode="json"),
        # A minute for a store that is just starting; the containers after this one wait for it.
        "startupProbe": _probe("/startupz", periodSeconds=1, failureThreshold=120),
        "livenessProbe": _probe("/livez", periodSeconds=10, timeoutSeconds=5, failureThreshold=6),
        "readinessProbe": _probe("/readyz", periodSeconds=5, timeoutSeconds=3, failureThreshold=2),
        "lifecycle": {"preStop": build_hook(DRAIN_PATH, sidecar.token)},
        "securityContext": _security(platform.uid),
        "volumeMounts": [
            {"name": SETTINGS_VOLUME, "mountPath": SETTINGS_FOLDER, "readOnly": True},
            {"name": DATA_VOLUME, "mountPath": DATA_FOLDER},
            *build_token_cover(),
        ],
    }


def build_token_cover() -> list[Object]:
    """Return the mount that keeps the Pod's ServiceAccount token out of a container of ours."""
    return [dict(_NO_TOKEN)]


def build_volumes(proxy: str) -> list[Object]:
    """Return what the sidecar's container mounts."""
    return [
        {"name": SETTINGS_VOLUME, "configMap": {"name": settings_map(proxy)}},
        {"name": DATA_VOLUME, "emptyDir": {}},
        {"name": NO_TOKEN_VOLUME, "emptyDir": {}},
    ]


def _ports(intercept: InterceptType) -> list[Object]:
    health = {"name": HEALTH_PORT_NAME, "containerPort": HEALTH_PORT, "protocol": "TCP"}
    if intercept is InterceptType.NAMED_PORT:
        # The app's container declares the intercept port under its own name; a second declaration would
        # have the API server warn at every Pod.
        return [health]
    return [{"name": INTERCEPT_PORT_NAME, "containerPort": INTERCEPT_PORT, "protocol": "TCP"}, health]


def _probe(path: str, **timing: int) -> Object:
    return {"httpGet": {"path": path, "port": HEALTH_PORT, "scheme": "HTTP"}, **timing}


def _security(uid: int | None) -> Object:
    user = {} if uid is None else {"runAsUser": uid, "runAsGroup": uid}
    return {
        "runAsNonRoot": True,
        **user,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


# --- environment -----------------------------------------------------------------------------------------


def _environment(sidecar: Sidecar, platform: Platform) -> list[Object]:
    values = {
        "OPENHQM_APP__URL": f"http://127.0.0.1:{sidecar.port.number}",
        "OPENHQM_INGRESS__PORT": str(INTERCEPT_PORT),
        "OPENHQM_HEALTH__PORT": str(HEALTH_PORT),
        "OPENHQM_ADMIN__PORT": str(ADMIN_PORT),
        "OPENHQM_QUEUE__NAME": queue_name(sidecar.namespace, sidecar.proxy),
        "OPENHQM_POD__TOKEN": sidecar.token,
        **_log(sidecar.spec, platform),
    }
    if sidecar.probes:
        values["OPENHQM_POD__PROBES"] = json.dumps(sidecar.probes, separators=(",", ":"), sort_keys=True)
    return [{"name": name, "value": _plain(value)} for name, value in values.items()] + _secrets(sidecar)


def _plain(value: str) -> str:
    """Protect `$(NAME)`, which the kubelet would replace by another variable."""
    return value.replace("$(", "$$(")


def _log(spec: Spec, platform: Platform) -> dict[str, str]:
    """The administrator's defaults, where the proxy's own settings say nothing: the environment would win."""
    values: dict[str, str] = {"OPENHQM_LOG__FORMAT": platform.log.format}
    if not (spec.settings and spec.settings.log):
        values |= {"OPENHQM_LOG__LEVEL": platform.log.level, "OPENHQM_LOG__ACCESS": platform.log.access}
    return values


def _secrets(sidecar: Sidecar) -> list[Object]:
    store = sidecar.spec.store or Server()
    url = store.secret_ref or SecretRef(name=STORE_SECRET, key=STORE_SECRET_KEY)
    variables = [
        _from_secret("OPENHQM_STORE__URL", url.name, url.key),
        _from_secret("OPENHQM_HANDLE__KEYS", handle_secret(sidecar.proxy), HANDLE_SECRET_KEY),
    ]
    if previous := store.previous_secret_ref:
        variables.append(_from_secret("OPENHQM_STORE__PREVIOUS_URL", previous.name, previous.key))
    return variables


def _from_secret(variable: str, secret: str, key: str) -> dict[str, Any]:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
