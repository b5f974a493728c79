"""What the autoscaler sees, and what keeps it from acting."""

from __future__ import annotations

from typing import Any

import pytest

from openhqm_operator.api.spec import Scaling, ScalingMode
from openhqm_operator.scaling.figures import Pods
from openhqm_operator.scaling.law import Reason
from openhqm_operator.scaling.scene import Scene, count_pods, hold, obstacle, verdict_on

TARGET: dict[str, Any] = {
    "kind": "Deployment",
    "metadata": {"name": "app", "namespace": "shop"},
    "spec": {"replicas": 4},
}


def proxy(accepted: str = "True") -> dict[str, Any]:
    condition = {
        "type": "Accepted",
        "status": accepted,
        "reason": "R",
        "message": "",
        "lastTransitionTime": "",
    }
    return {
        "metadata": {"name": "legacy", "namespace": "shop", "uid": "u"},
        "spec": {"targetRef": {"kind": "Deployment", "name": "app"}},
        "status": {"conditions": [condition]},
    }


def scene(mode: ScalingMode = ScalingMode.NATIVE, **values: Any) -> Scene:
    return Scene(**{"proxy": proxy(), "scaling": Scaling(mode=mode), "target": TARGET} | values)


def pod(name: str, *, ready: str | None = "2026-11-22T12:00:30Z", **others: Any) -> dict[str, Any]:
    conditions = []
    if ready:
        conditions.append({"type": "Ready", "status": "True", "lastTransitionTime": ready})
    metadata = {"name": name, "creationTimestamp": "2026-11-22T12:00:00Z"} | others
    return {"metadata": metadata, "status": {"phase": "Running", "conditions": conditions}}


HPA = {"kind": "HorizontalPodAutoscaler", "metadata": {"name": "theirs"}, "spec": {}}


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (scene(), None),
        (scene(proxy=proxy("False")), "NotAccepted"),
        (scene(target=None), "TargetMissing"),
        (scene(autoscalers=(HPA,)), "ExternalAutoscalerFound"),
        (scene(ScalingMode.HPA), "ExternalMetricsDisabled"),
        (scene(ScalingMode.HPA, has_external_metrics=True), None),
    ],
)
def test_what_is_in_the_way_is_named(seen: Scene, reason: str | None) -> None:
    verdict = obstacle(seen)

    assert (verdict.reason if verdict else None) == reason


def workload(kind: str = "Deployment", *, updated: int = 4, total: int = 4, **spec: Any) -> dict[str, Any]:
    return {"kind": kind, "spec": spec, "status": {"updatedReplicas": updated, "replicas": total}}


STUCK = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (workload(), None),
        (workload(paused=True), "WorkloadPaused"),
        (workload(updated=1, total=5), "RolloutInProgress"),
        (workload(updated=4, total=2), None),  # growing, not rolling
        (workload("StatefulSet", updated=1), "RolloutInProgress"),
        (workload("StatefulSet", updated=1, updateStrategy={"type": "OnDelete"}), None),
        (workload("StatefulSet", updated=1, updateStrategy={"rollingUpdate": {"partition": 3}}), None),
        ({**workload(), "status": {"updatedReplicas": 1, "replicas": 5, "conditions": [STUCK]}}, None),
        ({"kind": "Deployment", "spec": {}}, None),
    ],
)
def test_replicas_are_left_alone_while_pods_are_being_replaced(
    target: dict[str, Any], reason: str | None
) -> None:
    verdict = hold(target)

    assert (verdict.reason if verdict else None) == reason


def test_pods_are_counted_and_tell_how_long_a_start_takes() -> None:
    pods = (
        pod("a"),
        pod("b", ready="2026-11-22T12:00:50Z"),
        pod("c", ready="2026-11-22T12:00:40Z"),
        pod("late", ready="2026-11-22T14:00:00Z"),
        pod("starting", ready=None),
        pod("ending", deletionTimestamp="2026-11-22T12:00:00Z"),
        pod("gateway", labels={"app.kubernetes.io/component": "gateway"}),
    )

    assert count_pods(scene(pods=pods)) == Pods(ready=4, pending=0, startup_seconds=40.0)
    assert count_pods(scene(pods=pods[:1])) == Pods(ready=1, pending=3, startup_seconds=30.0)
    assert count_pods(scene()) == Pods(ready=0, pending=4, startup_seconds=20.0)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_a_sentence_that_does_not_change_with_the_load(reason: Reason) -> None:
    verdict = verdict_on(reason)

    assert verdict.message.endswith(".")
    assert verdict.status == ("False" if reason is Reason.NO_FIGURES else "True")
