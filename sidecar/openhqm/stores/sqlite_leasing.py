"""Leases of the SQLite store: which records, in which order, and who holds them.

A lease is one row of `leases`, committed before its record is sent; the record's own row stays as
it was. `Books.leases` has the rest, and `sqlite_settling.py` ends what is given here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openhqm.stores import rules
from openhqm.stores.base import Change, Extension, Lease
from openhqm.stores.sqlite_books import Books
from openhqm.stores.sqlite_rows import (
    INSERT_LEASE,
    LANES,
    LEASABLE,
    LEASED_THESE,
    QUEUED,
    RETRYING,
    RUNNING,
    STATES,
    Held,
    Leased,
    body_of,
    new_tuple,
)

_Row = tuple[Any, ...]


class Leasing:
    """See the module docstring."""

    def __init__(self, books: Books) -> None:
        self._books = books

    def lease(self, limit: int, lease_seconds: float, lane: int) -> list[Lease]:
        books = self._books
        if books.figures[lane].paused:
            return []
        chosen = self._choose(limit, lane)
        if not chosen:
            return []
        now = books.clock()
        until = now + lease_seconds
        books.lapses_at = min(books.lapses_at, until)
        self._write(chosen, now)
        leases = self._hold(chosen, lane, now, until)
        self._count(lane, leases)
        return leases

    # -- which

    def _choose(self, limit: int, lane: int) -> list[tuple[int, _Row]]:
        """Take the next rows in order, every eighth of all leases from the oldest instead.

        Returns: priority and row of each.
        """
        books = self._books
        every = rules.OLDEST_FIRST_EVERY
        before = books.leased_ever[lane]
        guarded = (before + limit) // every - before // every
        oldest = self._take_oldest(guarded, lane) if guarded else []
        chosen = self._take_first(limit - len(oldest), lane) + oldest
        books.leased_ever[lane] += len(chosen)
        return chosen

    def _take_first(self, limit: int, lane: int) -> list[tuple[int, _Row]]:
        """The records of the highest priority, those accepted first before others."""
        line = self._books.lines[lane]
        taken: list[tuple[int, _Row]] = []
        for priority, after in line.fronts:
            wanted = limit - len(taken)
            if not wanted:
                break
            rows = self._read(lane, priority, after, wanted)
            taken += [(priority, row) for row in rows]
            line.passed(priority, rows[-1][0] if len(rows) == wanted else None)
        return taken

    def _take_oldest(self, limit: int, lane: int) -> list[tuple[int, _Row]]:
        """The records accepted first, whatever their priority; none if there is one priority only."""
        line = self._books.lines[lane]
        if len(line.fronts) < 2:
            return []
        found: list[tuple[int, int, _Row]] = []
        for priority, after in line.fronts:
            rows = self._read(lane, priority, after, limit)
            found += [(row[0], priority, row) for row in rows]
            if not rows:
                line.passed(priority, None)
        # A line says where there may be something; in all but one there may have been nothing.
        if len(line.fronts) < 2:
            return []
        taken = sorted(found)[:limit]
        for seq, priority, _ in taken:
            line.passed(priority, seq)
        return [(priority, row) for _, priority, row in taken]

    def _read(self, lane: int, priority: int, after: int, limit: int) -> list[_Row]:
        return self._books.connection.execute(LEASABLE, (lane, priority, after, limit)).fetchall()

    # -- whose

    def _write(self, chosen: Sequence[tuple[int, _Row]], now: float) -> None:
        rows: list[object] = []
        for _, row in chosen:
            rows += (row[0], now)
        INSERT_LEASE.run(self._books.connection, rows)

    def _read_bound(self, chosen: Sequence[tuple[int, _Row]]) -> dict[int, Held]:
        """Read the whole of those records on which something else hangs."""
        seqs = [row[0] for _, row in chosen if not row[8]]
        if not seqs:
            return {}
        rows = self._books.connection.execute(LEASED_THESE, (str(seqs),))
        return {row[0]: Held._make(row) for row in rows}

    def _hold(self, chosen: Sequence[tuple[int, _Row]], lane: int, now: float, until: float) -> list[Lease]:
        """Remember leases, and make what their holders get.

        In the order of the fields and without names, for it is done for every request: naming them
        all took twice as long, 1.5 us.
        """
        bound = self._read_bound(chosen)
        held, rest = self._books.leases, (lane, 0, now, until)
        free = (None, *rest)
        leases = []
        for priority, row in chosen:
            seq, id, epoch, attempts, claims, _, accepted_at, deadline, is_free, envelope, body = row
            if is_free:
                key = parent = None
                held[id] = new_tuple(Leased, row[:6] + free)
            else:
                whole = bound[seq]
                key, parent = whole.key, whole.parent
                body = body_of(body, whole.blob, whole.blob_bytes)
                held[id] = new_tuple(Leased, (*row[:6], whole, *rest))
            leases.append(
                Lease(
                    id,
                    epoch,
                    attempts + 1,
                    claims,
                    envelope,
                    body,
                    accepted_at,
                    deadline,
                    key,
                    priority,
                    parent,
                )
            )
        return leases

    def _count(self, lane: int, leases: Sequence[Lease]) -> None:
        books = self._books
        figures = books.figures[lane]
        # A record that was sent before is retrying.
        queued = [lease.attempt for lease in leases].count(1)
        figures.states[QUEUED] -= queued
        figures.states[RETRYING] -= len(leases) - queued
        figures.states[RUNNING] += len(leases)
        figures.ready -= len(leases)
        running, name = STATES[RUNNING], LANES[lane]
        books.changes += [new_tuple(Change, (lease.id, running, name, "")) for lease in leases]

    # -- for how long

    def extend(self, leases: Sequence[tuple[bytes, int]], lease_seconds: float) -> list[Extension]:
        until = self._books.clock() + lease_seconds
        return [self._extend(id, epoch, until) for id, epoch in leases]

    def _extend(self, id: bytes, epoch: int, until: float) -> Extension:
        books = self._books
        leased = self.holder(id, epoch)
        if leased is None:
            return Extension.LOST
        books.leases[id] = leased._replace(until=until)
        books.lapses_at = min(books.lapses_at, until)
        return Extension.CANCEL_REQUESTED if leased.cancel_requested else Extension.HELD

    def holder(self, id: bytes, epoch: int) -> Leased | None:
        """The record, if *epoch* is its current lease; otherwise the refusal is counted."""
        books = self._books
        leased = books.leases.get(id)
        if leased is not None and leased.epoch == epoch:
            return leased
        if leased is not None:
            lane = leased.lane
        else:
            [lane] = books.one("SELECT lane FROM records WHERE id = ?", id) or (0,)
        books.figures[lane].stale += 1
        return None
