"""What a deep backlog costs a Store: `fill` one, or `compare` accept and lease shallow and deep.

Talks to the Store directly, in batches of 32 as a busy process does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

import uvloop

from openhqm.envelope import Envelope
from openhqm.handles import IdMint
from openhqm.stores import registry
from openhqm.stores.base import Answer, Finish, NewRecord, Options, State, Store

HEAD = b"POST /orders HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 256\r\n\r\n"
BATCH = 32
SHALLOW = 1_000
SAMPLES = 60

new_id = IdMint()
"""Ids as the product mints them: in order of time, which is what an index of ids likes best."""


def records(count: int) -> list[NewRecord]:
    envelope = Envelope(HEAD).encode()
    return [NewRecord(id=new_id(), envelope=envelope, body=b"x" * 256) for _ in range(count)]


async def fill(store: Store, count: int) -> None:
    for at in range(0, count, 1000):
        await store.accept(records(min(1000, count - at)))


async def accept_seconds(store: Store) -> float:
    """Median seconds to accept one batch."""
    samples = []
    for _ in range(SAMPLES):
        batch = records(BATCH)
        started = time.perf_counter()
        await store.accept(batch)
        samples.append(time.perf_counter() - started)
    return statistics.median(samples)


async def lease_seconds(store: Store) -> float:
    """Median seconds to lease and settle one batch."""
    samples = []
    for _ in range(SAMPLES):
        started = time.perf_counter()
        leases = await store.lease(BATCH, lease_seconds=30.0, wait_seconds=0.0)
        await store.settle(
            [
                Finish(lease.id, lease.epoch, State.DONE, Answer(b"HTTP/1.1 200 OK\r\n\r\n", b"ok"))
                for lease in leases
            ]
        )
        samples.append(time.perf_counter() - started)
    return statistics.median(samples)


async def compare(store: Store, queued: int) -> dict[str, float]:
    await fill(store, SHALLOW)
    os.sync()
    shallow = await accept_seconds(store), await lease_seconds(store)
    await fill(store, queued)
    os.sync()  # the fill's gigabyte is not the price of the next commit
    deep = await accept_seconds(store), await lease_seconds(store)
    return {"accept": deep[0] / shallow[0], "lease": deep[1] / shallow[1]}


async def run(args: argparse.Namespace) -> None:
    store = registry.create(args.url, Options(max_backlog=10**9, max_bytes=10**12))
    await store.open()
    try:
        if args.what == "fill":
            await fill(store, args.queued)
        else:
            print(json.dumps(await compare(store, args.queued)))
    finally:
        await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["fill", "compare"])
    parser.add_argument("url")
    parser.add_argument("--queued", type=int, default=1_000_000)
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
