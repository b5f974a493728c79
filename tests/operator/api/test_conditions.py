"""Conditions change when their meaning does, and Ready sums them up."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from openhqm_operator.api.conditions import Verdict, became, find, merge, sum_up
from openhqm_operator.api.status import Condition, ConditionStatus, ConditionType

NOON = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
LATER = NOON + dt.timedelta(minutes=5)
ACCEPTED = Verdict.yes(ConditionType.ACCEPTED, "Accepted", "Fits.")
INJECTED = Verdict.yes(ConditionType.INJECTED, "AllPods", "All 2 Pods.")
CALM = Verdict.no(ConditionType.DRAINING, "NotDraining", "")


def proxy(*conditions: dict[str, Any]) -> dict[str, Any]:
    return {"status": {"conditions": list(conditions)}}


def test_the_time_stays_while_the_status_does() -> None:
    before = merge((), [ACCEPTED], 1, NOON)

    (after,) = merge(before, [Verdict.yes(ConditionType.ACCEPTED, "Accepted", "Fits better.")], 2, LATER)

    assert after["lastTransitionTime"] == "2026-11-22T12:00:00Z"
    assert (after["observedGeneration"], after["message"]) == (2, "Fits better.")


def test_the_time_moves_with_the_status() -> None:
    before = merge((), [ACCEPTED], 1, NOON)

    (after,) = merge(before, [Verdict.no(ConditionType.ACCEPTED, "Conflicted", "Older one.")], 1, LATER)

    assert after["lastTransitionTime"] == "2026-11-22T12:05:00Z"


def test_the_order_is_fixed_and_the_result_is_what_the_resource_takes() -> None:
    conditions = merge((), [INJECTED, ACCEPTED, sum_up([INJECTED, ACCEPTED])], 1, NOON)

    assert [condition["type"] for condition in conditions] == ["Accepted", "Injected", "Ready"]
    assert all(Condition.model_validate(condition) for condition in conditions)


@pytest.mark.parametrize(
    ("verdicts", "status", "reason"),
    [
        ([ACCEPTED, INJECTED, CALM], ConditionStatus.TRUE, "Ready"),
        ([], ConditionStatus.TRUE, "Ready"),
        (
            [
                Verdict.no(ConditionType.INJECTED, "NotAccepted", ""),
                Verdict.no(ConditionType.ACCEPTED, "Conflicted", "Older."),
            ],
            ConditionStatus.FALSE,
            "Conflicted",
        ),
        (
            [ACCEPTED, INJECTED, Verdict.yes(ConditionType.DRAINING, "Draining", "2 left.")],
            ConditionStatus.FALSE,
            "Draining",
        ),
        (
            [ACCEPTED, INJECTED, Verdict.unknown(ConditionType.STORE_REACHABLE, "Unknown", "Nobody said.")],
            ConditionStatus.UNKNOWN,
            "Unknown",
        ),
        (
            [ACCEPTED, Verdict.no(ConditionType.AUTOSCALING_ACTIVE, "ExternalAutoscalerFound", "HPA x.")],
            ConditionStatus.FALSE,
            "ExternalAutoscalerFound",
        ),
    ],
)
def test_ready_tells_the_first_thing_that_is_not_so(
    verdicts: list[Verdict], status: ConditionStatus, reason: str
) -> None:
    ready = sum_up(verdicts)

    assert (ready.status, ready.reason) == (status, reason)


def test_what_is_said_can_be_found_again() -> None:
    found = proxy(*merge((), [ACCEPTED], 1, NOON))

    assert find(found, ConditionType.ACCEPTED) == ACCEPTED
    assert find(found, ConditionType.READY) is None
    assert became(found, ConditionType.ACCEPTED, ConditionStatus.TRUE) == NOON
    assert became(found, ConditionType.ACCEPTED, ConditionStatus.FALSE) is None
    assert became({}, ConditionType.ACCEPTED, ConditionStatus.TRUE) is None
