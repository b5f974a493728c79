"""Who answers for a workload that may sleep, step by step, decided from what is seen. Pure.

    ABSENT --idle--> STARTING --a Pod Ready--> JOINED --settled: may sleep--> ASLEEP
      ^                                          |                              | work: the autoscaler acts
      |                                          | work                         v
      +---40 s---- AWAKE (out of the Services after 10 s) <--app serves-- WAKING

The Services are left only while the app itself serves, and the workload may go to zero only once the gateway
is in all of them and the nodes have had time to hear of it. Between the decision to leave and leaving lie
`STAY_SECONDS`: whoever was about to scale to zero at that moment, KEDA say, still finds the gateway there.
Nothing is remembered between two steps but what the API server shows.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

SETTLE_SECONDS = 5.0
"""Within this every node has heard of a new endpoint."""

STAY_SECONDS = 10.0
"""For so long the gateway stays in the Services once it is not needed any more."""

GONE_SECONDS = 40.0
"""For so long its Pods stay in all: nodes hear late that they left, and connections are kept alive."""

LOOK_SECONDS = 1.0
"""How often it is looked whether the app has endpoints, once one of its Pods is Ready."""


class Stage(enum.StrEnum):
    """Where the gateway is."""

    ABSENT = "Absent"
    """Nothing of it is there, or all of it is to go."""
    STARTING = "Starting"
    """None of its Pods is Ready yet."""
    JOINED = "Joined"
    """It is in the Services beside the app."""
    ASLEEP = "Asleep"
    """It is in the Services alone: the workload is at zero."""
    WAKING = "Waking"
    """It is in the Services until the app serves."""
    AWAKE = "Awake"
    """The app serves: it leaves the Services, and then goes."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What the next step is decided on.

    Args:
        is_allowed: the workload is to sleep when idle, and nothing stands against it.
        is_forced: the AsyncProxy is to go whatever becomes of requests.
        wants_sleep: the autoscaler finds the workload idle for long enough.
        replicas: those the workload asks for.
        serves: the app's own Pods are ready endpoints in every Service the gateway is in.
        has_ready_app: one of the app's Pods is Ready.
        is_there: the gateway's Deployment is there.
        is_ready: one of its Pods is Ready.
        is_in: it is in a Service.
        in_all_seconds: since when it is in all Services it is to be in; None: it is not.
        awake_seconds: since when it is not needed any more; None: it is.
    """

    is_allowed: bool
    wants_sleep: bool
    replicas: int
    serves: bool
    has_ready_app: bool
    is_there: bool
    is_ready: bool
    is_in: bool
    in_all_seconds: float | None = None
    awake_seconds: float | None = None
    is_forced: bool = False


@dataclass(frozen=True, slots=True)
class Course:
    """What is to be so.

    Args:
        is_there: the Deployment and what belongs to it.
        is_in: endpoints in the Services.
        is_awake: it is noted that the gateway is not needed any more.
        may_sleep: the workload may go to zero.
        wakes: the workload, at zero, is to be given replicas by us: nobody else will.
        look_again_seconds: None: something will happen to be told of.
    """

    stage: Stage
    is_there: bool = True
    is_in: bool = False
    is_awake: bool = False
    may_sleep: bool = False
    wakes: bool = False
    look_again_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Sleep:
    """Whether a workload may go to zero.

    Args:
        may: its gateway has taken over.
        reason, message: why it never may, if that is so.
    """

    may: bool = False
    reason: str = ""
    message: str = ""


NOT_YET = Sleep()


def decide(scene: Scene) -> Course:
    """Decide the next step."""
    if scene.is_forced:
        return Course(Stage.ABSENT, is_there=False)
    if scene.is_allowed and (scene.wants_sleep or scene.replicas == 0):
        return _stand_in(scene)
    if scene.is_in and not (scene.serves and scene.replicas > 0):
        return _wake(scene)
    if scene.is_there:
        return _step_back(scene)
    return Course(Stage.ABSENT, is_there=False)


def _stand_in(scene: Scene) -> Course:
    if not scene.is_in and not scene.is_ready:
        return Course(Stage.STARTING)
    settled = scene.in_all_seconds
    # A note that the gateway is not needed goes first: it says that somebody may be taking it away.
    is_settling = settled is None or settled < SETTLE_SECONDS or scene.awake_seconds is not None
    return Course(
        Stage.ASLEEP if scene.replicas == 0 else Stage.JOINED,
        is_in=True,
        may_sleep=scene.is_in and scene.is_ready and not is_settling,
        look_again_seconds=max(_left(SETTLE_SECONDS, settled), LOOK_SECONDS) if is_settling else None,
    )


def _wake(scene: Scene) -> Course:
    # As long as sleeping is allowed the autoscaler wakes; it would not where scaling was turned off.
    return Course(
        Stage.WAKING,
        is_there=scene.is_there,
        is_in=True,
        wakes=scene.replicas == 0,
        look_again_seconds=LOOK_SECONDS if scene.has_ready_app else None,
    )


def _step_back(scene: Scene) -> Course:
    age = scene.awake_seconds
    if age is None or age < STAY_SECONDS:
        return Course(
            Stage.AWAKE, is_in=scene.is_in, is_awake=True, look_again_seconds=_left(STAY_SECONDS, age)
        )
    if age < GONE_SECONDS or scene.is_in:
        return Course(
            Stage.AWAKE, is_awake=True, look_again_seconds=max(_left(GONE_SECONDS, age), LOOK_SECONDS)
        )
    return Course(Stage.ABSENT, is_there=False)


def _left(whole: float, passed: float | None) -> float:
    return max(whole - (passed or 0.0), 0.0)
