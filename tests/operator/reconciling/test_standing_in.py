"""Whether a workload may go to zero, and the steps of its gateway, from what is seen."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import pytest
from tests.operator.objects import LABELS, NOON, SECRETS, deployment, observed, pod, proxy, service, touched

from openhqm_operator.api import names
from openhqm_operator.gateway.manifests import pod_labels
from openhqm_operator.gateway.stage import Stage
from openhqm_operator.injecting.platform_settings import Platform
from openhqm_operator.reconciling.acceptance import judge
from openhqm_operator.reconciling.desired import desired
from openhqm_operator.reconciling.observed import GatewaySeen, Observed, Options, Told
from openhqm_operator.reconciling.standing_in import Standing, refusal, stand_in
from openhqm_operator.reconciling.steps import Apply, Delete, Desired, Patch, SetReplicas, SetStatus

OPTIONS = Options(gateway=Platform(image="registry/openhqm:1"))
ZERO = {"mode": "Native", "minReplicas": 0}
HASH = judge(observed()).hash or ""
READY = {"conditions": [{"type": "Ready", "status": "True"}]}


def seen(**changes: Any) -> Observed:
    """An injected workload that is to sleep when idle."""
    whole = {
        "proxy": proxy(scaling=ZERO),
        "target": touched(deployment(), HASH),
        "pods": (pod("a", HASH) | {"status": READY},),
        "options": OPTIONS,
    }
    return observed(**whole | changes)


def standing(scene: Observed) -> Standing:
    return stand_in(scene, judge(scene))


def refused(**changes: Any) -> str | None:
    scene = seen(**changes)
    found = refusal(scene, judge(scene))
    return None if found is None else found.reason


def guard(name: str, *rules: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"ingress": list(rules), **spec}}


FRONTEND = {"from": [{"podSelector": {"matchLabels": {"app": "frontend"}}}]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"options": Options()}, "GatewayDisabled"),
        ({"services": ()}, "NoService"),
        ({"services": (service(9090),)}, "NoService"),
        ({"services": (service(), service(9090, metadata={"name": "metrics"}))}, None),
        ({"services": (service(clusterIP="None"),)}, "HeadlessService"),
        ({"services": (service(internalTrafficPolicy="Local"),)}, "InternalTrafficLocal"),
        ({"services": (service(internalTrafficPolicy="Cluster"),)}, None),
        ({"services": (service(publishNotReadyAddresses=True),)}, "NotReadyPublished"),
        ({"shared": {"legacy": "Deployment other"}}, "ServiceShared"),
        ({"policies": (guard("front", FRONTEND),)}, "GatewayUnguarded"),
        ({"policies": (guard("front", FRONTEND), guard("all", {}))}, None),
        ({"policies": (guard("metrics", {"ports": [{"port": 9090}]}),)}, "GatewayUnguarded"),
        ({"policies": (guard("out", policyTypes=["Egress"]),)}, None),
        (
            {
                "policies": (guard("front", FRONTEND),),
                "gateway": GatewaySeen(policies=(guard("ours", FRONTEND),)),
            },
            None,
        ),
    ],
)
def test_what_stands_against_zero_is_named(changes: dict[str, Any], reason: str | None) -> None:
    assert refused(**changes) == reason


@pytest.mark.parametrize(
    ("port", "reason"),
    [
        ({"protocol": "UDP", "port": 53}, "NotHttp"),
        ({"protocol": "TCP", "port": 81, "appProtocol": "grpc"}, "NotHttp"),
        ({"protocol": "TCP", "port": 81, "appProtocol": "http"}, None),
        ({"protocol": "TCP", "port": 81, "appProtocol": "kubernetes.io/ws"}, None),
        ({"protocol": "TCP", "port": 9090, "name": "metrics"}, None),
    ],
)
def test_ports_that_are_not_http_are_refused(port: dict[str, Any], reason: str | None) -> None:
    ports = [{"name": "web", "port": 80, "protocol": "TCP", "targetPort": "http"}, port]

    assert refused(services=(service(ports=ports),)) == reason


def test_an_embedded_store_is_refused() -> None:
    chosen = proxy(scaling=ZERO, store={"secretRef": {"name": "file"}})
    scene = seen(proxy=chosen, secrets=SECRETS | {"file": {"url": "sqlite"}})
    plan = judge(seen())

    found = refusal(scene, dataclasses.replace(plan, spec=plan.spec.model_validate(chosen["spec"])))

    assert found is not None
    assert found.reason == "EmbeddedStore"
    assert found.message.startswith("The workload cannot go to zero: ")


@pytest.mark.parametrize(
    ("scaling", "stage"),
    [
        (ZERO, Stage.STARTING),
        ({"mode": "KEDA", "minReplicas": 0}, Stage.STARTING),
        ({"mode": "Native", "minReplicas": 1}, Stage.ABSENT),
        ({"mode": "Off", "minReplicas": 0}, Stage.ABSENT),
        (
            {
                "mode": "Native",
                "schedules": [
                    {"name": "night", "start": "0 22 * * *", "durationSeconds": 3600, "minReplicas": 0}
                ],
            },
            Stage.STARTING,
        ),
    ],
)
def test_only_workloads_that_may_reach_zero_get_a_gateway(scaling: dict[str, Any], stage: Stage) -> None:
    assert standing(seen(proxy=proxy(scaling=scaling), wants_sleep=True)).stage is stage


def test_a_workload_that_is_not_injected_does_not_sleep() -> None:
    found = standing(seen(target=deployment(), wants_sleep=True))

    assert (found.stage, found.sleep.may, found.sleep.reason) == (Stage.ABSENT, False, "")


# --- steps -------------------------------------------------------------------------------------------------


def gateway_pod(number: int) -> dict[str, Any]:
    metadata = {
        "name": f"g-{number}",
        "namespace": "shop",
        "uid": f"g{number}",
        "labels": pod_labels("legacy"),
    }
    status = READY | {"podIP": f"10.0.0.{number}", "podIPs": [{"ip": f"10.0.0.{number}"}]}
    return {"metadata": metadata, "spec": {"nodeName": "node-1"}, "status": status}


def stored(made: dict[str, Any], uid: str) -> dict[str, Any]:
    created = (NOON - dt.timedelta(minutes=1)).isoformat()
    return made | {"metadata": made["metadata"] | {"uid": uid, "creationTimestamp": created}}


def with_gateway(scene: Observed, **gateway: Any) -> Observed:
    return dataclasses.replace(scene, gateway=dataclasses.replace(scene.gateway, **gateway))


def started() -> Observed:
    """Its gateway's Pods are Ready, and in no Service."""
    idle = seen(wants_sleep=True)
    made = {step.body["kind"]: step.body for step in standing(idle).steps if isinstance(step, Apply)}
    return with_gateway(
        idle,
        deployment=stored(made["Deployment"], "d"),
        service=stored(made["Service"], "s"),
        budget=stored(made["PodDisruptionBudget"], "b"),
        pods=(gateway_pod(1), gateway_pod(2)),
    )


