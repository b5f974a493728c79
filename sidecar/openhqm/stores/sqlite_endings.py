"""What records of the SQLite store end with: gathered during an operation, written with few statements."""

from __future__ import annotations

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

_Ending = tuple[int, int, int, int, str, float | None]
"""What records that end alike have in common, and share a statement for: state, 1 if they were leased and
0 if they waited, attempts, claims, reason, when they were leased last."""


class Endings:
    """Endings that are not in the file yet; `write` must follow in the same operation."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._seqs: dict[_Ending, list[int]] = {}
        self._answers: list[object] = []

    def forget(self) -> None:
        """The transaction was rolled back."""
        self._seqs, self._answers = {}, []

    def add(self, seq: int, ending: _Ending) -> None:
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
        connection, options, now = self._books.connection, self._books.options, self._books.clock()
        INSERT_ANSWER.run(connection, answers)
        failed = {ending: gathered.pop(ending) for ending in list(gathered) if ending[0] == FAILED}
        self._write(failed, now, now + options.dead_letter_ttl_seconds)
        if answered := self._write(gathered, now, now + options.answer_ttl_seconds):
            DELETE_REQUESTS.run(connection, answered)

    def _write(self, gathered: dict[_Ending, list[int]], now: float, expires_at: float) -> list[int]:
        """Write endings that expire together; returns whose they are."""
        connection = self._books.connection
        ended: list[int] = []
        leased: list[int] = []
        for ending, seqs in gathered.items():
            FINISH.run(connection, seqs, *ending, now, expires_at)
            ended += seqs
            if ending[1]:
                leased += seqs
        if leased:
            END_LEASES.run(connection, leased)
        if ended:
            self._books.timers.set(FINAL, expires_at, ended)
        return ended
