"""Waiting inside one process: for work to lease, and for changes of state.

Stores ring and tell after a commit; the cross-process stores do the same when their server's
notification arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from openhqm.stores.base import Change

Taken = TypeVar("Taken")
Listener = Callable[[Sequence[Change]], None]

_SOONEST_SECONDS = 0.001


class Watchers:
    """Who wants to hear of changes."""

    def __init__(self) -> None:
        self._listeners: dict[object, Listener] = {}

    def add(self, listener: Listener) -> Callable[[], None]:
        """Returns the way to stop; stopping twice is no error."""
        token = object()
        self._listeners[token] = listener
        return lambda: self._listeners.pop(token, None) and None

    def tell(self, changes: Sequence[Change]) -> None:
        if changes:
            for listener in list(self._listeners.values()):
                listener(changes)


class Bell:
    """Wakes everyone who waits for work. Take a ticket, look for work, then wait for the ticket."""

    def __init__(self) -> None:
        self._ticket: asyncio.Future[None] | None = None

    def ticket(self) -> asyncio.Future[None]:
        """A future that the next ring resolves."""
        if self._ticket is None:
            self._ticket = asyncio.get_running_loop().create_future()
        return self._ticket

    def ring(self) -> None:
        ticket, self._ticket = self._ticket, None
        if ticket is not None and not ticket.done():
            ticket.set_result(None)


async def take_when_ready(
    attempt: Callable[[], Awaitable[Sequence[Taken]]],
    bell: Bell,
    due_in_seconds: Callable[[], float],
    wait_seconds: float,
    is_open: Callable[[], bool],
) -> Sequence[Taken]:
    """Try to take work until there is some, time is up, or the store closes.

    Args:
        due_in_seconds: until a waiting record's time comes; infinite when there is none.
    """
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + wait_seconds
    while True:
        # The ticket comes first: work that arrives during the attempt must not be slept through.
        ticket = bell.ticket()
        taken = await attempt()
        rest_seconds = ends_at - loop.time()
        if taken or rest_seconds <= 0:
            return taken
        pause_seconds = min(rest_seconds, max(due_in_seconds(), _SOONEST_SECONDS))
        await asyncio.wait([ticket], timeout=pause_seconds)
        if not is_open():
            return []
