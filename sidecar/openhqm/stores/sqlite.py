"""The store in one SQLite file: the default, durable to a power cut, owned by one process.

    sqlite.py          what callers see: queues operations, waits, reads
    sqlite_commits.py  many operations per transaction, one fsync
    sqlite_ledger.py   the transitions themselves; names the files of its steps
    sqlite_reader.py   reading records, on connections that only read
    sqlite_timers.py   when records wake
    sqlite_rows.py     what rows and statements look like
    sqlite_file.py     the file: owner lock, checks, schema, free disk

`sqlite:///relative/file` or `sqlite:////absolute/file`. `?synchronous=normal` gives up power
durability for speed: a commit then survives the process only.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, unquote

from openhqm.errors import SettingsError, StoreUnavailable
from openhqm.stores import sqlite_file as file
from openhqm.stores.base import (
    Abilities,
    Accepted,
    Arrival,
    BlobRef,
    Blobs,
    Change,
    Counts,
    Durability,
    Existing,
    Extension,
    Finish,
    Lane,
    Lease,
    NewRecord,
    Options,
    Outbound,
    Page,
    Record,
    Refused,
    Release,
    Replay,
    Settlement,
    State,
    Want,
)
from openhqm.stores.blobs import FileBlobs, Garbage, make_folder, record_of
from openhqm.stores.clock import AnchoredClock, Clock
from openhqm.stores.sqlite_books import OUTBOX, Books
from openhqm.stores.sqlite_commits import MOST_WEIGHT, GroupCommit
from openhqm.stores.sqlite_ledger import Ledger
from openhqm.stores.sqlite_reader import Reader
from openhqm.stores.sqlite_rows import LANES
from openhqm.stores.waiting import Bell, Listener, Watchers, take_when_ready

MAX_INLINE_BYTES = 1024 * 1024
DELETIONS_PER_CHANGE = 10
_CHUNK = 256
"""Records that one operation of a sweep handles, so that others get their turn."""

WEIGHT_BYTES = 32 * 1024
"""Bytes of a body that hold up the loop about as long as a record does."""

Result = TypeVar("Result")
Item = TypeVar("Item")
# Inside the class `list` is the method.
Changes = list[Change]
Results = list[Result]


class SqliteStore:
    """See the module docstring.

    Args:
        path: the file; its folder is made.
        synchronous: FULL waits for the disk at every commit, NORMAL only at checkpoints.
        blobs: where large bodies go; default the folder `<file>.blobs`.
        clock: seconds since the epoch, never going back.
    """

    def __init__(
        self,
        path: Path,
        options: Options,
        *,
        synchronous: file.Synchronous = "FULL",
        blobs: Blobs | None = None,
        clock: Clock | None = None,
    ) -> None:
        durability = Durability.POWER if synchronous == "FULL" else Durability.PROCESS
        why = f"synchronous {synchronous}"
        self.abilities = Abilities(durability, shared=False, max_inline_bytes=MAX_INLINE_BYTES, why=why)
        self.blobs: Blobs = blobs or FileBlobs(path.with_name(path.name + ".blobs"))
        self._path = path
        self._options = options
        self._synchronous: file.Synchronous = synchronous
        self._clock: Clock = clock or AnchoredClock()
        self._watchers = Watchers()
        self._bells = [Bell() for _ in (*LANES, OUTBOX)]
        self._garbage = Garbage(self.blobs)
        self._lock = file.OwnerLock(path)
        self._is_open = False

    @classmethod
    def from_url(cls, url: str, options: Options, blobs: Blobs | None) -> SqliteStore:
        """Raises SettingsError: the URL names no file, or options that are not ours."""
        address, _, query = url.partition("?")
        prefix, path = address[: len("sqlite:///")], address[len("sqlite:///") :]
        if prefix != "sqlite:///" or not path:
            raise SettingsError("store.url: write sqlite:///relative/file or sqlite:////absolute/file")
        choices = {name: value.upper() for name, value in parse_qsl(query, keep_blank_values=True)}
        synchronous = choices.pop("synchronous", "FULL")
        if choices or synchronous not in ("FULL", "NORMAL"):
            raise SettingsError("store.url: sqlite knows ?synchronous=full or ?synchronous=normal only")
        return cls(
            Path(unquote(path)),
            options,
            synchronous="FULL" if synchronous == "FULL" else "NORMAL",
            blobs=blobs,
        )

    # -- open and close

    async def open(self) -> None:
        """Raises SettingsError: another owner, a damaged file, a newer schema; nothing was changed."""
        try:
            make_folder(self._path.parent)
            self._lock.acquire()
            try:
                with file.damage_named(self._path):
                    self._connect()
            except BaseException:
                self._lock.release()
                raise
        except (OSError, sqlite3.OperationalError) as exc:
            raise SettingsError(f"store.url: cannot use {self._path}: {exc}") from exc
        self._is_open = True
        await self._delete_orphans()
        # Whoever held these leases was the owner before us and is gone.
        await self._in_chunks(self._ledger.lapse_orphaned, sys.maxsize)

    def _connect(self) -> None:
        file.check(self._path)
        connection = file.connect(self._path, self._synchronous)
        try:
            file.migrate(connection, self._path)
            books = Books(connection, self._options, self._clock, self._garbage, self._told)
            self._ledger = Ledger(books)
            self._commits = GroupCommit(connection, self._ledger, self._path)
        except BaseException:
            connection.close()
            raise
        self._disk = file.DiskReserve(self._path.parent)
        self._reader = Reader(file.connect_reader(self._path), self._clock)
        # Listing may read through the whole file; it has its own connection and its own thread.
        self._lister = Reader(file.connect_reader(self._path), self._clock)
        self._list_thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-list")

    async def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        for bell in self._bells:
            bell.ring()
        await asyncio.get_running_loop().run_in_executor(self._list_thread, self._lister.close)
        self._list_thread.shutdown()
        self._reader.close()
        await self._commits.close()
        self._lock.release()

    async def _delete_orphans(self) -> None:
        """Remove blobs that no record names: their writer died before the record was committed."""
        if not isinstance(self.blobs, FileBlobs):
            return
        for name in await self.blobs.names():
            if not self._reader.names_blob(record_of(name), name):
                self._garbage.add(BlobRef(name, 0))
        await self._garbage.collect()

    # -- the life of a record

    async def accept(self, records: Sequence[NewRecord]) -> Sequence[Accepted | Existing | Refused]:
        self._check_room()
        return await self._write_in_turns(self._ledger.accept, records, _weight_of_record)

    async def lease(
        self, limit: int, *, lease_seconds: float, wait_seconds: float, lane: Lane = Lane.REQUESTS
    ) -> Sequence[Lease]:
        number = LANES.index(lane)

        async def attempt() -> Sequence[Lease]:
            return await self._lease(limit, lease_seconds, number)

        return await take_when_ready(
            attempt, self._bells[number], self._due_in_seconds, wait_seconds, lambda: self._is_open
        )

    async def _lease(self, limit: int, lease_seconds: float, lane: int) -> Sequence[Lease]:
        self._check_open()
        asked = self._commits.submit(
            lambda: self._ledger.lease(limit, lease_seconds, lane), limit, hurries=True
        )
        try:
            leases = await asyncio.shield(asked)
            await self._garbage.collect()
        except asyncio.CancelledError:
            asked.add_done_callback(self._give_back)
            raise
        return leases

    def _give_back(self, asked: asyncio.Future[list[Lease]]) -> None:
        """Release leases that were committed for a caller who is gone."""
        if asked.exception() is None and self._is_open:
            releases = [Release(lease.id, lease.epoch) for lease in asked.result()]
            given_back = self._commits.submit(lambda: self._ledger.settle(releases), len(releases))
            # Nobody waits for it, and if it fails the leases run out by themselves.
            given_back.add_done_callback(asyncio.Future.exception)

    async def extend(
        self, leases: Sequence[tuple[bytes, int]], *, lease_seconds: float
    ) -> Sequence[Extension]:
        return await self._write(lambda: self._ledger.extend(leases, lease_seconds), len(leases))

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        return await self._write_in_turns(self._ledger.settle, settlements, _weight_of_settlement)

    async def outbound(self, limit: int, *, hold_seconds: float, wait_seconds: float) -> Sequence[Outbound]:
        async def attempt() -> Sequence[Outbound]:
            return await self._write(lambda: self._ledger.outbound(limit, hold_seconds), limit)

        def due_in_seconds() -> float:
            return min(self._ledger.next_due_at, self._ledger.next_hold_ends_at) - self._clock()

        return await take_when_ready(
            attempt, self._bells[OUTBOX], due_in_seconds, wait_seconds, lambda: self._is_open
        )

    async def carried(self, ids: Sequence[bytes]) -> Sequence[bool]:
        return await self._write(lambda: self._ledger.carried(ids), len(ids))

    async def arrive(self, records: Sequence[NewRecord]) -> Sequence[Arrival | Refused]:
        self._check_room()
        return await self._write_in_turns(self._ledger.arrive, records, _weight_of_record)

    async def cancel(self, id: bytes) -> Record | None:
        await self._write(lambda: self._ledger.cancel(id))
        return self._reader.get(id, Want.STATE)

    async def replay(self, replays: Sequence[Replay]) -> Sequence[bool]:
        return await self._write(lambda: self._ledger.replay(replays), len(replays))

    async def purge(self, ids: Sequence[bytes]) -> int:
        return await self._write(lambda: self._ledger.purge(ids), len(ids))

    async def sweep(self, limit: int = 1000) -> Sequence[Change]:
        changes = await self._in_chunks(self._ledger.lapse_due, limit)
        while len(changes) < limit and self._due_in_seconds() <= 0:
            most = min(limit - len(changes), _CHUNK)
            changes += await self._write(partial(self._ledger.wake, most), most)
        for _ in range(0, limit * DELETIONS_PER_CHANGE, _CHUNK):
            if await self._write(lambda: self._ledger.delete_outlived(_CHUNK), _CHUNK) < _CHUNK:
                break
        return changes

    async def _in_chunks(self, step: Callable[[int], Sequence[Change]], limit: int) -> Changes:
        """Repeat *step*, which takes the most changes it may make, until it has no more to do."""
        changes: Changes = []
        while len(changes) < limit:
            most = min(limit - len(changes), _CHUNK)
            found = await self._write(partial(step, most), most)
            changes += found
            if len(found) < most:
                break
        return changes

    async def pause(self, paused: bool, lane: Lane = Lane.REQUESTS) -> None:
        await self._write(lambda: self._ledger.pause(paused, LANES.index(lane)))

    # -- reading

    async def get(self, ids: Sequence[bytes], want: Want = Want.STATE) -> Sequence[Record | None]:
        self._check_open()
        return [self._reader.get(id, want) for id in ids]

    def watch(self, listener: Listener) -> Callable[[], None]:
        return self._watchers.add(listener)

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
        return await asyncio.get_running_loop().run_in_executor(
            self._list_thread, self._lister.page, states, lane, cursor, limit, want
        )

    async def counts(self, lane: Lane = Lane.REQUESTS) -> Counts:
        self._check_open()
        return self._reader.counts(lane)

    async def secret(self, name: str, default: bytes) -> bytes:
        self._check_open()
        return await asyncio.to_thread(file.put_secret, self._path, name, default)

    # -- small steps

    async def _write(self, operation: Callable[[], Result], weight: int = 1) -> Result:
        """Queue *operation* and wait until it is durable."""
        self._check_open()
        result = await self._commits.submit(operation, weight)
        await self._garbage.collect()
        return result

    async def _write_in_turns(
        self,
        operation: Callable[[Sequence[Item]], Results[Result]],
        items: Sequence[Item],
        weigh: Callable[[Item], int],
    ) -> Sequence[Result]:
        """Do *items* in as many transactions as their weight needs; nearly always one."""
        weights = [weigh(item) for item in items]
        if sum(weights) <= MOST_WEIGHT:
            return await self._write(partial(operation, items), sum(weights))
        results: Results[Result] = []
        for start, end in _turns(weights):
            results += await self._write(partial(operation, items[start:end]), sum(weights[start:end]))
        return results

    def _told(self, changes: Sequence[Change], rung: Iterable[int]) -> None:
        self._watchers.tell(changes)
        for number in rung:
            self._bells[number].ring()

    def _due_in_seconds(self) -> float:
        return self._ledger.next_due_at - self._clock()

    def _check_open(self) -> None:
        if not self._is_open:
            raise StoreUnavailable("the store is closed")

    def _check_room(self) -> None:
        """New requests, and those a broker brings, leave the last of the disk to answers."""
        self._check_open()
        if not self._disk.has_room():
            raise StoreUnavailable("the disk is full up to the room reserved for answers")


def _weight_of_record(record: NewRecord) -> int:
    return 1 + (len(record.body) // WEIGHT_BYTES if isinstance(record.body, bytes) else 0)


def _weight_of_settlement(settlement: Settlement) -> int:
    answer = settlement.answer if isinstance(settlement, Finish) else None
    return 1 + (len(answer.body) // WEIGHT_BYTES if answer and isinstance(answer.body, bytes) else 0)


def _turns(weights: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Split into runs (start, end) of at most `MOST_WEIGHT`, or of one item that alone weighs more."""
    start = weight = 0
    for index, each in enumerate(weights):
        if weight and weight + each > MOST_WEIGHT:
            yield start, index
            start, weight = index, 0
        weight += each
    yield start, len(weights)
