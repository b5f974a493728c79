"""What the SQLite store's owner knows without reading: figures, leases, where its lines begin, who publishes.

One process owns the file, so renewing a lease writes nothing, settling one reads nothing, and the
figures are written once per transaction. All of it follows the transaction: `roll_back` takes back
what it changed, `committed` tells it to those who wait.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from openhqm.stores.base import Body, Change, Options
from openhqm.stores.blobs import Garbage
from openhqm.stores.clock import Clock
from openhqm.stores.sqlite_rows import (
    DELAYED,
    LANES,
    PUBLISHING,
    READ_FIGURES,
    READY,
    STATES,
    WRITE_FIGURES,
    Figures,
    Held,
    Leased,
)
from openhqm.stores.sqlite_timers import Timers

OUTBOX = len(LANES)
"""Where there is work for those who publish; for those who lease it is the number of a lane."""

_PRIORITIES = range(10)


class Line:
    """Where the leasable records of a lane begin, by priority: after the `seq` that is kept of it.

    Records of one priority are leased in order of acceptance, so all that can be leased come after
    those that were. Where a record has come back among them the statement passes over the leased
    ones. A priority of which nothing is kept has nothing to lease.
    """

    def __init__(self) -> None:
        self._after: dict[int, int] = {}
        self.forget()

    def forget(self) -> None:
        """Anything may be anywhere."""
        self._after = dict.fromkeys(_PRIORITIES, 0)

    def join(self, priority: int, seq: int) -> None:
        """A record has become ready, or several from this one on."""
        if seq <= self._after.get(priority, seq):
            self._after[priority] = seq - 1

    def passed(self, priority: int, seq: int | None) -> None:
        """All ready ones of *priority* up to *seq* are leased; None: all there are."""
        if seq is None:
            self._after.pop(priority, None)
        else:
            self._after[priority] = seq

    @property
    def fronts(self) -> list[tuple[int, int]]:
        """Priorities that may have something to lease, highest first, and after which `seq`."""
        return sorted(self._after.items(), reverse=True)


class Outbox:
    """Which records have been handed out to be published, and until when nobody else gets them.

    The next owner of the file hands out anew what is to be published then: a broker may get a record
    twice. It is done in order of acceptance, so those that never were come after all that were;
    where a hold has ended it begins there again and passes over those still held.
    """

    def __init__(self) -> None:
        self.after = 0
        """All up to this `seq` have been handed out."""
        self.ends_at = math.inf
        """No hold ends before this; found anew when it is past."""
        self._until: dict[int, float] = {}

    @property
    def held(self) -> list[int]:
        return list(self._until)

    def hold(self, seqs: Sequence[int], until: float) -> None:
        self._until.update(dict.fromkeys(seqs, until))
        self.ends_at = min(self.ends_at, until)

    def release(self, seq: int) -> None:
        """A record is not to be published any more."""
        self._until.pop(seq, None)

    def end_holds(self, now: float) -> None:
        """Have those handed out again whose hold is over."""
        if now < self.ends_at:
            return
        for seq in [seq for seq, until in self._until.items() if until <= now]:
            del self._until[seq]
            self.after = min(self.after, seq - 1)
        self.ends_at = min(self._until.values(), default=math.inf)

    def remember(self) -> Callable[[], None]:
        """Return the way back to what is held now."""
        until = dict(self._until)

        def restore() -> None:
            self._until, self.after, self.ends_at = until, 0, -math.inf

        return restore


class Books:
    """See the module docstring.

    Args:
        on_committed: told the changes, and where there may be work (a lane or `OUTBOX`), once durable.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        options: Options,
        clock: Clock,
        garbage: Garbage,
        on_committed: Callable[[Sequence[Change], Iterable[int]], None],
    ) -> None:
        self.connection = connection
        self.options = options
        self.clock = clock
        self.timers = Timers(connection)
        self.leases: dict[bytes, Leased] = {}
        # No lease ends before this; found anew when it is past.
        self.lapses_at = math.inf
        self.figures = [Figures.of(self.one(READ_FIGURES, lane) or ()) for lane in range(len(LANES))]
        self.lines = [Line() for _ in LANES]
        self.outbox = Outbox()
        self.leased_ever = [0] * len(LANES)
        [last_seq] = self.one("SELECT max(seq) FROM records") or (None,)
        self.next_seq = (last_seq or 0) + 1
        self.changes: list[Change] = []
        self.dropped: list[Body] = []
        self.rung: set[int] = set()
        self._garbage = garbage
        self._on_committed = on_committed
        self._written = self._flushed = [figures.row() for figures in self.figures]
        self._undo: Callable[[], None] | None = None

    # -- the transaction's frame

    def begin(self) -> None:
        leases, figures = dict(self.leases), self._written
        next_seq, leased_ever = self.next_seq, list(self.leased_ever)
        restore_outbox = self.outbox.remember()

        def undo() -> None:
            self.leases, self.next_seq, self.leased_ever = leases, next_seq, leased_ever
            self.figures = [Figures.of(row) for row in figures]
            self.lapses_at = -math.inf
            for line in self.lines:
                line.forget()
            restore_outbox()

        self._undo = undo

    def flush(self) -> None:
        self._flushed = [figures.row() for figures in self.figures]
        for lane, row in enumerate(self._flushed):
            if row != self._written[lane]:
                self.connection.execute(WRITE_FIGURES, (*row, lane))

    def committed(self) -> None:
        self._written = self._flushed
        changes, rung = self.changes, self.rung
        self._garbage.add(*self.dropped)
        self._undo = None
        self._forget()
        self._on_committed(changes, rung)

    def roll_back(self) -> None:
        # There is nothing to undo when the transaction could not even begin.
        if self._undo is not None:
            self._undo()
            self._undo = None
        self._forget()
        self.timers.forget()

    def _forget(self) -> None:
        self.changes, self.rung, self.dropped = [], set(), []

    # -- what transitions have in common

    def one(self, sql: str, *values: object) -> tuple[Any, ...] | None:
        """Return the first row."""
        return self.connection.execute(sql, values).fetchone()  # type: ignore[no-any-return]

    def move(self, held: Held, state: int, reason: str = "") -> None:
        """Count and tell that a record goes from its state to *state*."""
        states = self.figures[held.lane].states
        states[held.state] -= 1
        states[state] += 1
        self.changes.append(Change(held.id, STATES[state], LANES[held.lane], reason))

    def has_become_ready(self, lane: int, priority: int, seq: int) -> None:
        self.figures[lane].ready += 1
        self.lines[lane].join(priority, seq)

    def has_left_stage(self, held: Held) -> None:
        """Count that no broker has a record any more, nor is to have it."""
        figures = self.figures[held.lane]
        if held.place == PUBLISHING:
            figures.publishing -= 1
            self.outbox.release(held.seq)
        else:
            figures.carried -= 1

    def set_timer(self, seq: int, place: int, ready_at: float, deadline: float | None) -> float | None:
        """Set the timer of a record that waits; returns when it wakes, None for never."""
        wakes_at = deadline
        if place == DELAYED and (deadline is None or ready_at < deadline):
            wakes_at = ready_at
        if wakes_at is not None:
            self.timers.set(max(place, READY), wakes_at, (seq,))
        return wakes_at


def place_of(ready_at: float, now: float) -> int:
    """Where a record waits that nothing but time can hold up."""
    return DELAYED if ready_at > now else READY
