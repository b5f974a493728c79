"""The circuit breaker: leaves an app alone that refuses or drops connections. Pure; clock passed in.

The dispatcher asks `permits` before it leases, so an open breaker costs no attempt and no claim: the
queue waits. Slots report what became of every call.

    CLOSED ──failures in a row, or most of a window────────> OPEN ──pause over──> HALF_OPEN
       ^                                                        ^                       │
       │                                                        └──probe failed, pause x2┤
       └────────────────────────────────────────────────────────────probe succeeded──────┘
"""

from __future__ import annotations

import enum

from openhqm.settings import BreakerSettings

WINDOW_CALLS = 32
"""Calls counted together; when half of them or more failed or were told 502, 503 or 504, it opens."""


class BreakerState(enum.StrEnum):
    """Whether calls go to the app."""

    CLOSED = "closed"
    """They do."""
    OPEN = "open"
    """None does until the pause is over."""
    HALF_OPEN = "half-open"
    """One does, the probe; what becomes of it decides."""


class CallResult(enum.Enum):
    """What one call says about the app's health."""

    SUCCESS = "success"
    """It answered like an app that works; 4xx and 500 included."""
    UNAVAILABLE = "unavailable"
    """It answered 502, 503 or 504, or too late: counts in the share, not in the row."""
    FAILURE = "failure"
    """The connection was refused or lost."""
    NEUTRAL = "neutral"
    """Nothing learned, as when the call was cancelled."""


class Breaker:
    """One app's breaker.

    Args:
        settings: `breaker.*`.
    """

    def __init__(self, settings: BreakerSettings) -> None:
        self._settings = settings
        self._in_a_row = 0
        self._calls = 0
        self._failed = 0
        self._pause_seconds = settings.open_seconds
        self._probe_at = 0.0
        self._probing = False
        self.state = BreakerState.CLOSED

    def apply(self, settings: BreakerSettings) -> None:
        """Take over hot settings; the state stays, a pause under way keeps its length."""
        self._settings = settings
        self._pause_seconds = min(self._pause_seconds, settings.max_open_seconds)

    def permits(self, now: float, wanted: int) -> int:
        """How many of *wanted* calls may start: all, one (the probe), or none."""
        if self.state is BreakerState.CLOSED:
            return wanted
        if self.state is BreakerState.OPEN and now >= self._probe_at:
            self.state = BreakerState.HALF_OPEN
        if self.state is BreakerState.HALF_OPEN and not self._probing:
            return min(wanted, 1)
        return 0

    def wait_seconds(self, now: float) -> float:
        """Seconds until `permits` could change by itself; 0.0 unless open."""
        if self.state is not BreakerState.OPEN:
            return 0.0
        return max(0.0, self._probe_at - now)

    def started(self) -> bool:
        """A call starts. Returns whether it is the probe; `ended` must be told."""
        if self.state is not BreakerState.HALF_OPEN or self._probing:
            return False
        self._probing = True
        return True

    def ended(self, result: CallResult, now: float, *, probe: bool = False) -> None:
        """A call ended. Calls begun before the breaker opened say nothing once it is open."""
        if probe:
            self._probing = False
            self._judge_probe(result, now)
        elif self.state is BreakerState.CLOSED and result is not CallResult.NEUTRAL:
            self._count(result, now)

    def succeeded(self, now: float) -> None:
        """What `ended` does for a SUCCESS that is not the probe's, while closed: most calls by far."""
        self._in_a_row = 0
        self._calls += 1
        if self._calls == WINDOW_CALLS:
            self._judge_window(now)

    def _judge_probe(self, result: CallResult, now: float) -> None:
        if result is CallResult.SUCCESS:
            self._close()
        elif result is not CallResult.NEUTRAL:
            self._pause_seconds = min(self._pause_seconds * 2, self._settings.max_open_seconds)
            self._open(now)

    def _count(self, result: CallResult, now: float) -> None:
        if result is CallResult.SUCCESS:
            self.succeeded(now)
            return
        self._in_a_row = self._in_a_row + 1 if result is CallResult.FAILURE else 0
        self._calls += 1
        self._failed += 1
        if self._in_a_row >= self._settings.failures:
            self._open(now)
        elif self._calls == WINDOW_CALLS:
            self._judge_window(now)

    def _judge_window(self, now: float) -> None:
        mostly_failed = self._failed * 2 >= WINDOW_CALLS
        self._calls = self._failed = 0
        if mostly_failed:
            self._open(now)

    def _open(self, now: float) -> None:
        self.state = BreakerState.OPEN
        self._probe_at = now + self._pause_seconds

    def _close(self) -> None:
        self.state = BreakerState.CLOSED
        self._in_a_row = 0
        self._calls = self._failed = 0
        self._pause_seconds = self._settings.open_seconds
