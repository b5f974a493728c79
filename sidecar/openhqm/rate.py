"""A token bucket: at most so many requests started per second. Pure; the clock is passed in."""

from __future__ import annotations

import math


class TokenBucket:
    """Grants up to *rate_per_second* tokens, saving up a tenth of a second's worth, at least one.

    Saving up more would let an idle hour end in a burst at twice the rate; less would lose tokens
    between two turns of the dispatcher.

    Args:
        rate_per_second: 0 grants everything.
        now: seconds on the clock that later calls use.
    """

    def __init__(self, rate_per_second: float, now: float) -> None:
        self.rate_per_second = rate_per_second
        self._most = max(1.0, rate_per_second / 10)
        self._tokens = self._most
        self._filled_at = now

    def take(self, wanted: int, now: float) -> int:
        """Take up to *wanted* tokens; returns how many were granted."""
        if not self.rate_per_second:
            return wanted
        self._fill(now)
        granted = min(wanted, math.floor(self._tokens))
        self._tokens -= granted
        return granted

    def give_back(self, unused: int) -> None:
        """Return tokens that started nothing."""
        self._tokens = min(self._most, self._tokens + unused)

    def wait_seconds(self, now: float) -> float:
        """Seconds until a token is there; 0.0 when one is."""
        if not self.rate_per_second:
            return 0.0
        self._fill(now)
        return max(0.0, (1.0 - self._tokens) / self.rate_per_second)

    def _fill(self, now: float) -> None:
        elapsed_seconds = max(0.0, now - self._filled_at)
        self._tokens = min(self._most, self._tokens + elapsed_seconds * self.rate_per_second)
        self._filled_at = now
