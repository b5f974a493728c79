"""Kubernetes objects for tests of the operator's decisions, as the API server would show them."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from openhqm_operator.api.spec import Spec
from openhqm_operator.reconciling.observed import Observed

NOON = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
LABELS = {"app": "legacy"}
LABELLED = LABELS | {"openhqm.io/proxy": "legacy"}


def deployment(**changes: Any) -> dict[str, Any]:
    """A Deployment of two Pods that was never touched; *changes* replace parts of its spec."""
    spec = {
        "replicas": 2,
        "selector": {"matchLabels": LABELS},
        "strategy": {"type": "RollingUpdate"},
        "template": {
            "metadata": {"labels": LABELS},
            "spec": {
                "containers": [
                    {"name": "app", "image": "app:1", "ports": [{"name": "http", "containerPort": 8080}]}
                ]
            },
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "legacy",
            "namespace": "shop",
            "uid": "d-1",
            "generation": 1,
            "resourceVersion": "7",
        },
        "spec": spec | changes,
        "status": {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2},
    }


def touched(workload: dict[str, Any], hash: str) -> dict[str, Any]:
    """The workload with our label and hash on its template, rolled out."""
    template = workload["spec"]["template"]
    metadata = {"labels": LABELLED, "annotations": {"openhqm.io/config-hash": hash}}
    return {**workload, "spec": {**workload["spec"], "template": {**template, "metadata": metadata}}}


def proxy(name: str = "legacy", *, created: str = "2026-11-22T11:00:00Z", **spec: Any) -> dict[str, Any]:
    """An AsyncProxy of the Deployment, with a finalizer; *spec* is added to what defaults say."""
    wanted = {"targetRef": {"kind": "Deployment", "name": "legacy"}} | spec
    whole = Spec.model_validate(wanted).model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        "apiVersion": "openhqm.io/v1alpha1",
        "kind": "AsyncProxy",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "uid": f"p-{name}",
            "generation": 1,
            "resourceVersion": "3",
            "creationTimestamp": created,
            "finalizers": ["openhqm.io/finalizer"],
        },
        "spec": whole,
    }


def pod(name: str, hash: str | None, **metadata: Any) -> dict[str, Any]:
    """A running Pod of the labelled template; without *hash* it has no sidecar."""
    annotations = {}
    if hash is not None:
        annotations["openhqm.io/injected"] = json.dumps(
            {"version": "1", "hash": hash, "intercept": "NamedPort"}
        )
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": LABELLED, "annotations": annotations}
        | metadata,
        "status": {"phase": "Running"},
    }


def service(target: int | str = "http", **changes: Any) -> dict[str, Any]:
    """A Service that selects the Deployment's Pods."""
    ports = [{"name": "web", "port": 80, "protocol": "TCP", "targetPort": target}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "legacy", "namespace": "shop", "resourceVersion": "5"}
        | changes.pop("metadata", {}),
        "spec": {"selector": LABELS, "clusterIP": "10.96.0.9", "ports": ports} | changes,
    }


SECRETS = {"openhqm-store": {"url": "redis"}, "legacy-openhqm-handles": {"keys": ""}}


def observed(**changes: Any) -> Observed:
    """An AsyncProxy just made for a Deployment with a Service; nothing done yet."""
    whole: dict[str, Any] = {
        "proxy": proxy(),
        "target": deployment(),
        "now": NOON,
        "services": (service(),),
        "secrets": SECRETS,
    }
    return Observed(**whole | changes)
