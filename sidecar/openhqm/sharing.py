"""Two egress loops before one app: one for the store in use, one that finishes the previous store.

Built by `main.py` with `store.previous_url` set. Together they keep to `egress.concurrency` and to one
rate. What is due in the previous store was accepted first and goes first: as many slots as that needs are
kept free for it. What waits for its time there holds nobody up.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from openhqm.dispatcher import Held
from openhqm.egress import Egress
from openhqm.settings import Settings
from openhqm.stores.base import Counts, Lane, Settlement

LOOK_SECONDS = 0.05
"""How soon a loop without room looks again: the other's attempts end without a word to it."""

log = structlog.get_logger("openhqm.sharing")


class PreviousBacklog:
    """What the previous store still holds, as last sampled."""

    def __init__(self) -> None:
        self.unfinished = 0
        self.due = 0
        self._told = False

    def sampled(self, lane: Lane, counts: Counts | None) -> None:
        """Learn from a sample; a store that is away has nothing to give."""
        if lane is not Lane.REQUESTS:
            return
        if counts is None or counts.paused:
            self.due = 0
        else:
            away = counts.publishing + counts.carried
            self.due = max(counts.queued + counts.retrying - counts.delayed - away, 0)
        if counts is not None:
            self.unfinished = counts.backlog
            self._tell()

    def read(self) -> float:
        """Unfinished requests there."""
        return self.unfinished

    def _tell(self) -> None:
        if not self.unfinished and not self._told:
            log.info("previous.finished", hint="its answers live on there until response.ttl_seconds is over")
        self._told = not self.unfinished


class SharingEgress(Egress):
    """An egress loop that leaves room for another one. `share` is called before both run."""

    _partner: SharingEgress
    _backlog: PreviousBacklog
    _is_previous = False
    _asked = 0
    """Permits in a lease call that has not come back."""

    def share(self, partner: SharingEgress, backlog: PreviousBacklog, *, is_previous: bool) -> None:
        """Say who the other one is.

        Args:
            is_previous: whether this one finishes the previous store.
        """
        self._partner = partner
        self._backlog = backlog
        self._is_previous = is_previous
        if is_previous:
            self._rate = partner._rate

    def apply(self, settings: Settings) -> None:
        """Take over the hot settings; the one of the store in use takes them first."""
        super().apply(settings)
        if self._is_previous:
            self._rate = self._partner._rate

    @property
    def in_use(self) -> int:
        """Slots that hold an attempt or will."""
        return self.in_flight + self.ahead + self._asked

    def permits(self, wanted: int, now: float) -> tuple[int, float | None]:
        due = self._backlog.due
        room = self.concurrency - self.in_use - self._partner.in_use
        # Without anything due its lease calls would only keep slots from the other one.
        room = min(room, due) if self._is_previous else room - due
        if room <= 0:
            return 0, LOOK_SECONDS
        granted, wait_seconds = super().permits(min(wanted, room), now)
        self._asked += granted
        return granted, wait_seconds

    def unused(self, permits: int) -> None:
        self._asked -= permits
        if self._is_previous and permits:
            self._backlog.due = 0  # it was less than sampled: others of this queue were faster
        super().unused(permits)

    def taken(self, batch: Sequence[Held]) -> None:
        self._asked -= len(batch)
        if self._is_previous:
            self._backlog.due = max(self._backlog.due - len(batch), 0)
        super().taken(batch)

    def committed(self, batch: Sequence[tuple[Held, Settlement]], accepted: Sequence[bool]) -> None:
        # Those without notes were given back at once, never `taken`.
        self._asked -= sum([held.notes is None for held, _ in batch])
        super().committed(batch, accepted)


class Together:
    """The figures of both loops as those of one.

    Args:
        egress: the one of the store in use first.
    """

    def __init__(self, egress: Sequence[Egress]) -> None:
        self._all = egress

    @property
    def in_flight(self) -> int:
        return sum(each.in_flight for each in self._all)

    @property
    def concurrency(self) -> int:
        return self._all[0].concurrency

    @property
    def paused(self) -> bool:
        return self._all[0].paused

    @property
    def breaker_state(self) -> str:
        return self._all[0].breaker_state
