"""When records of the SQLite store wake: one row for a run of neighbours that wake at the same time.

What is accepted or settled together wakes together, so a run is nearly always a whole batch. (An
index on `wake_at` had three writes in every record's life: a sixth of what a drain cost.)

A timer is never moved or taken back. It says that one of its records may have something to do by
then; whoever looks judges each as it is, and looking in vain harms nothing.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from openhqm.stores.sqlite_rows import BLOCKED, DELAYED, FINAL, READY

WIDEST_GAP = 64
"""Strangers between two records of one run: looking past them costs less than another row."""

SET_TIMER = """INSERT INTO timers VALUES (?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET last = max(last, excluded.last)"""
DROP_TIMER = "DELETE FROM timers WHERE place = ? AND at = ? AND first = ?"
DUE_TIMER = "SELECT * FROM timers WHERE place = ? AND at <= ? ORDER BY at LIMIT 1"
NEXT_TIMER = "SELECT min(at) FROM timers WHERE place = ?"


class Timer(NamedTuple):
    """Records first to last, as far as they are at *place* and wake by *at*."""

    place: int
    at: float
    first: int
    last: int


class Timers:
    """The table `timers`, written in the transaction of the connection's owner."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.next_at = -math.inf
        """No waiting record wakes before this."""

    def set(self, place: int, at: float, seqs: Sequence[int]) -> None:
        """Have the records *seqs*, which now wake *at*, looked at then."""
        for first, last in runs(seqs):
            self._connection.execute(SET_TIMER, (place, at, first, last))
        if place != FINAL and at < self.next_at:
            self.next_at = at

    def due(self, place: int, now: float) -> Timer | None:
        """Return the first timer that is due."""
        row = self._connection.execute(DUE_TIMER, (place, now)).fetchone()
        return None if row is None else Timer(*row)

    def passed(self, timer: Timer, seqs: Sequence[int], most: int) -> int:
        """Say that *seqs* of a timer's records, *most* at a time, were seen to.

        Returns: how many rows were looked at to find them.
        """
        self._connection.execute(DROP_TIMER, (timer.place, timer.at, timer.first))
        if len(seqs) < most:
            return timer.last - timer.first + 1
        rest = seqs[-1] + 1
        if rest <= timer.last:
            self._connection.execute(SET_TIMER, (timer.place, timer.at, rest, timer.last))
        return rest - timer.first

    def read_next(self) -> None:
        """Find `next_at`, when nothing is due any more."""
        found = [
            self._connection.execute(NEXT_TIMER, (place,)).fetchone()[0]
            for place in (READY, DELAYED, BLOCKED)
        ]
        self.next_at = min((at for at in found if at is not None), default=math.inf)

    def forget(self) -> None:
        """The transaction was rolled back: `next_at` has to be found again."""
        self.next_at = -math.inf


def runs(seqs: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Split into first and last of each run of neighbours; *seqs* need not be sorted."""
    ordered = sorted(seqs)
    first = last = ordered[0]
    for seq in ordered:
        if seq - last > WIDEST_GAP:
            yield first, last
            first = seq
        last = seq
    yield first, last
