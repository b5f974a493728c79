"""Takes messages from a broker into the Store, and confirms what the Store holds.

    broker.receive ──> the request a message stands for ──> store.arrive ──> broker.confirm
          ^                                                      │
          └────────── not confirmed: the Store has no room ──────┘

From the moment a record is committed the Store's rules hold: leases, delays, retries, order and dead letters
are the same for every broker. So as little as possible is taken out, enough for the free slots and some that
wait (`PREFETCH`); the backlog stays where it is, and other processes get their share.

What cannot be read becomes a dead letter that keeps its bytes: a broker that was not told would bring it
again for ever, and one that was would have lost it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Sequence

import structlog

from openhqm.brokers.base import HOLD_SECONDS, Broker, Delivery
from openhqm.envelope import Envelope, unreadable
from openhqm.errors import BrokerUnavailable, EnvelopeCorrupt, StoreUnavailable
from openhqm.lifecycle import Event, Happening, Lifecycle
from openhqm.retry import IDEMPOTENT_METHODS
from openhqm.settings import Settings
from openhqm.stores.base import Arrival, BlobRef, Body, Counts, NewRecord, OnLost, Refused, Store
from openhqm.wire import Carried, decode_request, is_ours

PREFETCH = 32
"""Records that wait unleased, beside one for each slot."""
MOST_AT_ONCE = 256
WAIT_SECONDS = 1.0
FULL_SECONDS = 0.05
"""How soon to look again when there is enough here."""
AGAIN_SECONDS = 1.0
"""How soon to try again what the Store could not take."""

log = structlog.get_logger("openhqm.intake")

_HAPPENINGS = {
    Arrival.TAKEN_IN: Happening.TAKEN_IN,
    Arrival.RETURNED: Happening.RETURNED,
    Arrival.TOO_LATE: Happening.DROPPED,
}

Understand = Callable[[Delivery], Carried]
"""Makes a request of a message that is not of our own format. Raises EnvelopeCorrupt."""


class Intake:
    """One queue's way in.

    Args:
        store: open.
        broker: open when `run` is called.
        understand: for messages of others; None makes dead letters of them.
    """

    def __init__(
        self,
        store: Store,
        broker: Broker,
        lifecycle: Lifecycle,
        settings: Settings,
        understand: Understand | None = None,
    ) -> None:
        self._store = store
        self._broker = broker
        self._lifecycle = lifecycle
        self._understand = understand
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Take over the hot settings: how much is taken out, and what becomes a blob."""
        self._slots = settings.egress.concurrency
        self._max_claims = settings.retry.max_claims
        self._inline_bytes = min(settings.store.spill_bytes, self._store.abilities.max_inline_bytes)

    async def run(self) -> None:
        """Take in until drained."""
        backoff_seconds = FULL_SECONDS
        try:
            while not self._stopping.is_set():
                try:
                    room = room_for(await self._store.counts(), self._slots)
                    if not room:
                        await self._pause(FULL_SECONDS)
                        continue
                    deliveries = await self._broker.receive(room, wait_seconds=WAIT_SECONDS)
                    if deliveries:
                        await self._take_in(deliveries)
                    backoff_seconds = FULL_SECONDS
                except (BrokerUnavailable, StoreUnavailable) as exc:
                    log.warning("intake.failed", error=str(exc), again_in_seconds=backoff_seconds)
                    await self._pause(backoff_seconds)
                    backoff_seconds = min(2 * backoff_seconds, AGAIN_SECONDS)
        finally:
            self._ended.set()

    def stop(self) -> None:
        """Receive no more."""
        self._stopping.set()

    async def drain(self, timeout_seconds: float) -> None:
        """Receive no more, give what was received *timeout_seconds* to be stored and confirmed.

        What is not comes again, here or elsewhere.
        """
        self.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._ended.wait()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    # what was received

    async def _take_in(self, deliveries: Sequence[Delivery]) -> None:
        """Store and confirm *deliveries*; what the Store has no room for is kept, and tried again."""
        loop = asyncio.get_running_loop()
        left, held_at = list(deliveries), loop.time()
        while True:
            try:
                left = await self._store_and_confirm(left)
            except StoreUnavailable as exc:
                log.warning("store.unavailable", doing="arrive", error=str(exc))
            if not left or self._stopping.is_set():
                return
            if loop.time() - held_at >= HOLD_SECONDS / 2:
                held_at = loop.time()
                await self._broker.hold(left)
            await self._pause(AGAIN_SECONDS)

    async def _store_and_confirm(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Returns those that are to stay with the broker."""
        records = [await self._record(delivery) for delivery in deliveries]
        # When this raises, nobody knows what was committed: bodies must stay, and the next try has its own.
        results = await self._store.arrive(records)
        unused = [
            record.body
            for record, result in zip(records, results, strict=True)
            if isinstance(record.body, BlobRef)
            and (isinstance(result, Refused) or result is Arrival.TOO_LATE)
        ]
        if unused:
            await self._forget(unused)
        held, refused = [], []
        for delivery, record, result in zip(deliveries, records, results, strict=True):
            if isinstance(result, Refused):
                refused.append(delivery)
            else:
                held.append(delivery)
                self._tell(record.id, result)
        await self._broker.confirm(held)
        return refused

    async def _record(self, delivery: Delivery) -> NewRecord:
        try:
            found = self._read(delivery)
        except EnvelopeCorrupt as exc:
            log.error("message.unreadable", position=delivery.position, error=str(exc))
            found = Carried(foreign_id(delivery.position), unreadable(str(exc)), delivery.message.body)
        return NewRecord(
            found.id,
            found.envelope,
            await self._keep(found.id, found.body),
            priority=found.priority,
            deadline=found.deadline,
            key=found.key,
            on_lost=_on_lost(found.envelope),
            max_claims=self._max_claims,
        )

    def _read(self, delivery: Delivery) -> Carried:
        if is_ours(delivery.message):
            return decode_request(delivery.message)
        if self._understand is None:
            raise EnvelopeCorrupt("the message is not of OpenHQM's format, and nothing says what it means")
        return self._understand(delivery)

    async def _keep(self, id: bytes, body: bytes) -> Body:
        if len(body) <= self._inline_bytes:
            return body
        writer = await self._store.blobs.write(id, "request")
        try:
            await writer.write(body)
            return await writer.commit()
        except BaseException:
            await writer.abort()
            raise

    async def _forget(self, unused: Sequence[BlobRef]) -> None:
        """Delete bodies that no record took. Left behind, they are orphans the store finds."""
        try:
            await self._store.blobs.delete(unused)
        except (OSError, StoreUnavailable) as exc:
            log.warning("blob.left_behind", error=str(exc))

    def _tell(self, id: bytes, arrival: Arrival) -> None:
        what = _HAPPENINGS.get(arrival)
        if what is not None:
            self._lifecycle.emit(Event(what, id))


def room_for(counts: Counts, slots: int) -> int:
    """How many messages to take out now, with *counts* of what is here already; 0 when paused."""
    if counts.paused:
        return 0
    here = counts.queued + counts.retrying - counts.delayed - counts.publishing - counts.carried
    free = max(slots - counts.running, 0)
    return max(min(free + PREFETCH - here, MOST_AT_ONCE), 0)


def foreign_id(position: str) -> bytes:
    """The id of a message that has none of ours: the same each time it is delivered.

    A version 8 UUID, which RFC 9562 leaves to the application.
    """
    raw = bytearray(hashlib.sha256(position.encode()).digest()[:16])
    raw[6] = 0x80 | raw[6] & 0x0F
    raw[8] = 0x80 | raw[8] & 0x3F
    return bytes(raw)


def _on_lost(envelope: bytes) -> OnLost:
    try:
        found = Envelope.decode(envelope)
    except EnvelopeCorrupt:
        return OnLost.REPEAT  # it is dead-lettered without being sent
    return OnLost.REPEAT if found.repeat or found.method in IDEMPOTENT_METHODS else OnLost.UNKNOWN
