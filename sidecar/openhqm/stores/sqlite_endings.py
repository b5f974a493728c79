"""What records of the SQLite store end with: gathered during an operation, written with few statements."""

from __future__ import annotations

from typing import NamedTuple

from openhqm.stores.base import Answer
from openhqm.stores.sqlite_books import Books
from openhqm.stores.sqlite_rows import (
    DELETE_REQUESTS,
    END_LEASES,
    FAILED,
    FINAL,
    FINISH,
    INSERT_ANSWER,
    INSERT_BLOB_ANSWER,
)


class Ending(NamedTuple):
    """What records that end alike have in common, and share a statement for.

    Args:
        leases: 1 if they were leased, 0 if they waited.
        started_at: of their last lease.
    """

    leases: int
    state: int
    attempts: int
    claims: int
    reason: str
    started_at: float | None


class Endings:
    """Endings that are not in the file yet; `write` must follow in the same operation."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._seqs: dict[tuple[object, ...], list[int]] = {}
        self._answers: list[object] = []

    def forget(self) -> None:
        """The transaction was rolled back."""
        self._seqs, self._answers = {}, []

    def add(self, seq: int, ending: tuple[int, int, int, int, str, float | None]) -> None:
        """Have the record *seq* end; *ending* has the fields of an `Ending`, which takes longer to make."""
        self._seqs.setdefault(ending, []).append(seq)

    def add_answer(self, seq: int, note: bytes, answer: Answer | None) -> int:
        """Have an answer written, and the note of its attempt; returns the answer's size."""
        if answer is None:
            if note:
                self._answers += (seq, note, None, None)
            return 0
        head, body = answer.head, answer.body
        if isinstance(body, bytes):
            self._answers += (seq, note, head, body)
            return len(head) + len(body)
        self._books.connection.execute(INSERT_BLOB_ANSWER, (seq, note, head, body.name, body.size))
        return len(head) + body.size

    def write(self) -> None:
        if not self._seqs:
            return
        gathered, answers = self._seqs, self._answers
        self.forget()
        INSERT_ANSWER.run(self._books.connection, answers)
        now = self._books.clock()
        for fields, seqs in gathered.items():
            self._write(Ending(*fields), seqs, now)  # type: ignore[arg-type]  # `add` says what they are

    def _write(self, ending: Ending, seqs: list[int], now: float) -> None:
        connection, options = self._books.connection, self._books.options
        leases, state, attempts, claims, reason, started_at = ending
        expires_at = now + options.answer_ttl_seconds
        if state == FAILED:
            expires_at = now + options.dead_letter_ttl_seconds
        else:
            DELETE_REQUESTS.run(connection, seqs)
        values = state, leases, attempts, claims, reason, started_at, now, expires_at
        FINISH.run(connection, seqs, *values)
        if leases:
            END_LEASES.run(connection, seqs)
        self._books.timers.set(FINAL, expires_at, seqs)
