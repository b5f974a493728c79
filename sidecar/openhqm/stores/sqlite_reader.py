"""Reading records of the SQLite store: only what is committed, on a connection that only reads."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from openhqm.errors import StoreUnavailable
from openhqm.stores import rules
from openhqm.stores.base import Answer, Body, Counts, Lane, Page, Record, Stage, State, Want
from openhqm.stores.clock import Clock
from openhqm.stores.sqlite_rows import (
    FAILED,
    FINAL,
    LANES,
    LEASED,
    READ_FIGURES,
    READY,
    STAGES,
    STATE_NUMBERS,
    STATES,
    UNLEASED,
    Figures,
    body_of,
)

# A leased record is running, by the epoch after the one in its row.
_STATE = "iif(l.seq IS NULL, r.state, 1)"
_COLUMNS = f"""r.seq, r.id, r.lane, {_STATE}, iif(l.seq IS NULL, r.place, 3), r.priority, r.attempts,
    r.claims, r.epoch + (l.seq IS NOT NULL), r.accepted_at, r.ready_at, r.deadline,
    ifnull(l.at, r.started_at), r.finished_at, r.wake_at, r.cancel_requested, r.reason, r.history,
    r.key, r.parent, r.replay_of, r.replayed_as, a.note"""
_JOINED = "LEFT JOIN leases l ON l.seq = r.seq LEFT JOIN answers a ON a.seq = r.seq"
_BY_ID = f"SELECT {_COLUMNS} FROM records r {_JOINED} WHERE r.id = ?"  # noqa: S608 - our own column names
_REQUEST = "SELECT envelope, body, blob, blob_bytes FROM requests WHERE seq = ? AND envelope IS NOT NULL"
_ANSWER = "SELECT head, body, blob, blob_bytes FROM answers WHERE seq = ? AND head IS NOT NULL"
_NEXT_PRIORITY = """SELECT priority FROM records WHERE place = 0 AND lane = ? AND priority < ?
    ORDER BY priority DESC LIMIT 1"""
_FIRST_READY = f"""SELECT r.seq, r.ready_at FROM records r WHERE r.place = 0 AND r.lane = ? AND r.priority = ?
    AND {UNLEASED} ORDER BY r.seq LIMIT 1"""  # noqa: S608
# A record has one wake_at, so it is counted once, however many timers pass over it.
_DUE = """SELECT count(*), min(r.ready_at)
    FROM timers t CROSS JOIN records r ON r.seq BETWEEN t.first AND t.last
    WHERE t.place = 1 AND t.at <= ? AND r.place = 1 AND r.wake_at = t.at AND r.lane = ? AND r.ready_at <= ?"""
# A replay has the blob of the dead letter it repeats, which may be gone: requests are asked by the blob.
_NAMES_BLOB = """SELECT 1 FROM requests WHERE blob = ?
    UNION ALL SELECT 1 FROM records r JOIN answers a ON a.seq = r.seq WHERE r.id = ? AND a.blob = ?"""


class Reader:
    """One connection; used by one thread at a time."""

    def __init__(self, connection: sqlite3.Connection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock

    def close(self) -> None:
        self._connection.close()

    def get(self, id: bytes, want: Want) -> Record | None:
        with _errors_mapped():
            row = self._one(_BY_ID, id)
            if row is None:
                return None
            front = self._front(row[2]) if READY <= row[4] < LEASED else (None, 0)
            return self._record(row, want, front)

    def page(self, states: Sequence[State], lane: Lane, cursor: bytes, limit: int, want: Want) -> Page:
        with _errors_mapped():
            wanted = {STATE_NUMBERS[state] for state in states or State}
            source, state = "records r", _STATE
            if wanted == {FAILED}:
                # Dead letters are few among many and have an index; the planner would read them all.
                source, state = "records r INDEXED BY records_dead", "r.state"
            sql = f"""SELECT {_COLUMNS} FROM {source} {_JOINED} WHERE r.lane = ? AND r.seq > ?
                AND {state} {_one_of(wanted)} ORDER BY r.seq LIMIT ?"""  # noqa: S608 - numbers of ours
            after = int.from_bytes(cursor, "big")
            rows = self._connection.execute(sql, (LANES.index(lane), after, limit + 1)).fetchall()
            more = rows[limit - 1][0].to_bytes(8, "big") if len(rows) > limit else b""
            front = self._front(LANES.index(lane))
            return Page([self._record(row, want, front) for row in rows[:limit]], more)

    def counts(self, lane: Lane) -> Counts:
        number, now = LANES.index(lane), self._clock()
        with _errors_mapped():
            # One transaction, so that all figures are of the same moment.
            self._connection.execute("BEGIN")
            try:
                lanes = [Figures.of(self._one(READ_FIGURES, n) or ()) for n in range(len(LANES))]
                due, due_ready_at = self._one(_DUE, now, number, now) or (0, None)
                first = [ready_at for _, ready_at in self._first_ready(number)]
            finally:
                self._connection.execute("COMMIT")
        figures = lanes[number]
        if due_ready_at is not None:
            first.append(due_ready_at)
        return Counts(
            accepted=figures.accepted,
            **{state.value: figures.states[n] for n, state in enumerate(STATES)},
            replayed=figures.replayed,
            dead_letters=figures.dead_letters,
            delayed=figures.waiting - figures.away - figures.ready - due,
            publishing=figures.publishing,
            carried=figures.carried,
            bytes=sum(figures.bytes for figures in lanes),
            oldest_ready_at=min(first, default=None),
            stale_settlements=figures.stale,
            paused=bool(figures.paused),
        )

    def names_blob(self, id: bytes, name: str) -> bool:
        """Whether a record needs the blob that was written for the record *id*: that one, or its replay."""
        with _errors_mapped():
            return self._one(_NAMES_BLOB, name, id, name) is not None

    def _first_ready(self, lane: int) -> list[tuple[int, float]]:
        """First leasable record of each priority: its seq, and since when."""
        priorities = self._ready_priorities(lane)
        return [row for priority in priorities if (row := self._one(_FIRST_READY, lane, priority))]

    def _ready_priorities(self, lane: int) -> Iterator[int]:
        """Priorities of ready and leased records, highest first; one index look-up each."""
        priority = 10  # above all there are
        while row := self._one(_NEXT_PRIORITY, lane, priority):
            [priority] = row
            yield priority

    def _record(self, row: tuple[Any, ...], want: Want, front: tuple[int | None, int]) -> Record:
        seq, id, lane, state, place, priority, attempts, claims, epoch, accepted_at, *rest = row
        ready_at, deadline, started_at, finished_at, wake_at, cancel_requested, *rest = rest
        reason, history, key, parent, replay_of, replayed_as, note = rest
        return Record(
            id=id,
            lane=LANES[lane],
            state=STATES[state],
            priority=priority,
            attempts=attempts,
            claims=claims,
            epoch=epoch,
            accepted_at=accepted_at,
            ready_at=ready_at,
            deadline=deadline,
            started_at=started_at,
            finished_at=finished_at,
            expires_at=wake_at if place == FINAL else None,
            cancel_requested=bool(cancel_requested),
            may_have_run=rules.may_have_run(STATES[state], attempts),
            reason=reason,
            history=history + (note or b""),
            key=key,
            parent=parent,
            replay_of=replay_of,
            replayed_as=replayed_as,
            position=rules.position(seq, *front) if READY <= place < LEASED else None,
            stage=STAGES.get(place, Stage.HERE),
            request=self._request(seq) if Want.REQUEST in want else None,
            answer=self._answer(seq) if Want.ANSWER in want else None,
        )

    def _front(self, lane: int) -> tuple[int | None, int]:
        """Where a lane's line begins and how long it is, to tell positions by."""
        figures = Figures.of(self._one(READ_FIGURES, lane) or ())
        return min((first for first, _ in self._first_ready(lane)), default=None), figures.waiting

    def _request(self, seq: int) -> tuple[bytes, Body] | None:
        row = self._one(_REQUEST, seq)
        return None if row is None else (row[0], body_of(*row[1:]))

    def _answer(self, seq: int) -> Answer | None:
        row = self._one(_ANSWER, seq)
        return None if row is None else Answer(row[0], body_of(*row[1:]))

    def _one(self, sql: str, *values: object) -> tuple[Any, ...] | None:
        return self._connection.execute(sql, values).fetchone()  # type: ignore[no-any-return]


def _one_of(numbers: set[int]) -> str:
    [first, *rest] = sorted(numbers)
    return f"= {first}" if not rest else f"IN ({', '.join(map(str, (first, *rest)))})"


@contextmanager
def _errors_mapped() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as exc:
        raise StoreUnavailable(f"the store cannot be read: {exc}") from exc
