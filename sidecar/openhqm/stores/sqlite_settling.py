"""How leases of the SQLite store end, and what follows: answers, retries, callbacks, the next of a key."""

from __future__ import annotations

from collections.abc import Sequence

from openhqm.stores import rules
from openhqm.stores.base import Answer, BlobRef, Change, Finish, NewRecord, OnLost, Retry, Settlement
from openhqm.stores.sqlite_books import Books, place_of
from openhqm.stores.sqlite_endings import Endings
from openhqm.stores.sqlite_intake import Batch
from openhqm.stores.sqlite_leasing import Leasing
from openhqm.stores.sqlite_rows import (
    BLOCKED,
    BY_ID,
    CANCELLED,
    DONE,
    END_LEASE,
    FAILED,
    LANES,
    LEASED,
    LEASED_THESE,
    NEXT_OF_KEY,
    PLACE,
    QUEUED,
    READY,
    RETRYING,
    RUNNING,
    STATE_NUMBERS,
    STATES,
    WAIT,
    Held,
    Leased,
    new_tuple,
)

_DONE = STATES[DONE]  # asked for first: to look up a number by its member takes 0.2 us
_HAS_ANSWER = "SELECT 1 FROM answers a JOIN records r ON r.seq = a.seq WHERE r.id = ? AND a.blob = ?"


