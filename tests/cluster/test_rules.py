"""Every rule of the CRD on a real API server: one spec it admits, one it refuses, with the sentence."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
from tests.cluster.control_plane import ClusterFailed, ControlPlane

from openhqm_operator.api.crd import build_crd

PATH = "/apis/openhqm.io/v1alpha1/namespaces/default/asyncproxies"
_numbers = itertools.count()

TARGET = {"kind": "Deployment", "name": "legacy"}

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "shadow counts all requests: leave percent at 100 with it",
        {"intercept": {"shadow": True}},
        {"intercept": {"shadow": True, "percent": 10}},
    ),
    (
        "path, prefix and regex exclude each other",
        {"routes": [{"action": "Queue", "match": {"path": "/a"}}]},
        {"routes": [{"action": "Queue", "match": {"path": "/a", "regex": "/b.*"}}]},
    ),
    (
        "previousSecretRef is what was used before secretRef; they cannot be the same",
        {"store": {"secretRef": {"name": "new"}, "previousSecretRef": {"name": "old"}}},
        {"store": {"secretRef": {"name": "new"}, "previousSecretRef": {"name": "new"}}},
    ),
    (
        "give exactly one of header, cookie, path and json",
        {"key": {"json": "/order/customer"}},
        {"key": {"header": "X-Customer", "cookie": "customer"}},
    ),
    ("give exactly one of header, cookie, path and json", {"key": {"cookie": "customer"}}, {"key": {}}),
    (
        "minReplicas must not exceed maxReplicas",
        {"scaling": {"mode": "Native", "minReplicas": 5, "maxReplicas": 5}},
        {"scaling": {"mode": "Native", "minReplicas": 11}},
    ),
    (
        "minReplicas must not exceed maxReplicas",
        {
            "scaling": {
                "schedules": [_schedule := {"name": "night", "start": "0 22 * * *", "durationSeconds": 60}]
            }
        },
        {"scaling": {"schedules": [_schedule | {"minReplicas": 3, "maxReplicas": 2}]}},
    ),
    (
        "an HPA cannot wake a workload from zero: set minReplicas to 1 or more, or use mode Native or KEDA",
        {"scaling": {"mode": "KEDA", "minReplicas": 0}},
        {"scaling": {"mode": "HPA", "minReplicas": 0}},
    ),
    (
        "initialBackoffSeconds must not exceed maxBackoffSeconds",
        {"settings": {"retry": {"initialBackoffSeconds": 10, "maxBackoffSeconds": 10}}},
        {"settings": {"retry": {"initialBackoffSeconds": 301}}},
    ),
    (
        "acceptSeconds must be less than timeoutSeconds",
        {"settings": {"drain": {"acceptSeconds": 24}}},
        {"settings": {"drain": {"acceptSeconds": 25}}},
    ),
    (
        "port is a number from 1 to 65535, or the name of a containerPort",
        {"port": "http"},
        {"port": "HTTP port"},
    ),
    ("port is a number from 1 to 65535, or the name of a containerPort", {"port": 8080}, {"port": 0}),
    (
        "a DaemonSet has one Pod per node and cannot be scaled: leave scaling.mode Off",
        {"targetRef": {"kind": "DaemonSet", "name": "agent"}},
        {"targetRef": {"kind": "DaemonSet", "name": "agent"}, "scaling": {"mode": "Native"}},
    ),
]

REFUSED_BY_SCHEMA: list[tuple[str, dict[str, Any]]] = [
    ("spec.targetRef.kind", {"targetRef": {"kind": "Job", "name": "legacy"}}),
    ("spec.targetRef.name", {"targetRef": {"kind": "Deployment", "name": "No Such"}}),
    ("spec.intercept.percent", {"intercept": {"percent": 101}}),
    ("spec.routes[0].action", {"routes": [{"match": {"path": "/"}}]}),
    ("spec.routes[0].priority", {"routes": [{"action": "Queue", "priority": 10}]}),
    ("spec.scaling.mode", {"scaling": {"mode": "off"}}),
    ("spec.settings.egress.concurrency", {"settings": {"egress": {"concurrency": 0}}}),
    ("spec.settings.ingress.reservedPrefix", {"settings": {"ingress": {"reservedPrefix": "no-slash"}}}),
]


def create(api_server: ControlPlane, spec: dict[str, Any]) -> dict[str, Any]:
    proxy = {
        "apiVersion": "openhqm.io/v1alpha1",
        "kind": "AsyncProxy",
        "metadata": {"name": f"case-{next(_numbers)}"},
        "spec": {"targetRef": TARGET} | spec,
    }
    return api_server.request("POST", f"{PATH}?fieldValidation=Strict", proxy)


@pytest.mark.parametrize(("sentence", "admitted", "refused"), CASES)
def test_a_rule_across_fields(
    api_server: ControlPlane, sentence: str, admitted: dict[str, Any], refused: dict[str, Any]
) -> None:
    create(api_server, admitted)

    with pytest.raises(ClusterFailed) as caught:
        create(api_server, refused)

    assert "422" in str(caught.value)
    assert sentence in str(caught.value)


def test_the_target_never_changes(api_server: ControlPlane) -> None:
    proxy = create(api_server, {})
    path = f"{PATH}/{proxy['metadata']['name']}"
    changed = copy.deepcopy(proxy)
    changed["spec"]["paused"] = True
    changed = api_server.request("PUT", path, changed)
    changed["spec"]["targetRef"]["name"] = "other"

    with pytest.raises(ClusterFailed, match="targetRef cannot be changed: make another AsyncProxy"):
        api_server.request("PUT", path, changed)


def test_every_rule_is_in_the_table() -> None:
    sentences = {sentence for sentence, _, _ in CASES} | {
        "targetRef cannot be changed: make another AsyncProxy"
    }

    assert sentences == set(_messages(build_crd()))


def _messages(part: Any) -> list[str]:
    if isinstance(part, list):
        return [message for item in part for message in _messages(item)]
    if not isinstance(part, dict):
        return []
    own = [rule["message"] for rule in part.get("x-kubernetes-validations", ())]
    return own + [message for item in part.values() for message in _messages(item)]


@pytest.mark.parametrize(("field", "refused"), REFUSED_BY_SCHEMA, ids=lambda value: str(value)[:60])
def test_a_value_out_of_bounds_is_refused_by_the_field_s_name(
    api_server: ControlPlane, field: str, refused: dict[str, Any]
) -> None:
    with pytest.raises(ClusterFailed) as caught:
        create(api_server, refused)

    assert field in str(caught.value)


def test_unknown_fields_are_refused(api_server: ControlPlane) -> None:
    with pytest.raises(ClusterFailed, match=r"unknown field \\?\"spec.image"):
        create(api_server, {"image": "mine"})


def test_what_is_not_given_shows_its_default(api_server: ControlPlane) -> None:
    spec = create(api_server, {"settings": {"egress": {"concurrency": 2}}})["spec"]

    assert spec["intercept"] == {"type": "Auto", "shadow": False, "percent": 100}
    assert (spec["scaling"]["mode"], spec["scaling"]["down"]["windowSeconds"]) == ("Off", 120)
    assert (spec["readiness"], spec["rollout"], spec["paused"]) == ("Proxy", "Automatic", False)
    assert spec["settings"] == {
        "egress": {
            "concurrency": 2,
            "leaseSeconds": 30,
            "appTimeoutSeconds": 300,
            "connectTimeoutSeconds": 5,
            "reuseIdleSeconds": 1,
            "ratePerSecond": 0,
        }
    }