def joined() -> Observed:
    """Beside the app in its Service, for a minute."""
    scene = started()
    [step] = standing(scene).steps
    assert isinstance(step, Apply)
    return with_gateway(scene, slices=(stored(step.body, "e"),), served=frozenset({"legacy"}))


def at_zero(scene: Observed) -> Observed:
    target = touched(deployment(replicas=0), HASH)
    return with_gateway(dataclasses.replace(scene, target=target, pods=()), served=frozenset())


def test_an_idle_workload_gets_a_gateway() -> None:
    steps = standing(seen(wants_sleep=True)).steps

    assert [step.body["kind"] for step in steps if isinstance(step, Apply)] == [
        "Service",
        "Deployment",
        "PodDisruptionBudget",
    ]


def test_the_service_of_ours_selects_the_apps_pods_by_what_cannot_change() -> None:
    [service_step, *_] = standing(seen(wants_sleep=True)).steps

    assert isinstance(service_step, Apply)
    assert service_step.body["spec"]["selector"] == LABELS


def test_once_in_the_service_for_long_enough_the_workload_may_sleep_and_nothing_is_to_be_done() -> None:
    found = standing(joined())

    assert (found.stage, found.steps, found.sleep.may) == (Stage.JOINED, (), True)
    assert standing(at_zero(joined())).steps == ()


def test_it_may_not_sleep_before_the_gateway_is_in_every_service() -> None:
    other = service(metadata={"name": "other"})

    found = standing(dataclasses.replace(joined(), services=(service(), other)))

    assert not found.sleep.may
    [step] = found.steps
    assert isinstance(step, Apply)
    assert step.body["metadata"]["labels"][names.SERVICE_NAME_LABEL] == "other"


def test_another_image_changes_the_deployment_alone() -> None:
    other = dataclasses.replace(joined(), options=Options(gateway=Platform(image="registry/openhqm:2")))

    [step] = standing(other).steps

    assert isinstance(step, Apply)
    assert step.body["kind"] == "Deployment"


def test_a_service_it_is_not_to_be_in_is_left() -> None:
    without = dataclasses.replace(joined(), services=(service(metadata={"name": "other"}),))

    assert [type(step) for step in standing(without).steps] == [Apply, Delete]


def noted(scene: Observed, seconds: float) -> Observed:
    at = (NOON - dt.timedelta(seconds=seconds)).isoformat()
    made = scene.gateway.deployment
    assert made is not None
    annotations = made["metadata"]["annotations"] | {names.AWAKE_ANNOTATION: at}
    return with_gateway(
        scene, deployment=made | {"metadata": made["metadata"] | {"annotations": annotations}}
    )


def test_when_it_is_not_needed_that_is_noted_then_the_service_left_then_all_deleted() -> None:
    busy = dataclasses.replace(joined(), wants_sleep=False)
    out = with_gateway(busy, slices=())

    assert [type(step) for step in standing(busy).steps] == [Patch]
    assert standing(noted(busy, 5)).steps == ()
    assert [type(step) for step in standing(noted(busy, 11)).steps] == [Delete]
    assert standing(noted(out, 20)).steps == ()
    gone = standing(noted(out, 41))
    assert [type(step) for step in gone.steps] == [Delete, Delete, Delete]
    assert gone.is_out


