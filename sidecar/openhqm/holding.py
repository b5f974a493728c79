"""Requests held until an app that is not there yet takes connections (`ingress.hold_seconds`).

Used by `passthrough.py` when connecting failed, so nothing has been sent of any of them. However many
wait, one task tries to connect, ten times a second; when it succeeds all of them try again by themselves.
A gateway in front of a workload that is scaled to zero lives by this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from openhqm.errors import AppStarting
from openhqm.settings import IngressSettings

RETRY_SECONDS = 0.1
RETRY_AFTER_SECONDS = 2.0
"""For those that are not held, or no longer: a container's start takes seconds."""


class Holding:
    """Who waits for the app.

    Args:
        host, port: the app's; a name is looked up at each try.
    """

    def __init__(self, host: str, port: int, ingress: IngressSettings) -> None:
        self._host = host
        self._port = port
        self._held: dict[asyncio.Future[Exception | None], Callable[[], bool]] = {}
        self._knocking: asyncio.Task[None] | None = None
        self._ended = False
        self.apply(ingress)

    def apply(self, ingress: IngressSettings) -> None:
        """Take over the hot settings; who is held already keeps its time."""
        self.hold_seconds = ingress.hold_seconds
        self._max_held = ingress.max_held

    @property
    def held(self) -> int:
        """Requests that wait now."""
        return len(self._held)

    async def wait(self, deadline: float, has_left: Callable[[], bool]) -> None:
        """Return when the app took a connection.

        Args:
            deadline: the latest moment, on the loop's clock.
            has_left: whether the client is gone; asked ten times a second.

        Raises:
            AppStarting: it did not in time, too many wait already, or the process ends.
            ConnectionError: the client left.
        """
        if self._ended or len(self._held) >= self._max_held:
            raise _starting()
        waiting: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._held[waiting] = has_left
        if self._knocking is None:
            self._knocking = asyncio.create_task(self._knock(), name="holding-knock")
        try:
            async with asyncio.timeout_at(deadline):
                error = await waiting
        except TimeoutError:
            raise _starting() from None
        finally:
            del self._held[waiting]
        if error is not None:
            raise error

    async def quiet(self) -> None:
        """Wait until nobody is held."""
        while self._held:
            await asyncio.wait(self._held)

    async def close(self) -> None:
        """Hold nobody any longer."""
        self._ended = True
        for waiting in self._held:
            _tell(waiting, _starting())
        if self._knocking is not None:
            self._knocking.cancel()
            await asyncio.gather(self._knocking, return_exceptions=True)

    async def _knock(self) -> None:
        """Try to connect as long as anybody waits."""
        try:
            while self._held:
                await asyncio.sleep(RETRY_SECONDS)
                for waiting, has_left in self._held.items():
                    if has_left():
                        _tell(waiting, ConnectionResetError("the client left"))
                if self._held and await self._takes_connections():
                    for waiting in self._held:
                        _tell(waiting)
        finally:
            self._knocking = None

    async def _takes_connections(self) -> bool:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(1.0):
                transport, _ = await loop.create_connection(asyncio.Protocol, self._host, self._port)
        except OSError:  # a TimeoutError is one
            return False
        transport.abort()
        return True


def _tell(waiting: asyncio.Future[Exception | None], error: Exception | None = None) -> None:
    if not waiting.done():
        waiting.set_result(error)


def _starting() -> AppStarting:
    return AppStarting("the app takes no connections yet", RETRY_AFTER_SECONDS)
