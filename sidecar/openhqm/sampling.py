"""Reads the Store's counts once a second and tells everybody who shows or estimates from them.

One reading serves `stats.py` (rates), `metrics.py` (gauges) and `estimates.py` (Retry-After), however
many pods share the store and however often they are asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from openhqm.errors import StoreUnavailable
from openhqm.stores.base import Counts, Lane, Store

SAMPLE_SECONDS = 1.0

log = structlog.get_logger("openhqm.sampling")

Listener = Callable[[Lane, Counts | None], None]
"""Told the counts of a lane, or None while the store cannot be asked."""


class Sampler:
    """Samples one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._listeners: list[Listener] = []

    def add(self, listener: Listener) -> None:
        self._listeners.append(listener)

    async def run(self) -> None:
        """Sample for ever; a store that is away is asked again."""
        while True:
            await self.sample()
            await asyncio.sleep(SAMPLE_SECONDS)

    async def sample(self) -> None:
        """Read each lane once and tell."""
        for lane in Lane:
            try:
                counts = await self._store.counts(lane)
            except StoreUnavailable as exc:
                log.debug("store.unavailable", doing="counts", error=str(exc))
                counts = None
            for listener in self._listeners:
                listener(lane, counts)