def test_the_note_goes_when_it_is_needed_again() -> None:
    [step] = standing(noted(joined(), 5)).steps

    assert isinstance(step, Patch)
    assert step.operations == ({"op": "remove", "path": "/metadata/annotations/openhqm.io~1awake-since"},)


@pytest.mark.parametrize("note", ["yesterday", "2026-11-22T11:00:00"])
def test_a_note_that_is_no_time_is_taken_for_a_new_one(note: str) -> None:
    scene = noted(dataclasses.replace(joined(), wants_sleep=False), 99)
    assert scene.gateway.deployment is not None
    scene.gateway.deployment["metadata"]["annotations"][names.AWAKE_ANNOTATION] = note

    assert standing(scene).steps == ()


def test_a_woken_app_is_waited_for_in_every_service() -> None:
    waking = with_gateway(dataclasses.replace(joined(), wants_sleep=False), served=frozenset())

    found = standing(waking)

    assert (found.stage, found.steps, found.is_out) == (Stage.WAKING, (), False)


def test_what_may_not_sleep_any_more_wakes_with_its_endpoints_kept_up_to_date() -> None:
    asleep = at_zero(joined())
    status = {"scaling": {"originalReplicas": 3}}
    asleep = dataclasses.replace(asleep, proxy=asleep.proxy | {"status": status})

    found = stand_in(with_gateway(asleep, pods=(gateway_pod(3),)), None)

    wake, refresh = found.steps
    assert isinstance(wake, SetReplicas)
    assert wake.replicas == 3
    assert isinstance(refresh, Apply)
    assert [one["addresses"] for one in refresh.body["endpoints"]] == [["10.0.0.3"]]
    assert refresh.body["ports"] == asleep.gateway.slices[0]["ports"]


# --- in the whole ------------------------------------------------------------------------------------------


def test_a_gateways_steps_come_last_and_its_verdict_goes_to_the_autoscaler() -> None:
    wanted = desired(seen(wants_sleep=True))

    assert [step.body["kind"] for step in wanted.steps[-3:] if isinstance(step, Apply)] == [
        "Service",
        "Deployment",
        "PodDisruptionBudget",
    ]
    assert desired(joined()).sleep.may
    assert desired(seen(services=(service(clusterIP="None"),))).sleep.reason == "HeadlessService"


def ending(scene: Observed, **changes: Any) -> Observed:
    metadata = scene.proxy["metadata"] | {"deletionTimestamp": "2026-11-22T12:00:00Z"}
    return dataclasses.replace(scene, proxy=scene.proxy | {"metadata": metadata}, **changes)


def test_an_ejected_workload_wakes_before_anything_is_taken_away() -> None:
    wanted = desired(ending(at_zero(joined()), told=Told()))

    assert any(isinstance(step, SetReplicas) and step.replicas == 1 for step in wanted.steps)
    assert not any(isinstance(step, Delete) for step in wanted.steps)


def test_drained_it_still_waits_until_the_gateway_has_left() -> None:
    drained = ending(noted(joined(), 5))

    kinds = [type(step).__name__ for step in desired(drained).steps]

    assert "TouchTemplate" not in kinds
    assert "Delete" not in kinds


def test_given_back_it_is_let_go_when_nothing_of_the_gateway_is_left() -> None:
    """Whoever uninstalls keeps the AsyncProxy, so nobody would collect the gateway."""
    scene = ending(with_gateway(noted(joined(), 20), slices=()), target=deployment(), pods=())
    scene.proxy["metadata"]["finalizers"] = [names.FINALIZER]
    gone = dataclasses.replace(scene, gateway=GatewaySeen())

    assert _reason(desired(scene)) == "GatewayLeaving"
    assert not any(isinstance(step, Patch) for step in desired(scene).steps)
    assert [step.key for step in desired(gone).steps if isinstance(step, Patch)] == [("shop", "legacy")]


def _reason(wanted: Desired) -> str:
    [status] = [step.body["status"] for step in wanted.steps if isinstance(step, SetStatus)]
    return next(one["reason"] for one in status["conditions"] if one["type"] == "Draining")


def test_by_force_the_gateway_goes_at_once() -> None:
    scene = at_zero(joined())
    annotations = {names.FORCE_EJECT_ANNOTATION: "true"}
    forced = scene.proxy | {"metadata": scene.proxy["metadata"] | {"annotations": annotations}}

    steps = desired(ending(dataclasses.replace(scene, proxy=forced))).steps

    assert sum(isinstance(step, Delete) for step in steps) == 4


def test_deciding_changes_nothing_of_what_was_seen() -> None:
    scene = joined()
    before = repr(scene)

    stand_in(scene, judge(scene))

    assert repr(scene) == before
