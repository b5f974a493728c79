"""Waiting for records to change: held connections, long polls, server-sent events.

Sits between ingress and results, who wait, and `Store.watch`, which tells. Everyone subscribes first,
then reads, then waits; a notice that was lost costs a second, because all ids that are waited for are
read again every second, in one batch and by one task however many wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from openhqm.batching import Coalescer
from openhqm.errors import StoreUnavailable
from openhqm.stores.base import Change, Lane, Record, Store, Want

REREAD_SECONDS = 1.0


class Waiters:
    """Everyone in this process who waits for a record of `Lane.REQUESTS`."""

    def __init__(self, store: Store, *, reread_seconds: float = REREAD_SECONDS) -> None:
        self._store = store
        self._reread_seconds = reread_seconds
        self._read_state = Coalescer(store.get)
        self._read_answer = Coalescer(self._get_answers)
        self._waiting: dict[bytes, set[_Waiter]] = {}
        self._rereader: asyncio.Task[None] | None = None
        self._unwatch: Callable[[], None] | None = None
        self._draining = False

    def open(self) -> None:
        """Begin to listen to the store."""
        self._unwatch = self._store.watch(self._on_changes)

    async def close(self) -> None:
        """Stop listening; who still waits is told as by `drain`."""
        self.drain()
        if self._unwatch is not None:
            self._unwatch()
        if self._rereader is not None:
            self._rereader.cancel()
            await asyncio.gather(self._rereader, return_exceptions=True)

    def drain(self) -> None:
        """End every wait at once, and let new ones only read (design R8)."""
        self._draining = True
        for waiters in self._waiting.values():
            for waiter in waiters:
                waiter.wake()

    @property
    def waiting(self) -> int:
        """Clients that wait now."""
        return sum(map(len, self._waiting.values()))

    async def read(self, id: bytes, *, answer: bool = False) -> Record | None:
        """Read one record, in one batch with everything read in the same tick.

        Raises:
            StoreUnavailable: the store cannot be asked.
        """
        return await (self._read_answer if answer else self._read_state)(id)

    async def final(self, id: bytes, timeout_seconds: float) -> Record | None:
        """Wait until a record is final, at most *timeout_seconds*.

        Returns: the record with its answer, as it is when the wait ends: final, or not in time, or
            None when it is not held any more.

        Raises:
            StoreUnavailable: the store cannot be asked.
        """
        waiter = self._subscribe(id, only_final=True)
        try:
            record = await self.read(id, answer=True)
            if record is None or record.state.is_final or self._draining or timeout_seconds <= 0:
                return record
            await waiter.wait(timeout_seconds)
            return await self.read(id, answer=True)
        finally:
            self._unsubscribe(id, waiter)

    async def changes(self, id: bytes, *, idle_seconds: float) -> AsyncGenerator[Record | None, None]:
        """Yield a record now and after each change until it is final, gone, or we drain.

        Yields None whenever nothing happened for *idle_seconds*.
        """
        waiter = self._subscribe(id, only_final=False)
        seen = None
        try:
            while (record := await self.read(id)) is not None:
                if (now := _version(record)) != seen:
                    seen = now
                    yield record
                if record.state.is_final or self._draining:
                    return
                if not await waiter.wait(idle_seconds):
                    yield None
        finally:
            self._unsubscribe(id, waiter)

    async def _get_answers(self, ids: Sequence[bytes]) -> Sequence[Record | None]:
        return await self._store.get(ids, Want.ANSWER)

    def _subscribe(self, id: bytes, *, only_final: bool) -> _Waiter:
        waiter = _Waiter(only_final)
        self._waiting.setdefault(id, set()).add(waiter)
        if self._rereader is None or self._rereader.done():
            self._rereader = asyncio.create_task(self._reread(), name="waiters.reread")
        return waiter

    def _unsubscribe(self, id: bytes, waiter: _Waiter) -> None:
        waiters = self._waiting[id]
        waiters.discard(waiter)
        if not waiters:
            del self._waiting[id]

    def _on_changes(self, changes: Sequence[Change]) -> None:
        if not self._waiting:
            return
        for change in changes:
            if change.lane is Lane.REQUESTS and change.id in self._waiting:
                self._wake(change.id, final=change.state.is_final)

    def _wake(self, id: bytes, *, final: bool) -> None:
        for waiter in self._waiting.get(id, ()):
            if final or not waiter.only_final:
                waiter.wake()

    async def _reread(self) -> None:
        """Look again at everything waited for, as long as anybody waits."""
        seen: dict[bytes, tuple[object, ...] | None] = {}
        while self._waiting:
            await asyncio.sleep(self._reread_seconds)
            ids = list(self._waiting)
            try:
                records = await self._store.get(ids)
            except StoreUnavailable:
                continue  # the waits go on; whoever reads next is told
            now = {id: _version(r) if r else None for id, r in zip(ids, records, strict=True)}
            for id, record in zip(ids, records, strict=True):
                if record is None or record.state.is_final:
                    self._wake(id, final=True)
                elif seen.get(id, now[id]) != now[id]:
                    self._wake(id, final=False)
            seen = now


class _Waiter:
    """One wait; woken any number of times, it remembers the last until somebody waits for it."""

    __slots__ = ("_future", "_woken", "only_final")

    def __init__(self, only_final: bool) -> None:
        self.only_final = only_final
        self._woken = False
        self._future: asyncio.Future[None] | None = None

    def wake(self) -> None:
        self._woken = True
        _end(self._future)

    async def wait(self, timeout_seconds: float) -> bool:
        """Return whether it was woken, at the latest after *timeout_seconds*."""
        if not self._woken:
            loop = asyncio.get_running_loop()
            self._future = loop.create_future()
            timer = loop.call_later(timeout_seconds, _end, self._future)
            try:
                await self._future
            finally:
                timer.cancel()
                self._future = None
        woken, self._woken = self._woken, False
        return woken


def _end(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


def _version(record: Record) -> tuple[object, ...]:
    """What clients see change: two equal ones need no second event."""
    return record.state, record.attempts, record.claims, record.cancel_requested
