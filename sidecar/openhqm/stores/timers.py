"""Times at which something is due, for stores that keep them in memory."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator


class Timers:
    """At most one time per sequence number; the heap may hold old entries, the dict decides."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._times: dict[int, float] = {}

    def set(self, seq: int, when: float | None) -> None:
        """Replace the time of *seq*; None removes it."""
        if when is None:
            self._times.pop(seq, None)
            return
        self._times[seq] = when
        heapq.heappush(self._heap, (when, seq))
        if len(self._heap) > 2 * len(self._times) + 64:
            self._heap = [(when, seq) for seq, when in self._times.items()]
            heapq.heapify(self._heap)

    def next_at(self) -> float:
        """The earliest time; infinite when there is none."""
        while self._heap and self._times.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def pop_due(self, now: float) -> Iterator[int]:
        """Remove and yield what is due at *now*, earliest first."""
        while self.next_at() <= now:
            seq = heapq.heappop(self._heap)[1]
            del self._times[seq]
            yield seq
