"""Two stores seen as one while the previous one is being finished (`store.previous_url`).

    accept, lease, settle, counts,
    outbound, arrive ...                the store in use, alone
    get, cancel, watch, blobs           the store in use, and the previous one for what it does not hold
    list, replay, purge, pause          both

For those who answer clients and operators (`front.py`, `admin.py`). What is left in the previous store is
replayed by an egress of its own (`sharing.py`). One thing is not carried over: an Idempotency-Key that was
first sent before the change is new to the store in use.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

from openhqm.stores.base import (
    CURSOR_BYTES,
    Accepted,
    Arrival,
    BlobRef,
    Blobs,
    BlobWriter,
    Change,
    Counts,
    Existing,
    Extension,
    Lane,
    Lease,
    NewRecord,
    Outbound,
    Page,
    Record,
    Refused,
    Replay,
    Settlement,
    State,
    Store,
    Want,
)

_IN_USE = 1 << 62
"""Marks a cursor of the store in use; stores count records, and never that far."""


class Succession:
    """A Store made of two that are open already."""

    def __init__(self, store: Store, previous: Store) -> None:
        self.abilities = store.abilities
        self.blobs: Blobs = _BothBlobs(store.blobs, previous.blobs)
        self._store = store
        self._previous = previous

    async def open(self) -> None:
        """Nothing: both stores are open."""

    async def close(self) -> None:
        await self._previous.close()
        await self._store.close()

    # of the store in use

    async def accept(self, records: Sequence[NewRecord]) -> Sequence[Accepted | Existing | Refused]:
        return await self._store.accept(records)

    async def lease(
        self, limit: int, *, lease_seconds: float, wait_seconds: float, lane: Lane = Lane.REQUESTS
    ) -> Sequence[Lease]:
        return await self._store.lease(
            limit, lease_seconds=lease_seconds, wait_seconds=wait_seconds, lane=lane
        )

    async def extend(
        self, leases: Sequence[tuple[bytes, int]], *, lease_seconds: float
    ) -> Sequence[Extension]:
        return await self._store.extend(leases, lease_seconds=lease_seconds)

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        return await self._store.settle(settlements)

    async def outbound(self, limit: int, *, hold_seconds: float, wait_seconds: float) -> Sequence[Outbound]:
        return await self._store.outbound(limit, hold_seconds=hold_seconds, wait_seconds=wait_seconds)

    async def carried(self, ids: Sequence[bytes]) -> Sequence[bool]:
        return await self._store.carried(ids)

    async def arrive(self, records: Sequence[NewRecord]) -> Sequence[Arrival | Refused]:
        return await self._store.arrive(records)

    async def sweep(self, limit: int = 1000) -> Sequence[Change]:
        return await self._store.sweep(limit)

    async def counts(self, lane: Lane = Lane.REQUESTS) -> Counts:
        return await self._store.counts(lane)

    async def secret(self, name: str, default: bytes) -> bytes:
        return await self._store.secret(name, default)

    # of whichever holds the record

    async def get(self, ids: Sequence[bytes], want: Want = Want.STATE) -> Sequence[Record | None]:
        found = list(await self._store.get(ids, want))
        missing = [number for number, record in enumerate(found) if record is None]
        if missing:
            older = await self._previous.get([ids[number] for number in missing], want)
            for number, record in zip(missing, older, strict=True):
                found[number] = record
        return found

    async def cancel(self, id: bytes) -> Record | None:
        return await self._store.cancel(id) or await self._previous.cancel(id)

    def watch(self, listener: Callable[[Sequence[Change]], None]) -> Callable[[], None]:
        stops = [store.watch(listener) for store in (self._store, self._previous)]

        def stop() -> None:
            for each in stops:
                each()

        return stop

    # of both

    async def list(
        self,
        *,
        states: Sequence[State] = (),
        lane: Lane = Lane.REQUESTS,
        cursor: bytes = b"",
        limit: int = 100,
        want: Want = Want.STATE,
    ) -> Page:
        """Records of the previous store first: they are the older ones."""
        number = int.from_bytes(cursor, "big")
        records: Sequence[Record] = ()
        if not number & _IN_USE:
            older = await self._previous.list(states=states, lane=lane, cursor=cursor, limit=limit, want=want)
            if older.cursor:
                return older
            records = older.records
        if len(records) == limit:
            return Page(records, _cursor(_IN_USE))
        after = _cursor(number & ~_IN_USE) if number & _IN_USE else b""
        newer = await self._store.list(
            states=states, lane=lane, cursor=after, limit=limit - len(records), want=want
        )
        return Page([*records, *newer.records], newer.cursor and _marked(newer.cursor))

    async def replay(self, replays: Sequence[Replay]) -> Sequence[bool]:
        done = list(await self._store.replay(replays))
        refused = [number for number, accepted in enumerate(done) if not accepted]
        if refused:
            older = await self._previous.replay([replays[number] for number in refused])
            for number, accepted in zip(refused, older, strict=True):
                done[number] = accepted
        return done

    async def purge(self, ids: Sequence[bytes]) -> int:
        return await self._store.purge(ids) + await self._previous.purge(ids)

    async def pause(self, paused: bool, lane: Lane = Lane.REQUESTS) -> None:
        await self._previous.pause(paused, lane)
        await self._store.pause(paused, lane)


class _BothBlobs:
    """Large bodies: written beside the store in use, read from where they are."""

    def __init__(self, blobs: Blobs, previous: Blobs) -> None:
        self._blobs = blobs
        self._previous = previous

    async def write(self, record_id: bytes, part: str) -> BlobWriter:
        return await self._blobs.write(record_id, part)

    async def read(self, ref: BlobRef) -> AsyncIterator[bytes]:
        begun = False
        try:
            async for chunk in self._blobs.read(ref):
                begun = True
                yield chunk
        except KeyError:
            if begun:
                raise
        else:
            return
        async for chunk in self._previous.read(ref):
            yield chunk

    async def delete(self, refs: Sequence[BlobRef]) -> None:
        await self._blobs.delete(refs)


def _cursor(number: int) -> bytes:
    return number.to_bytes(CURSOR_BYTES, "big")


def _marked(cursor: bytes) -> bytes:
    return _cursor(int.from_bytes(cursor, "big") | _IN_USE)
