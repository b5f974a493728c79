"""Who executes the number: what is written for it, who else may, and which Pods go first."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from tests.operator.loads import stats_body

from openhqm_operator.api.spec import Scaling, ScalingMode, Schedule
from openhqm_operator.scaling.figures import Figures, read_figures
from openhqm_operator.scaling.modes import (
    DELETION_COST,
    MARK,
    deletion_costs,
    executor,
    is_as,
    leftovers,
    owner_of_scale,
    scale_target,
)

PROXY: dict[str, Any] = {
    "metadata": {"namespace": "shop", "name": "legacy", "uid": "u-1"},
    "spec": {"targetRef": {"kind": "Deployment", "name": "app"}},
}
METRIC = {"name": "openhqm_desired_replicas", "selector": {"matchLabels": {"openhqm.io/proxy": "legacy"}}}


def scaling(mode: ScalingMode, **values: Any) -> Scaling:
    return Scaling(mode=mode, **values)


def hpa(name: str = "theirs", *, owners: tuple[dict[str, str], ...] = (), **spec: Any) -> dict[str, Any]:
    metadata = {"namespace": "shop", "name": name, "uid": f"uid-{name}", "ownerReferences": list(owners)}
    reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "app"}
    return {
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata,
        "spec": {"scaleTargetRef": reference} | spec,
    }


OURS = hpa("ours", owners=({"kind": "AsyncProxy", "uid": "u-1"},))
KEDAS = hpa("keda-hpa-x", owners=({"kind": "ScaledObject", "uid": "u-9"},))
THEIRS = hpa()
WITH_OUR_METRIC = hpa("mine", metrics=[{"type": "External", "external": {"metric": METRIC, "target": {}}}])


@pytest.mark.parametrize(
    ("mode", "found", "stranger"),
    [
        (ScalingMode.NATIVE, [], None),
        (ScalingMode.NATIVE, [THEIRS], "HorizontalPodAutoscaler theirs"),
        (ScalingMode.HPA, [OURS, THEIRS], "HorizontalPodAutoscaler theirs"),
        (ScalingMode.HPA, [OURS], None),
        (ScalingMode.HPA, [WITH_OUR_METRIC], None),
        (ScalingMode.NATIVE, [WITH_OUR_METRIC], "HorizontalPodAutoscaler mine"),
        (ScalingMode.KEDA, [KEDAS], None),
        (ScalingMode.KEDA, [{**THEIRS, "kind": "ScaledObject"}], "ScaledObject theirs"),
    ],
)
def test_whoever_else_scales_the_workload_is_named(
    mode: ScalingMode, found: list[dict[str, Any]], stranger: str | None
) -> None:
    assert owner_of_scale(PROXY, mode, found) == stranger


def test_what_another_mode_needed_is_left_over() -> None:
    known = [OURS, THEIRS]

    assert leftovers(PROXY, ScalingMode.HPA, known) == []
    assert leftovers(PROXY, ScalingMode.NATIVE, known) == [OURS]
    assert leftovers(PROXY, ScalingMode.KEDA, known) == [OURS]
    assert leftovers(PROXY, ScalingMode.HPA, [OURS, WITH_OUR_METRIC]) == [OURS]


def test_native_needs_nobody_and_a_users_own_hpa_with_our_metric_is_enough() -> None:
    assert executor(PROXY, scaling(ScalingMode.NATIVE), [], "") is None
    assert executor(PROXY, scaling(ScalingMode.HPA), [WITH_OUR_METRIC], "") is None


def test_the_hpa_lets_our_number_through() -> None:
    schedules = (Schedule(name="sale", start="0 8 * * *", duration_seconds=60, max_replicas=50),)

    made = executor(PROXY, scaling(ScalingMode.HPA, max_replicas=20, schedules=schedules), [], "")

    assert made is not None
    assert made["metadata"]["name"] == "legacy-openhqm-scaling"
    assert made["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "app"}
    assert (made["spec"]["minReplicas"], made["spec"]["maxReplicas"]) == (1, 50)
    assert made["spec"]["metrics"] == [
        {
            "type": "External",
            "external": {"metric": METRIC, "target": {"type": "AverageValue", "averageValue": "1"}},
        }
    ]
    assert made["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 0


def test_the_scaled_object_reads_the_operators_endpoint() -> None:
    made = executor(PROXY, scaling(ScalingMode.KEDA, min_replicas=0), [], "http://openhqm.system.svc:16040")

    assert made is not None
    [trigger] = made["spec"]["triggers"]
    assert trigger["metadata"]["url"] == "http://openhqm.system.svc:16040/scaling/shop/legacy"
    assert (trigger["metricType"], trigger["metadata"]["targetValue"]) == ("AverageValue", "1")
    assert made["spec"]["minReplicaCount"] == 0


def test_what_others_added_is_no_difference() -> None:
    wanted = {"spec": {"a": 1, "list": [{"x": 1}]}}

    assert is_as({"spec": {"a": 1, "b": 2, "list": [{"x": 1, "y": 2}]}, "status": {}}, wanted)
    assert not is_as({"spec": {"a": 2, "list": [{"x": 1}]}}, wanted)
    assert not is_as({"spec": {"a": 1, "list": []}}, wanted)
    assert not is_as(None, wanted)


def test_keda_scales_a_deployment_unless_it_says_otherwise() -> None:
    scaled = {"metadata": {"namespace": "shop"}, "spec": {"scaleTargetRef": {"name": "app"}}}

    assert scale_target(scaled) == ("shop", "Deployment", "app")
    assert scale_target(THEIRS) == ("shop", "Deployment", "app")


# --- who goes first ---------------------------------------------------------------------------------------


def pod(name: str, cost: str | None = None) -> dict[str, Any]:
    annotations = {} if cost is None else {DELETION_COST: cost}
    return {"metadata": {"name": name, "annotations": annotations}}


def busy(**in_flight: int) -> dict[str, Figures]:
    return {
        name: read_figures(orjson.dumps(stats_body(running=number))) for name, number in in_flight.items()
    }


def test_those_with_the_least_in_flight_go_first() -> None:
    pods = [pod("a"), pod("b"), pod("c")]

    assert deletion_costs(pods, busy(a=3, b=0, c=1), 2) == {"b": MARK, "c": MARK}


def test_a_mark_of_ours_goes_when_another_pod_is_idler() -> None:
    pods = [pod("a", MARK), pod("b")]

    assert deletion_costs(pods, busy(a=3, b=0), 1) == {"a": None, "b": MARK}
    assert deletion_costs([pod("a", MARK)], busy(a=0), 1) == {}


def test_costs_that_others_set_and_pods_that_say_nothing_are_left_alone() -> None:
    pods = [pod("a", "5"), pod("b"), pod("silent")]

    assert deletion_costs(pods, busy(a=0, b=2), 2) == {"b": MARK}
