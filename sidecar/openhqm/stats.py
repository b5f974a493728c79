"""What is going on, as figures: the JSON behind /stats, /readyz, `openhqm top` and the dashboard.

Counts come from the Store and hold for the whole queue, whoever shares it; what `egress` says holds
for this process. Rates come from the samples that `sampling.py` takes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from openhqm import __version__
from openhqm.errors import StoreUnavailable
from openhqm.lifecycle import Event, Happening, Lifecycle
from openhqm.sampling import SAMPLE_SECONDS
from openhqm.stores.base import Counts, Lane, Store

WINDOW_SECONDS = 10.0
"""Rates are means over this long: shorter jumps about, longer hides a burst from the autoscaler."""

PREVIOUS_SECONDS = 1.0
"""For asking the previous store: the autoscaler must not miss all figures because that one is away."""

_SMOOTHING = 0.1
"""Weight of the newest attempt in the mean duration: about the last twenty count."""

_DEAD_LETTERED = Happening.DEAD_LETTERED  # an enum takes 0.06 us to look a member up


class Phase(enum.StrEnum):
    """Where the process is in its life."""

    STARTING = "starting"
    """Not listening yet."""
    SERVING = "serving"
    """Accepting requests."""
    DRAINING = "draining"
    """SIGTERM came, or the Pod ends: finishing, about to exit."""


class EgressFigures(Protocol):
    """What egress tells of itself."""

    @property
    def in_flight(self) -> int:
        """Slots that hold a lease."""
        ...

    @property
    def concurrency(self) -> int:
        """Slots in all."""
        ...

    @property
    def paused(self) -> bool:
        """Whether this process sends nothing by its settings."""
        ...

    @property
    def breaker_state(self) -> str:
        """closed, open or half-open."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    counts: Counts

    @property
    def ended(self) -> int:
        return self.counts.done + self.counts.failed + self.counts.cancelled + self.counts.expired


