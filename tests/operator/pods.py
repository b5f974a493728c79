"""Pods and proxies that several tests of the injector use."""

from __future__ import annotations

import copy
from typing import Any

from openhqm_operator.injecting.platform_settings import Platform

PLATFORM = Platform(image="registry/openhqm:1", redirect_image="registry/operator:1", pull_secrets=("pull",))
TOKEN = "t" * 32

LEGACY: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "generateName": "legacy-5d8-",
        "namespace": "shop",
        "labels": {"app": "legacy", "openhqm.io/proxy": "legacy"},
        "annotations": {"openhqm.io/config-hash": "0123"},
    },
    "spec": {
        "serviceAccountName": "legacy",
        "terminationGracePeriodSeconds": 20,
        "initContainers": [{"name": "migrate", "image": "legacy:1", "command": ["./migrate"]}],
        "containers": [
            {
                "name": "app",
                "image": "legacy:1",
                "ports": [
                    {"name": "http", "containerPort": 8080, "protocol": "TCP"},
                    {"name": "admin", "containerPort": 9000, "protocol": "TCP"},
                ],
                "startupProbe": {"tcpSocket": {"port": 8080}},
                "livenessProbe": {"httpGet": {"path": "/alive", "port": "http"}, "periodSeconds": 7},
                "readinessProbe": {
                    "httpGet": {
                        "path": "/ready?deep=1",
                        "port": "http",
                        "scheme": "HTTP",
                        "httpHeaders": [{"name": "X-Probe", "value": "1"}],
                    },
                    "timeoutSeconds": 3,
                    "failureThreshold": 4,
                },
                "lifecycle": {"postStart": {"httpGet": {"path": "/warm", "port": "http"}}},
            },
            {
                "name": "logger",
                "image": "logger:1",
                "livenessProbe": {"exec": {"command": ["true"]}},
                "lifecycle": {"preStop": {"exec": {"command": ["flush"]}}},
            },
        ],
        "volumes": [{"name": "logs", "emptyDir": {}}],
    },
}


def legacy(**spec: Any) -> dict[str, Any]:
    """A Pod with a bit of everything."""
    pod = copy.deepcopy(LEGACY)
    pod["spec"] |= spec
    return pod


def proxy(intercept: str = "ServicePort", **spec: Any) -> dict[str, Any]:
    """The AsyncProxy of that Pod."""
    target = {"kind": "Deployment", "name": "legacy"}
    return {
        "apiVersion": "openhqm.io/v1alpha1",
        "kind": "AsyncProxy",
        "metadata": {"name": "legacy", "namespace": "shop"},
        "spec": {"targetRef": target, "port": "http", "intercept": {"type": "Auto"}} | spec,
        "status": {"intercept": intercept},
    }
