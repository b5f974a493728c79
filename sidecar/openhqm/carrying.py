"""The broker's side of one process: opens it, and runs publishing and intake as long as the process lasts.

A broker that is away at the start is opened later; until then requests are accepted all the same, for the
Store holds them. One that must not be used as it is stops the process.
"""

from __future__ import annotations

import asyncio

import structlog

from openhqm.brokers.base import Broker
from openhqm.errors import BrokerUnavailable
from openhqm.intake import Intake
from openhqm.publishing import Publishing

OPEN_SECONDS = 1.0
"""How soon to try again to open it."""
BACKLOG_SECONDS = 2.0

log = structlog.get_logger("openhqm.carrying")


class Carrying:
    """See the module docstring.

    Args:
        broker: not opened yet.
        publishing, intake: on that broker; None where this process does not do it.
    """

    def __init__(self, broker: Broker, publishing: Publishing | None, intake: Intake | None) -> None:
        self._broker = broker
        self._publishing = publishing
        self._intake = intake
        self._stopping = asyncio.Event()
        self.is_open = False

    async def open(self) -> None:
        """Try once; `run` goes on trying.

        Raises:
            SettingsError: the broker must not be used as it is.
        """
        try:
            await self._broker.open()
        except BrokerUnavailable as exc:
            log.warning("broker.unavailable", error=str(exc))
            return
        self.is_open = True
        abilities = self._broker.abilities
        log.info("broker.open", durability=abilities.durability.name.lower(), why=abilities.why)

    async def run(self) -> None:
        """Carry until drained."""
        while not self.is_open and not self._stopping.is_set():
            await self._pause(OPEN_SECONDS)
            await self.open()
        if self._stopping.is_set():
            return
        async with asyncio.TaskGroup() as group:
            for part in (self._publishing, self._intake):
                if part is not None:
                    group.create_task(part.run())

    def stop_receiving(self) -> None:
        """Take no more messages in; what was accepted is still published."""
        if self._intake is not None:
            self._intake.stop()

    async def drain(self, timeout_seconds: float) -> None:
        """End what is under way: what is not published or confirmed by then is so by the next process."""
        self._stopping.set()
        if self.is_open:
            parts = [part for part in (self._publishing, self._intake) if part is not None]
            await asyncio.gather(*[part.drain(timeout_seconds) for part in parts])

    async def close(self) -> None:
        await self._broker.close()

    async def backlog(self) -> int | None:
        """Messages that wait in the broker; None while that is not known."""
        if not self.is_open:
            return None
        try:
            async with asyncio.timeout(BACKLOG_SECONDS):
                return await self._broker.backlog()
        except (BrokerUnavailable, TimeoutError):
            return None

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