class Stats:
    """Figures of one process and its queue.

    Args:
        egress: None where this process replays nothing (mode ingress).
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        egress: EgressFigures | None,
        lifecycle: Lifecycle,
        queue: str = "default",
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.phase = Phase.STARTING
        self.ports: dict[str, int] = {}
        """Where the servers really listen: "ingress", "health", "admin" -> port."""
        self.waiting_clients: Callable[[], int] = lambda: 0
        """Clients held for an answer; none where this process takes nothing in (mode egress)."""
        self.settings: Callable[[], str | None] = lambda: None
        """Names the settings file in force, as `Reloader.digest`."""
        self.held: Callable[[], int] = lambda: 0
        """Requests that pass straight through, held until the app is there."""
        self.passed: Callable[[], tuple[int, int]] = lambda: (0, 0)
        """Requests that came to pass straight through since the start, and those with the app now."""
        self.app_stopping: Callable[[], bool] = lambda: False
        """Whether a container of the app said that it is about to end."""
        self.carried: Callable[[], Awaitable[int | None]] | None = None
        """Messages that wait in the broker, None while that is not known; no function without a broker."""
        self.previous: Store | None = None
        """The store that is being finished (`store.previous_url`)."""
        self._store = store
        self._egress = egress
        self._queue = queue
        self._clock = clock
        self._started_at = clock()
        self._samples: deque[_Sample] = deque(maxlen=round(WINDOW_SECONDS / SAMPLE_SECONDS) + 1)
        self._reachable = True
        self._mean_app_seconds: float | None = None
        self._busy_seconds = 0.0
        self._happened = lifecycle.happened
        lifecycle.listen(self._learn, (Happening.ANSWERED, Happening.RETRIED, Happening.DEAD_LETTERED))

    def _learn(self, event: Event) -> None:
        """Learn how long the app takes, and add it up: with the completed requests that gives the app time
        of one, repeated attempts included."""
        seconds = event.duration_seconds
        self._busy_seconds += seconds
        if seconds > 0 and event.what is not _DEAD_LETTERED:
            mean = self._mean_app_seconds
            self._mean_app_seconds = seconds if mean is None else mean + (seconds - mean) * _SMOOTHING

    def sampled(self, lane: Lane, counts: Counts | None) -> None:
        """Learn from a sample of the counts; None says that the store is away."""
        self._reachable = counts is not None
        if counts is not None and lane is Lane.REQUESTS:
            self._samples.append(_Sample(self._clock(), counts))

    def readiness(self) -> dict[str, Any]:
        """Return the body of /readyz, from what is known: it never waits for the store."""
        return {
            "ready": self.phase is Phase.SERVING,
            "phase": self.phase,
            "store": self._about_store(),
            "breaker": self._egress.breaker_state if self._egress else None,
        }

    async def read(self) -> dict[str, Any]:
        """Return the body of /stats. Top-level figures are for the autoscaler, the rest for people.

        Raises:
            StoreUnavailable: the counts cannot be read.
        """
        counts = await self._store.counts()
        callbacks = await self._store.counts(Lane.CALLBACKS)
        arrival, drain = self._rates(_Sample(self._clock(), counts))
        egress = self._egress
        passed, passing = self.passed()
        waiting = await self.carried() if self.carried is not None else 0
        # What the store has given to the broker it counts itself.
        foreign = max((waiting or 0) - counts.carried, 0)
        return {
            "queue": self._queue,
            "backlog": counts.backlog + foreign,
            "previous_backlog": await self._previous_backlog(),
            "broker_backlog": waiting,
            "due": max(counts.queued + counts.retrying - counts.delayed, 0) + foreign,
            "delayed": counts.delayed,
            "in_flight": egress.in_flight if egress else 0,
            "concurrency": egress.concurrency if egress else 0,
            "waiting_clients": self.waiting_clients(),
            "held": self.held(),
            "passed": passed,
            "passing": passing,
            "oldest_age_seconds": _age_seconds(counts),
            "arrival_per_second": arrival,
            "drain_per_second": drain,
            "mean_app_seconds": _rounded(self._mean_app_seconds),
            "busy_seconds": round(self._busy_seconds, 3),
            "paused": counts.paused or (egress is not None and egress.paused),
            "breaker": egress.breaker_state if egress else None,
            "app_healthy": self._app_healthy(),
            "phase": self.phase,
            "draining": self.phase is Phase.DRAINING,
            "ports": self.ports,
            "version": __version__,
            "settings": self.settings(),
            "uptime_seconds": round(self._clock() - self._started_at, 1),
            "store": self._about_store(),
            "requests": _described(counts),
            "callbacks": _described(callbacks),
            "events": {what.value: count for what, count in self._happened.items()},
        }

    async def _previous_backlog(self) -> int | None:
        """Unfinished requests in the previous store, 0 without one; None while it cannot be asked."""
        if self.previous is None:
            return 0
        try:
            async with asyncio.timeout(PREVIOUS_SECONDS):
                return (await self.previous.counts()).backlog
        except (StoreUnavailable, TimeoutError):
            return None

    def _app_healthy(self) -> bool | None:
        """Whether requests are sent to the app, as far as it is up to the app; None where none are."""
        if self._egress is None:
            return None
        return self._egress.breaker_state == "closed" and not self.app_stopping()

    def _about_store(self) -> dict[str, Any]:
        abilities = self._store.abilities
        return {
            "reachable": self._reachable,
            "durability": abilities.durability.name.lower(),
            "shared": abilities.shared,
        }

    def _rates(self, now: _Sample) -> tuple[float | None, float | None]:
        """Arrivals and ends per second over the window; None until it holds something."""
        first = self._samples[0] if self._samples else now
        seconds = now.at - first.at
        if seconds <= 0:
            return None, None
        arrived = max(now.counts.accepted - first.counts.accepted, 0)
        return round(arrived / seconds, 2), round(max(now.ended - first.ended, 0) / seconds, 2)


def _described(counts: Counts) -> dict[str, Any]:
    fields = dataclasses.asdict(counts)
    del fields["oldest_ready_at"]
    return {**fields, "backlog": counts.backlog, "conserved": counts.conserved}


def _age_seconds(counts: Counts) -> float:
    """How long the first leasable record has been waiting; 0.0 when there is none.

    The store's clock is compared with ours: a figure for people and scaling, never a decision.
    """
    if counts.oldest_ready_at is None:
        return 0.0
    return round(max(time.time() - counts.oldest_ready_at, 0.0), 3)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
