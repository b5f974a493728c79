"""What the SQLite store's rows and statements look like, for the ledger and the readers.

Every statement finds its rows by an index of `sqlite_schema.sql`; a test looks at their plans.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from openhqm.stores.base import (
    BlobRef,
    Body,
    Lane,
    Lease,
    State,
)
from openhqm.stores.sqlite_bulk import BulkInsert

STATES = tuple(State)
LANES = tuple(Lane)
QUEUED, RUNNING, RETRYING, DONE, FAILED, CANCELLED, EXPIRED = range(7)
READY, DELAYED, BLOCKED, LEASED, FINAL = range(5)
STATE_NUMBERS = {state: number for number, state in enumerate(STATES)}

HELD = """r.seq, r.id, r.lane, r.state, r.place, r.priority, r.epoch, r.attempts, r.claims, r.max_claims,
    r.repeat, r.cancel_requested, r.accepted_at, r.ready_at, r.deadline, r.key, r.scope, r.parent,
    r.request_bytes, r.history, q.blob, q.blob_bytes, q.callback"""
FROM = "FROM records r LEFT JOIN requests q ON q.seq = r.seq"
BY_ID = f"SELECT {HELD} {FROM} WHERE r.id = ?"
BY_SEQ = f"SELECT {HELD} {FROM} WHERE r.seq = ?"
# The record as it is once leased; then until when, and the state it had.
_LEASED = HELD.replace("r.state, r.place, r.priority, r.epoch", "1, 3, r.priority, r.epoch + 1")
LEASABLE = f"""SELECT {_LEASED}, ?, r.state, q.envelope, q.body {FROM}
    WHERE r.place = 0 AND r.lane = ? ORDER BY r.priority DESC, r.seq LIMIT ?"""
LEASABLE_OF_PRIORITY = f"""SELECT {_LEASED}, ?, r.state, q.envelope, q.body {FROM}
    WHERE r.place = 0 AND r.lane = ? AND r.priority = ? ORDER BY r.seq LIMIT ?"""
NEXT_PRIORITY = """SELECT priority FROM records WHERE place = 0 AND lane = ? AND priority < ?
    ORDER BY priority DESC LIMIT 1"""
DUE = """SELECT seq FROM records WHERE seq BETWEEN ? AND ? AND place = ? AND wake_at <= ?
    ORDER BY seq LIMIT ?"""
NEXT_OF_KEY = f"""SELECT {HELD} {FROM}
    WHERE r.lane = ? AND r.key = ? AND r.place < 4 ORDER BY r.seq LIMIT 1"""
LEFT_LEASED = f"""SELECT {HELD} {FROM}
    WHERE r.seq BETWEEN ? AND ? AND r.place = 3 AND r.lane = ? ORDER BY r.seq LIMIT ?"""
OUTLIVED = """r.seq, r.lane, r.state, r.replayed_as,
    iif(r.state = 4, r.request_bytes, 0)
        + ifnull(length(a.head), 0) + coalesce(a.blob_bytes, length(a.body), 0),
    q.blob, q.blob_bytes, a.blob, a.blob_bytes
    FROM records r LEFT JOIN requests q ON q.seq = r.seq LEFT JOIN answers a ON a.seq = r.seq"""
OUTLIVED_DUE = f"""SELECT {OUTLIVED}
    WHERE r.seq BETWEEN ? AND ? AND r.place = 4 AND r.wake_at <= ? ORDER BY r.seq LIMIT ?"""
OUTLIVED_ID = f"SELECT {OUTLIVED} WHERE r.place = 4 AND r.id = ?"
INSERT_RECORD = """INSERT INTO records (seq, id, lane, state, place, priority, max_claims, repeat,
    accepted_at, ready_at, deadline, wake_at, key, scope, fingerprint, parent, replay_of, request_bytes)
    VALUES (?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
INSERT_ORDINARY = BulkInsert(
    """records (seq, id, lane, state, place, priority, max_claims, repeat,
    accepted_at, ready_at, deadline, wake_at, request_bytes)""",
    "?, ?, 0, 0, 0, ?, ?, ?, ?, ?, ?, ?, ?",
)
INSERT_ORDINARY_REQUEST = BulkInsert("requests (seq, envelope, body)", "?, ?, ?")
INSERT_REQUEST = "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?)"
INSERT_ANSWER = BulkInsert("answers (seq, note, head, body)", "?, ?, ?, ?")
INSERT_BLOB_ANSWER = "INSERT INTO answers VALUES (?, ?, ?, NULL, ?, ?)"
# A JSON list of numbers makes one statement of any number of rows.
_THESE = "IN (SELECT value FROM json_each(?))"
LEASE = f"""UPDATE records SET state = 1, place = 3, epoch = epoch + 1, started_at = ?
    WHERE seq {_THESE}"""  # noqa: S608
FINISH = f"""UPDATE records SET state = ?, place = 4, attempts = ?, claims = ?, reason = ?,
    finished_at = ?, wake_at = ? WHERE seq {_THESE}"""  # noqa: S608
DELETE_RECORDS = f"DELETE FROM records WHERE seq {_THESE}"  # noqa: S608
DELETE_REQUESTS = f"DELETE FROM requests WHERE seq {_THESE}"  # noqa: S608
DELETE_ANSWERS = f"DELETE FROM answers WHERE seq {_THESE}"  # noqa: S608
WAIT = """UPDATE records SET state = ?, place = ?, attempts = ?, claims = ?, ready_at = ?, wake_at = ?,
    history = ? WHERE seq = ?"""
PLACE = "UPDATE records SET place = ?, wake_at = ? WHERE seq = ?"
FIGURES = (
    *(state.value for state in STATES),
    "accepted",
    "replayed",
    "dead_letters",
    "ready",
    "bytes",
    "stale",
    "paused",
    "leased_first",
    "leased_last",
)
WRITE_FIGURES = f"UPDATE lanes SET {', '.join(f'{name} = ?' for name in FIGURES)} WHERE lane = ?"  # noqa: S608
READ_FIGURES = f"SELECT {', '.join(FIGURES)} FROM lanes WHERE lane = ?"  # noqa: S608


class Held(NamedTuple):
    """A record as transitions need it; `until` is when its lease ends."""

    seq: int
    id: bytes
    lane: int
    state: int
    place: int
    priority: int
    epoch: int
    attempts: int
    claims: int
    max_claims: int
    repeat: int
    cancel_requested: int
    accepted_at: float
    ready_at: float
    deadline: float | None
    key: bytes | None
    scope: bytes | None
    parent: bytes | None
    request_bytes: int
    history: bytes
    blob: str | None
    blob_bytes: int | None
    callback: bytes | None
    until: float = 0.0


WIDTH = len(Held._fields)
_new_tuple = tuple.__new__


@dataclass(slots=True)
class Figures:
    """One lane's figures; `states` are now-figures for unfinished states, cumulative for finals.

    All leased records lie between `leased_first` and `leased_last`.
    """

    states: list[int] = field(default_factory=lambda: [0] * len(STATES))
    accepted: int = 0
    replayed: int = 0
    dead_letters: int = 0
    ready: int = 0
    bytes: int = 0
    stale: int = 0
    paused: int = 0
    leased_first: int = 0
    leased_last: int = 0

    @property
    def waiting(self) -> int:
        return self.states[QUEUED] + self.states[RETRYING]

    @property
    def unfinished(self) -> int:
        return self.waiting + self.states[RUNNING]

    def row(self) -> tuple[int, ...]:
        return (
            *self.states,
            self.accepted,
            self.replayed,
            self.dead_letters,
            self.ready,
            self.bytes,
            self.stale,
            self.paused,
            self.leased_first,
            self.leased_last,
        )

    @classmethod
    def of(cls, row: Sequence[int]) -> Figures:
        return cls(list(row[: len(STATES)]), *row[len(STATES) :])


def body_columns(body: Body) -> tuple[bytes | None, str | None, int | None]:
    return (body, None, None) if isinstance(body, bytes) else (None, body.name, body.size)


def body_of(inline: bytes | None, blob: str | None, blob_bytes: int | None) -> Body:
    return BlobRef(blob, blob_bytes or 0) if blob is not None else inline or b""


def leased(row: tuple[Any, ...]) -> tuple[Held, Lease]:
    """Split a row of LEASABLE.

    In the order of the fields and without `_make`, for it is done for every request: naming them all
    took twice as long, 1.5 us.
    """
    held: Held = _new_tuple(Held, row[:WIDTH])
    envelope, body = row[-2:]
    if held.blob is not None:
        body = BlobRef(held.blob, held.blob_bytes or 0)
    return held, Lease(
        held.id,
        held.epoch,
        held.attempts + 1,
        held.claims,
        envelope,
        body or b"",
        held.accepted_at,
        held.deadline,
        held.key,
        held.priority,
        held.parent,
    )


def ready_priorities(connection: sqlite3.Connection, lane: int) -> Iterable[int]:
    """Priorities that leasable records have, highest first; one index look-up each."""
    priority = 10  # above all there are
    while row := connection.execute(NEXT_PRIORITY, (lane, priority)).fetchone():
        [priority] = row
        yield priority
