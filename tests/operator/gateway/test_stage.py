"""Who answers for a workload that may sleep: each step, and what holds for every history."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openhqm_operator.gateway.stage import (
    GONE_SECONDS,
    SETTLE_SECONDS,
    STAY_SECONDS,
    Course,
    Scene,
    Stage,
    decide,
)

AWAKE = Scene(
    is_allowed=True,
    wants_sleep=False,
    replicas=2,
    serves=False,
    has_ready_app=True,
    is_there=False,
    is_ready=False,
    is_in=False,
)
GATEWAY = {"is_there": True, "is_ready": True}
JOINED = {**GATEWAY, "is_in": True, "serves": True, "in_all_seconds": SETTLE_SECONDS}
ZERO = {"replicas": 0, "serves": False, "has_ready_app": False}


def course(**changes: Any) -> Course:
    return decide(dataclasses.replace(AWAKE, **changes))


@pytest.mark.parametrize(
    ("changes", "stage", "is_in", "may_sleep"),
    [
        ({}, Stage.ABSENT, False, False),
        ({"wants_sleep": True}, Stage.STARTING, False, False),
        ({"wants_sleep": True, "is_there": True}, Stage.STARTING, False, False),
        ({"wants_sleep": True, **GATEWAY}, Stage.JOINED, True, False),
        ({"wants_sleep": True, **JOINED, "in_all_seconds": None}, Stage.JOINED, True, False),
        ({"wants_sleep": True, **JOINED, "in_all_seconds": 1.0}, Stage.JOINED, True, False),
        ({"wants_sleep": True, **JOINED}, Stage.JOINED, True, True),
        ({"wants_sleep": True, **JOINED, "is_ready": False}, Stage.JOINED, True, False),
        ({"wants_sleep": True, **JOINED, "awake_seconds": 3.0}, Stage.JOINED, True, False),
        ({"wants_sleep": True, **JOINED, **ZERO}, Stage.ASLEEP, True, True),
        ({**JOINED, **ZERO}, Stage.ASLEEP, True, True),
        ({**JOINED, **ZERO, "replicas": 1}, Stage.WAKING, True, False),
        ({**JOINED, **ZERO, "replicas": 1, "has_ready_app": True}, Stage.WAKING, True, False),
        (JOINED, Stage.AWAKE, True, False),
        ({**JOINED, "awake_seconds": STAY_SECONDS - 1}, Stage.AWAKE, True, False),
        ({**JOINED, "awake_seconds": STAY_SECONDS}, Stage.AWAKE, False, False),
        ({**GATEWAY, "awake_seconds": STAY_SECONDS}, Stage.AWAKE, False, False),
        ({**GATEWAY, "awake_seconds": GONE_SECONDS}, Stage.ABSENT, False, False),
        ({**ZERO}, Stage.STARTING, False, False),
        ({**ZERO, **GATEWAY}, Stage.ASLEEP, True, False),
        ({**ZERO, "is_allowed": False}, Stage.ABSENT, False, False),
        ({**JOINED, **ZERO, "is_allowed": False}, Stage.WAKING, True, False),
        ({**JOINED, **ZERO, "is_allowed": False, "is_forced": True}, Stage.ABSENT, False, False),
    ],
)
def test_each_scene_has_its_stage(changes: Any, stage: Stage, is_in: bool, may_sleep: bool) -> None:
    found = course(**changes)

    assert (found.stage, found.is_in, found.may_sleep) == (stage, is_in, may_sleep)


def test_only_a_workload_that_nobody_else_would_wake_is_woken() -> None:
    assert course(**JOINED, is_allowed=False) == course(**JOINED)
    assert not course(**JOINED | ZERO).wakes
    assert course(**JOINED | ZERO, is_allowed=False).wakes


def test_a_waking_app_is_looked_at_each_second_once_a_pod_is_ready() -> None:
    assert course(**JOINED | ZERO | {"replicas": 1}).look_again_seconds is None
    assert course(**JOINED | ZERO | {"replicas": 1, "has_ready_app": True}).look_again_seconds == 1.0


def test_the_time_left_is_waited_out() -> None:
    assert course(**JOINED, awake_seconds=4.0).look_again_seconds == STAY_SECONDS - 4
    assert course(**GATEWAY, awake_seconds=30.0).look_again_seconds == GONE_SECONDS - 30
    waiting = course(**JOINED | {"in_all_seconds": 2.0}, wants_sleep=True)
    assert waiting.look_again_seconds == SETTLE_SECONDS - 2


# --- every scene -------------------------------------------------------------------------------------------

seconds = st.none() | st.floats(0, 100)
scenes = st.builds(
    Scene,
    is_allowed=st.booleans(),
    wants_sleep=st.booleans(),
    replicas=st.integers(0, 3),
    serves=st.booleans(),
    has_ready_app=st.booleans(),
    is_there=st.booleans(),
    is_ready=st.booleans(),
    is_in=st.booleans(),
    in_all_seconds=seconds,
    awake_seconds=seconds,
    is_forced=st.booleans(),
)


@given(scenes)
def test_the_services_are_left_only_while_the_app_serves_or_by_force(scene: Scene) -> None:
    left = scene.is_in and not decide(scene).is_in

    assert not left or scene.is_forced or (scene.serves and scene.replicas > 0)


@given(scenes)
def test_the_pods_go_only_once_the_services_were_left(scene: Scene) -> None:
    gone = scene.is_there and not decide(scene).is_there

    assert not gone or scene.is_forced or not scene.is_in


@given(scenes)
def test_going_to_zero_needs_a_ready_gateway_that_all_nodes_know_and_that_stays(scene: Scene) -> None:
    found = decide(scene)

    if found.may_sleep:
        assert scene.is_in and scene.is_ready and scene.is_allowed  # noqa: PT018
        assert scene.in_all_seconds is not None
        assert scene.in_all_seconds >= SETTLE_SECONDS
        assert found.is_in and not found.is_awake  # noqa: PT018


# --- every history -----------------------------------------------------------------------------------------


class World:
    """A workload, its gateway and its Service, a second at a time, with an autoscaler that obeys `may_sleep`.

    A scale-in that was allowed may land seconds later, as KEDA's does.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.scene = dataclasses.replace(AWAKE, replicas=1, serves=True)
        self.joined_at: float | None = None
        self.awake_at: float | None = None
        self.starts_at: float | None = None
        self.lands_at: float | None = None
        self.may_sleep = False

    @property
    def has_endpoint(self) -> bool:
        return self.scene.has_ready_app or (self.joined_at is not None and self.scene.is_ready)

    def second(self, *, is_idle: bool, is_allowed: bool, start_seconds: int, land_seconds: int) -> None:
        self.now += 1
        self._scale(is_idle, start_seconds, land_seconds)
        app_is_ready = self.scene.replicas > 0 and self.starts_at is not None and self.now >= self.starts_at
        self.scene = dataclasses.replace(
            self.scene,
            is_allowed=is_allowed,
            wants_sleep=is_idle,
            has_ready_app=app_is_ready,
            serves=app_is_ready,
            is_ready=self.scene.is_there,
            is_in=self.joined_at is not None,
            in_all_seconds=None if self.joined_at is None else self.now - self.joined_at,
            awake_seconds=None if self.awake_at is None else self.now - self.awake_at,
        )
        self._obey(decide(self.scene), start_seconds)

    def _scale(self, is_idle: bool, start_seconds: int, land_seconds: int) -> None:
        replicas = self.scene.replicas
        if self.starts_at is None and replicas:
            self.starts_at = self.now
        if self.lands_at is not None and self.now >= self.lands_at:
            replicas, self.lands_at, self.starts_at = 0, None, None
        elif is_idle and self.may_sleep and replicas and self.lands_at is None:
            self.lands_at = self.now + land_seconds
        elif not is_idle and not replicas:
            replicas, self.starts_at = 1, self.now + start_seconds
        self.scene = dataclasses.replace(self.scene, replicas=replicas)

    def _obey(self, found: Course, start_seconds: int) -> None:
        self.may_sleep = found.may_sleep
        if found.wakes:
            self.scene = dataclasses.replace(self.scene, replicas=1)
            self.starts_at = self.now + start_seconds
        if found.is_in and self.joined_at is None:
            self.joined_at = self.now
        if not found.is_in:
            self.joined_at = None
        if not found.is_awake:
            self.awake_at = None
        elif self.awake_at is None:
            self.awake_at = self.now
        self.scene = dataclasses.replace(self.scene, is_there=found.is_there)


spans = st.lists(
    st.tuples(st.integers(1, 70), st.booleans(), st.booleans(), st.integers(0, 9), st.integers(0, 9)),
    max_size=12,
)


@settings(max_examples=60)
@given(spans)
def test_somebody_answers_at_every_second_of_every_history(
    history: list[tuple[int, bool, bool, int, int]],
) -> None:
    """Idle or not, allowed or not, however long Pods take to start and a scale-in takes to land."""
    world = World()

    for length, is_idle, is_allowed, start_seconds, land_seconds in history:
        for _ in range(length):
            world.second(
                is_idle=is_idle, is_allowed=is_allowed, start_seconds=start_seconds, land_seconds=land_seconds
            )
            assert world.has_endpoint, world.now


def test_the_world_does_go_to_zero_and_come_back_and_the_gateway_goes_again() -> None:
    world = World()
    stages = []

    for second in range(120):
        world.second(is_idle=second < 40, is_allowed=True, start_seconds=3, land_seconds=1)
        stages.append((world.scene.replicas, decide(world.scene).stage))

    assert (0, Stage.ASLEEP) in stages
    assert stages[-1] == (1, Stage.ABSENT)
