"""One reading of the counts a second, told to everybody."""

from __future__ import annotations

import asyncio

from tests.sidecar import virtual_time

from openhqm.sampling import Sampler
from openhqm.stores.base import Counts, Lane, NewRecord, Options
from openhqm.stores.memory import MemoryStore


def test_each_lane_is_told_every_second_and_an_absent_store_as_none():
    async def scene() -> list[tuple[Lane, int | None]]:
        told: list[tuple[Lane, int | None]] = []

        def listen(lane: Lane, counts: Counts | None) -> None:
            told.append((lane, None if counts is None else counts.queued))

        store = MemoryStore(Options(), clock=asyncio.get_running_loop().time)
        sampler = Sampler(store)
        sampler.add(listen)
        sampling = asyncio.create_task(sampler.run())
        await asyncio.sleep(0.5)
        await store.open()
        await store.accept([NewRecord(b"1" * 16, b"e")])
        await asyncio.sleep(1.0)
        sampling.cancel()
        return told

    told = virtual_time.run(scene())

    assert told == [
        (Lane.REQUESTS, None),
        (Lane.CALLBACKS, None),
        (Lane.REQUESTS, 1),
        (Lane.CALLBACKS, 0),
    ]
