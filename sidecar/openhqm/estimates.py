"""How long a queued request will probably take: the figure behind Retry-After and the ETA.

Asked by ingress and results; learns from the samples that `sampling.py` takes once a second. An
estimate for clients, never a decision.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from openhqm.stores.base import Counts, Lane

MAX_RETRY_AFTER_SECONDS = 300
_SMOOTHING = 0.3
"""Weight of the newest measurement in the rate: follows a change of pace within a few seconds."""


class DrainRate:
    """Finished requests per second of those that had to wait, and what follows from it.

    Only the time between two samples that both found work counts: while nothing waits, as many finish as
    arrive, which says nothing of how fast the app could be.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended: int | None = None
        self._observed_at = 0.0
        self._was_busy = False
        self.backlog = 0
        self.per_second: float | None = None

    def sampled(self, lane: Lane, counts: Counts | None) -> None:
        """Learn from a sample; while the store is away, no estimate is better than an old one."""
        if counts is None:
            self.per_second = None
        elif lane is Lane.REQUESTS:
            self._observe(counts)

    def _observe(self, counts: Counts) -> None:
        now = self._clock()
        ended = counts.done + counts.failed + counts.cancelled + counts.expired
        is_busy = counts.backlog > counts.delayed
        if self._ended is not None and now > self._observed_at and is_busy and self._was_busy:
            rate = max(ended - self._ended, 0) / (now - self._observed_at)
            known = self.per_second
            self.per_second = rate if known is None else known + (rate - known) * _SMOOTHING
        self._ended, self._observed_at, self._was_busy = ended, now, is_busy
        self.backlog = counts.backlog

    def eta_seconds(self, position: int | None) -> float | None:
        """Return when a record with *position* others ahead will be run; None when not known."""
        if position is None or not self.per_second:
            return None
        return round((position + 1) / self.per_second, 3)

    def retry_after_seconds(self, position: int | None = None) -> int:
        """Return when to ask again, in whole seconds, at least 1; by default as the last in line."""
        eta = self.eta_seconds(self.backlog if position is None else position)
        return 1 if eta is None else min(max(math.ceil(eta), 1), MAX_RETRY_AFTER_SECONDS)
