"""How a workload gets rid of its sidecar: step by step, each decided from what is seen. Pure.

    DRAIN    routes become `pass` for all sidecars, then the backlog is worked off
      |      (a target that is gone, or was never touched, has nobody to wait for)
    REMOVE   Services lead to the app again, label and hash leave the template, replicas become what they were
      |      Pods with a sidecar go as the workload rolls; until then they need their Secrets and settings
    FINISH   the finalizer goes, and with the AsyncProxy what it owns

Nothing is remembered between two steps but what the API server shows: a killed operator goes on where it was.
"""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass

from openhqm_operator.api.conditions import Verdict
from openhqm_operator.api.status import ConditionType

SETTLE_SECONDS = 150.0
"""After this long every sidecar has its new settings even if it does not say so: a changed ConfigMap reaches
a Pod within a sync of the kubelet and the lifetime of its cache, about two minutes."""

LOOK_SECONDS = 5.0
"""How often the backlog is looked at while it drains."""


class Step(enum.Enum):
    """What is to be done now; what comes before it is done."""

    DRAIN = "drain"
    """Everything passes; the backlog is worked off."""
    REMOVE = "remove"
    """Services, template and replicas become what they were; Pods roll."""
    FINISH = "finish"
    """Nothing of ours is left; let the AsyncProxy go."""


@dataclass(frozen=True, slots=True)
class Drainage:
    """What the sidecars of a proxy say of a queue that is to be emptied.

    Args:
        left: requests and callbacks not finished; None: nobody answers, or the store is away.
        has_settings: whether every sidecar says that the settings in force are the present ones; None: not
            every one says.
    """

    left: int | None
    has_settings: bool | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """What the next step is decided on.

    Args:
        has_target: the workload is there, and is the one that was injected.
        is_touched: something of ours is left on the template, on Services or in Pods.
        is_removed: the template and the Services are as they were.
        pods_left: Pods with a sidecar.
        is_forced: the backlog is given up.
        waits_for_deploy: rollout is OnNextDeploy, and none has come.
        drainage: None before the first look.
        draining_since: when everything was told to pass; None: not yet.
        hindrance: why Pods will not roll by themselves, if they will not.
    """

    has_target: bool
    is_touched: bool
    is_removed: bool
    pods_left: int
    is_forced: bool
    waits_for_deploy: bool
    drainage: Drainage | None
    draining_since: dt.datetime | None
    now: dt.datetime
    queue: str
    hindrance: str | None = None


@dataclass(frozen=True, slots=True)
class Ejection:
    """The step, what is said of it, and what is told once as an Event.

    Args:
        abandoned: requests given up by force; None: not forced, or not known how many.
        look_again_seconds: None: something will happen to be told of.
    """

    step: Step
    verdict: Verdict
    note: str = ""
    look_again_seconds: float | None = None


def decide(scene: Scene) -> Ejection:
    """Decide the next step."""
    if not scene.has_target:
        return Ejection(
            Step.FINISH,
            _draining("TargetGone", "The workload is gone, so nobody can drain its queue."),
            f"The workload is gone: whatever was still queued stays in the store as queue {scene.queue}",
        )
    if not scene.is_touched or (scene.is_removed and not scene.pods_left):
        return Ejection(Step.FINISH, _draining("Drained", "The sidecar is gone."))
    if scene.is_removed:
        return _leaving(scene)
    if scene.is_forced:
        return Ejection(Step.REMOVE, _draining("Forced", "What was queued is given up."), _given_up(scene))
    return _drain(scene)


def _drain(scene: Scene) -> Ejection:
    left = scene.drainage.left if scene.drainage else None
    if scene.draining_since is None:
        reason, message = "Draining", "Requests pass straight to the app; what is queued is worked off."
    elif not _has_settled(scene, scene.draining_since):
        reason, message = "WaitingForSettings", "The sidecars are about to let everything pass."
    elif left is None:
        reason, message = (
            "NobodyAnswers",
            "No sidecar tells what is left in the queue: bring a Pod and the store up to drain it, or "
            "set the annotation openhqm.io/force-eject to true to give up what is left.",
        )
    elif left > 0:
        reason, message = "Draining", f"{about(left)} left to work off."
    elif scene.waits_for_deploy:
        return Ejection(
            Step.DRAIN,
            _draining(
                "OnNextDeploy",
                "Nothing is queued any more; the sidecar goes with the next deploy of the workload. Set "
                "spec.rollout to Automatic to have it rolled now.",
            ),
        )
    else:
        return Ejection(Step.REMOVE, _draining("RollingOut", "Nothing is queued any more; Pods roll."))
    return Ejection(Step.DRAIN, _draining(reason, message), look_again_seconds=LOOK_SECONDS)


def _has_settled(scene: Scene, since: dt.datetime) -> bool:
    if scene.drainage is not None and scene.drainage.has_settings is not None:
        return scene.drainage.has_settings
    return (scene.now - since).total_seconds() >= SETTLE_SECONDS


def _leaving(scene: Scene) -> Ejection:
    if scene.is_forced:
        return Ejection(Step.FINISH, _draining("Forced", "Pods keep their sidecar until they are replaced."))
    hindrance = f" {scene.hindrance}" if scene.hindrance else ""
    message = f"Pods with a sidecar are being replaced.{hindrance}"
    return Ejection(Step.REMOVE, _draining("RollingOut", message))


def _given_up(scene: Scene) -> str:
    left = scene.drainage.left if scene.drainage else None
    how_many = "an unknown number of" if left is None else str(left)
    return (
        f"Ejected by force: {how_many} requests were given up; they stay in the store as queue {scene.queue}"
    )


def about(left: int) -> str:
    """A number that does not change every second: two digits, the rest noughts."""
    if left < 100:
        return str(left)
    scale = 10 ** (len(str(left)) - 2)
    return f"About {left // scale * scale}"


def _draining(reason: str, message: str) -> Verdict:
    return Verdict.yes(ConditionType.DRAINING, reason, message)
