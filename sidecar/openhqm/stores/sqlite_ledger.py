"""The SQLite store's transitions: plain functions on the writing connection, inside a transaction.

`sqlite_commits.py` opens the transaction, runs these for many callers, and commits; `sqlite.py` is
what callers see. Besides the file the ledger keeps in memory what only the one owner needs: the
leases (so that renewing one writes nothing, and settling reads nothing) and the lanes' figures,
which are written back once per transaction. All of it is taken back when a transaction fails.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from openhqm.stores import rules
from openhqm.stores.base import (
    Accepted,
    Answer,
    BlobRef,
    Body,
    Change,
    Existing,
    Extension,
    Finish,
    Lease,
    NewRecord,
    OnLost,
    Options,
    Refusal,
    Refused,
    Replay,
    Retry,
    Settlement,
)
from openhqm.stores.blobs import Garbage
from openhqm.stores.clock import Clock
from openhqm.stores.sqlite_rows import (
    BLOCKED,
    BY_ID,
    BY_SEQ,
    CANCELLED,
    DELAYED,
    DELETE_ANSWERS,
    DELETE_RECORDS,
    DELETE_REQUESTS,
    DUE,
    EXPIRED,
    FAILED,
    FINAL,
    FINISH,
    INSERT_ANSWER,
    INSERT_BLOB_ANSWER,
    INSERT_ORDINARY,
    INSERT_ORDINARY_REQUEST,
    INSERT_RECORD,
    INSERT_REQUEST,
    LANES,
    LEASABLE,
    LEASABLE_OF_PRIORITY,
    LEASE,
    LEFT_LEASED,
    NEXT_OF_KEY,
    OUTLIVED_DUE,
    OUTLIVED_ID,
    PLACE,
    QUEUED,
    READ_FIGURES,
    READY,
    RETRYING,
    RUNNING,
    STATE_NUMBERS,
    STATES,
    WAIT,
    WIDTH,
    WRITE_FIGURES,
    Figures,
    Held,
    body_columns,
    body_of,
    leased,
    ready_priorities,
)
from openhqm.stores.sqlite_timers import Timers

MOST_WOKEN = 256

BOUNDS_EXACT_EVERY = 1024
"""Leases, from the first one on, after which a lane's `leased_first` and `leased_last` are made exact."""

_Ending = tuple[int, int, int, str]
"""State, attempts, claims and reason: what records that end alike have in common."""


