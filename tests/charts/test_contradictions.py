"""Values that contradict each other, or are none: told in a sentence before anything is installed."""

from __future__ import annotations

from typing import Any

import pytest
from helm_python import HelmError
from tests.charts.rendering import NAMESPACE, chart, render

EXTERNAL = {"url": "redis://u:p@host:6379/0"}

CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    (
        {"redis": {"external": EXTERNAL | {"secretName": "s", "publicUrl": "redis://host:6379/0"}}},
        "redis.external.url and redis.external.secretName both say where the store is: give one of them",
    ),
    (
        {"redis": {"external": {"secretName": "s"}}},
        "redis.external.secretName needs redis.external.publicUrl",
    ),
    (
        {"redis": {"external": {"secretName": "s", "publicUrl": "redis://u:p@host:6379/0"}}},
        "redis.external.publicUrl is shown to every namespace",
    ),
    (
        {"redis": {"external": {"publicUrl": "redis://host:6379/0"}}},
        "redis.external.publicUrl alone is not enough",
    ),
    (
        {"redis": {"enabled": False, "external": EXTERNAL}},
        "redis.enabled is false and redis.external is given",
    ),
    (
        {"redis": {"persistence": {"enabled": False}, "appendfsync": "everysec"}},
        "redis.appendfsync everysec without redis.persistence.enabled",
    ),
    ({"webhook": {"certs": {"mode": "provided"}}}, "say in webhook.certs.provided.secretName"),
    (
        {"webhook": {"certs": {"provided": {"secretName": "s"}}}},
        "webhook.certs.provided.secretName is given, but webhook.certs.mode is operator",
    ),
    (
        {"webhook": {"certs": {"certManager": {"issuerRef": {"name": "ca"}}}}},
        "webhook.certs.certManager.issuerRef is given, but webhook.certs.mode is operator",
    ),
    ({"rbac": {"namespace": NAMESPACE}}, "rbac.namespace is the release's own namespace openhqm"),
    (
        {"crds": {"keep": False}, "uninstall": {"enabled": False}},
        "crds.keep is false and uninstall.enabled is false",
    ),
]


@pytest.mark.parametrize(("values", "sentence"), CONTRADICTIONS)
def test_contradiction_is_told(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(HelmError, match=sentence.replace(".", r"\.")):
        render(values)


UNFIT: list[dict[str, Any]] = [
    {"operater": {}},
    {"operator": {"replica": 2}},
    {"operator": {"replicas": 0}},
    {"operator": {"image": {"pullPolicy": "Sometimes"}}},
    {"operator": {"image": {"digest": "latest"}}},
    {"operator": {"resources": {"request": {}}}},
    {"webhook": {"failurePolicy": "Maybe"}},
    {"webhook": {"timeoutSeconds": 31}},
    {"sidecar": {"uid": 0}},
    {"redis": {"appendfsync": "no"}},
    {"redis": {"maxMemory": "384Mi"}},
    {"redis": {"external": {"url": "http://redis"}}},
    {"redis": {"auth": {"password": "hunter2"}}},
    {"defaultPodSecurity": "none"},
    {"metrics": {"podMonitor": {"interval": "often"}}},
    {"fullnameOverride": "Not A Name"},
]


@pytest.mark.parametrize("values", UNFIT)
def test_schema_refuses(values: dict[str, Any]) -> None:
    with pytest.raises(HelmError):
        chart().validate_schema(values)
