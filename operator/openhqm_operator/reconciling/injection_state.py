"""How far a workload's Pods are on their way to the sidecar, and what is said of it. Pure.

Pods without the label are known by number alone, from the workload's status: only labelled ones are watched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openhqm_operator.api.conditions import Verdict
from openhqm_operator.api.spec import InterceptType, TargetKind
from openhqm_operator.api.status import ConditionType
from openhqm_operator.injecting.interception import Choice, may_switch, switching
from openhqm_operator.kube.resources import Object
from openhqm_operator.reconciling.acceptance import Plan
from openhqm_operator.reconciling.observed import Observed, hash_of

_NAMED = 3
"""Pods named in a message; the rest is counted."""

_ENDED = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Census:
    """Pods that are not ending.

    Args:
        total: all Pods of the workload, whoever made them.
        injected: with the sidecar of the present configuration.
        outdated: with a sidecar of another configuration.
        missed: names of those that ask for the sidecar and have none.
    """

    total: int
    injected: int
    outdated: int
    missed: tuple[str, ...] = ()

    @property
    def with_sidecar(self) -> int:
        return self.injected + self.outdated

    def as_status(self) -> Object:
        """As `status.pods`."""
        return {
            "total": self.total,
            "injected": self.injected,
            "outdated": self.outdated,
            "summary": f"{self.injected}/{self.total}",
        }


def count(seen: Observed, hash: str | None) -> Census:
    """Count the Pods; *hash* names the present configuration."""
    living = [pod for pod in seen.pods if _is_living(pod)]
    hashes = [hash_of(pod) for pod in living]
    injected = sum(found == hash for found in hashes if found is not None)
    outdated = sum(found != hash for found in hashes if found is not None)
    missed = sorted(
        pod["metadata"]["name"] for pod, found in zip(living, hashes, strict=True) if found is None
    )
    return Census(max(_asked_for(seen.target), len(living)), injected, outdated, tuple(missed))


def _is_living(pod: Mapping[str, Any]) -> bool:
    is_ended = (pod.get("status") or {}).get("phase") in _ENDED
    return not is_ended and "deletionTimestamp" not in pod["metadata"]


def _asked_for(target: Object | None) -> int:
    status = (target or {}).get("status") or {}
    return int(status.get("currentNumberScheduled", status.get("replicas", 0)))


def is_rolled_out(seen: Observed, census: Census) -> bool:
    """Whether every Pod there is has a sidecar and none without one is about to come."""
    if seen.target is None or not seen.is_labelled or census.missed:
        return False
    status = seen.target.get("status") or {}
    is_seen = status.get("observedGeneration", 0) >= seen.target["metadata"].get("generation", 0)
    updated = status.get("updatedNumberScheduled", status.get("updatedReplicas", 0))
    # The count of new Pods too: while they are being made, that of all Pods lags behind.
    return is_seen and updated >= _asked_for(seen.target) and census.with_sidecar >= census.total


def hindrance(target: Mapping[str, Any]) -> str | None:
    """Why changed Pods will not come by themselves, and what to do; None if they will."""
    if target["kind"] == TargetKind.DEPLOYMENT:
        return "The Deployment is paused: resume it." if target["spec"].get("paused") else None
    strategy = target["spec"].get("updateStrategy") or {}
    if strategy.get("type") == "OnDelete":
        return f"The {target['kind']}'s updateStrategy is OnDelete: delete its Pods one by one."
    partition = (strategy.get("rollingUpdate") or {}).get("partition") or 0
    if partition:
        return f"The StatefulSet's partition keeps the Pods below ordinal {partition}: lower it."
    return None


def judge_injection(seen: Observed, plan: Plan, census: Census, *, waits_for_deploy: bool) -> Verdict:
    """The verdict on `Injected`."""
    assert seen.target is not None
    assert isinstance(plan.way, Choice)
    kind = ConditionType.INJECTED
    if census.missed:
        return Verdict.no(
            kind,
            "NotInjected",
            f"Pods {_named(census.missed)} ask for the sidecar and have none: the webhook did not see them. "
            "Delete them, so that they are made again.",
        )
    if waits_for_deploy:
        return Verdict.no(
            kind,
            "OnNextDeploy",
            "spec.rollout is OnNextDeploy: this takes effect with the next change of the Pod template.",
        )
    if not seen.is_labelled or census.injected < census.total or not is_rolled_out(seen, census):
        told = hindrance(seen.target)
        return Verdict.no(kind, "RollingOut", " ".join(["Pods are being replaced.", told or ""]).strip())
    if plan.way.bypasses:
        told = "; ".join(plan.way.bypasses)
        return Verdict.no(kind, "ServiceBypass", f"Traffic comes past the sidecar: {told}.")
    if unswitched := _unswitched(seen, plan):
        return Verdict.no(
            kind, "PortNotSwitched", f"Service {', '.join(unswitched)} is about to be switched."
        )
    how = f"{plan.way.type}: {plan.way.why}."
    if not census.total:
        return Verdict.yes(kind, "NoPods", f"There are no Pods; new ones get the sidecar. {how}")
    return Verdict.yes(kind, "AllPods", f"All Pods have the sidecar. {how}")


def _unswitched(seen: Observed, plan: Plan) -> list[str]:
    if not isinstance(plan.way, Choice) or plan.way.type is not InterceptType.SERVICE_PORT:
        return []
    return [
        service["metadata"]["name"]
        for service in seen.services
        if may_switch(service, seen.shared) and switching(service, seen.name, plan.port)
    ]


def _named(pods: tuple[str, ...]) -> str:
    shown = ", ".join(pods[:_NAMED])
    return shown if len(pods) <= _NAMED else f"{shown} and {len(pods) - _NAMED} more"
