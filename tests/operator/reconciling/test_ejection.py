"""The way out, step by step, from what is seen alone."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest

from openhqm_operator.reconciling.ejection import LOOK_SECONDS, SETTLE_SECONDS, Drainage, Scene, Step, decide

NOON = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
LONG_AGO = NOON - dt.timedelta(seconds=SETTLE_SECONDS)
JUST_NOW = NOON - dt.timedelta(seconds=5)

SCENE = Scene(
    has_target=True,
    is_touched=True,
    is_removed=False,
    pods_left=2,
    is_forced=False,
    waits_for_deploy=False,
    drainage=Drainage(0, has_settings=True),
    draining_since=JUST_NOW,
    now=NOON,
    queue="shop.legacy",
)


@pytest.mark.parametrize(
    ("changes", "step", "reason"),
    [
        ({}, Step.REMOVE, "RollingOut"),
        ({"draining_since": None}, Step.DRAIN, "Draining"),
        ({"drainage": Drainage(3, has_settings=True)}, Step.DRAIN, "Draining"),
        ({"drainage": Drainage(0, has_settings=False)}, Step.DRAIN, "WaitingForSettings"),
        ({"drainage": Drainage(0)}, Step.DRAIN, "WaitingForSettings"),
        ({"drainage": Drainage(0), "draining_since": LONG_AGO}, Step.REMOVE, "RollingOut"),
        ({"drainage": Drainage(None), "draining_since": LONG_AGO}, Step.DRAIN, "NobodyAnswers"),
        ({"drainage": None, "draining_since": LONG_AGO}, Step.DRAIN, "NobodyAnswers"),
        ({"waits_for_deploy": True}, Step.DRAIN, "OnNextDeploy"),
        ({"is_removed": True}, Step.REMOVE, "RollingOut"),
        ({"is_removed": True, "pods_left": 0}, Step.FINISH, "Drained"),
        ({"is_touched": False, "is_removed": True, "pods_left": 0}, Step.FINISH, "Drained"),
        ({"has_target": False}, Step.FINISH, "TargetGone"),
        ({"is_forced": True, "drainage": Drainage(7)}, Step.REMOVE, "Forced"),
        ({"is_forced": True, "is_removed": True}, Step.FINISH, "Forced"),
    ],
)
def test_each_scene_has_its_step(changes: dict[str, object], step: Step, reason: str) -> None:
    ejection = decide(dataclasses.replace(SCENE, **changes))  # type: ignore[arg-type]

    assert (ejection.step, ejection.verdict.reason) == (step, reason)


def test_force_says_how_many_are_given_up_and_where_they_are() -> None:
    forced = dataclasses.replace(SCENE, is_forced=True, drainage=Drainage(7))

    assert "7 requests were given up; they stay in the store as queue shop.legacy" in decide(forced).note
    assert "unknown number" in decide(dataclasses.replace(forced, drainage=None)).note


def test_a_gone_workload_leaves_its_queue_in_the_store_and_says_so() -> None:
    gone = decide(dataclasses.replace(SCENE, has_target=False))

    assert "queue shop.legacy" in gone.note


@pytest.mark.parametrize(("left", "said"), [(3, "3 left"), (99, "99 left"), (1234, "About 1200 left")])
def test_the_count_is_told_without_a_change_every_second(left: int, said: str) -> None:
    draining = decide(dataclasses.replace(SCENE, drainage=Drainage(left, has_settings=True)))

    assert draining.verdict.message.startswith(said)
    assert draining.look_again_seconds == LOOK_SECONDS


def test_pods_that_do_not_go_by_themselves_are_told_of() -> None:
    stuck = dataclasses.replace(SCENE, is_removed=True, hindrance="The Deployment is paused: resume it.")

    assert decide(stuck).verdict.message.endswith("The Deployment is paused: resume it.")
