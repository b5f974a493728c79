"""What the autoscaler sees of one AsyncProxy, and what keeps it from acting. Pure.

`autoscaler.py` looks and acts, `law.py` decides how many, `modes.py` what is written.
"""

from __future__ import annotations

import datetime as dt
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from openhqm_operator.api import names
from openhqm_operator.api.conditions import Verdict, find
from openhqm_operator.api.spec import Scaling, ScalingMode, TargetKind
from openhqm_operator.api.status import ConditionStatus, ConditionType
from openhqm_operator.kube.resources import Object
from openhqm_operator.scaling.figures import Pods
from openhqm_operator.scaling.law import Reason
from openhqm_operator.scaling.modes import owner_of_scale

DEFAULT_STARTUP_SECONDS = 20.0
MOST_STARTUP_SECONDS = 600.0
"""A Pod that became Ready later than this lost its readiness meanwhile, or waited for a node."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One AsyncProxy that wants to be scaled, and what is around it.

    Args:
        target: the workload; None if there is none.
        pods: those of the workload and its gateways.
        autoscalers: HorizontalPodAutoscalers and ScaledObjects with the same target, ours among them.
        has_external_metrics: the chart serves our metric to HPAs.
    """

    proxy: Object
    scaling: Scaling
    target: Object | None
    pods: tuple[Object, ...] = ()
    autoscalers: tuple[Object, ...] = ()
    has_external_metrics: bool = False

    @property
    def replicas(self) -> int:
        """Those the workload asks for."""
        return int(self.target["spec"].get("replicas", 1)) if self.target is not None else 0

    @property
    def own_pods(self) -> list[Object]:
        """Living Pods of the workload itself."""
        return [pod for pod in self.pods if is_living(pod) and not is_gateway(pod)]

    @property
    def told(self) -> Mapping[str, Any]:
        """The status of scaling as it was written last."""
        found: Mapping[str, Any] = (self.proxy.get("status") or {}).get("scaling") or {}
        return found


def obstacle(scene: Scene) -> Verdict | None:
    """Why nobody is to be scaled, as asked for or at all; None if nothing is in the way."""
    accepted = find(scene.proxy, ConditionType.ACCEPTED)
    if accepted is not None and accepted.status is ConditionStatus.FALSE:
        return _no("NotAccepted", "The AsyncProxy is not accepted; see the condition Accepted.")
    if scene.target is None:
        return _no("TargetMissing", "There is no such workload to scale.")
    stranger = owner_of_scale(scene.proxy, scene.scaling.mode, scene.autoscalers)
    if stranger is not None:
        return _no(
            "ExternalAutoscalerFound",
            f"{stranger} scales this workload already, and two would fight: delete it, or set "
            "spec.scaling.mode to Off.",
        )
    if scene.scaling.mode is ScalingMode.HPA and not scene.has_external_metrics:
        return _no(
            "ExternalMetricsDisabled",
            "Mode HPA needs our metrics API: install the chart with externalMetrics.enabled=true, or use "
            "mode Native.",
        )
    return None


def hold(target: Mapping[str, Any]) -> Verdict | None:
    """Why the replicas of a workload are not to be touched for now; None if they may be."""
    if target["spec"].get("paused"):
        return _yes(
            "WorkloadPaused", "The Deployment is paused: its replicas are left alone until it is not."
        )
    if _is_rolling(target):
        return _yes("RolloutInProgress", "The replicas are left alone until the rollout is through.")
    return None


_SENTENCES = {
    Reason.SCALING: "The replicas follow arrivals and backlog.",
    Reason.IDLE: "Nobody wants anything: the workload may sleep.",
    Reason.PAUSED: "The replicas are left as they are: spec.scaling.paused is set.",
    Reason.UNMEASURED: "The replicas are kept until the first requests are answered and tell how long they "
    "take.",
    Reason.NOT_SENDING: "The replicas are kept: the queue is paused, or no sidecar reaches its app.",
    Reason.SATURATED: "The workload grows no further: its last replicas did not raise the throughput, so "
    "what the app depends on seems to be full.",
    Reason.NO_FIGURES: "The replicas are kept: no sidecar answers on its health port (16020). Look for a "
    "NetworkPolicy that keeps the operator out, and at the Pods.",
}


def verdict_on(reason: Reason) -> Verdict:
    """What is told of a decision: without numbers, which change all the time."""
    is_active = reason is not Reason.NO_FIGURES
    return _yes(reason, _SENTENCES[reason]) if is_active else _no(reason, _SENTENCES[reason])


def count_pods(scene: Scene) -> Pods:
    """Count the Pods of the workload and learn how long they take to start."""
    pods = scene.own_pods
    ready = [since for pod in pods if (since := ready_since(pod)) is not None]
    starts = [
        (since - _moment(pod["metadata"]["creationTimestamp"])).total_seconds()
        for pod in pods
        if (since := ready_since(pod)) is not None
    ]
    usual = [max(seconds, 1.0) for seconds in starts if seconds <= MOST_STARTUP_SECONDS]
    return Pods(
        ready=len(ready),
        pending=max(scene.replicas - len(ready), 0),
        startup_seconds=statistics.median(usual) if usual else DEFAULT_STARTUP_SECONDS,
    )


def is_living(pod: Mapping[str, Any]) -> bool:
    """Say whether a Pod has not ended and is not about to."""
    phase = (pod.get("status") or {}).get("phase")
    return "deletionTimestamp" not in pod["metadata"] and phase not in ("Succeeded", "Failed")


def is_gateway(pod: Mapping[str, Any]) -> bool:
    """Say whether a Pod is a gateway of ours, which runs no app."""
    return (pod["metadata"].get("labels") or {}).get(names.COMPONENT_LABEL) == names.GATEWAY


def ready_since(pod: Mapping[str, Any]) -> dt.datetime | None:
    """Since when a Pod is Ready; None if it is not."""
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition["type"] == "Ready" and condition["status"] == "True":
            return _moment(condition["lastTransitionTime"])
    return None


def _is_rolling(target: Mapping[str, Any]) -> bool:
    """Whether Pods of an old template are being replaced by themselves. A rollout that is stuck is none:
    its backlog grows meanwhile."""
    status = target.get("status") or {}
    if target["kind"] == TargetKind.STATEFUL_SET and not _replaces_all(target["spec"]):
        return False
    if target["kind"] == TargetKind.DEPLOYMENT and _is_stuck(status.get("conditions") or ()):
        return False
    return int(status.get("updatedReplicas", 0)) < int(status.get("replicas", 0))


def _replaces_all(spec: Mapping[str, Any]) -> bool:
    strategy = spec.get("updateStrategy") or {}
    return strategy.get("type") != "OnDelete" and not (strategy.get("rollingUpdate") or {}).get("partition")


def _is_stuck(conditions: Iterable[Mapping[str, Any]]) -> bool:
    return any(one["type"] == "Progressing" and one["status"] == "False" for one in conditions)


def _moment(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


def _yes(reason: str, message: str) -> Verdict:
    return Verdict.yes(ConditionType.AUTOSCALING_ACTIVE, reason, message)


def _no(reason: str, message: str) -> Verdict:
    return Verdict.no(ConditionType.AUTOSCALING_ACTIVE, reason, message)
