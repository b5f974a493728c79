"""The store in memory: the reference for all others, and a real store for work that may be lost.

Every method runs to its end on the event loop without waiting, so each is one transaction. Work is
found through heaps, never by looking at every record:

    ready     leasable records, one heap of sequence numbers per priority and lane
    outbound  records to be handed out for publishing, a heap of sequence numbers
    holding   when those handed out are to be handed out again
    waking    when a waiting record becomes due or passes its deadline
    lapsing   when leases run out
    deleting  when final records have outlived their time

Durability is none: everything ends with the process.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from openhqm.errors import StoreUnavailable
from openhqm.stores import rules
from openhqm.stores.base import (
    FINAL_STATES,
    Abilities,
    Accepted,
    Answer,
    Arrival,
    Blobs,
    Body,
    Change,
    Counts,
    Durability,
    Existing,
    Extension,
    Finish,
    Idempotency,
    Lane,
    Lease,
    NewRecord,
    OnLost,
    Options,
    Outbound,
    Page,
    Record,
    Refusal,
    Refused,
    Release,
    Replay,
    Retry,
    Settlement,
    Stage,
    State,
    Want,
)
from openhqm.stores.blobs import Garbage, MemoryBlobs
from openhqm.stores.clock import AnchoredClock, Clock
from openhqm.stores.timers import Timers
from openhqm.stores.waiting import Bell, Listener, Watchers, take_when_ready

MAX_INLINE_BYTES = 16 * 1024 * 1024
PRIORITIES = 10
DELETIONS_PER_CHANGE = 10


@dataclass(slots=True, eq=False)
class _Row:
    """One record as held; `request` and `answer` are None once dropped."""

    seq: int
    id: bytes
    lane: Lane
    priority: int
    accepted_at: float
    ready_at: float
    deadline: float | None
    request: tuple[bytes, Body] | None
    key: bytes | None
    on_lost: OnLost
    max_claims: int
    idempotency: Idempotency | None = None
    callback: bytes | None = None
    parent: bytes | None = None
    replay_of: bytes | None = None
    stage: Stage = Stage.HERE
    state: State = State.QUEUED
    epoch: int = 0
    attempts: int = 0
    claims: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    cancel_requested: bool = False
    reason: str = ""
    history: bytes = b""
    answer: Answer | None = None
    replayed_as: bytes | None = None
    is_ready: bool = False


@dataclass(slots=True)
class _Line:
    """One lane: who is where, in which order they are leased, and what ever happened."""

    held: dict[State, dict[int, _Row]] = field(default_factory=lambda: {state: {} for state in State})
    ready: list[list[int]] = field(default_factory=lambda: [[] for _ in range(PRIORITIES)])
    ready_count: int = 0
    keys: dict[bytes, deque[_Row]] = field(default_factory=dict)
    ended: dict[State, int] = field(default_factory=lambda: dict.fromkeys(FINAL_STATES, 0))
    accepted: int = 0
    replayed: int = 0
    dead_letters: int = 0
    away: dict[Stage, int] = field(default_factory=lambda: {Stage.PUBLISHING: 0, Stage.CARRIED: 0})
    stale: int = 0
    leased: int = 0
    paused: bool = False
    bell: Bell = field(default_factory=Bell)

    @property
    def waiting(self) -> int:
        return len(self.held[State.QUEUED]) + len(self.held[State.RETRYING])


class MemoryStore:
    """See the module docstring.

    Args:
        clock: seconds since the epoch, never going back.
        blobs: where large bodies go.
    """

    abilities = Abilities(
        Durability.NONE, shared=False, max_inline_bytes=MAX_INLINE_BYTES, why="it ends with the process"
    )

    def __init__(self, options: Options, blobs: Blobs | None = None, clock: Clock | None = None) -> None:
        self.blobs: Blobs = blobs or MemoryBlobs()
        self._options = options
        self._clock: Clock = clock or AnchoredClock()
        self._lines = {lane: _Line() for lane in Lane}
        self._rows: dict[int, _Row] = {}
        self._ids: dict[bytes, _Row] = {}
        self._scopes: dict[bytes, _Row] = {}
        self._secrets: dict[str, bytes] = {}
        self._outbound: list[int] = []
        self._holding = Timers()
        self._outbound_bell = Bell()
        self._waking = Timers()
        self._lapsing = Timers()
        self._deleting = Timers()
        self._next_seq = 1
        self._bytes = 0
        self._open = False
        self._watchers = Watchers()
        self._changes: list[Change] = []
        self._garbage = Garbage(self.blobs)

    @classmethod
    def from_url(cls, url: str, options: Options, blobs: Blobs | None) -> MemoryStore:
        """`memory:`"""
        return cls(options, blobs)

    # -- open and close

    async def open(self) -> None:
        self._open = True

    async def close(self) -> None:
        self._open = False
        self._outbound_bell.ring()
        for line in self._lines.values():
            line.bell.ring()

    # -- the life of a record

    async def accept(self, records: Sequence[NewRecord]) -> Sequence[Accepted | Existing | Refused]:
        self._check_open()
        results = [self._accept(record) for record in records]
        await self._committed()
        return results

    async def lease(
        self, limit: int, *, lease_seconds: float, wait_seconds: float, lane: Lane = Lane.REQUESTS
    ) -> Sequence[Lease]:
        async def attempt() -> Sequence[Lease]:
            self._check_open()
            leases = self._lease(limit, lease_seconds, self._lines[lane])
            try:
                await self._committed()
            except asyncio.CancelledError:
                for lease in leases:
                    self._settle(Release(lease.id, lease.epoch))
                self._tell()
                raise
            return leases

        bell = self._lines[lane].bell
        return await take_when_ready(attempt, bell, self._due_in_seconds, wait_seconds, lambda: self._open)

    async def extend(
        self, leases: Sequence[tuple[bytes, int]], *, lease_seconds: float
    ) -> Sequence[Extension]:
        self._check_open()
        until = self._clock() + lease_seconds
        return [self._extend(id, epoch, until) for id, epoch in leases]

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        self._check_open()
        results = [self._settle(settlement) for settlement in settlements]
        await self._committed()
        return results

    async def outbound(self, limit: int, *, hold_seconds: float, wait_seconds: float) -> Sequence[Outbound]:
        async def attempt() -> Sequence[Outbound]:
            self._check_open()
            found = self._hand_out(limit, hold_seconds)
            await self._committed()
            return found

        def due_in_seconds() -> float:
            return min(self._holding.next_at(), self._waking.next_at()) - self._clock()

        return await take_when_ready(
            attempt, self._outbound_bell, due_in_seconds, wait_seconds, lambda: self._open
        )

    async def carried(self, ids: Sequence[bytes]) -> Sequence[bool]:
        self._check_open()
        results = [self._carry(id) for id in ids]
        await self._committed()
        return results

    async def arrive(self, records: Sequence[NewRecord]) -> Sequence[Arrival | Refused]:
        self._check_open()
        results = [self._arrive(record) for record in records]
        await self._committed()
        return results

    async def cancel(self, id: bytes) -> Record | None:
        self._check_open()
        row = self._ids.get(id)
        if row is None:
            return None
        if row.state is State.RUNNING:
            row.cancel_requested = True
        elif not row.state.is_final:
            self._end_waiting(row, State.CANCELLED)
        await self._committed()
        return self._record(row, Want.STATE)

    async def replay(self, replays: Sequence[Replay]) -> Sequence[bool]:
        self._check_open()
        results = [self._replay(replay) for replay in replays]
        await self._committed()
        return results

    async def purge(self, ids: Sequence[bytes]) -> int:
        self._check_open()
        rows = [row for id in dict.fromkeys(ids) if (row := self._ids.get(id)) and row.state.is_final]
        for row in rows:
            self._delete(row)
        await self._committed()
        return len(rows)

    async def sweep(self, limit: int = 1000) -> Sequence[Change]:
        self._check_open()
        now = self._clock()
        for seq in self._lapsing.pop_due(now):
            self._lapse(self._rows[seq])
            if len(self._changes) >= limit:
                break
        self._wake(now, limit)
        for deleted, seq in enumerate(self._deleting.pop_due(now), 1):
            self._delete(self._rows[seq])
            if deleted >= limit * DELETIONS_PER_CHANGE:
                break
        return await self._committed()

    async def pause(self, paused: bool, lane: Lane = Lane.REQUESTS) -> None:
        self._check_open()
        self._lines[lane].paused = paused
        self._lines[lane].bell.ring()
        self._outbound_bell.ring()

    # -- reading

    async def get(self, ids: Sequence[bytes], want: Want = Want.STATE) -> Sequence[Record | None]:
        self._check_open()
        return [self._record(row, want) if (row := self._ids.get(id)) else None for id in ids]

    async def list(
        self,
        *,
        states: Sequence[State] = (),
        lane: Lane = Lane.REQUESTS,
        cursor: bytes = b"",
        limit: int = 100,
        want: Want = Want.STATE,
    ) -> Page:
        self._check_open()
        held = self._lines[lane].held
        after = int.from_bytes(cursor, "big")
        seqs = (seq for state in set(states or State) for seq in held[state] if seq > after)
        found = heapq.nsmallest(limit + 1, seqs)
        cursor = found[limit - 1].to_bytes(8, "big") if len(found) > limit else b""
        return Page([self._record(self._rows[seq], want) for seq in found[:limit]], cursor)

    def watch(self, listener: Listener) -> Callable[[], None]:
        return self._watchers.add(listener)

    async def counts(self, lane: Lane = Lane.REQUESTS) -> Counts:
        self._check_open()
        line = self._lines[lane]
        self._promote_due()
        return Counts(
            accepted=line.accepted,
            queued=len(line.held[State.QUEUED]),
            running=len(line.held[State.RUNNING]),
            retrying=len(line.held[State.RETRYING]),
            done=line.ended[State.DONE],
            failed=line.ended[State.FAILED],
            cancelled=line.ended[State.CANCELLED],
            expired=line.ended[State.EXPIRED],
            replayed=line.replayed,
            dead_letters=line.dead_letters,
            delayed=line.waiting - line.ready_count - sum(line.away.values()),
            publishing=line.away[Stage.PUBLISHING],
            carried=line.away[Stage.CARRIED],
            bytes=self._bytes,
            oldest_ready_at=min((self._rows[seq].ready_at for seq in self._heads(line)), default=None),
            stale_settlements=line.stale,
            paused=line.paused,
        )

    async def secret(self, name: str, default: bytes) -> bytes:
        self._check_open()
        return self._secrets.setdefault(name, default)

    # -- transitions: each runs to its end without awaiting

    def _accept(self, record: NewRecord) -> Accepted | Existing | Refused:
        if record.id in self._ids:
            return Accepted(record.id)
        if record.idempotency is not None and (held := self._scopes.get(record.idempotency.scope)):
            if rules.same_request(held.idempotency, record.idempotency):
                return Existing(held.id)
            return Refused(Refusal.IDEMPOTENCY_MISMATCH)
        if refusal := self._refusal(record):
            return Refused(refusal)
        now = self._clock()
        self._insert(
            _Row(
                seq=self._take_seq(),
                id=record.id,
                lane=Lane.REQUESTS,
                priority=record.priority,
                accepted_at=now,
                ready_at=rules.ready_at(record, now),
                deadline=rules.deadline(record, now),
                request=(record.envelope, record.body),
                key=record.key,
                on_lost=record.on_lost,
                max_claims=record.max_claims,
                idempotency=record.idempotency,
                callback=record.callback,
                replay_of=record.replay_of,
                stage=Stage.PUBLISHING if record.outbound else Stage.HERE,
            )
        )
        return Accepted(record.id)

    def _refusal(self, record: NewRecord) -> Refusal | None:
        line = self._lines[Lane.REQUESTS]
        if line.waiting + len(line.held[State.RUNNING]) >= self._options.max_backlog:
            return Refusal.BACKLOG_FULL
        size = len(record.envelope) + rules.body_bytes(record.body) + self._options.answer_reserve_bytes
        return Refusal.BYTES_FULL if self._bytes + size > self._options.max_bytes else None

    def _insert(self, row: _Row) -> None:
        line = self._lines[row.lane]
        line.accepted += 1
        line.replayed += row.replay_of is not None
        if row.stage is Stage.PUBLISHING:
            line.away[row.stage] += 1
            heapq.heappush(self._outbound, row.seq)
            self._outbound_bell.ring()
        self._rows[row.seq] = self._ids[row.id] = line.held[row.state][row.seq] = row
        if row.idempotency is not None:
            self._scopes[row.idempotency.scope] = row
        if row.key is not None:
            line.keys.setdefault(row.key, deque()).append(row)
        self._bytes += _held_bytes(row) + self._options.answer_reserve_bytes
        self._queue(row)

    def _queue(self, row: _Row) -> None:
        """Put an unleased record where it waits: for its time, its key or a consumer, or to come back."""
        line = self._lines[row.lane]
        if row.stage is not Stage.HERE:
            self._waking.set(row.seq, row.deadline)
            return
        is_due = row.ready_at <= self._clock()
        wakes_at = [] if is_due else [row.ready_at]
        if row.deadline is not None:
            wakes_at.append(row.deadline)
        self._waking.set(row.seq, min(wakes_at, default=None))
        if is_due and (row.key is None or line.keys[row.key][0] is row):
            row.is_ready = True
            line.ready_count += 1
            heapq.heappush(line.ready[row.priority], row.seq)
        # Also when it is not due yet: who waits must learn how long.
        line.bell.ring()

    def _lease(self, limit: int, lease_seconds: float, line: _Line) -> Sequence[Lease]:
        now = self._clock()
        self._wake(now, math.inf)
        leases: list[Lease] = []
        while not line.paused and len(leases) < limit and (row := self._next_ready(line)):
            row.epoch += 1
            row.started_at = now
            self._unready(row)
            self._move(row, State.RUNNING)
            self._waking.set(row.seq, None)
            self._lapsing.set(row.seq, now + lease_seconds)
            leases.append(_lease_of(row))
        return leases

    def _next_ready(self, line: _Line) -> _Row | None:
        heads = self._heads(line)
        oldest_first = line.leased % rules.OLDEST_FIRST_EVERY == rules.OLDEST_FIRST_EVERY - 1
        seq = min(heads, default=None) if oldest_first else next(heads, None)
        if seq is None:
            return None
        line.leased += 1
        row = self._rows[seq]
        heapq.heappop(line.ready[row.priority])
        return row

    def _heads(self, line: _Line) -> Iterator[int]:
        """The first leasable record of every priority, highest priority first."""
        for heap in reversed(line.ready):
            while heap and not ((row := self._rows.get(heap[0])) and row.is_ready):
                heapq.heappop(heap)
            if heap:
                yield heap[0]

    # -- through a broker

    def _hand_out(self, limit: int, hold_seconds: float) -> Sequence[Outbound]:
        now = self._clock()
        self._wake(now, math.inf)
        for seq in self._holding.pop_due(now):
            heapq.heappush(self._outbound, seq)
        found: list[Outbound] = []
        while self._outbound and len(found) < limit and not self._lines[Lane.REQUESTS].paused:
            row = self._rows.get(heapq.heappop(self._outbound))
            if row is not None and row.stage is Stage.PUBLISHING:
                self._holding.set(row.seq, now + hold_seconds)
                found.append(_outbound_of(row))
        return found

    def _carry(self, id: bytes) -> bool:
        row = self._ids.get(id)
        if row is None or row.stage is not Stage.PUBLISHING:
            return False
        self._set_stage(row, Stage.CARRIED)
        self._drop_request(row)
        return True

    def _arrive(self, record: NewRecord) -> Arrival | Refused:
        row = self._ids.get(record.id)
        if row is None:
            if record.deadline is not None and record.deadline <= self._clock():
                return Arrival.TOO_LATE
            result = self._accept(replace(record, idempotency=None, outbound=False))
            return result if isinstance(result, Refused) else Arrival.TAKEN_IN
        if row.stage is Stage.HERE:
            if row.request is None or row.request[1] != record.body:
                self._garbage.add(record.body)
            return Arrival.KNOWN
        self._drop_request(row)
        row.request = (record.envelope, record.body)
        self._bytes += _held_bytes(row, with_answer=False)
        self._set_stage(row, Stage.HERE)
        self._queue(row)
        return Arrival.RETURNED

    def _set_stage(self, row: _Row, stage: Stage) -> None:
        away = self._lines[row.lane].away
        for each, change in ((row.stage, -1), (stage, 1)):
            if each is not Stage.HERE:
                away[each] += change
        row.stage = stage
        self._holding.set(row.seq, None)

    def _away(self, settlement: Settlement) -> _Row | None:
        """The record, if it is publishing or carried and this ends it."""
        if settlement.epoch or not isinstance(settlement, Finish):
            return None
        row = self._ids.get(settlement.id)
        return row if row is not None and row.stage is not Stage.HERE else None

    # -- leases

    def _held_by(self, id: bytes, epoch: int) -> _Row | None:
        """The record, if *epoch* is its current lease; otherwise the refusal is counted."""
        row = self._ids.get(id)
        if row is not None and row.state is State.RUNNING and row.epoch == epoch:
            return row
        self._lines[row.lane if row is not None else Lane.REQUESTS].stale += 1
        return None

    def _extend(self, id: bytes, epoch: int, until: float) -> Extension:
        row = self._held_by(id, epoch)
        if row is None:
            return Extension.LOST
        self._lapsing.set(row.seq, until)
        return Extension.CANCEL_REQUESTED if row.cancel_requested else Extension.HELD

    def _settle(self, settlement: Settlement) -> bool:
        row = self._away(settlement) or self._held_by(settlement.id, settlement.epoch)
        if row is None:
            self._refuse_answer(settlement)
            return False
        if not isinstance(settlement, Release):
            row.attempts += not isinstance(settlement, Finish) or settlement.sent
            row.history += settlement.note + b"\n" if settlement.note else b""
        match settlement:
            case Finish(state=state, answer=answer, reason=reason):
                self._finish(row, state, answer, reason)
            case Retry(delay_seconds=delay) | Release(delay_seconds=delay):
                state = State.CANCELLED if row.cancel_requested else rules.waiting_state(row.attempts)
                self._leave(row, state, delay)
        return True

    def _refuse_answer(self, settlement: Settlement) -> None:
        """The answer's blob is garbage, unless this repeats the settlement that stored it."""
        if isinstance(settlement, Finish) and settlement.answer is not None:
            row = self._ids.get(settlement.id)
            if row is None or row.answer is None or row.answer.body != settlement.answer.body:
                self._garbage.add(settlement.answer.body)

    def _lapse(self, row: _Row) -> None:
        row.attempts += 1
        row.claims += 1
        state, reason = rules.judge_lapsed(row.on_lost, row.claims, row.max_claims, row.cancel_requested)
        self._leave(row, state, 0.0, reason)

    def _leave(self, row: _Row, state: State, delay_seconds: float, reason: str = "") -> None:
        """End a lease without an answer: the record is final or waits again."""
        if state.is_final:
            self._finish(row, state, None, reason)
            return
        self._lapsing.set(row.seq, None)
        self._move(row, state)
        row.ready_at = self._clock() + max(delay_seconds, 0.0)
        self._queue(row)

    def _end_waiting(self, row: _Row, state: State) -> None:
        row.attempts += row.stage is not Stage.HERE  # a consumer may have it
        self._finish(row, state)

    def _finish(self, row: _Row, state: State, answer: Answer | None = None, reason: str = "") -> None:
        line = self._lines[row.lane]
        now = self._clock()
        self._unready(row)
        self._waking.set(row.seq, None)
        self._lapsing.set(row.seq, None)
        self._set_stage(row, Stage.HERE)
        row.reason, row.answer, row.finished_at = reason, answer, now
        is_dead = state is State.FAILED
        row.expires_at = now + (
            self._options.dead_letter_ttl_seconds if is_dead else self._options.answer_ttl_seconds
        )
        self._deleting.set(row.seq, row.expires_at)
        self._bytes -= self._options.answer_reserve_bytes
        self._bytes += 0 if answer is None else _answer_bytes(answer)
        if not is_dead:
            self._drop_request(row)
        self._move(row, state, reason)
        line.ended[state] += 1
        line.dead_letters += is_dead
        if rules.frees_idempotency(state, row.attempts):
            self._free_scope(row)
        self._put_callback(row)
        self._free_key(row)

    def _drop_request(self, row: _Row) -> None:
        if row.request is not None:
            self._bytes -= _held_bytes(row, with_answer=False)
            self._garbage.add(row.request[1])
            row.request = None

    def _put_callback(self, row: _Row) -> None:
        if row.callback is None:
            return
        now = self._clock()
        self._insert(
            _Row(
                seq=self._take_seq(),
                id=rules.callback_id(row.id),
                lane=Lane.CALLBACKS,
                priority=row.priority,
                accepted_at=now,
                ready_at=now,
                deadline=None,
                request=(row.callback, b""),
                key=None,
                on_lost=OnLost.REPEAT,
                max_claims=row.max_claims,
                parent=row.id,
            )
        )

    def _free_scope(self, row: _Row) -> None:
        if row.idempotency is not None and self._scopes.get(row.idempotency.scope) is row:
            del self._scopes[row.idempotency.scope]

    def _free_key(self, row: _Row) -> None:
        """Let the next record of the key run, if *row* was the first."""
        keys = self._lines[row.lane].keys
        if row.key is None or keys[row.key][0] is not row:
            return
        same_key = keys[row.key]
        while same_key and same_key[0].state.is_final:
            same_key.popleft()
        if same_key:
            self._queue(same_key[0])
        else:
            del keys[row.key]

    def _wake(self, now: float, limit: float) -> None:
        """Expire what passed its deadline, queue what has become due."""
        for seq in self._waking.pop_due(now):
            row = self._rows[seq]
            if row.deadline is not None and row.deadline <= now:
                self._end_waiting(row, State.EXPIRED)
            else:
                self._queue(row)
            if len(self._changes) >= limit:
                break

    def _promote_due(self) -> None:
        """Queue what has become due and leave expiry to the next sweep or lease."""
        now = self._clock()
        for row in [self._rows[seq] for seq in self._waking.pop_due(now)]:
            if row.deadline is not None and row.deadline <= now:
                self._waking.set(row.seq, row.deadline)
            else:
                self._queue(row)

    def _replay(self, replay: Replay) -> bool:
        if (held := self._ids.get(replay.new_id)) is not None:
            return held.replay_of == replay.id
        row = self._ids.get(replay.id)
        if row is None or row.state is not State.FAILED or row.replayed_as is not None:
            return False
        if row.request is None:
            return False
        row.replayed_as = replay.new_id
        now = self._clock()
        self._lines[row.lane].dead_letters -= 1
        self._insert(
            _Row(
                seq=self._take_seq(),
                id=replay.new_id,
                lane=row.lane,
                priority=row.priority,
                accepted_at=now,
                ready_at=now,
                deadline=rules.next_deadline(now, replay.max_age_seconds),
                request=row.request,
                key=row.key,
                on_lost=row.on_lost,
                max_claims=row.max_claims,
                callback=row.callback,
                parent=row.parent,
                replay_of=row.id,
                stage=Stage.PUBLISHING if replay.outbound else Stage.HERE,
            )
        )
        return True

    def _delete(self, row: _Row) -> None:
        line = self._lines[row.lane]
        del self._rows[row.seq], self._ids[row.id], line.held[row.state][row.seq]
        self._deleting.set(row.seq, None)
        self._free_scope(row)
        self._bytes -= _held_bytes(row)
        if row.state is State.FAILED and row.replayed_as is None:
            line.dead_letters -= 1
        if row.request is not None and row.replayed_as is None:
            self._garbage.add(row.request[1])
        if row.answer is not None:
            self._garbage.add(row.answer.body)

    # -- small steps

    def _move(self, row: _Row, state: State, reason: str = "") -> None:
        held = self._lines[row.lane].held
        del held[row.state][row.seq]
        row.state = state
        held[state][row.seq] = row
        self._changes.append(Change(row.id, state, row.lane, reason))

    def _unready(self, row: _Row) -> None:
        self._lines[row.lane].ready_count -= row.is_ready
        row.is_ready = False

    def _take_seq(self) -> int:
        self._next_seq += 1
        return self._next_seq - 1

    def _record(self, row: _Row, want: Want) -> Record:
        is_waiting = row.state in (State.QUEUED, State.RETRYING)
        return Record(
            id=row.id,
            lane=row.lane,
            state=row.state,
            priority=row.priority,
            attempts=row.attempts,
            claims=row.claims,
            epoch=row.epoch,
            accepted_at=row.accepted_at,
            ready_at=row.ready_at,
            deadline=row.deadline,
            started_at=row.started_at,
            finished_at=row.finished_at,
            expires_at=row.expires_at,
            cancel_requested=row.cancel_requested,
            may_have_run=rules.may_have_run(row.state, row.attempts),
            reason=row.reason,
            history=row.history,
            key=row.key,
            parent=row.parent,
            replay_of=row.replay_of,
            replayed_as=row.replayed_as,
            position=self._position(row) if is_waiting and row.stage is Stage.HERE else None,
            stage=row.stage,
            request=row.request if Want.REQUEST in want else None,
            answer=row.answer if Want.ANSWER in want else None,
        )

    def _position(self, row: _Row) -> int:
        line = self._lines[row.lane]
        return rules.position(row.seq, min(self._heads(line), default=None), line.waiting)

    def _due_in_seconds(self) -> float:
        return self._waking.next_at() - self._clock()

    async def _committed(self) -> Sequence[Change]:
        """Tell the watchers and delete the blobs of what is gone. Returns the changes."""
        changes = self._tell()
        await self._garbage.collect()
        return changes

    def _tell(self) -> Sequence[Change]:
        changes, self._changes = self._changes, []
        self._watchers.tell(changes)
        return changes

    def _check_open(self) -> None:
        if not self._open:
            raise StoreUnavailable("the store is closed")


def _lease_of(row: _Row) -> Lease:
    envelope, body = row.request or (b"", b"")
    return Lease(
        id=row.id,
        epoch=row.epoch,
        attempt=row.attempts + 1,
        claims=row.claims,
        envelope=envelope,
        body=body,
        accepted_at=row.accepted_at,
        deadline=row.deadline,
        key=row.key,
        priority=row.priority,
        parent=row.parent,
        leased_at=row.started_at or 0.0,
    )


def _outbound_of(row: _Row) -> Outbound:
    envelope, body = row.request or (b"", b"")
    return Outbound(row.id, envelope, body, row.accepted_at, row.deadline, row.key, row.priority)


def _held_bytes(row: _Row, with_answer: bool = True) -> int:
    held = 0 if row.request is None else len(row.request[0]) + rules.body_bytes(row.request[1])
    return held + (_answer_bytes(row.answer) if with_answer and row.answer is not None else 0)


def _answer_bytes(answer: Answer) -> int:
    return len(answer.head) + rules.body_bytes(answer.body)
