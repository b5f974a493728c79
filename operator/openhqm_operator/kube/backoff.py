"""How long to wait after a failure: doubling, bounded, with a random part. Pure but for the dice."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Waits between attempts at one thing.

    Attributes:
        base: seconds after the first failure.
        limit: seconds never exceeded, unless the server asks for more.
        jitter: returns 0 to 1; half of each wait is left to it, so that many do not come back at once.
    """

    base: float = 0.5
    limit: float = 30.0
    jitter: Callable[[], float] = random.random

    def delay(self, failures: int, at_least: float = 0.0) -> float:
        """Seconds to wait after *failures* in a row, 1 or more.

        Args:
            at_least: what the server asked for, seconds; the random part comes on top of it.
        """
        doublings = min(failures - 1, 32)  # beyond that no limit is of that size
        delay = min(self.limit, self.base * 2.0**doublings)
        spread = delay / 2 * self.jitter()
        return max(delay / 2, at_least) + spread
