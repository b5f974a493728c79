"""New records of the SQLite store: admission, identity and order, in the transaction of the ledger.

Ordinary requests, many at a time, go in by the short way; all others, and the callbacks and replays
the ledger makes, one by one through a `Batch`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from openhqm.stores import rules
from openhqm.stores.base import Accepted, Existing, NewRecord, OnLost, Refusal, Refused
from openhqm.stores.sqlite_books import OUTBOX, Books, place_of
from openhqm.stores.sqlite_rows import (
    BLOCKED,
    INSERT_ORDINARY,
    INSERT_ORDINARY_OUTBOUND,
    INSERT_ORDINARY_REQUEST,
    INSERT_RECORD,
    INSERT_REQUEST,
    PUBLISHING,
    QUEUED,
    READY,
    body_columns,
)

_KEY_IS_TAKEN = "SELECT 1 FROM records WHERE lane = ? AND key = ? AND place < 4 LIMIT 1"
_OF_SCOPE = "SELECT id, fingerprint FROM records WHERE scope = ?"


class Intake:
    """See the module docstring."""

    def __init__(self, books: Books) -> None:
        self._books = books

    def accept(self, records: Sequence[NewRecord]) -> list[Accepted | Existing | Refused]:
        go_one_way = len({record.outbound for record in records}) == 1
        if go_one_way and all(map(_is_ordinary, records)) and self._accept_ordinary(records):
            return [Accepted(record.id) for record in records]
        batch = Batch(self._books)
        results = [self._accept(record, batch) for record in records]
        batch.write()
        return results

    def _accept_ordinary(self, records: Sequence[NewRecord]) -> bool:
        """Insert records, all outbound or none, that nothing has to be decided for.

        Returns: False, and nothing done, if there is something.
        """
        books = self._books
        now = books.clock()
        first = seq = books.next_seq
        rows: list[object] = []
        requests: list[object] = []
        deadlines: dict[float, list[int]] = {}
        repeats = OnLost.REPEAT  # a member is slow to look up: 0.2 us
        total = 0
        for record in records:
            envelope, body = record.envelope, record.body
            size = len(envelope) + len(body)  # type: ignore[arg-type]  # an ordinary body is bytes
            deadline = rules.next_deadline(now, record.max_age_seconds)
            if deadline is not None:
                deadlines.setdefault(deadline, []).append(seq)
            repeat = int(record.on_lost is repeats)
            rows += (seq, record.id, record.priority, record.max_claims, repeat)
            rows += (now, now, deadline, deadline, size)
            requests += (seq, envelope, body)
            total += size
            seq += 1
        if self._refusal(total, len(records)):
            return False
        try:
            insert = INSERT_ORDINARY_OUTBOUND if records[0].outbound else INSERT_ORDINARY
            insert.run(books.connection, rows)
        except sqlite3.IntegrityError:
            # An id is held already; those before it may be in.
            books.connection.execute("DELETE FROM records WHERE seq >= ?", (first,))
            return False
        INSERT_ORDINARY_REQUEST.run(books.connection, requests)
        for deadline, seqs in deadlines.items():
            books.timers.set(READY, deadline, seqs)
        self._count_ordinary(records, total)
        books.next_seq = seq
        return True

    def _count_ordinary(self, records: Sequence[NewRecord], size: int) -> None:
        books = self._books
        figures = books.figures[0]
        figures.accepted += len(records)
        figures.states[QUEUED] += len(records)
        figures.bytes += size + len(records) * books.options.answer_reserve_bytes
        if records[0].outbound:
            figures.publishing += len(records)
            books.rung.add(OUTBOX)
            return
        figures.ready += len(records)
        for priority in {record.priority for record in records}:
            books.lines[0].join(priority, books.next_seq)
        books.rung.add(0)

    def _accept(self, record: NewRecord, batch: Batch) -> Accepted | Existing | Refused:
        books = self._books
        if batch.has(record.id) or books.one("SELECT 1 FROM records WHERE id = ?", record.id):
            return Accepted(record.id)
        if record.idempotency is not None:
            scope = record.idempotency.scope
            held = batch.scopes.get(scope) or books.one(_OF_SCOPE, scope)
            if held is not None:
                same = held[1] == record.idempotency.fingerprint
                return Existing(held[0]) if same else Refused(Refusal.IDEMPOTENCY_MISMATCH)
        refusal = self.admit(record, batch)
        return Refused(refusal) if refusal else Accepted(record.id)

    def admit(self, record: NewRecord, batch: Batch) -> Refusal | None:
        """Take in a record that is not held, nor its scope; returns why not, if there is no room."""
        size = len(record.envelope) + rules.body_bytes(record.body)
        if refusal := self._refusal(size):
            return refusal
        now = self._books.clock()
        batch.add(
            record,
            lane=0,
            now=now,
            ready_at=rules.ready_at(record, now),
            deadline=rules.deadline(record, now),
            size=size,
        )
        return None

    def _refusal(self, size: int, records: int = 1) -> Refusal | None:
        """Why *records* more, of *size* bytes together, have no room; None if they have."""
        figures, options = self._books.figures, self._books.options
        if figures[0].unfinished + records > options.max_backlog:
            return Refusal.BACKLOG_FULL
        held = sum(lane.bytes for lane in figures)
        if held + size + records * options.answer_reserve_bytes > options.max_bytes:
            return Refusal.BYTES_FULL
        return None


def _is_ordinary(record: NewRecord) -> bool:
    """Whether *record* waits for nothing, belongs to nothing else, and lies in the file whole."""
    return (
        record.key is None
        and record.idempotency is None
        and record.callback is None
        and record.replay_of is None
        and record.not_before is None
        and record.deadline is None
        and record.delay_seconds <= 0
        and isinstance(record.body, bytes)
    )


class Batch:
    """New records of one operation, written together."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._records: list[tuple[Any, ...]] = []
        self._requests: list[tuple[Any, ...]] = []
        self._ids: set[bytes] = set()
        self._keys: set[tuple[int, bytes]] = set()
        self.scopes: dict[bytes, tuple[bytes, bytes]] = {}

    def has(self, id: bytes) -> bool:
        return id in self._ids

    def names(self, blob: str) -> bool:
        """Whether a record of this batch has the blob as its body."""
        return any(name == blob for _, _, _, name, *_ in self._requests)

    def add(
        self,
        record: NewRecord,
        *,
        lane: int,
        now: float,
        ready_at: float,
        deadline: float | None,
        size: int,
        parent: bytes | None = None,
    ) -> None:
        """Take a record in; admission was asked for before, where it counts."""
        seq, self._books.next_seq = self._books.next_seq, self._books.next_seq + 1
        place = self._place(lane, record.key, PUBLISHING if record.outbound else place_of(ready_at, now))
        wake_at = self._count(lane, seq, place, record.priority, ready_at, deadline, size)
        scope, fingerprint = None, None
        if record.idempotency is not None:
            scope, fingerprint = record.idempotency.scope, record.idempotency.fingerprint
            self.scopes[scope] = (record.id, fingerprint)
        self._ids.add(record.id)
        self._records.append(
            (
                seq,
                record.id,
                lane,
                place,
                record.priority,
                record.max_claims,
                record.on_lost is OnLost.REPEAT,
                now,
                ready_at,
                deadline,
                wake_at,
                record.key,
                scope,
                fingerprint,
                parent,
                record.replay_of,
                size,
            )
        )
        self._requests.append((seq, record.envelope, *body_columns(record.body), record.callback))

    def _place(self, lane: int, key: bytes | None, place: int) -> int:
        """*place*, or behind the key if another record has it; who is to be published waits elsewhere."""
        if key is None:
            return place
        is_taken = (lane, key) in self._keys or self._books.one(_KEY_IS_TAKEN, lane, key) is not None
        self._keys.add((lane, key))
        return BLOCKED if is_taken and place != PUBLISHING else place

    def _count(
        self,
        lane: int,
        seq: int,
        place: int,
        priority: int,
        ready_at: float,
        deadline: float | None,
        size: int,
    ) -> float | None:
        """Count a record that is put at *place*; returns when it wakes."""
        books = self._books
        figures = books.figures[lane]
        figures.accepted += 1
        figures.states[QUEUED] += 1
        figures.bytes += size + books.options.answer_reserve_bytes
        if place == READY:
            books.has_become_ready(lane, priority, seq)
        figures.publishing += place == PUBLISHING
        books.rung.add(OUTBOX if place == PUBLISHING else lane)
        return books.set_timer(seq, place, ready_at, deadline)

    def write(self) -> None:
        self._books.connection.executemany(INSERT_RECORD, self._records)
        self._books.connection.executemany(INSERT_REQUEST, self._requests)
