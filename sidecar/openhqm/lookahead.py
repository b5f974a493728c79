"""How many leases to hold beyond the attempts under way, so that no slot waits for the store. Pure.

A slot that has become free waits for a lease, that is for a commit; where the app answers at once that is
most of what a request takes. Twice as many as begin while a lease call is under way keep the slots busy, for
calls overlap and attempts end in bursts. Where attempts are long that is none, and so it must be: a lease
nobody works on keeps other processes from the request, and of all that a killed process had leased the
outcome is unknown (design R4).
"""

from __future__ import annotations

LONGEST_CALL_SECONDS = 0.1
"""A lease call that took longer did not work all that time, it waited for something to lease."""

SHORTEST_ATTEMPT_SECONDS = 0.0001
"""Event loops tell the time in milliseconds: the mean of very short attempts may be 0."""

_WEIGHT = 1 / 8
"""Of the newest attempt or call in the mean."""


class Lookahead:
    """Knows how long attempts and lease calls took lately."""

    def __init__(self) -> None:
        self._attempt_seconds: float | None = None
        self._call_seconds: float | None = None

    def most(self, slots: int, under_way_seconds: float = 0.0) -> int:
        """Leases to hold beyond those of *slots* attempts: at most as many again.

        Args:
            under_way_seconds: how long an attempt has been under way that has not ended: when an app comes to
                a halt, nothing ends that could be learned from.
        """
        if self._attempt_seconds is None or self._call_seconds is None:
            return 0
        begun_per_second = slots / max(self._attempt_seconds, under_way_seconds, SHORTEST_ATTEMPT_SECONDS)
        return min(slots, round(2 * begun_per_second * self._call_seconds))

    def attempted(self, seconds: float) -> None:
        """Learn how long an attempt took."""
        self._attempt_seconds = _mean(self._attempt_seconds, seconds)

    def called(self, seconds: float) -> None:
        """Learn how long a lease call took that brought all it asked for: then there may be more."""
        self._call_seconds = _mean(self._call_seconds, min(seconds, LONGEST_CALL_SECONDS))


def _mean(mean: float | None, newest: float) -> float:
    return newest if mean is None else mean + (newest - mean) * _WEIGHT