class Settling:
    """See the module docstring."""

    def __init__(self, books: Books, leasing: Leasing, endings: Endings) -> None:
        self._books = books
        self._leasing = leasing
        self._endings = endings

    def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        results = [self._settle(settlement) for settlement in settlements]
        self._endings.write()
        return results

    def _settle(self, settlement: Settlement) -> bool:
        if settlement.epoch == 0 and isinstance(settlement, Finish) and self._finish_away(settlement):
            return True
        leased = self._leasing.holder(settlement.id, settlement.epoch)
        if leased is None:
            self._refuse_answer(settlement)
            return False
        del self._books.leases[leased.id]
        if leased.bound is None and isinstance(settlement, Finish):
            self._finish_free(leased, settlement)
        else:
            self._settle_whole(self.whole(leased), settlement)
        return True

    def _finish_away(self, finish: Finish) -> bool:
        """End a record that a broker has or is to have; False if it is not one of these."""
        row = self._books.one(BY_ID, finish.id)
        held = None if row is None else Held._make(row)
        if held is None or not held.is_away:
            return False
        self._settle_whole(held, finish)
        # Nothing but its row says that it has ended.
        self._endings.write()
        return True

    def whole(self, leased: Leased) -> Held:
        """Return all of a leased record."""
        if leased.bound is not None:
            return leased.bound._replace(cancel_requested=leased.cancel_requested)
        return Held._make(self._books.one(LEASED_THESE, str([leased.seq])) or ())

    def _finish_free(self, leased: Leased, finish: Finish) -> None:
        """`finish` for the many on which nothing else hangs, for which nothing has to be read."""
        books = self._books
        seq, id, _, attempts, claims, request_bytes, _, lane, _, started_at, _ = leased
        state, reason, note = finish.state, finish.reason, finish.note
        number = DONE if state is _DONE else STATE_NUMBERS[state]
        figures = books.figures[lane]
        figures.states[RUNNING] -= 1
        figures.states[number] += 1
        size = self._endings.add_answer(seq, note + b"\n" if note else b"", finish.answer)
        figures.bytes += size - books.options.answer_reserve_bytes
        if number == FAILED:
            figures.dead_letters += 1
        else:
            figures.bytes -= request_bytes
        self._endings.add(seq, (number, 1, attempts + finish.sent, claims, reason, started_at))
        books.changes.append(new_tuple(Change, (id, state, LANES[lane], reason)))

    def _settle_whole(self, held: Held, settlement: Settlement) -> None:
        if isinstance(settlement, Finish):
            self.finish(
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

    def _refuse_answer(self, settlement: Settlement) -> None:
        """The answer's blob is garbage, unless this repeats the settlement that stored it."""
        if isinstance(settlement, Finish) and settlement.answer is not None:
            body = settlement.answer.body
            if isinstance(body, BlobRef) and not self._books.one(_HAS_ANSWER, settlement.id, body.name):
                self._books.dropped.append(body)

    # -- a record waits again

    def _leave(self, held: Held, attempts: int, delay_seconds: float, note: bytes) -> None:
        """End a lease without an answer: the record waits again, or is cancelled if that was asked."""
        if held.cancel_requested:
            self.finish(held, CANCELLED, attempts, note=note)
        else:
            self.wait(held, attempts, held.claims, delay_seconds, held.history + note)

    def wait(self, held: Held, attempts: int, claims: int, delay_seconds: float, history: bytes) -> None:
        """Have a leased record wait again."""
        books = self._books
        now = books.clock()
        ready_at = now + max(delay_seconds, 0.0)
        # A leased record is the first of its key, so nothing but time can hold it up.
        place = place_of(ready_at, now)
        state = RETRYING if attempts else QUEUED
        wake_at = books.set_timer(held.seq, place, ready_at, held.deadline)
        values = state, place, held.epoch, attempts, claims, held.started_at, ready_at, wake_at, history
        books.connection.execute(WAIT, (*values, held.seq))
        books.connection.execute(END_LEASE, (held.seq,))
        if place == READY:
            books.has_become_ready(held.lane, held.priority, held.seq)
        books.move(held, state)
        books.rung.add(held.lane)

    def place(self, held: Held) -> None:
        """Put a waiting record that is the first of its key where its time says."""
        books = self._books
        place = place_of(held.ready_at, books.clock())
        wake_at = books.set_timer(held.seq, place, held.ready_at, held.deadline)
        books.connection.execute(PLACE, (place, wake_at, held.seq))
        if place == READY:
            books.has_become_ready(held.lane, held.priority, held.seq)
        books.rung.add(held.lane)

    # -- a record ends

    def end_waiting(self, held: Held, state: int) -> None:
        """Make a record final that is not leased; of one that is away, a consumer may have it."""
        self.finish(held, state, held.attempts + held.is_away)
        self._endings.write()

    def finish(
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
        """Make a record final, leased or not; `Endings.write` must follow in the same operation."""
        books = self._books
        figures = books.figures[held.lane]
        figures.ready -= held.place == READY
        if held.is_away:
            books.has_left_stage(held)
        figures.bytes -= books.options.answer_reserve_bytes
        figures.bytes += self._endings.add_answer(held.seq, note, answer)
        claims = held.claims if claims is None else claims
        self._endings.add(
            held.seq, (state, int(held.place == LEASED), attempts, claims, reason, held.started_at)
        )
        books.move(held, state, reason)
        if state == FAILED:
            figures.dead_letters += 1
        else:
            figures.bytes -= held.request_bytes
            if held.blob is not None:
                books.dropped.append(BlobRef(held.blob, held.blob_bytes or 0))
        self._free(held, state, attempts)

    def _free(self, held: Held, state: int, attempts: int) -> None:
        """Do what others wait for: give the scope back, put the callback, let the next of the key run."""
        books = self._books
        if held.scope is not None and rules.frees_idempotency(STATES[state], attempts):
            books.connection.execute("UPDATE records SET scope = NULL WHERE seq = ?", (held.seq,))
        if held.callback is not None:
            self._put_callback(held, held.callback)
        if held.key is not None:
            self._endings.write()
            self._free_key(held.lane, held.key)

    def _put_callback(self, held: Held, envelope: bytes) -> None:
        record = NewRecord(
            id=rules.callback_id(held.id),
            envelope=envelope,
            priority=held.priority,
            on_lost=OnLost.REPEAT,
            max_claims=held.max_claims,
        )
        batch = Batch(self._books)
        now = self._books.clock()
        batch.add(record, lane=1, now=now, ready_at=now, deadline=None, size=len(envelope), parent=held.id)
        batch.write()

    def _free_key(self, lane: int, key: bytes) -> None:
        """Let the next record of the key wait for its time or a consumer only."""
        row = self._books.one(NEXT_OF_KEY, lane, key)
        if row is not None:
            held = Held._make(row)
            if held.place == BLOCKED:
                self.place(held)


def _line(note: bytes) -> bytes:
    return note + b"\n" if note else b""
