"""Who executes the autoscaler's number, and what has to be written for that. Pure.

    Native   nobody else: the number goes into the workload's `scale`
    HPA      a HorizontalPodAutoscaler that reads it from our external metrics API: ours, or the user's own
             if it uses the metric
    KEDA     a ScaledObject that reads it from the operator's endpoint

In HPA and KEDA mode the number has passed windows and steps already, so what is written lets it through.
Never two at once: whoever else has the workload for its target is a stranger, and then nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from openhqm_operator.api import names
from openhqm_operator.api.spec import MAX_REPLICAS, Scaling, ScalingMode
from openhqm_operator.kube.owned import owned_metadata
from openhqm_operator.kube.resources import (
    HORIZONTAL_POD_AUTOSCALERS,
    SCALED_OBJECTS,
    Object,
    Resource,
)
from openhqm_operator.scaling.figures import Figures

METRIC = "openhqm_desired_replicas"

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
MARK = "-1000"
"""Ours; a Pod with another cost has it from somebody else and keeps it."""

EXECUTORS: Mapping[ScalingMode, Resource] = {
    ScalingMode.HPA: HORIZONTAL_POD_AUTOSCALERS,
    ScalingMode.KEDA: SCALED_OBJECTS,
}

_POLL_SECONDS = 5
_PERIOD_SECONDS = 15


def scale_target(autoscaler: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return namespace, kind and name of what an HPA or ScaledObject scales: an index of their caches."""
    reference = autoscaler["spec"].get("scaleTargetRef") or {}
    kind = reference.get("kind") or "Deployment"  # KEDA's default
    return autoscaler["metadata"].get("namespace", ""), kind, reference.get("name", "")


def owner_of_scale(proxy: Object, mode: ScalingMode, autoscalers: Iterable[Object]) -> str | None:
    """Name a stranger among *autoscalers* that scales the workload; None if there is none."""
    for one in autoscalers:
        if (
            is_ours(one, proxy)
            or _made_by_keda(one)
            or (mode is ScalingMode.HPA and _feeds_on_us(one, proxy))
        ):
            continue
        return f"{one['kind']} {one['metadata']['name']}"
    return None


def is_ours(obj: Mapping[str, Any], proxy: Mapping[str, Any]) -> bool:
    """Say whether *obj* belongs to *proxy*."""
    owners = obj["metadata"].get("ownerReferences") or ()
    return any(owner.get("uid") == proxy["metadata"]["uid"] for owner in owners)


def leftovers(proxy: Object, mode: ScalingMode, autoscalers: Iterable[Object]) -> list[Object]:
    """What we wrote for another mode, or for nothing because the user has an HPA of their own."""
    known = list(autoscalers)
    has_own_hpa = any(not is_ours(one, proxy) and _feeds_on_us(one, proxy) for one in known)
    wanted = EXECUTORS.get(mode)
    return [
        one
        for one in known
        if is_ours(one, proxy) and (wanted is None or one["kind"] != wanted.kind or has_own_hpa)
    ]


def executor(proxy: Object, scaling: Scaling, autoscalers: Iterable[Object], keda_url: str) -> Object | None:
    """Make the HPA or ScaledObject that is needed; None for mode Native, or if the user brought one."""
    if scaling.mode is ScalingMode.KEDA:
        return _scaled_object(proxy, scaling, keda_url)
    if scaling.mode is ScalingMode.HPA and not any(
        _feeds_on_us(one, proxy) for one in _not_ours(autoscalers, proxy)
    ):
        return _autoscaler(proxy, scaling)
    return None


def is_as(present: Any, wanted: Any) -> bool:
    """Say whether *present* has all of *wanted*; what others added does not matter."""
    if isinstance(wanted, dict):
        return isinstance(present, dict) and all(
            name in present and is_as(present[name], value) for name, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(present, list)
            and len(present) == len(wanted)
            and all(is_as(*pair) for pair in zip(present, wanted, strict=True))
        )
    return bool(present == wanted)


