"""Which bounds hold now: a proxy's own, or those of the schedules in force. Pure; the time is passed in.

`law.py` keeps its answer within them. A schedule is in force from each start its cron line names for its
duration, in its own time zone, daylight saving included.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cronsim import CronSim, CronSimError

from openhqm_operator.api.spec import Scaling, Schedule


@dataclass(frozen=True, slots=True)
class Bounds:
    """Least and most replicas, and the names of the schedules that say so."""

    least: int
    most: int
    schedules: tuple[str, ...] = ()


class ScheduleInvalid(ValueError):
    """A schedule's start or time zone means nothing; the text names the schedule and the fault."""


def bounds_at(scaling: Scaling, now: datetime) -> Bounds:
    """Return the bounds in force.

    The largest minimum and the largest maximum of the schedules in force replace the proxy's own; where
    they contradict, the maximum wins, because it is what somebody pays for.

    Args:
        now: with a time zone.

    Raises:
        ScheduleInvalid: a schedule cannot be understood.
    """
    active = [schedule for schedule in scaling.schedules if is_in_force(schedule, now)]
    most = _largest([schedule.max_replicas for schedule in active], scaling.max_replicas)
    least = _largest([schedule.min_replicas for schedule in active], scaling.min_replicas)
    return Bounds(min(least, most), most, tuple(schedule.name for schedule in active))


def is_in_force(schedule: Schedule, now: datetime) -> bool:
    """Say whether one of its starts lies less than its duration ago.

    Raises:
        ScheduleInvalid: it cannot be understood.
    """
    # Subtracted in UTC: wall clock arithmetic would make a window longer or shorter when clocks change.
    began = (now - timedelta(seconds=schedule.duration_seconds)).astimezone(_zone(schedule))
    try:
        start: datetime | None = next(CronSim(_five_fields(schedule), began), None)
    except CronSimError as exc:
        raise ScheduleInvalid(f"schedule {schedule.name}: start {schedule.start!r}: {exc}") from exc
    return start is not None and start <= now


def _zone(schedule: Schedule) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(schedule.time_zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise ScheduleInvalid(
            f"schedule {schedule.name}: timeZone {schedule.time_zone!r} is no IANA time zone"
        ) from exc


def _five_fields(schedule: Schedule) -> str:
    fields = schedule.start.split()
    if len(fields) != 5:
        raise ScheduleInvalid(
            f"schedule {schedule.name}: start has {len(fields)} fields, five are needed: minute, hour, day "
            "of the month, month, day of the week"
        )
    return " ".join(fields)


def _largest(given: Sequence[int | None], otherwise: int) -> int:
    return max((number for number in given if number is not None), default=otherwise)
