"""Which way catches all traffic, what stands against each, and Services switched and restored exactly."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from tests.operator.objects import service

from openhqm_operator.api.spec import InterceptType
from openhqm_operator.injecting.interception import (
    Blocked,
    Choice,
    Surroundings,
    choose,
    manager_of,
    may_switch,
    restoring,
    switching,
)
from openhqm_operator.injecting.plan import AppPort

AUTO, NAMED = InterceptType.AUTO, InterceptType.NAMED_PORT
SWITCHED, REDIRECT = InterceptType.SERVICE_PORT, InterceptType.REDIRECT
HTTP = AppPort("app", "http", 8080)
NAMELESS = AppPort("app", None, 8080)
ARGO = {"annotations": {"argocd.argoproj.io/tracking-id": "x"}}


def around(*services: dict[str, Any], port: AppPort = HTTP, **rest: Any) -> Surroundings:
    return Surroundings(port, tuple(services), **rest)


def policy(*rules: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "walls"}, "spec": {"podSelector": {}, "ingress": list(rules)} | spec}


@pytest.mark.parametrize(
    ("surroundings", "way"),
    [
        (around(service("http")), NAMED),
        (around(), NAMED),
        (around(port=NAMELESS), SWITCHED),
        (around(service(8080)), SWITCHED),
        (around(service(8080), port=NAMELESS), SWITCHED),
        (around(service(16080), port=NAMELESS), SWITCHED),
        (around(service("http"), service(8080, metadata={"name": "other"})), SWITCHED),
        (around(service(9090)), NAMED),
        (around(service("http", clusterIP="None")), REDIRECT),
        (around(service(8080, metadata=ARGO)), REDIRECT),
        (around(service(8080), shared={"legacy": "Deployment other"}), REDIRECT),
        (around(service("http"), policies=(policy({"ports": [{"port": "http"}]}),)), NAMED),
        (around(service("http"), policies=(policy({"ports": [{"port": 8080}]}),)), REDIRECT),
        (around(service("http"), policies=(policy({"ports": [{"port": 8000, "endPort": 16080}]}),)), NAMED),
        (around(service("http"), policies=(policy({"from": [{"podSelector": {}}]}),)), NAMED),
        (around(service("http"), policies=(policy(policyTypes=["Egress"]),)), NAMED),
        (around(service("http"), pod_security="restricted"), NAMED),
    ],
)
def test_auto_takes_the_least_privileged_that_catches_everything(
    surroundings: Surroundings, way: InterceptType
) -> None:
    choice = choose(AUTO, None, surroundings)

    assert isinstance(choice, Choice), choice
    assert (choice.type, choice.bypasses) == (way, ())
    assert choice.why


def test_auto_says_what_stands_against_each_way() -> None:
    blocked = choose(AUTO, None, around(service(8080, metadata=ARGO), pod_security="baseline"))

    assert isinstance(blocked, Blocked)
    assert blocked.reason == "InterceptionBlocked"
    for said in (
        "NamedPort: Service legacy sends to port 8080 by number",
        "ServicePort: Service legacy is managed by Argo CD: set targetPort of its port 80 to 16080 there",
        "Redirect: the namespace enforces Pod Security baseline",
    ):
        assert said in blocked.message


def test_auto_keeps_its_choice_while_it_holds_since_another_would_roll_the_workload() -> None:
    assert choose(AUTO, REDIRECT, around(service("http"))).type is REDIRECT  # type: ignore[union-attr]
    assert choose(AUTO, NAMED, around(service(8080))).type is SWITCHED  # type: ignore[union-attr]


def test_one_s_own_choice_is_taken_and_what_bypasses_it_is_told() -> None:
    choice = choose(NAMED, None, around(service(8080)))

    assert isinstance(choice, Choice)
    assert choice.bypasses == ("Service legacy sends to port 8080 by number, not by name",)


@pytest.mark.parametrize(
    ("way", "surroundings", "said"),
    [
        (NAMED, around(port=NAMELESS), "port 8080 of container app has no name"),
        (REDIRECT, around(pod_security="restricted"), "refuses NET_ADMIN"),
        (
            SWITCHED,
            around(policies=(policy({"ports": [{"port": 8080}]}),)),
            "NetworkPolicy walls lets traffic",
        ),
        (
            SWITCHED,
            around(policies=(policy({"ports": [{"port": "http"}]}),)),
            "NetworkPolicy walls lets traffic",
        ),
    ],
)
def test_a_choice_that_cannot_work_is_blocked(
    way: InterceptType, surroundings: Surroundings, said: str
) -> None:
    blocked = choose(way, None, surroundings)

    assert isinstance(blocked, Blocked)
    assert said in blocked.message


@pytest.mark.parametrize(
    ("metadata", "manager"),
    [
        ({}, None),
        ({"labels": {"kustomize.toolkit.fluxcd.io/name": "shop"}}, "Flux"),
        ({"ownerReferences": [{"kind": "Shop", "name": "a", "controller": True}]}, "Shop a"),
        ({"managedFields": [{"manager": "argocd-controller", "operation": "Update"}]}, "Argo CD"),
        ({"managedFields": [{"manager": "kubectl-client-side-apply", "operation": "Update"}]}, None),
        (
            {
                "managedFields": [
                    {"manager": "helm", "operation": "Apply", "fieldsV1": {"f:spec": {"f:ports": {}}}}
                ]
            },
            "server-side apply of helm",
        ),
        ({"managedFields": [{"manager": "me", "operation": "Apply", "fieldsV1": {"f:metadata": {}}}]}, None),
    ],
)
def test_who_would_set_a_switched_port_back(metadata: dict[str, Any], manager: str | None) -> None:
    assert manager_of(service(metadata=metadata)) == manager
    assert may_switch(service(metadata=metadata), {}) is (manager is None)


def patched(before: dict[str, Any], operations: list[dict[str, Any]]) -> dict[str, Any]:
    """What the API server makes of our patches."""
    after = copy.deepcopy(before)
    for operation in operations:
        *path, last = (part.replace("~1", "/") for part in operation["path"].split("/")[1:])
        place: Any = after
        for part in path:
            place = place[int(part) if isinstance(place, list) else part]
        if operation["op"] == "test":
            assert place[last] == operation["value"]
        elif operation["op"] == "remove":
            del place[last]
        else:
            place[last] = operation["value"]
    return after


@pytest.mark.parametrize("target", [8080, "http"])
def test_a_switched_service_is_restored_exactly(target: int | str) -> None:
    before = service(target, metadata={"annotations": {"mine": "1"}})
    before["spec"]["ports"].append({"port": 9090, "protocol": "TCP", "targetPort": 9090})

    after = patched(before, switching(before, "legacy", HTTP))

    assert [port["targetPort"] for port in after["spec"]["ports"]] == [16080, 9090]
    assert switching(after, "legacy", HTTP) == []
    assert patched(after, restoring(after, "legacy")) == before


def test_a_service_without_annotations_is_switched_too() -> None:
    after = patched(service(8080), switching(service(8080), "legacy", HTTP))

    record = json.loads(after["metadata"]["annotations"]["openhqm.io/original-ports"])
    assert record == {"proxy": "legacy", "ports": {"80/TCP": 8080}}


def test_a_service_that_was_applied_again_is_switched_again() -> None:
    switched = patched(service(8080), switching(service(8080), "legacy", HTTP))
    switched["spec"]["ports"][0]["targetPort"] = "http"

    again = patched(switched, switching(switched, "legacy", HTTP))

    assert patched(again, restoring(again, "legacy"))["spec"]["ports"][0]["targetPort"] == "http"


def test_a_port_changed_by_others_is_left_to_them() -> None:
    switched = patched(service(8080), switching(service(8080), "legacy", HTTP))
    switched["spec"]["ports"][0]["targetPort"] = 7000

    restored = patched(switched, restoring(switched, "legacy"))

    assert restored["spec"]["ports"][0]["targetPort"] == 7000
    assert restored["metadata"]["annotations"] == {}


def test_another_proxy_s_service_is_not_restored() -> None:
    switched = patched(service(8080), switching(service(8080), "legacy", HTTP))

    assert restoring(switched, "other") == []
    assert restoring(service(8080), "legacy") == []


def test_an_annotation_that_is_not_ours_to_read_says_nothing() -> None:
    odd = service(16080, metadata={"annotations": {"openhqm.io/original-ports": "not json"}})

    assert restoring(odd, "legacy") == []
