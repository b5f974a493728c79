"""What tests of publishing and intake share: a store, a broker, and ways to let either fail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from tests.conformance.memory_broker import MemoryBroker, Queue
from tests.conformance.store_case import eventually, new

from openhqm.brokers.base import Message
from openhqm.envelope import Envelope
from openhqm.lifecycle import Event, Lifecycle
from openhqm.stores.base import NewRecord, Options, Store
from openhqm.stores.memory import MemoryStore

HEAD = b"POST /orders HTTP/1.1\r\nHost: app\r\n\r\n"
ENVELOPE = Envelope(HEAD).encode()


class Failing:
    """A store some of whose calls fail, before or after they were done.

    Args:
        decide: called with the method's name before each call and after it; raises to let it fail.
    """

    def __init__(self, store: Store, decide: Callable[[str, bool], None]) -> None:
        self._store = store
        self._decide = decide

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if not asyncio.iscoroutinefunction(method):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._decide(name, False)
            result = await method(*args, **kwargs)
            self._decide(name, True)
            return result

        return call


class Bench:
    """A memory store and a queue, with brokers opened on it."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.queue = Queue()
        self.lifecycle = Lifecycle()
        self.events: list[Event] = []
        self.lifecycle.listen(self.events.append)

    async def broker(self, fails: Callable[[str], None] = lambda name: None) -> MemoryBroker:
        broker = MemoryBroker(self.queue, fails)
        await broker.open()
        return broker

    @property
    def messages(self) -> list[Message]:
        return [message for _, message in self.queue.waiting]


async def bench(**options: Any) -> Bench:
    store = MemoryStore(Options(**options))
    await store.open()
    return Bench(store)


def outbound(**changes: Any) -> NewRecord:
    return new(**{"envelope": ENVELOPE, "outbound": True, **changes})


@contextlib.asynccontextmanager
async def running(part: Any) -> AsyncIterator[None]:
    """Run *part* for the block, then drain it; what it raises is raised here."""
    task = asyncio.create_task(part.run())
    try:
        yield
    finally:
        await part.drain(1.0)
        await asyncio.wait_for(task, 5.0)


async def until(holds: Callable[[], bool]) -> None:
    await eventually(holds)
