"""What time does to records of the SQLite store: leases lapse, waiting ones wake or expire, old ones go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from openhqm.stores import rules
from openhqm.stores.base import BlobRef, Change, OnLost
from openhqm.stores.sqlite_books import Books
from openhqm.stores.sqlite_endings import Endings
from openhqm.stores.sqlite_rows import (
    BLOCKED,
    BY_SEQ,
    DELAYED,
    DELETE_ANSWERS,
    DELETE_RECORDS,
    DELETE_REQUESTS,
    DUE,
    EXPIRED,
    FAILED,
    FINAL,
    LEASED_FIRST,
    OUTLIVED_DUE,
    OUTLIVED_ID,
    READY,
    STATE_NUMBERS,
    Held,
    Leased,
)
from openhqm.stores.sqlite_settling import Settling


class Upkeep:
    """See the module docstring."""

    def __init__(self, books: Books, settling: Settling, endings: Endings) -> None:
        self._books = books
        self._settling = settling
        self._endings = endings

    # -- leases

    def lapse_due(self, limit: int) -> list[Change]:
        """Judge leases that ran out."""
        books = self._books
        now = books.clock()
        if now < books.lapses_at:
            return []
        lapsed = sorted((leased for leased in books.leases.values() if leased.until <= now), key=_until)
        changes = self._lapse([self._settling.whole(leased) for leased in lapsed[:limit]])
        books.lapses_at = min(map(_until, books.leases.values()), default=math.inf)
        return changes

    def lapse_orphaned(self, limit: int) -> list[Change]:
        """Judge leases that another process held and took with it."""
        rows = self._books.connection.execute(LEASED_FIRST, (limit,)).fetchall()
        return self._lapse([Held._make(row) for row in rows])

    def _lapse(self, lapsed: Sequence[Held]) -> list[Change]:
        before = len(self._books.changes)
        for held in lapsed:
            self._books.leases.pop(held.id, None)
            on_lost = OnLost.REPEAT if held.repeat else OnLost.UNKNOWN
            claims, attempts = held.claims + 1, held.attempts + 1
            state, reason = rules.judge_lapsed(on_lost, claims, held.max_claims, bool(held.cancel_requested))
            if state.is_final:
                self._settling.finish(held, STATE_NUMBERS[state], attempts, claims=claims, reason=reason)
            else:
                self._settling.wait(held, attempts, claims, 0.0, held.history)
        self._endings.write()
        return self._books.changes[before:]

    # -- waiting records

    def wake(self, limit: int) -> list[Change]:
        """Expire what passed its deadline, place what has become due; looks at about *limit* records."""
        books = self._books
        now = books.clock()
        before = len(books.changes)
        for place in (READY, DELAYED, BLOCKED):
            while limit > 0 and (timer := books.timers.due(place, now)):
                rows = books.connection.execute(DUE, (timer.first, timer.last, place, now, limit)).fetchall()
                seqs = [seq for (seq,) in rows]
                for seq in seqs:
                    self._wake_one(seq, now)
                limit -= books.timers.passed(timer, seqs, limit)
        if limit > 0:
            books.timers.read_next()
        return books.changes[before:]

    def _wake_one(self, seq: int, now: float) -> None:
        # Read one by one, for the one before it may have moved it: the next of its key.
        held = Held._make(self._books.one(BY_SEQ, seq) or ())
        if held.deadline is not None and held.deadline <= now:
            self._settling.end_waiting(held, EXPIRED)
        elif held.place == DELAYED:
            self._settling.place(held)

    # -- final records

    def delete_outlived(self, limit: int) -> int:
        """Delete final records whose time is over; returns how many were looked at, about *limit* at most."""
        books = self._books
        now, left = books.clock(), limit
        while left > 0 and (timer := books.timers.due(FINAL, now)):
            values = timer.first, timer.last, now, left
            rows = books.connection.execute(OUTLIVED_DUE, values).fetchall()
            self._delete(rows)
            left -= books.timers.passed(timer, [row[0] for row in rows], left)
        return limit - left

    def purge(self, ids: Sequence[bytes]) -> int:
        found = (self._books.one(OUTLIVED_ID, id) for id in dict.fromkeys(ids))
        rows = [row for row in found if row is not None]
        self._delete(rows)
        return len(rows)

    def _delete(self, rows: Sequence[tuple[Any, ...]]) -> None:
        if not rows:
            return
        for _seq, lane, state, replayed_as, size, *blobs in rows:
            figures = self._books.figures[lane]
            figures.bytes -= size
            if state == FAILED and replayed_as is None:
                figures.dead_letters -= 1
            request_blob, request_size, answer_blob, answer_size = blobs
            # A replayed dead letter has given its blob to the new record.
            if request_blob is not None and replayed_as is None:
                self._books.dropped.append(BlobRef(request_blob, request_size))
            if answer_blob is not None:
                self._books.dropped.append(BlobRef(answer_blob, answer_size))
        for change in (DELETE_RECORDS, DELETE_REQUESTS, DELETE_ANSWERS):
            change.run(self._books.connection, [row[0] for row in rows])


def _until(leased: Leased) -> float:
    return leased.until
