"""Conditions of an AsyncProxy: made of verdicts, merged with what was there, summed up in `Ready`. Pure.

A condition changes when its meaning does: its time moves with its status alone, and nothing that counts
every second goes into a message. So a reconcile that finds nothing new writes nothing.
Source: metav1.Condition (KEP-1623).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openhqm_operator.api.status import ConditionStatus, ConditionType

_ORDER = tuple(ConditionType)

_BLOCKING = (
    ConditionType.ACCEPTED,
    ConditionType.DRAINING,
    ConditionType.INJECTED,
    ConditionType.STORE_REACHABLE,
    ConditionType.AUTOSCALING_ACTIVE,
)
"""What keeps a proxy from being Ready, the most telling first."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is so, why in one word, and why and what to do in a sentence."""

    type: ConditionType
    status: ConditionStatus
    reason: str
    message: str

    @classmethod
    def yes(cls, type: ConditionType, reason: str, message: str) -> Verdict:
        return cls(type, ConditionStatus.TRUE, reason, message)

    @classmethod
    def no(cls, type: ConditionType, reason: str, message: str) -> Verdict:
        return cls(type, ConditionStatus.FALSE, reason, message)

    @classmethod
    def unknown(cls, type: ConditionType, reason: str, message: str) -> Verdict:
        return cls(type, ConditionStatus.UNKNOWN, reason, message)


def sum_up(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on `Ready`: the first thing that is not as it should be, or that all is well."""
    by_type = {verdict.type: verdict for verdict in verdicts}
    for kind in _BLOCKING:
        verdict = by_type.get(kind)
        if verdict is not None and not _is_well(verdict):
            status = ConditionStatus.FALSE
            if verdict.status is ConditionStatus.UNKNOWN:
                status = ConditionStatus.UNKNOWN
            return Verdict(ConditionType.READY, status, verdict.reason, verdict.message)
    return Verdict.yes(ConditionType.READY, "Ready", "All is as asked for.")


def _is_well(verdict: Verdict) -> bool:
    wanted = ConditionStatus.FALSE if verdict.type is ConditionType.DRAINING else ConditionStatus.TRUE
    return verdict.status is wanted


def merge(
    before: Sequence[Mapping[str, Any]], verdicts: Iterable[Verdict], generation: int, now: dt.datetime
) -> list[dict[str, Any]]:
    """Make the conditions of *verdicts*, in a fixed order.

    Args:
        before: conditions there are; where the status is the same, so stays the time.
        generation: of the AsyncProxy the verdicts were found at.
        now: aware; for conditions whose status changed.
    """
    known = {condition["type"]: condition for condition in before}
    return [
        {
            "type": verdict.type.value,
            "status": verdict.status.value,
            "observedGeneration": generation,
            "lastTransitionTime": _since(known.get(verdict.type), verdict) or timestamp(now),
            "reason": verdict.reason,
            "message": verdict.message,
        }
        for verdict in sorted(verdicts, key=lambda verdict: _ORDER.index(verdict.type))
    ]


def _since(condition: Mapping[str, Any] | None, verdict: Verdict) -> str | None:
    if condition is None or condition["status"] != verdict.status:
        return None
    return str(condition["lastTransitionTime"])


def find(proxy: Mapping[str, Any], type: ConditionType) -> Verdict | None:
    """What the AsyncProxy *proxy* says now, whoever wrote it."""
    for condition in _conditions(proxy):
        if condition["type"] == type:
            status = ConditionStatus(condition["status"])
            return Verdict(type, status, condition["reason"], condition["message"])
    return None


def became(proxy: Mapping[str, Any], type: ConditionType, status: ConditionStatus) -> dt.datetime | None:
    """Since when the condition *type* has had this status; None if it has another."""
    for condition in _conditions(proxy):
        if condition["type"] == type and condition["status"] == status:
            return dt.datetime.fromisoformat(condition["lastTransitionTime"])
    return None


def _conditions(proxy: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = (proxy.get("status") or {}).get("conditions") or ()
    return found


def timestamp(moment: dt.datetime) -> str:
    """As metav1.Time: UTC, whole seconds."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
