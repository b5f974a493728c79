"""What Prometheus will want to know, counted as it happens: plain integers, a few additions per request.

`metrics.py` gives them names, labels and text when somebody scrapes, and is loaded only then: its
library costs 4 MiB, which a sidecar that nobody scrapes need not hold.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable

from openhqm.lifecycle import Event, Happening, Lifecycle
from openhqm.stores.base import Counts, Lane

BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
MOST_REASONS = 64
"""Reasons are our own slugs, or a handler's package's; what exceeds this counts as `other`."""

_TIMED = frozenset({Happening.ANSWERED, Happening.RETRIED, Happening.DEAD_LETTERED})


class Tallies:
    """The figures of one process, and the store's as last sampled.

    Args:
        answers: attempts by status class: index 2 counts the 2xx, 0 what has none.
        buckets: attempts by duration, one more than `BUCKETS_SECONDS` for what is longer.
        figures: name, documentation and value of what other modules keep.
    """

    def __init__(self, lifecycle: Lifecycle) -> None:
        self.happened = lifecycle.happened
        self.answers = [0] * 6
        self.refusals: Counter[str] = Counter()
        self.dead_letters: Counter[str] = Counter()
        self.buckets = [0] * (len(BUCKETS_SECONDS) + 1)
        self.duration_seconds = 0.0
        self.counts: dict[Lane, Counts] = {}
        self.figures: list[tuple[str, str, Callable[[], float]]] = []
        lifecycle.listen(self._observe, _TIMED)
        lifecycle.listen(self._count_refusal, [Happening.REFUSED])
        lifecycle.listen(self._count_dead_letter, [Happening.DEAD_LETTERED])

    def figure(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Show a figure another module keeps, as the gauge *name*."""
        self.figures.append((name, documentation, read))

    def sampled(self, lane: Lane, counts: Counts | None) -> None:
        """Show *counts* from now on; while the store is away the last ones stay."""
        if counts is not None:
            self.counts[lane] = counts

    def _observe(self, event: Event) -> None:
        seconds = event.duration_seconds
        self.buckets[bisect_left(BUCKETS_SECONDS, seconds)] += 1
        self.duration_seconds += seconds
        self.answers[event.status // 100 if 100 <= event.status < 600 else 0] += 1

    def _count_refusal(self, event: Event) -> None:
        _add(self.refusals, event.reason)

    def _count_dead_letter(self, event: Event) -> None:
        _add(self.dead_letters, event.reason)


def _add(counter: Counter[str], reason: str) -> None:
    known = reason in counter or len(counter) < MOST_REASONS
    counter[reason or "none" if known else "other"] += 1
