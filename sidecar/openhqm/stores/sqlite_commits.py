"""Group commit: everything asked while one commit is under way goes out as the next transaction.

Statements run on the event loop, microseconds each and from the page cache; only COMMIT, which
waits for the disk, and checkpoints run in the one writer thread. (Whole batches in the thread cost
half the throughput: sqlite3 gives up the GIL in every step, and a busy loop is slow to return it.)

    submit ──> gathered ──begin, apply──> COMMIT in the thread ──> results
                  ^                                                   │
                  └── the next batch, one turn of the loop later <────┘

No result is given before COMMIT has returned.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

import structlog

from openhqm.errors import StoreUnavailable

Result = TypeVar("Result")
_Done = Callable[[Exception | None], None]

MOST_WEIGHT = 512
"""Records, or large pieces of bodies, in one transaction: applying it holds up the loop for
milliseconds only, and its pages stay in memory until COMMIT."""

GATHERING_TURNS = 3
"""Turns of the event loop between results and the next transaction: what is asked meanwhile shares
the commit. With two, accepting from 64 clients takes a quarter longer. What a crash can leave unknown is
bounded elsewhere, by what `dispatcher.py` holds."""

HURRIED_TURNS = 2
"""The same when somebody hurries: one who leases has slots that stand still. A drain of 64 slots takes
51 us per request instead of 54, for while one commit waits for the disk other slots work; with one turn it
makes twice the commits and takes a quarter longer."""

CHECKPOINT_BYTES = 8 * 1024 * 1024
_PAGE_BYTES = 4096

_log = structlog.get_logger(__name__)


class Ledger(Protocol):
    """What the operations change besides the file, taken back when a transaction fails."""

    def begin(self) -> None:
        """Remember what `roll_back` returns to."""

    def flush(self) -> None:
        """Write what is gathered in memory, as the last statements of the transaction."""

    def committed(self) -> None:
        """The transaction is durable: tell everyone."""

    def roll_back(self) -> None:
        """The transaction never happened."""


@dataclass(slots=True)
class _Asked:
    operation: Callable[[], Any]
    weight: int
    future: asyncio.Future[Any]
    result: Any = None


class GroupCommit:
    """Runs operations on *connection*, many per transaction.

    An operation that raises fails alone: its batch is rolled back and done again without it. When
    the disk fails, the whole batch raises StoreUnavailable and the next one tries anew.
    """

    def __init__(self, connection: sqlite3.Connection, ledger: Ledger, path: Path) -> None:
        self._connection = connection
        self._ledger = ledger
        self._loop = asyncio.get_running_loop()
        self._writer = _Writer(self._loop)
        self._wal = _WalSize(path)
        self._waiting: deque[_Asked] = deque()
        self._is_hurried = False
        self._is_closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(
        self, operation: Callable[[], Result], weight: int = 1, *, hurries: bool = False
    ) -> asyncio.Future[Result]:
        """Queue *operation*; the future has its result once that is durable.

        Cancelling the future gives up the result, never the operation.

        Args:
            hurries: a fuller transaction is not worth waiting for.
        """
        if self._is_closed:
            raise StoreUnavailable("the store is closed")
        future: asyncio.Future[Result] = self._loop.create_future()
        self._waiting.append(_Asked(operation, weight, future))
        self._is_hurried |= hurries
        if self._idle.is_set():
            self._idle.clear()
            self._gather(GATHERING_TURNS)
        return future

    async def close(self) -> None:
        """Finish what was asked, empty the WAL into the file, close the connection."""
        self._is_closed = True
        await self._idle.wait()
        closed = self._loop.create_future()
        self._writer.run(self._close_connection, closed.set_result)
        error = await closed
        self._writer.close()
        self._wal.close()
        if error is not None:
            raise error

    def _close_connection(self) -> None:
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError as exc:
            # All is durable in the WAL; the next start goes on from there.
            _log.warning("store.checkpoint_failed", error=str(exc))
        self._connection.close()

    def _gather(self, turns: int) -> None:
        """Start the next batch after *turns* of the loop or fewer, if anything is waiting then."""
        if turns > (GATHERING_TURNS - HURRIED_TURNS if self._is_hurried else 0):
            self._loop.call_soon(self._gather, turns - 1)
        else:
            self._start()

    def _start(self) -> None:
        """Apply the next batch and send its COMMIT to the writer thread."""
        batch = self._take_batch()
        self._is_hurried = False
        if not batch:
            self._idle.set()
            return
        try:
            batch, has_changes = self._apply(batch)
        except sqlite3.Error as exc:
            self._fail(batch, exc)
            self._loop.call_soon(self._start)
            return
        if has_changes:
            self._writer.run(self._commit, partial(self._committed, batch))
        else:
            self._connection.execute("COMMIT")
            self._committed(batch, None)

    def _take_batch(self) -> list[_Asked]:
        batch: list[_Asked] = []
        weight = 0
        while self._waiting and (not batch or weight + self._waiting[0].weight <= MOST_WEIGHT):
            batch.append(asked := self._waiting.popleft())
            weight += asked.weight
        return batch

    def _apply(self, batch: list[_Asked]) -> tuple[list[_Asked], bool]:
        """Run the operations in one open transaction; those that fail by themselves leave it.

        Returns: the operations that are in, and whether there is anything to commit.
        """
        while True:
            before = self._connection.total_changes
            self._connection.execute("BEGIN IMMEDIATE")
            self._ledger.begin()
            failed = self._first_failing(batch)
            if failed is None:
                self._ledger.flush()
                return batch, self._connection.total_changes != before
            self._roll_back()
            batch = [asked for asked in batch if asked is not failed]

    def _first_failing(self, batch: list[_Asked]) -> _Asked | None:
        for asked in batch:
            try:
                asked.result = asked.operation()
            except sqlite3.OperationalError:
                raise
            except Exception as exc:
                if type(exc) is sqlite3.DatabaseError:
                    raise
                _refuse(asked, exc)
                return asked
        return None

    def _commit(self) -> None:
        self._connection.execute("COMMIT")

    def _committed(self, batch: list[_Asked], error: Exception | None) -> None:
        if error is not None:
            self._fail(batch, error)
        else:
            self._ledger.committed()
            for asked in batch:
                if not asked.future.done():
                    asked.future.set_result(asked.result)
        if self._wal.wants_checkpoint():
            self._writer.run(self._checkpoint, lambda error: self._start())
        else:
            self._gather(GATHERING_TURNS)

    def _checkpoint(self) -> None:
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.OperationalError as exc:
            _log.warning("store.checkpoint_failed", error=str(exc))

    def _fail(self, batch: list[_Asked], error: Exception) -> None:
        _log.error("store.write_failed", error=str(error), operations=len(batch))
        self._roll_back()
        for asked in batch:
            _refuse(asked, StoreUnavailable(f"the store cannot write: {error}"))

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as exc:
            # The next BEGIN fails then, comes here, and tries again.
            _log.error("store.rollback_failed", error=str(exc))
        self._ledger.roll_back()


def _refuse(asked: _Asked, error: Exception) -> None:
    if not asked.future.done():
        asked.future.set_exception(error)


class _Writer:
    """One thread that does what it is given, in order; half the cost of an executor and its futures."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[tuple[Callable[[], None], _Done] | None] = SimpleQueue()
        # It must not keep a process alive that ends without closing the store.
        self._thread = threading.Thread(target=self._work, name="sqlite-writer", daemon=True)
        self._thread.start()

    def run(self, job: Callable[[], None], done: _Done) -> None:
        """Do *job* in the thread, then call *done* on the loop with its error or None."""
        self._jobs.put((job, done))

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (asked := self._jobs.get()) is not None:
            job, done = asked
            error: Exception | None = None
            try:
                job()
            except Exception as exc:
                error = exc
            if self._loop.is_closed():
                return
            self._loop.call_soon_threadsafe(done, error)


class _WalSize:
    """Says when the WAL is long enough to be copied into the file.

    Source: sqlite.org/walformat.html 2.1: bytes 16 to 19 of the WAL index are the number of frames,
    in the machine's byte order. The file stays open until SQLite has closed its own: closing any
    descriptor of it drops the process's locks (fcntl(2)).
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path.with_name(path.name + "-shm"), os.O_RDONLY | os.O_CLOEXEC)
        disk = os.statvfs(path.parent)
        self._step = min(CHECKPOINT_BYTES, disk.f_blocks * disk.f_frsize // 16) // _PAGE_BYTES
        self._asked_at = 0

    def wants_checkpoint(self) -> bool:
        """True each time the WAL has grown by another step since the last time or its restart."""
        frames = int.from_bytes(os.pread(self._descriptor, 4, 16), sys.byteorder)
        if frames < self._asked_at:
            self._asked_at = 0
        if frames - self._asked_at < self._step:
            return False
        self._asked_at = frames
        return True

    def close(self) -> None:
        os.close(self._descriptor)
