"""The ways a request takes through a runner, for tests whose app is a coroutine.

Egress asks `begin` first and awaits `forward` where that returns None. An app of this kind runs the
same coroutine whichever way it is asked, so that a test can hold for all of them.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import Any


class Way(enum.Enum):
    """How an app takes a request on."""

    LONG = "long"
    """`begin` leaves it to `forward`."""
    SHORT = "short"
    """The whole outcome is told."""
    MIXED = "mixed"
    """It is told that an answer begins, which `rest` must be awaited for."""


class AnyWay:
    """Gives an app with a `forward` the other way too."""

    way = Way.LONG

    def begin(
        self, envelope: Any, body: Any, tell: Callable[[], None], *, record_id: bytes, epoch: int
    ) -> Call | None:
        if self.way is Way.LONG:
            return None
        running = asyncio.ensure_future(self.forward(envelope, body, record_id=record_id, epoch=epoch))
        return Call(running, tell, has_rest=self.way is Way.MIXED)

    async def forward(self, envelope: Any, body: Any, *, record_id: bytes, epoch: int) -> Any:
        raise NotImplementedError


class Call:
    """What `begin` returns: a run of `forward` that tells when it is over, or when it has begun."""

    def __init__(self, running: asyncio.Future[Any], tell: Callable[[], None], *, has_rest: bool) -> None:
        self._running = running
        self._tell = tell
        self._has_rest = has_rest
        if has_rest:
            self._telling = asyncio.get_running_loop().call_soon(tell)
        else:
            running.add_done_callback(self._ended)

    def _ended(self, running: asyncio.Future[Any]) -> None:
        if not running.cancelled():
            self._tell()

    def outcome(self) -> Any:
        return None if self._has_rest else self._running.result()

    async def rest(self) -> Any:
        return await self._running

    def cancel(self) -> None:
        self._running.cancel()
        if self._has_rest:
            self._telling.cancel()
        else:
            self._running.remove_done_callback(self._ended)
