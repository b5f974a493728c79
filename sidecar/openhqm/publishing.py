"""Takes what was accepted for a broker out of the Store, and hands it over.

    store.outbound ──> wire.encode_request ──> broker.publish ──> store.carried
                                                     │
                                                     └── rejected for good ──> a dead letter

The record is the outbox: it is publishing until the broker has it, so a broker that is away costs nothing
but time, until the record's deadline. One batch at a time, in order of acceptance, so that a broker that
keeps order gets it. After a crash, or when nobody knows whether a batch was taken, it is published again
under the same ids: whoever receives it may see a message twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from itertools import compress

import orjson
import structlog

from openhqm.brokers.base import Broker, Message, Rejected
from openhqm.errors import BrokerUnavailable, EnvelopeCorrupt, StoreUnavailable
from openhqm.handles import id_text
from openhqm.lifecycle import Event, Happening, Lifecycle
from openhqm.stores.base import Body, Finish, Outbound, State, Store
from openhqm.wire import encode_request

BATCH = 256
HOLD_SECONDS = 15.0
"""Nobody else gets a batch that long; it is tried as often as that allows, then asked for anew."""
WAIT_SECONDS = 1.0
BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 5.0
REFUSED_BY_BROKER = "refused-by-broker"
"""Reason of a record that the broker will never take."""
UNREADABLE = "envelope-corrupt"

log = structlog.get_logger("openhqm.publishing")


class Publishing:
    """One queue's way out.

    Args:
        store, broker: open.
    """

    def __init__(self, store: Store, broker: Broker, lifecycle: Lifecycle) -> None:
        self._store = store
        self._broker = broker
        self._lifecycle = lifecycle
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Publish until drained."""
        loop = asyncio.get_running_loop()
        batch: Sequence[Outbound] = ()
        held_until = 0.0
        backoff_seconds = BACKOFF_SECONDS
        try:
            while not self._stopping.is_set():
                try:
                    if not batch or loop.time() >= held_until:
                        held_until = loop.time() + HOLD_SECONDS
                        batch = await self._store.outbound(
                            BATCH, hold_seconds=HOLD_SECONDS, wait_seconds=WAIT_SECONDS
                        )
                    await self._hand_over(batch)
                    batch, backoff_seconds = (), BACKOFF_SECONDS
                except (BrokerUnavailable, StoreUnavailable) as exc:
                    log.warning("publish.failed", error=str(exc), again_in_seconds=backoff_seconds)
                    await self._pause(backoff_seconds)
                    backoff_seconds = min(2 * backoff_seconds, MAX_BACKOFF_SECONDS)
        finally:
            self._ended.set()

    async def drain(self, timeout_seconds: float) -> None:
        """Take no more; give the batch under way *timeout_seconds*. The rest stays publishing."""
        self._stopping.set()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._ended.wait()
        except TimeoutError:
            log.warning("publish.interrupted")

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _hand_over(self, batch: Sequence[Outbound]) -> None:
        """Publish *batch*, and have the Store know what became of each record."""
        refused: list[Finish] = []
        sound: list[Outbound] = []
        messages: list[Message] = []
        for record in batch:
            found = await self._message(record)
            if isinstance(found, Finish):
                refused.append(found)
            elif found is not None:
                sound.append(record)
                messages.append(found)
        results = await self._broker.publish(messages) if messages else ()
        taken: list[bytes] = []
        for record, result in zip(sound, results, strict=True):
            if isinstance(result, Rejected):
                refused.append(_refused(record, REFUSED_BY_BROKER, result.reason))
            else:
                taken.append(record.id)
        if taken:
            await self._carried(taken)
        if refused:
            await self._give_up(refused)

    async def _carried(self, ids: Sequence[bytes]) -> None:
        applied = await self._store.carried(ids)
        if not self._lifecycle.hears(Happening.PUBLISHED):
            self._lifecycle.tally(Happening.PUBLISHED, sum(applied))
            return
        for id in compress(ids, applied):
            self._lifecycle.emit(Event(Happening.PUBLISHED, id))

    async def _give_up(self, refused: Sequence[Finish]) -> None:
        for finish in compress(refused, await self._store.settle(refused)):
            self._lifecycle.emit(Event(Happening.DEAD_LETTERED, finish.id, reason=finish.reason))

    async def _message(self, record: Outbound) -> Message | Finish | None:
        """What to publish; how to end a record that cannot be; None for one that is gone meanwhile."""
        most = self._broker.abilities.max_message_bytes
        if not isinstance(record.body, bytes) and record.body.size > most:
            why = f"a body of {record.body.size} bytes is more than the {most} the broker takes"
            return _refused(record, REFUSED_BY_BROKER, why)
        try:
            body = await self._read(record.body)
        except KeyError:
            return None  # it was cancelled, or expired
        try:
            return encode_request(record, body, self._broker.abilities)
        except EnvelopeCorrupt as exc:
            return _refused(record, UNREADABLE, str(exc))

    async def _read(self, body: Body) -> bytes:
        if isinstance(body, bytes):
            return body
        return b"".join([chunk async for chunk in self._store.blobs.read(body)])


def _refused(record: Outbound, reason: str, why: str) -> Finish:
    log.error("publish.refused", correlation_id=id_text(record.id), reason=reason, why=why)
    note = orjson.dumps({"attempt": 0, "at": round(time.time(), 3), "outcome": reason, "error": why})
    return Finish(record.id, 0, State.FAILED, reason=reason, note=note, sent=False)