def deletion_costs(
    pods: Iterable[Object], figures: Mapping[str, Figures], fewer: int
) -> dict[str, str | None]:
    """Choose who goes first when *fewer* Pods of a ReplicaSet are to go: those with the least in flight.

    Returns: Pod name -> its new deletion cost; None takes ours away again. Pods that keep theirs are left
        out, and so are those whose cost somebody else has set.
    """
    free = {pod["metadata"]["name"]: _cost(pod) for pod in pods if _cost(pod) in (None, MARK)}
    known = [name for name in free if name in figures]
    first = sorted(known, key=lambda name: (figures[name].in_flight, name))[:fewer]
    wanted = {name: MARK if name in first else None for name in free}
    return {name: cost for name, cost in wanted.items() if cost != free[name]}


def _cost(pod: Mapping[str, Any]) -> str | None:
    cost: str | None = (pod["metadata"].get("annotations") or {}).get(DELETION_COST)
    return cost


def _not_ours(autoscalers: Iterable[Object], proxy: Object) -> list[Object]:
    return [one for one in autoscalers if not is_ours(one, proxy)]


def _made_by_keda(obj: Mapping[str, Any]) -> bool:
    """Whether an HPA is a ScaledObject's, which is then looked at itself."""
    return any(owner.get("kind") == "ScaledObject" for owner in obj["metadata"].get("ownerReferences") or ())


def _feeds_on_us(obj: Mapping[str, Any], proxy: Mapping[str, Any]) -> bool:
    """Whether an HPA uses our metric of this very AsyncProxy."""
    return any(
        (metric.get("external") or {}).get("metric") == _metric(proxy)
        for metric in obj["spec"].get("metrics") or ()
    )


def _metric(proxy: Mapping[str, Any]) -> Object:
    label = names.label_value(proxy["metadata"]["name"])
    return {"name": METRIC, "selector": {"matchLabels": {names.PROXY_LABEL: label}}}


def _autoscaler(proxy: Object, scaling: Scaling) -> Object:
    least, most = widest(scaling)
    target = {"type": "AverageValue", "averageValue": "1"}
    return {
        "apiVersion": HORIZONTAL_POD_AUTOSCALERS.api_version,
        "kind": HORIZONTAL_POD_AUTOSCALERS.kind,
        "metadata": owned_metadata(proxy, names.child_name(proxy["metadata"]["name"], "scaling")),
        "spec": {
            "scaleTargetRef": _target(proxy),
            "minReplicas": max(least, 1),
            "maxReplicas": most,
            "metrics": [{"type": "External", "external": {"metric": _metric(proxy), "target": target}}],
            "behavior": _behavior(),
        },
    }


def _scaled_object(proxy: Object, scaling: Scaling, url: str) -> Object:
    least, most = widest(scaling)
    metadata = proxy["metadata"]
    trigger = {
        "type": "metrics-api",
        "metricType": "AverageValue",
        "metadata": {
            "url": f"{url}/scaling/{metadata['namespace']}/{metadata['name']}",
            "valueLocation": "desired",
            "targetValue": "1",
            "activationTargetValue": "0",
        },
    }
    return {
        "apiVersion": SCALED_OBJECTS.api_version,
        "kind": SCALED_OBJECTS.kind,
        "metadata": owned_metadata(proxy, names.child_name(proxy["metadata"]["name"], "scaling")),
        "spec": {
            "scaleTargetRef": _target(proxy),
            "minReplicaCount": least,
            "maxReplicaCount": most,
            "pollingInterval": _POLL_SECONDS,
            # Our number becomes 0 only after idleAfterSeconds; KEDA need not wait again.
            "cooldownPeriod": _POLL_SECONDS,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior()}},
            "triggers": [trigger],
        },
    }


def widest(scaling: Scaling) -> tuple[int, int]:
    """Return the least and most replicas that any schedule allows."""
    least = [one.min_replicas for one in scaling.schedules if one.min_replicas is not None]
    most = [one.max_replicas for one in scaling.schedules if one.max_replicas is not None]
    return min([scaling.min_replicas, *least]), max([scaling.max_replicas, *most])


def _behavior() -> Object:
    def at_once(kind: str, value: int) -> Object:
        policy = {"type": kind, "value": value, "periodSeconds": _PERIOD_SECONDS}
        return {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [policy]}

    return {"scaleUp": at_once("Pods", MAX_REPLICAS), "scaleDown": at_once("Percent", 100)}


def _target(proxy: Object) -> Object:
    reference = proxy["spec"]["targetRef"]
    return {"apiVersion": "apps/v1", "kind": reference["kind"], "name": reference["name"]}
