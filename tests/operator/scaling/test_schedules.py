"""Schedules: in force from their start for their duration, in their own time zone."""

from __future__ import annotations

import datetime as dt
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from openhqm_operator.api.spec import Scaling, Schedule
from openhqm_operator.scaling.schedules import Bounds, ScheduleInvalid, bounds_at, is_in_force


def at(text: str, zone: str = "Etc/UTC") -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


def schedule(start: str = "0 8 * * 1-5", hours: float = 10, **others: Any) -> Schedule:
    return Schedule(**{"name": "work", "start": start, "duration_seconds": int(hours * 3600)} | others)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("2026-11-23T07:59:59", False),
        ("2026-11-23T08:00:00", True),
        ("2026-11-23T17:59:59", True),
        ("2026-11-23T18:00:00", False),
        ("2026-11-22T09:00:00", False),  # a Sunday
    ],
)
def test_it_is_in_force_from_its_start_for_its_duration(now: str, expected: bool) -> None:
    assert is_in_force(schedule(), at(now)) is expected


def test_it_may_reach_into_the_next_day() -> None:
    assert is_in_force(schedule("0 22 * * 5", hours=8), at("2026-11-21T05:00:00"))


def test_it_keeps_to_its_time_zone_when_clocks_change() -> None:
    berlin = schedule("0 8 * * *", hours=1, time_zone="Europe/Berlin")

    assert is_in_force(berlin, at("2026-10-24T06:30:00"))  # still summer time
    assert is_in_force(berlin, at("2026-10-25T07:30:00"))  # winter time
    assert not is_in_force(berlin, at("2026-10-25T06:30:00"))


def test_its_duration_is_real_time_when_clocks_change() -> None:
    night = schedule("0 1 * * *", hours=3, time_zone="Europe/Berlin")  # 25 October: 3 hours end at 3:00

    assert is_in_force(night, at("2026-10-25T01:59:00"))
    assert not is_in_force(night, at("2026-10-25T02:00:00"))


def test_the_largest_of_those_in_force_replace_the_bounds() -> None:
    scaling = Scaling(
        min_replicas=1,
        max_replicas=10,
        schedules=(
            schedule(name="a", min_replicas=5),
            schedule(name="b", min_replicas=3, max_replicas=40),
            schedule(name="c", start="0 0 1 1 *", max_replicas=99),
        ),
    )

    assert bounds_at(scaling, at("2026-11-23T09:00:00")) == Bounds(5, 40, ("a", "b"))
    assert bounds_at(scaling, at("2026-11-23T20:00:00")) == Bounds(1, 10)


def test_the_maximum_wins_where_bounds_contradict() -> None:
    scaling = Scaling(max_replicas=10, schedules=(schedule(min_replicas=20),))

    assert bounds_at(scaling, at("2026-11-23T09:00:00")) == Bounds(10, 10, ("work",))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"start": "0 8 * * mon-xyz"}, "schedule work: start"),
        ({"start": "0 0 8 * * *"}, "five are needed"),
        ({"start": "0 0 31 2 *"}, "schedule work: start"),
        ({"time_zone": "Europe/Atlantis"}, "no IANA time zone"),
        ({"time_zone": "../../etc/passwd"}, "no IANA time zone"),
    ],
)
def test_what_cannot_be_understood_is_named(values: dict[str, str], words: str) -> None:
    with pytest.raises(ScheduleInvalid, match=words):
        is_in_force(schedule(**values), at("2026-11-23T09:00:00"))
