"""The SQLite store's transitions: plain functions on the writing connection, inside a transaction.

`sqlite_commits.py` opens the transaction, runs these for many callers, and commits; `sqlite.py` is
what callers see. Here is what they may ask for; the steps have a file each:

    sqlite_books.py     what is kept in memory, and taken back when a transaction fails
    sqlite_intake.py    new records
    sqlite_leasing.py   which records are leased, and to whom
    sqlite_carrying.py  what a broker carries: handed out, carried, back
    sqlite_settling.py  how leases end, and what follows from it
    sqlite_endings.py   what records end with, written together
    sqlite_upkeep.py    what time does: lapsed leases, due and expired records, old ones
"""

from __future__ import annotations

from collections.abc import Sequence

from openhqm.stores import rules
from openhqm.stores.base import (
    Accepted,
    Arrival,
    Change,
    Existing,
    Extension,
    Lease,
    NewRecord,
    OnLost,
    Outbound,
    Refused,
    Replay,
    Settlement,
)
from openhqm.stores.sqlite_books import OUTBOX, Books
from openhqm.stores.sqlite_carrying import Carrying
from openhqm.stores.sqlite_endings import Endings
from openhqm.stores.sqlite_intake import Batch, Intake
from openhqm.stores.sqlite_leasing import Leasing
from openhqm.stores.sqlite_rows import BY_ID, CANCELLED, FAILED, FINAL, Held, body_of
from openhqm.stores.sqlite_settling import Settling
from openhqm.stores.sqlite_upkeep import Upkeep

MOST_WOKEN = 256
_REQUEST = "SELECT envelope, body FROM requests WHERE seq = ? AND envelope IS NOT NULL"


class Ledger:
    """Transitions, and what they change in *books*."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._endings = Endings(books)
        self._intake = Intake(books)
        self._leasing = Leasing(books)
        self._carrying = Carrying(books, self._intake)
        self._settling = Settling(books, self._leasing, self._endings)
        self._upkeep = Upkeep(books, self._settling, self._endings)

    # -- the transaction's frame

    def begin(self) -> None:
        self._books.begin()

    def flush(self) -> None:
        self._books.flush()

    def committed(self) -> None:
        self._books.committed()

    def roll_back(self) -> None:
        self._books.roll_back()
        self._endings.forget()

    @property
    def next_due_at(self) -> float:
        """No waiting record is due, or expires, before this."""
        return self._books.timers.next_at

    @property
    def next_hold_ends_at(self) -> float:
        """Nothing is handed out again before this."""
        return self._books.outbox.ends_at

    # -- the life of a record

    def accept(self, records: Sequence[NewRecord]) -> list[Accepted | Existing | Refused]:
        return self._intake.accept(records)

    def lease(self, limit: int, lease_seconds: float, lane: int) -> list[Lease]:
        self._wake_due()
        return self._leasing.lease(limit, lease_seconds, lane)

    def extend(self, leases: Sequence[tuple[bytes, int]], lease_seconds: float) -> list[Extension]:
        return self._leasing.extend(leases, lease_seconds)

    def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        return self._settling.settle(settlements)

    # -- through a broker

    def outbound(self, limit: int, hold_seconds: float) -> list[Outbound]:
        self._wake_due()
        return self._carrying.hand_out(limit, hold_seconds)

    def carried(self, ids: Sequence[bytes]) -> list[bool]:
        return self._carrying.carried(ids)

    def arrive(self, records: Sequence[NewRecord]) -> list[Arrival | Refused]:
        return self._carrying.arrive(records)

    # -- cancel, replay, pause

    def cancel(self, id: bytes) -> None:
        books = self._books
        if (leased := books.leases.get(id)) is not None:
            books.leases[id] = leased._replace(cancel_requested=1)
            books.connection.execute("UPDATE records SET cancel_requested = 1 WHERE seq = ?", (leased.seq,))
            return
        held = self._held(id)
        if held is not None and held.place != FINAL:
            self._settling.end_waiting(held, CANCELLED)

    def replay(self, replays: Sequence[Replay]) -> list[bool]:
        return [self._replay(replay) for replay in replays]

    def _replay(self, replay: Replay) -> bool:
        books = self._books
        present = books.one("SELECT replay_of FROM records WHERE id = ?", replay.new_id)
        if present is not None:
            return bool(present[0] == replay.id)
        held = self._held(replay.id)
        if held is None or held.state != FAILED:
            return False
        if books.one("SELECT 1 FROM records WHERE seq = ? AND replayed_as IS NOT NULL", held.seq):
            return False
        request = books.one(_REQUEST, held.seq)
        if request is None:
            return False
        books.connection.execute(
            "UPDATE records SET replayed_as = ? WHERE seq = ?", (replay.new_id, held.seq)
        )
        books.figures[held.lane].dead_letters -= 1
        books.figures[held.lane].replayed += 1
        self._put_replay(held, replay, *request)
        return True

    def _put_replay(self, held: Held, replay: Replay, envelope: bytes, body: bytes | None) -> None:
        books = self._books
        record = NewRecord(
            id=replay.new_id,
            envelope=envelope,
            body=body_of(body, held.blob, held.blob_bytes),
            priority=held.priority,
            key=held.key,
            on_lost=OnLost.REPEAT if held.repeat else OnLost.UNKNOWN,
            max_claims=held.max_claims,
            callback=held.callback,
            replay_of=held.id,
            outbound=replay.outbound,
        )
        now = books.clock()
        batch = Batch(books)
        batch.add(
            record,
            lane=held.lane,
            now=now,
            ready_at=now,
            deadline=rules.next_deadline(now, replay.max_age_seconds),
            size=held.request_bytes,
            parent=held.parent,
        )
        batch.write()

    def purge(self, ids: Sequence[bytes]) -> int:
        return self._upkeep.purge(ids)

    def pause(self, paused: bool, lane: int) -> None:
        self._books.figures[lane].paused = int(paused)
        self._books.rung.update((lane, OUTBOX))

    # -- what time does

    def _wake_due(self) -> None:
        """Have what is due by now found by those who ask for work."""
        if self.next_due_at <= self._books.clock():
            self.wake(MOST_WOKEN)

    def lapse_due(self, limit: int) -> list[Change]:
        return self._upkeep.lapse_due(limit)

    def lapse_orphaned(self, limit: int) -> list[Change]:
        return self._upkeep.lapse_orphaned(limit)

    def wake(self, limit: int) -> list[Change]:
        return self._upkeep.wake(limit)

    def delete_outlived(self, limit: int) -> int:
        return self._upkeep.delete_outlived(limit)

    def _held(self, id: bytes) -> Held | None:
        """Read a record that is not leased."""
        row = self._books.one(BY_ID, id)
        return None if row is None else Held._make(row)
