"""Turns the Store's clockwork: lapsed leases, passed deadlines, answers that outlived their time."""

from __future__ import annotations

import asyncio

import structlog

from openhqm.errors import StoreUnavailable
from openhqm.lifecycle import Event, Happening, Lifecycle
from openhqm.stores.base import Change, Lane, State, Store

SWEEP_SECONDS = 1.0
SWEEP_LIMIT = 1000

log = structlog.get_logger("openhqm.housekeeping")

_HAPPENINGS = {
    State.QUEUED: Happening.RELEASED,
    State.RETRYING: Happening.RELEASED,
    State.FAILED: Happening.DEAD_LETTERED,
    State.CANCELLED: Happening.CANCELLED,
    State.EXPIRED: Happening.EXPIRED,
}


class Housekeeping:
    """Sweeps the store once a second; every process of a shared store may."""

    def __init__(self, store: Store, lifecycle: Lifecycle) -> None:
        self._store = store
        self._emit = lifecycle.emit

    async def run(self) -> None:
        """Sweep for ever; a store that is away is asked again."""
        while True:
            try:
                await self.sweep()
            except StoreUnavailable as exc:
                log.warning("store.unavailable", doing="sweep", error=str(exc))
            await asyncio.sleep(SWEEP_SECONDS)

    async def sweep(self) -> None:
        """Sweep until there is nothing left that is due."""
        while True:
            changes = await self._store.sweep(SWEEP_LIMIT)
            for change in changes:
                self._tell(change)
            if len(changes) < SWEEP_LIMIT:
                return

    def _tell(self, change: Change) -> None:
        what = _HAPPENINGS.get(change.state)
        if what is not None and change.lane is Lane.REQUESTS:
            self._emit(Event(what, change.id, reason=change.reason or "lease-lapsed"))
