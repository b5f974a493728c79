"""What a broker carries of the SQLite store's records: handed out to be published, carried, back again.

A record that is to be published is found by an index of its own, and handing it out writes nothing:
`Books.outbox` has who is publishing what. Once a broker has it the request leaves the file; what comes
back, and what came from elsewhere, is written as it came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from openhqm.stores import rules
from openhqm.stores.base import Arrival, BlobRef, NewRecord, Outbound, Refused
from openhqm.stores.sqlite_books import Books, place_of
from openhqm.stores.sqlite_intake import Batch, Intake
from openhqm.stores.sqlite_rows import (
    BLOCKED,
    BY_ID,
    CARRY,
    DELETE_REQUESTS,
    EMPTY_REQUESTS,
    PUBLISHING,
    READY,
    RETURN,
    RETURN_REQUEST,
    TO_PUBLISH,
    Held,
    body_columns,
    body_of,
)

_FIRST_OF_KEY = "SELECT min(seq) FROM records WHERE lane = ? AND key = ? AND place < 4"


class Carrying:
    """See the module docstring."""

    def __init__(self, books: Books, intake: Intake) -> None:
        self._books = books
        self._intake = intake

    # -- out

    def hand_out(self, limit: int, hold_seconds: float) -> list[Outbound]:
        books, outbox = self._books, self._books.outbox
        now = books.clock()
        outbox.end_holds(now)
        if books.figures[0].paused:
            return []
        rows = books.connection.execute(TO_PUBLISH, (outbox.after, str(outbox.held), limit)).fetchall()
        if not rows:
            return []
        outbox.after = rows[-1][0]
        # Those whose deadline passed expire soon, if they have not by now.
        rows = [row for row in rows if row[7] is None or row[7] > now]
        outbox.hold([row[0] for row in rows], now + hold_seconds)
        return [_outbound_of(row) for row in rows]

    def carried(self, ids: Sequence[bytes]) -> list[bool]:
        found = {id: held for id in ids if (held := self._held(id)) and held.place == PUBLISHING}
        if found:
            self._carry(list(found.values()))
        return [found.pop(id, None) is not None for id in ids]

    def _carry(self, published: Sequence[Held]) -> None:
        books = self._books
        CARRY.run(books.connection, [held.seq for held in published])
        if alone := [held.seq for held in published if held.callback is None]:
            DELETE_REQUESTS.run(books.connection, alone)
        if others := [held.seq for held in published if held.callback is not None]:
            EMPTY_REQUESTS.run(books.connection, others)
        for held in published:
            books.has_left_stage(held)
            books.figures[held.lane].carried += 1
            books.figures[held.lane].bytes -= held.request_bytes
            if held.blob is not None:
                books.dropped.append(BlobRef(held.blob, held.blob_bytes or 0))

    # -- in

    def arrive(self, records: Sequence[NewRecord]) -> list[Arrival | Refused]:
        batch = Batch(self._books)
        results = [self._arrive(record, batch) for record in records]
        batch.write()
        return results

    def _arrive(self, record: NewRecord, batch: Batch) -> Arrival | Refused:
        held = self._held(record.id)
        if held is not None and held.is_away:
            self._return(held, record)
            return Arrival.RETURNED
        if held is not None or batch.has(record.id):
            self._drop_body(record, held, batch)
            return Arrival.KNOWN
        if record.deadline is not None and record.deadline <= self._books.clock():
            return Arrival.TOO_LATE
        refusal = self._intake.admit(replace(record, idempotency=None, outbound=False), batch)
        return Refused(refusal) if refusal else Arrival.TAKEN_IN

    def _drop_body(self, record: NewRecord, held: Held | None, batch: Batch) -> None:
        """The blob of a KNOWN message is garbage, unless this repeats the call that took it in."""
        if isinstance(record.body, BlobRef):
            name = record.body.name
            if not (batch.names(name) if held is None else held.blob == name):
                self._books.dropped.append(record.body)

    def _return(self, held: Held, record: NewRecord) -> None:
        """Have a record that was away wait here, with the request that came."""
        books = self._books
        place = self._place(held)
        # The timer of its deadline is set: the ready ones have theirs in common with those away.
        wake_at = held.deadline
        if place != READY:
            wake_at = books.set_timer(held.seq, place, held.ready_at, held.deadline)
        size = len(record.envelope) + rules.body_bytes(record.body)
        books.connection.execute(RETURN, (place, wake_at, size, held.seq))
        body = body_columns(record.body)
        books.connection.execute(RETURN_REQUEST, (held.seq, record.envelope, *body, held.callback))
        if held.blob is not None:
            books.dropped.append(BlobRef(held.blob, held.blob_bytes or 0))
        books.figures[held.lane].bytes += size - held.request_bytes
        books.has_left_stage(held)
        if place == READY:
            books.has_become_ready(held.lane, held.priority, held.seq)
        books.rung.add(held.lane)

    def _place(self, held: Held) -> int:
        """Where a record waits that comes back: those of its key that were accepted before it go first."""
        books = self._books
        if held.key is not None and books.one(_FIRST_OF_KEY, held.lane, held.key) != (held.seq,):
            return BLOCKED
        return place_of(held.ready_at, books.clock())

    def _held(self, id: bytes) -> Held | None:
        row = self._books.one(BY_ID, id)
        return None if row is None else Held._make(row)


def _outbound_of(row: tuple[Any, ...]) -> Outbound:
    _, id, envelope, body, blob, blob_bytes, accepted_at, deadline, key, priority = row
    return Outbound(id, envelope, body_of(body, blob, blob_bytes), accepted_at, deadline, key, priority)
