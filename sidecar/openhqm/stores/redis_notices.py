"""Tells listeners, and who waits for work, what any process changed, as the scripts publish it.

One connection subscribes to the queue's channel while somebody listens or waits. Redis does not
repeat notices, so a lost one costs the slow re-read of whoever waits, never an answer.

    notice = bits of the lanes that have something new to lease, and of what is to be published (`WORK`),
             then changes of state
           | ALIKE, lane, state, then the ids of records all of which have this state now
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from openhqm.stores.base import Change
from openhqm.stores.redis_link import Link
from openhqm.stores.redis_records import WORK, AlikeChanges, Work, unpack_changes
from openhqm.stores.redis_wire import Connection, ServerError

Listener = Callable[[Sequence[Change]], None]

QUIET_SECONDS = 2.0
"""Silence after which the connection is asked whether it still lives."""

ALIKE = 64

RECONNECT_SECONDS = 0.5
LINGER_SECONDS = 10.0
"""How long the connection is kept when nobody listens or waits any more."""


class Notices:
    """Receives notices from *channel* over a connection of its own."""

    def __init__(self, link: Link, channel: bytes) -> None:
        self._link = link
        self._channel = channel
        self._listeners: list[Listener] = []
        self._waiting: dict[Work, set[asyncio.Event]] = {work: set() for work in WORK}
        self._receiver: asyncio.Task[None] | None = None
        self._needed_until = 0.0
        self._heard = False
        self._closed = False

    def add(self, listener: Listener) -> Callable[[], None]:
        """Call *listener* with every batch of changes; returns the way to stop."""
        self._listeners.append(listener)
        self._need()

        def stop() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return stop

    @asynccontextmanager
    async def waiter(self, work: Work) -> AsyncIterator[asyncio.Event]:
        """An event set whenever there may be some of *work*, one of `WORK`, or on closing."""
        event = asyncio.Event()
        self._waiting[work].add(event)
        self._need()
        try:
            yield event
        finally:
            self._waiting[work].discard(event)

    async def close(self) -> None:
        self._closed = True
        self._wake(WORK)
        if self._receiver is not None:
            self._receiver.cancel()
            await asyncio.wait([self._receiver])

    def _need(self) -> None:
        if not self._closed and (self._receiver is None or self._receiver.done()):
            self._receiver = asyncio.create_task(self._receive(), name="redis-notices")

    def _is_needed(self) -> bool:
        now = asyncio.get_running_loop().time()
        if self._listeners or any(self._waiting.values()):
            self._needed_until = now + LINGER_SECONDS
        return now < self._needed_until

    async def _receive(self) -> None:
        while self._is_needed():
            try:
                await self._follow()
            except (ServerError, OSError, TimeoutError):
                # Waiters re-read meanwhile, and their own calls report the outage.
                await asyncio.sleep(RECONNECT_SECONDS)

    async def _follow(self) -> None:
        connection = await self._link.connect(self._hear)
        try:
            connection.send(("SUBSCRIBE", self._channel))
            while self._is_needed():
                await self._stay(connection)
        finally:
            await connection.close()

    async def _stay(self, connection: Connection) -> None:
        """Let messages come for a while; a connection silent all the time must answer a ping."""
        if not await self._hears(connection):
            connection.send(("PING",))
            if not await self._hears(connection):
                raise TimeoutError

    async def _hears(self, connection: Connection) -> bool:
        """Whether anything came within `QUIET_SECONDS`. Raises ConnectionError when it ended."""
        self._heard = False
        await asyncio.wait([connection.lost], timeout=QUIET_SECONDS)
        if connection.lost.done():
            raise ConnectionResetError("the subscription has ended")
        return self._heard

    def _hear(self, message: Sequence[bytes]) -> None:
        self._heard = True
        if message[0] == b"message":
            self._tell(message[2])
        elif message[0] == b"subscribe":
            self._wake(WORK)  # what came before this was not heard

    def _tell(self, notice: bytes) -> None:
        is_alike = notice[0] == ALIKE
        if notice[0] and not is_alike:
            self._wake([work for bit, work in enumerate(WORK) if notice[0] >> bit & 1])
        if self._listeners and len(notice) > 1:
            changes = AlikeChanges(notice[1:]) if is_alike else unpack_changes(notice, 1)
            for listener in tuple(self._listeners):
                listener(changes)

    def _wake(self, every: Sequence[Work]) -> None:
        for work in every:
            for event in self._waiting[work]:
                event.set()
