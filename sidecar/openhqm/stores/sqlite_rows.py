"""What the SQLite store's rows and statements look like, for the ledger and the readers.

Every statement finds its rows by an index of `sqlite_schema.sql`; a test looks at their plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from openhqm.stores.base import (
    BlobRef,
    Body,
    Lane,
    Stage,
    State,
)
from openhqm.stores.sqlite_bulk import BulkChange, BulkInsert

new_tuple = tuple.__new__
"""Makes a named tuple of values in order; to name them takes twice as long, for every request."""

STATES = tuple(State)
LANES = tuple(Lane)
QUEUED, RUNNING, RETRYING, DONE, FAILED, CANCELLED, EXPIRED = range(7)
CARRIED, PUBLISHING, READY, DELAYED, BLOCKED, LEASED, FINAL = range(-2, 5)
STAGES = {PUBLISHING: Stage.PUBLISHING, CARRIED: Stage.CARRIED}
"""Places below `READY`: a broker has the record, or is to have it."""

STATE_NUMBERS = {state: number for number, state in enumerate(STATES)}

HELD = """r.seq, r.id, r.lane, r.state, r.place, r.priority, r.epoch, r.attempts, r.claims, r.max_claims,
    r.repeat, r.cancel_requested, r.ready_at, r.deadline, r.started_at, r.key, r.scope, r.parent,
    r.request_bytes, r.history, q.blob, q.blob_bytes, q.callback"""
FROM = "FROM records r LEFT JOIN requests q ON q.seq = r.seq"
BY_ID = f"SELECT {HELD} {FROM} WHERE r.id = ?"
BY_SEQ = f"SELECT {HELD} {FROM} WHERE r.seq = ?"
UNLEASED = "NOT EXISTS (SELECT 1 FROM leases l WHERE l.seq = r.seq)"
# Few columns, for each costs 70 ns and this is read for every request.
LEASABLE = f"""SELECT r.seq, r.id, r.epoch + 1, r.attempts, r.claims, r.request_bytes, r.accepted_at,
    r.deadline, coalesce(r.key, r.scope, r.parent, q.blob, q.callback) IS NULL, q.envelope, q.body {FROM}
    WHERE r.place = 0 AND r.lane = ? AND r.priority = ? AND r.seq > ? AND {UNLEASED}
    ORDER BY r.seq LIMIT ?"""
_LEASED = HELD.replace("r.state, r.place, r.priority, r.epoch", "1, 3, r.priority, r.epoch + 1").replace(
    "r.started_at", "l.at"
)
_FROM_LEASES = "FROM leases l CROSS JOIN records r ON r.seq = l.seq LEFT JOIN requests q ON q.seq = r.seq"
LEASED_THESE = f"SELECT {_LEASED} {_FROM_LEASES} WHERE l.seq IN (SELECT value FROM json_each(?))"  # noqa: S608
LEASED_FIRST = f"SELECT {_LEASED} {_FROM_LEASES} WHERE l.seq > 0 ORDER BY l.seq LIMIT ?"
# Records that are away have their timers in common with the ready ones.
DUE = f"""SELECT r.seq FROM records r
    WHERE r.seq BETWEEN ? AND ? AND max(r.place, 0) = ? AND r.wake_at <= ? AND {UNLEASED}
    ORDER BY r.seq LIMIT ?"""  # noqa: S608
NEXT_OF_KEY = f"""SELECT {HELD} {FROM}
    WHERE r.lane = ? AND r.key = ? AND r.place < 4 ORDER BY r.seq LIMIT 1"""
# By its own index: the planner would read through the table, for that is in order too.
TO_PUBLISH = """SELECT r.seq, r.id, q.envelope, q.body, q.blob, q.blob_bytes, r.accepted_at, r.deadline,
    r.key, r.priority FROM records r INDEXED BY records_publishing JOIN requests q ON q.seq = r.seq
    WHERE r.place = -1 AND r.seq > ? AND r.seq NOT IN (SELECT value FROM json_each(?))
    ORDER BY r.seq LIMIT ?"""
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
_ORDINARY = """records (seq, id, lane, state, place, priority, max_claims, repeat,
    accepted_at, ready_at, deadline, wake_at, request_bytes)"""
INSERT_ORDINARY = BulkInsert(_ORDINARY, "?, ?, 0, 0, 0, ?, ?, ?, ?, ?, ?, ?, ?")
INSERT_ORDINARY_OUTBOUND = BulkInsert(_ORDINARY, "?, ?, 0, 0, -1, ?, ?, ?, ?, ?, ?, ?, ?")
INSERT_ORDINARY_REQUEST = BulkInsert("requests (seq, envelope, body)", "?, ?, ?")
INSERT_REQUEST = "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?)"
CARRY = BulkChange("UPDATE records SET place = -2, request_bytes = 0 WHERE seq")
EMPTY_REQUESTS = BulkChange(
    "UPDATE requests SET envelope = NULL, body = NULL, blob = NULL, blob_bytes = NULL WHERE seq"
)
RETURN = "UPDATE records SET place = ?, wake_at = ?, request_bytes = ? WHERE seq = ?"
RETURN_REQUEST = "INSERT OR REPLACE INTO requests VALUES (?, ?, ?, ?, ?, ?)"
INSERT_ANSWER = BulkInsert("answers (seq, note, head, body)", "?, ?, ?, ?")
INSERT_BLOB_ANSWER = "INSERT INTO answers VALUES (?, ?, ?, NULL, ?, ?)"
INSERT_LEASE = BulkInsert("leases", "?, ?")
END_LEASE = "DELETE FROM leases WHERE seq = ?"
END_LEASES = BulkChange("DELETE FROM leases WHERE seq")
FINISH = BulkChange(
    """UPDATE records SET state = ?, place = 4, epoch = epoch + ?, attempts = ?, claims = ?, reason = ?,
    started_at = ?, finished_at = ?, wake_at = ?, room = NULL WHERE seq"""
)
DELETE_RECORDS = BulkChange("DELETE FROM records WHERE seq")
DELETE_REQUESTS = BulkChange("DELETE FROM requests WHERE seq")
DELETE_ANSWERS = BulkChange("DELETE FROM answers WHERE seq")
WAIT = """UPDATE records SET state = ?, place = ?, epoch = ?, attempts = ?, claims = ?, started_at = ?,
    ready_at = ?, wake_at = ?, history = ? WHERE seq = ?"""
PLACE = "UPDATE records SET place = ?, wake_at = ? WHERE seq = ?"
FIGURES = (
    *(state.value for state in STATES),
    "accepted",
    "replayed",
    "dead_letters",
    "ready",
    "publishing",
    "carried",
    "bytes",
    "stale",
    "paused",
)
WRITE_FIGURES = f"UPDATE lanes SET {', '.join(f'{name} = ?' for name in FIGURES)} WHERE lane = ?"  # noqa: S608
READ_FIGURES = f"SELECT {', '.join(FIGURES)} FROM lanes WHERE lane = ?"  # noqa: S608


class Held(NamedTuple):
    """A record as transitions need it: as it is, which for a leased one is more than its row says."""

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
    ready_at: float
    deadline: float | None
    started_at: float | None
    key: bytes | None
    scope: bytes | None
    parent: bytes | None
    request_bytes: int
    history: bytes
    blob: str | None
    blob_bytes: int | None
    callback: bytes | None

    @property
    def is_away(self) -> bool:
        """Whether a broker has it or is to have it, so that a consumer may have it."""
        return self.place < READY


class Leased(NamedTuple):
    """What is kept of a leased record: enough to finish one that nothing else hangs on.

    Args:
        epoch: the number of this lease; the row in the file has the one before until it ends.
        bound: the whole record, if it has a key, a scope, a parent, a blob or a callback.
        until: when the lease ends.
    """

    seq: int
    id: bytes
    epoch: int
    attempts: int
    claims: int
    request_bytes: int
    bound: Held | None
    lane: int
    cancel_requested: int
    started_at: float
    until: float


@dataclass(slots=True)
class Figures:
    """One lane's figures; `states` are now-figures for unfinished states, cumulative for finals."""

    states: list[int] = field(default_factory=lambda: [0] * len(STATES))
    accepted: int = 0
    replayed: int = 0
    dead_letters: int = 0
    ready: int = 0
    publishing: int = 0
    carried: int = 0
    bytes: int = 0
    stale: int = 0
    paused: int = 0

    @property
    def waiting(self) -> int:
        return self.states[QUEUED] + self.states[RETRYING]

    @property
    def away(self) -> int:
        return self.publishing + self.carried

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
            self.publishing,
            self.carried,
            self.bytes,
            self.stale,
            self.paused,
        )

    @classmethod
    def of(cls, row: Sequence[int]) -> Figures:
        return cls(list(row[: len(STATES)]), *row[len(STATES) :])


def body_columns(body: Body) -> tuple[bytes | None, str | None, int | None]:
    return (body, None, None) if isinstance(body, bytes) else (None, body.name, body.size)


def body_of(inline: bytes | None, blob: str | None, blob_bytes: int | None) -> Body:
    return BlobRef(blob, blob_bytes or 0) if blob is not None else inline or b""
