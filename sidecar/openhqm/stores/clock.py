"""The clock of stores that live in one process."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds since the epoch, never going back."""


class AnchoredClock:
    """Wall time at the start plus monotonic time since.

    Setting the machine's clock back or forth while the process runs neither lapses leases nor
    postpones retries (leases, backoff and times to live are all differences).
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        return self._offset + time.monotonic()
