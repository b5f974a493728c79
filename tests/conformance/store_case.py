"""What a store's test file supplies to the contract suite, and what the suite's cases share."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from openhqm.stores.base import (
    FINAL_STATES,
    Body,
    Lane,
    Lease,
    NewRecord,
    Options,
    Record,
    Stage,
    State,
    Store,
    Want,
)

LONG_SECONDS = 3600.0
"""A lease that cannot lapse during a test."""


class StoreCase(Protocol):
    """Builds stores over one set of data.

    `open` gives an opened store; called again, another one over the same data (the first has been
    closed before, unless the store is shared). The case closes what the test left open.
    """

    tick_seconds: float
    """Unit of the suite's times: large where time is skipped, small where it really passes."""
    durable: bool
    """Whether the data outlives the store object."""

    async def open(self, options: Options) -> Store: ...

    async def pass_time(self, seconds: float) -> None:
        """Return once the store's clock is *seconds* later."""
        ...

    async def now(self) -> float:
        """The store's clock."""
        ...


class SkippingClock:
    """Real time that a test can also jump ahead in; for stores that take a clock."""

    def __init__(self) -> None:
        self.skipped = 0.0
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        return self._offset + time.monotonic() + self.skipped


def new(**changes: Any) -> NewRecord:
    """A record with a fresh id."""
    return NewRecord(**{"id": fresh_id(), "envelope": b'{"v":1}\nPOST / HTTP/1.1\r\n\r\n', **changes})


def fresh_id() -> bytes:
    """Sixteen random bytes marked as a version 7 UUID, as ingress mints them."""
    raw = bytearray(os.urandom(16))
    raw[6] = 0x70 | (raw[6] & 0x0F)
    return bytes(raw)


async def take(
    store: Store,
    limit: int = 1,
    *,
    lease_seconds: float = LONG_SECONDS,
    wait_seconds: float = 0.0,
    lane: Lane = Lane.REQUESTS,
) -> Sequence[Lease]:
    return await store.lease(limit, lease_seconds=lease_seconds, wait_seconds=wait_seconds, lane=lane)


async def take_one(store: Store, **options: Any) -> Lease:
    [lease] = await take(store, 1, **options)
    return lease


async def get_one(store: Store, id: bytes, want: Want = Want.STATE) -> Record:
    [record] = await store.get([id], want)
    assert record is not None
    return record


async def all_records(store: Store, lane: Lane, want: Want = Want.STATE) -> list[Record]:
    records: list[Record] = []
    cursor = b""
    while True:
        page = await store.list(lane=lane, cursor=cursor, limit=500, want=want)
        records += page.records
        cursor = page.cursor
        if not cursor:
            return records


async def reach_its_wait() -> None:
    """Give a task just made the time to begin waiting.

    The outcome must be the same if it has not: work that comes first is found, not waited for.
    """
    await asyncio.sleep(0.02)


async def eventually(holds: Callable[[], bool], within_seconds: float = 5.0) -> None:
    """Wait for a condition that another task or process brings about."""
    async with asyncio.timeout(within_seconds):
        while not holds():
            await asyncio.sleep(0.002)


class Audited:
    """A store that is checked for conservation (design R9) after every transition."""

    _TRANSITIONS = frozenset(
        {
            "accept",
            "lease",
            "extend",
            "settle",
            "outbound",
            "carried",
            "arrive",
            "cancel",
            "replay",
            "purge",
            "sweep",
        }
    )

    def __init__(self, store: Store, options: Options) -> None:
        self._store = store
        self._options = options
        self._replayed: set[bytes] = set()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        return self._audited(name, method) if name in self._TRANSITIONS else method

    def _audited(self, name: str, method: Any) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            result = await method(*args, **kwargs)
            if name == "replay":
                self._replayed |= {r.id for r, done in zip(args[0], result, strict=True) if done}
            await audit(self._store, self._options, self._replayed)
            return result

        return call


async def audit(
    store: Store, options: Options, replayed: set[bytes] | frozenset[bytes] = frozenset()
) -> None:
    """Check that the counters add up and say what the records say. Nothing else may be running."""
    held_bytes = 0
    for lane in Lane:
        counts = await store.counts(lane)
        records = await all_records(store, lane, Want.ANSWER | Want.REQUEST)
        tally = Counter(record.state for record in records)
        assert counts.conserved, counts
        for state in State:
            counted = getattr(counts, state.value)
            assert counted >= tally[state] if state in FINAL_STATES else counted == tally[state], (
                lane,
                state,
                counted,
                tally,
            )
        stages = Counter(record.stage for record in records)
        assert (counts.publishing, counts.carried) == (stages[Stage.PUBLISHING], stages[Stage.CARRIED])
        dead = sum(record.state is State.FAILED and record.id not in replayed for record in records)
        assert counts.dead_letters == dead
        held_bytes += sum(_held_bytes(record, options) for record in records)
    for lane in Lane:
        assert (await store.counts(lane)).bytes == held_bytes


def _held_bytes(record: Record, options: Options) -> int:
    held = 0 if record.state.is_final else options.answer_reserve_bytes
    if record.request is not None:
        held += len(record.request[0]) + _size(record.request[1])
    if record.answer is not None:
        held += len(record.answer.head) + _size(record.answer.body)
    return held


def _size(body: Body) -> int:
    return len(body) if isinstance(body, bytes) else body.size