class Ledger:
    """Transitions and what they change in memory.

    Args:
        on_committed: told the changes, and the lanes where there may be work, once durable.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        options: Options,
        clock: Clock,
        garbage: Garbage,
        on_committed: Callable[[Sequence[Change], Iterable[int]], None],
    ) -> None:
        self._connection = connection
        self._options = options
        self._clock = clock
        self._garbage = garbage
        self._on_committed = on_committed
        self._held: dict[bytes, Held] = {}
        # No lease ends before this; found anew when it is past.
        self._lapses_at = math.inf
        self._figures = [
            Figures.of(connection.execute(READ_FIGURES, (lane,)).fetchone()) for lane in range(len(LANES))
        ]
        self._written = self._flushed = [figures.row() for figures in self._figures]
        [last_seq] = connection.execute("SELECT max(seq) FROM records").fetchone()
        self._next_seq = (last_seq or 0) + 1
        self._leased = [0] * len(LANES)
        self._timers = Timers(connection)
        self._changes: list[Change] = []
        self._dropped: list[Body] = []
        self._rung: set[int] = set()
        self._finished: dict[_Ending, list[int]] = {}
        self._answered: list[object] = []
        self._undo: Callable[[], None] | None = None

    # -- the transaction's frame

    def begin(self) -> None:
        held, figures = dict(self._held), self._written
        next_seq, leased = self._next_seq, list(self._leased)

        def undo() -> None:
            self._held, self._next_seq, self._leased = held, next_seq, leased
            self._figures = [Figures.of(row) for row in figures]
            self._lapses_at = -math.inf

        self._undo = undo

    def flush(self) -> None:
        self._flushed = [figures.row() for figures in self._figures]
        for lane, row in enumerate(self._flushed):
            if row != self._written[lane]:
                self._connection.execute(WRITE_FIGURES, (*row, lane))

    def committed(self) -> None:
        self._written = self._flushed
        changes, rung = self._changes, self._rung
        self._garbage.add(*self._dropped)
        self._undo = None
        self._forget()
        self._on_committed(changes, rung)

    def roll_back(self) -> None:
        # There is nothing to undo when the transaction could not even begin.
        if self._undo is not None:
            self._undo()
            self._undo = None
        self._forget()
        self._timers.forget()

    def _forget(self) -> None:
        self._changes, self._rung, self._dropped = [], set(), []
        self._finished, self._answered = {}, []

    @property
    def next_due_at(self) -> float:
        """No waiting record is due, or expires, before this."""
        return self._timers.next_at

    # -- accept

    def accept(self, records: Sequence[NewRecord]) -> list[Accepted | Existing | Refused]:
        if all(map(_is_ordinary, records)) and self._accept_ordinary(records):
            return [Accepted(record.id) for record in records]
        batch = _Batch(self)
        results = [self._accept(record, batch) for record in records]
        batch.write()
        return results

    def _accept_ordinary(self, records: Sequence[NewRecord]) -> bool:
        """Insert records that nothing has to be decided for; False, and nothing done, if there is."""
        now = self._clock()
        first = seq = self._next_seq
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
            INSERT_ORDINARY.run(self._connection, rows)
        except sqlite3.IntegrityError:
            # An id is held already; those before it may be in.
            self._connection.execute("DELETE FROM records WHERE seq >= ?", (first,))
            return False
        INSERT_ORDINARY_REQUEST.run(self._connection, requests)
        for deadline, seqs in deadlines.items():
            self._timers.set(READY, deadline, seqs)
        self._next_seq = seq
        figures = self._figures[0]
        figures.accepted += len(records)
        figures.states[QUEUED] += len(records)
        figures.ready += len(records)
        figures.bytes += total + len(records) * self._options.answer_reserve_bytes
        self._rung.add(0)
        return True

    def _accept(self, record: NewRecord, batch: _Batch) -> Accepted | Existing | Refused:
        if batch.has(record.id) or self._one("SELECT 1 FROM records WHERE id = ?", record.id):
            return Accepted(record.id)
        if record.idempotency is not None:
            scope = record.idempotency.scope
            held = batch.scopes.get(scope) or self._one(
                "SELECT id, fingerprint FROM records WHERE scope = ?", scope
            )
            if held is not None:
                same = held[1] == record.idempotency.fingerprint
                return Existing(held[0]) if same else Refused(Refusal.IDEMPOTENCY_MISMATCH)
        size = len(record.envelope) + rules.body_bytes(record.body)
        if refusal := self._refusal(size):
            return Refused(refusal)
        now = self._clock()
        batch.add(
            record,
            lane=0,
            now=now,
            ready_at=rules.ready_at(record, now),
            deadline=rules.deadline(record, now),
            size=size,
        )
        return Accepted(record.id)

    def _refusal(self, size: int, records: int = 1) -> Refusal | None:
        """Why *records* more, of *size* bytes together, have no room; None if they have."""
        if self._figures[0].unfinished + records > self._options.max_backlog:
            return Refusal.BACKLOG_FULL
        held = sum(figures.bytes for figures in self._figures)
        if held + size + records * self._options.answer_reserve_bytes > self._options.max_bytes:
            return Refusal.BYTES_FULL
        return None

    def key_is_taken(self, lane: int, key: bytes) -> bool:
        sql = "SELECT 1 FROM records WHERE lane = ? AND key = ? AND place < 4 LIMIT 1"
        return self._one(sql, lane, key) is not None

    def place_new(
        self, lane: int, seq: int, place: int, ready_at: float, deadline: float | None
    ) -> float | None:
        """Count a record that is put at *place*; returns when it wakes."""
        figures = self._figures[lane]
        figures.accepted += 1
        figures.states[QUEUED] += 1
        figures.ready += place == READY
        self._rung.add(lane)
        return self._set_timer(seq, place, ready_at, deadline)

    def count_bytes(self, lane: int, size: int) -> None:
        self._figures[lane].bytes += size + self._options.answer_reserve_bytes

    def insert(self, records: Sequence[tuple[Any, ...]], requests: Sequence[tuple[Any, ...]]) -> None:
        self._connection.executemany(INSERT_RECORD, records)
        self._connection.executemany(INSERT_REQUEST, requests)

    def take_seq(self) -> int:
        self._next_seq += 1
        return self._next_seq - 1

    def _set_timer(self, seq: int, place: int, ready_at: float, deadline: float | None) -> float | None:
        """Set the timer of a record that waits; returns when it wakes, None for never."""
        wakes_at = deadline
        if place == DELAYED and (deadline is None or ready_at < deadline):
            wakes_at = ready_at
        if wakes_at is not None:
            self._timers.set(place, wakes_at, (seq,))
        return wakes_at

    # -- lease and extend

    def lease(self, limit: int, lease_seconds: float, lane: int) -> list[Lease]:
        now = self._clock()
        if self.next_due_at <= now:
            self.wake(MOST_WOKEN)
        if self._figures[lane].paused:
            return []
        until = now + lease_seconds
        self._lapses_at = min(self._lapses_at, until)
        if not (rows := self._choose(limit, lane, until)):
            return []
        leases, seqs = [], []
        for row in rows:
            held, lease = leased(row)
            self._held[held.id] = held
            leases.append(lease)
            seqs.append(held.seq)
        self._count_leased(lane, leases, [row[WIDTH] for row in rows])
        self._connection.execute(LEASE, (now, str(seqs)))
        self._bound(lane, seqs)
        return leases

    def _count_leased(self, lane: int, leases: Sequence[Lease], states: Sequence[int]) -> None:
        """Count and tell leases of records that were in *states*."""
        figures = self._figures[lane]
        for state in (QUEUED, RETRYING):
            figures.states[state] -= states.count(state)
        figures.states[RUNNING] += len(leases)
        figures.ready -= len(leases)
        running, name = STATES[RUNNING], LANES[lane]
        self._changes += [Change(lease.id, running, name) for lease in leases]

    def _bound(self, lane: int, seqs: Sequence[int]) -> None:
        """Widen the bounds of the lane's leased records to *seqs*; now and then make them exact."""
        figures = self._figures[lane]
        before = self._leased[lane] - len(seqs)
        if -before % BOUNDS_EXACT_EVERY < len(seqs):
            seqs = [held.seq for held in self._held.values() if held.lane == lane]
            figures.leased_first, figures.leased_last = min(seqs), max(seqs)
        else:
            figures.leased_first = min(figures.leased_first, *seqs)
            figures.leased_last = max(figures.leased_last, *seqs)

    def _choose(self, limit: int, lane: int, until: float) -> list[tuple[Any, ...]]:
        """Take the next rows in order, every eighth of all leases from the oldest instead."""
        every = rules.OLDEST_FIRST_EVERY
        before = self._leased[lane]
        guarded = (before + limit) // every - before // every
        oldest = self._oldest(guarded, lane, until) if guarded else []
        seqs = {row[0] for row in oldest}
        rows = self._connection.execute(LEASABLE, (until, lane, limit)).fetchall()
        chosen = [row for row in rows if row[0] not in seqs][: limit - len(oldest)] + oldest
        self._leased[lane] += len(chosen)
        return chosen

    def _oldest(self, limit: int, lane: int, until: float) -> list[tuple[Any, ...]]:
        """The records accepted first, whatever their priority; none if there is one priority only."""
        priorities = list(ready_priorities(self._connection, lane))
        if len(priorities) < 2:
            return []
        found: list[tuple[Any, ...]] = []
        for priority in priorities:
            values = until, lane, priority, limit
            found += self._connection.execute(LEASABLE_OF_PRIORITY, values).fetchall()
        return sorted(found)[:limit]

    def extend(self, leases: Sequence[tuple[bytes, int]], lease_seconds: float) -> list[Extension]:
        until = self._clock() + lease_seconds
        return [self._extend(id, epoch, until) for id, epoch in leases]

    def _extend(self, id: bytes, epoch: int, until: float) -> Extension:
        held = self._holder(id, epoch)
        if held is None:
            return Extension.LOST
        self._held[id] = held._replace(until=until)
        self._lapses_at = min(self._lapses_at, until)
        return Extension.CANCEL_REQUESTED if held.cancel_requested else Extension.HELD

    def _holder(self, id: bytes, epoch: int) -> Held | None:
        """The record, if *epoch* is its current lease; otherwise the refusal is counted."""
        held = self._held.get(id)
        if held is not None and held.epoch == epoch:
            return held
        lane = (
            held.lane
            if held is not None
            else (self._one("SELECT lane FROM records WHERE id = ?", id) or (0,))[0]
        )
        self._figures[lane].stale += 1
        return None

    # -- settle

    def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        results = [self._settle(settlement) for settlement in settlements]
        self._write_finished()
        return results

    def _settle(self, settlement: Settlement) -> bool:
        held = self._holder(settlement.id, settlement.epoch)
        if held is None:
            self._refuse_answer(settlement)
            return False
        del self._held[held.id]
        if isinstance(settlement, Finish):
            self._finish(
                held,
                STATE_NUMBERS[settlement.state],
                held.attempts + settlement.sent,
                reason=settlement.reason,
                note=_line(settlement.note),
                answer=settlement.answer,
            )
        elif isinstance(settlement, Retry):
            self._leave(held, held.attempts + 1, settlement.delay_seconds, _line(settlement.note))
        else:
            self._leave(held, held.attempts, settlement.delay_seconds, b"")
        return True

    def _refuse_answer(self, settlement: Settlement) -> None:
        """The answer's blob is garbage, unless this repeats the settlement that stored it."""
        if isinstance(settlement, Finish) and settlement.answer is not None:
            body = settlement.answer.body
            sql = "SELECT 1 FROM answers a JOIN records r ON r.seq = a.seq WHERE r.id = ? AND a.blob = ?"
            if isinstance(body, BlobRef) and not self._one(sql, settlement.id, body.name):
                self._dropped.append(body)

    def _leave(self, held: Held, attempts: int, delay_seconds: float, note: bytes) -> None:
        """End a lease without an answer: the record waits again, or is cancelled if that was asked."""
        if held.cancel_requested:
            self._finish(held, CANCELLED, attempts, note=note)
        else:
            self._wait(held, attempts, held.claims, delay_seconds, held.history + note)

    def _wait(self, held: Held, attempts: int, claims: int, delay_seconds: float, history: bytes) -> None:
        figures = self._figures[held.lane]
        # A leased record is the first of its key, so nothing but time can hold it up.
        place = DELAYED if delay_seconds > 0 else READY
        state = RETRYING if attempts else QUEUED
        ready_at = self._clock() + max(delay_seconds, 0.0)
        wake_at = self._set_timer(held.seq, place, ready_at, held.deadline)
        self._connection.execute(WAIT, (state, place, attempts, claims, ready_at, wake_at, history, held.seq))
        figures.ready += place == READY
        self._move(figures, held.state, state, held, "")
        self._rung.add(held.lane)

    def _finish(
        self,
        held: Held,
        state: int,
        attempts: int,
        *,
        claims: int | None = None,
        reason: str = "",
        note: bytes = b"",
        answer: Answer | None = None,
    ) -> None:
        """Make a record final; `_write_finished` must follow in the same operation."""
        figures = self._figures[held.lane]
        figures.ready -= held.place == READY
        figures.bytes -= self._options.answer_reserve_bytes
        if answer is not None:
            figures.bytes += len(answer.head) + self._gather_answer(held.seq, note, answer)
        elif note:
            self._answered += (held.seq, note, None, None)
        ending = (state, attempts, held.claims if claims is None else claims, reason)
        self._finished.setdefault(ending, []).append(held.seq)
        self._move(figures, held.state, state, held, reason)
        if state == FAILED:
            figures.dead_letters += 1
        else:
            figures.bytes -= held.request_bytes
            if held.blob is not None:
                self._dropped.append(BlobRef(held.blob, held.blob_bytes or 0))
        if held.scope is not None and rules.frees_idempotency(STATES[state], attempts):
            self._connection.execute("UPDATE records SET scope = NULL WHERE seq = ?", (held.seq,))
        if held.callback is not None:
            self._put_callback(held, self._clock())
        if held.key is not None:
            self._write_finished()
            self._free_key(held.lane, held.key)

    def _gather_answer(self, seq: int, note: bytes, answer: Answer) -> int:
        """Have an answer written; returns the size of its body."""
        body = answer.body
        if isinstance(body, bytes):
            self._answered += (seq, note, answer.head, body)
            return len(body)
        blob_answer = seq, note, answer.head, body.name, body.size
        self._connection.execute(INSERT_BLOB_ANSWER, blob_answer)
        return body.size

    def _write_finished(self) -> None:
        """Write what `_finish` gathered; records that ended alike share a statement."""
        if not self._finished:
            return
        finished, self._finished = self._finished, {}
        answered, self._answered = self._answered, []
        now = self._clock()
        options = self._options
        for (state, attempts, claims, reason), seqs in finished.items():
            these = str(seqs)
            if state == FAILED:
                expires_at = now + options.dead_letter_ttl_seconds
            else:
                expires_at = now + options.answer_ttl_seconds
                self._connection.execute(DELETE_REQUESTS, (these,))
            self._connection.execute(FINISH, (state, attempts, claims, reason, now, expires_at, these))
            self._timers.set(FINAL, expires_at, seqs)
        INSERT_ANSWER.run(self._connection, answered)

    def _put_callback(self, held: Held, now: float) -> None:
        batch = _Batch(self)
        record = NewRecord(
            id=rules.callback_id(held.id),
            envelope=held.callback or b"",
            priority=held.priority,
            on_lost=OnLost.REPEAT,
            max_claims=held.max_claims,
        )
        size = len(record.envelope)
        batch.add(record, lane=1, now=now, ready_at=now, deadline=None, size=size, parent=held.id)
        batch.write()

    def _free_key(self, lane: int, key: bytes) -> None:
        """Let the next record of the key wait for its time or a consumer only."""
        row = self._one(NEXT_OF_KEY, lane, key)
        if row is not None:
            held = Held._make((*row, 0.0))
            if held.place == BLOCKED:
                self._place(held)

    def _place(self, held: Held) -> None:
        """Put a waiting record that is the first of its key where its time says."""
        place = DELAYED if held.ready_at > self._clock() else READY
        wake_at = self._set_timer(held.seq, place, held.ready_at, held.deadline)
        self._connection.execute(PLACE, (place, wake_at, held.seq))
        self._figures[held.lane].ready += (place == READY) - (held.place == READY)
        self._rung.add(held.lane)

    # -- cancel, replay, purge, pause

    def cancel(self, id: bytes) -> None:
        if (held := self._held.get(id)) is not None:
            self._held[id] = held._replace(cancel_requested=1)
            self._connection.execute("UPDATE records SET cancel_requested = 1 WHERE seq = ?", (held.seq,))
            return
        row = self._one(BY_ID, id)
        if row is not None and row[4] != FINAL:
            held = Held._make((*row, 0.0))
            self._finish(held, CANCELLED, held.attempts)
            self._write_finished()

    def replay(self, replays: Sequence[Replay]) -> list[bool]:
        return [self._replay(replay) for replay in replays]

    def _replay(self, replay: Replay) -> bool:
        present = self._one("SELECT replay_of FROM records WHERE id = ?", replay.new_id)
        if present is not None:
            return bool(present[0] == replay.id)
        row = self._one(BY_ID, replay.id)
        if row is None:
            return False
        held = Held._make((*row, 0.0))
        is_replayed = self._one("SELECT 1 FROM records WHERE seq = ? AND replayed_as IS NOT NULL", held.seq)
        if held.state != FAILED or is_replayed:
            return False
        self._connection.execute(
            "UPDATE records SET replayed_as = ? WHERE seq = ?", (replay.new_id, held.seq)
        )
        self._figures[held.lane].dead_letters -= 1
        self._figures[held.lane].replayed += 1
        self._put_replay(held, replay)
        return True

    def _put_replay(self, held: Held, replay: Replay) -> None:
        envelope, body = self._one("SELECT envelope, body FROM requests WHERE seq = ?", held.seq) or (
            b"",
            b"",
        )
        now = self._clock()
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
        )
        batch = _Batch(self)
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
        rows = [row for id in dict.fromkeys(ids) if (row := self._one(OUTLIVED_ID, id)) is not None]
        self._delete(rows)
        return len(rows)

    def pause(self, paused: bool, lane: int) -> None:
        self._figures[lane].paused = int(paused)
        self._rung.add(lane)

    # -- sweep

    def lapse_due(self, limit: int) -> list[Change]:
        """Judge leases that ran out."""
        now = self._clock()
        if now < self._lapses_at:
            return []
        lapsed = sorted((held for held in self._held.values() if held.until <= now), key=_until)[:limit]
        changes = self._lapse(lapsed)
        self._lapses_at = min(map(_until, self._held.values()), default=math.inf)
        return changes

    def lapse_orphaned(self, limit: int) -> list[Change]:
        """Judge leases that another process held and took with it."""
        lapsed: list[Held] = []
        for lane, figures in enumerate(self._figures):
            values = figures.leased_first, figures.leased_last, lane, limit - len(lapsed)
            rows = self._connection.execute(LEFT_LEASED, values).fetchall()
            lapsed += [Held._make((*row, 0.0)) for row in rows]
        for held in lapsed:
            self._held[held.id] = held
        return self._lapse(lapsed)

    def _lapse(self, lapsed: Sequence[Held]) -> list[Change]:
        before = len(self._changes)
        for held in lapsed:
            del self._held[held.id]
            on_lost = OnLost.REPEAT if held.repeat else OnLost.UNKNOWN
            claims, attempts = held.claims + 1, held.attempts + 1
            state, reason = rules.judge_lapsed(on_lost, claims, held.max_claims, bool(held.cancel_requested))
            if state.is_final:
                self._finish(held, STATE_NUMBERS[state], attempts, claims=claims, reason=reason)
            else:
                self._wait(held, attempts, claims, 0.0, held.history)
        self._write_finished()
        return self._changes[before:]

    def wake(self, limit: int) -> list[Change]:
        """Expire what passed its deadline, place what has become due; looks at about *limit* records."""
        now = self._clock()
        before = len(self._changes)
        for place in (READY, DELAYED, BLOCKED):
            while limit > 0 and (timer := self._timers.due(place, now)):
                rows = self._connection.execute(DUE, (timer.first, timer.last, place, now, limit)).fetchall()
                seqs = [seq for (seq,) in rows]
                for seq in seqs:
                    self._wake_one(seq, now)
                limit -= self._timers.passed(timer, seqs, limit)
        if limit > 0:
            self._timers.read_next()
        return self._changes[before:]

    def _wake_one(self, seq: int, now: float) -> None:
        # Read one by one, for the one before it may have moved it: the next of its key.
        held = Held._make((*(self._one(BY_SEQ, seq) or ()), 0.0))
        if held.deadline is not None and held.deadline <= now:
            self._finish(held, EXPIRED, held.attempts)
            self._write_finished()
        elif held.place == DELAYED:
            self._place(held)

    def delete_outlived(self, limit: int) -> int:
        """Delete final records whose time is over; returns how many were looked at, about *limit* at most."""
        now, left = self._clock(), limit
        while left > 0 and (timer := self._timers.due(FINAL, now)):
            rows = self._connection.execute(OUTLIVED_DUE, (timer.first, timer.last, now, left)).fetchall()
            self._delete(rows)
            left -= self._timers.passed(timer, [row[0] for row in rows], left)
        return limit - left

    def _delete(self, rows: Sequence[tuple[Any, ...]]) -> None:
        for _seq, lane, state, replayed_as, size, *blobs in rows:
            figures = self._figures[lane]
            figures.bytes -= size
            if state == FAILED and replayed_as is None:
                figures.dead_letters -= 1
            request_blob, request_size, answer_blob, answer_size = blobs
            # A replayed dead letter has given its blob to the new record.
            if request_blob is not None and replayed_as is None:
                self._dropped.append(BlobRef(request_blob, request_size))
            if answer_blob is not None:
                self._dropped.append(BlobRef(answer_blob, answer_size))
        seqs = str([row[0] for row in rows])
        for sql in (DELETE_RECORDS, DELETE_REQUESTS, DELETE_ANSWERS):
            self._connection.execute(sql, (seqs,))

    # -- small steps

    def _move(self, figures: Figures, old: int, new: int, held: Held, reason: str) -> None:
        figures.states[old] -= 1
        figures.states[new] += 1
        self._changes.append(Change(held.id, STATES[new], LANES[held.lane], reason))

    def _one(self, sql: str, *values: object) -> tuple[Any, ...] | None:
        return self._connection.execute(sql, values).fetchone()  # type: ignore[no-any-return]


def _line(note: bytes) -> bytes:
    return note + b"\n" if note else b""


def _until(held: Held) -> float:
    return held.until


def _is_ordinary(record: NewRecord) -> bool:
    """Whether *record* is ready at once, belongs to nothing else, and lies in the file whole."""
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


class _Batch:
    """New records of one operation, written together."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._records: list[tuple[Any, ...]] = []
        self._requests: list[tuple[Any, ...]] = []
        self._ids: set[bytes] = set()
        self._keys: set[tuple[int, bytes]] = set()
        self.scopes: dict[bytes, tuple[bytes, bytes]] = {}

    def has(self, id: bytes) -> bool:
        return id in self._ids

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
        ledger = self._ledger
        seq = ledger.take_seq()
        place = DELAYED if ready_at > now else READY
        if record.key is not None:
            key = (lane, record.key)
            if key in self._keys or ledger.key_is_taken(*key):
                place = BLOCKED
            self._keys.add(key)
        wake_at = ledger.place_new(lane, seq, place, ready_at, deadline)
        ledger.count_bytes(lane, size)
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

    def write(self) -> None:
        if self._records:
            self._ledger.insert(self._records, self._requests)
