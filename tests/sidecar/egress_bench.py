"""A store, an app and an egress loop between them, in virtual time."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass

from tests.sidecar import virtual_time
from tests.sidecar.ways import AnyWay

from openhqm.egress import Egress
from openhqm.envelope import Envelope
from openhqm.errors import StoreUnavailable
from openhqm.lifecycle import Lifecycle
from openhqm.settings import Settings
from openhqm.stores.base import Answer, NewRecord, Options, Want
from openhqm.stores.memory import MemoryStore

HEAD = b"HTTP/1.1 %d X\r\n\r\n"


@dataclass(frozen=True)
class Reply:
    status: int = 200
    retry_after_seconds: float | None = None

    @property
    def answer(self):
        return Answer(HEAD % self.status, b"answer")

    body_bytes = 6


class App(AnyWay):
    """Runs envelopes as told: a status, an error, or a function that may take its time."""

    def __init__(self, *script):
        self.script = list(script)
        self.calls = []
        self.running = 0
        self.most_running = 0
        self.interrupted = 0
        self.was_interrupted = asyncio.Event()

    async def forward(self, envelope, body, *, record_id, epoch):
        self.calls.append((asyncio.get_running_loop().time(), record_id, epoch))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._act(self.script.pop(0) if len(self.script) > 1 else self.script[0])
        except asyncio.CancelledError:
            self.interrupted += 1
            self.was_interrupted.set()
            raise
        finally:
            self.running -= 1

    async def _act(self, step):
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, int):
            return Reply(step)
        if isinstance(step, float):
            await asyncio.sleep(step)
            return Reply(200)
        if isinstance(step, asyncio.Event):
            await step.wait()
            return Reply(200)
        return step


class FaultyStore(MemoryStore):
    """A memory store whose calls fail while they are in `broken`, and whose lease calls take time."""

    broken = frozenset()
    lease_takes_seconds = 0.0

    async def lease(self, *args, **kwargs):
        self._fail("lease")
        if self.lease_takes_seconds:
            await asyncio.sleep(self.lease_takes_seconds)  # before: a cancelled call must lose no lease
        return await super().lease(*args, **kwargs)

    async def extend(self, *args, **kwargs):
        self._fail("extend")
        return await super().extend(*args, **kwargs)

    async def settle(self, *args, **kwargs):
        self._fail("settle")
        return await super().settle(*args, **kwargs)

    def _fail(self, name):
        if name in self.broken:
            raise StoreUnavailable("the test broke it")


class Bench:
    """A store, an app and an egress loop between them."""

    def __init__(self, *script, probe_app=None, checkpoint=None, **settings):
        self.loop = asyncio.get_running_loop()
        self.store = FaultyStore(Options(), clock=self.loop.time)
        self.app = App(*script)
        self.events = []
        self.settings = Settings.model_validate(
            {"store": {"url": "memory:", "require_durability": "none"}} | settings
        )
        lifecycle = Lifecycle()
        lifecycle.listen(self.events.append)
        self.egress = Egress(
            self.store,
            self.settings,
            lifecycle,
            {"app": self.app, "handler": self.app},
            probe_app=probe_app,
            checkpoint=checkpoint or (lambda name: None),
            jitter=lambda: 1.0,
        )
        self.numbers = iter(range(1, 1_000_000))

    async def __aenter__(self):
        await self.store.open()
        self._run = asyncio.create_task(self.egress.run())
        return self

    async def __aexit__(self, *exc_info):
        if not self._run.done():
            await self.egress.drain(0.0)
        await self._run
        counts = await self.store.counts()
        assert counts.conserved

    async def accept(self, count=1, *, method=b"POST", target="app", repeat=False, max_attempts=None, **more):
        ids = [next(self.numbers).to_bytes(16, "big") for _ in range(count)]
        head = method + b" /orders?secret=1 HTTP/1.1\r\nHost: shop\r\n\r\n"
        envelope = Envelope(head, target=target, repeat=repeat, max_attempts=max_attempts).encode()
        await self.store.accept([NewRecord(id, envelope, b"body", **more) for id in ids])
        return ids[0] if count == 1 else ids

    async def final(self, id):
        """The record once it is final."""
        while True:
            record = await self.record(id)
            if record.state.is_final:
                return record
            await asyncio.sleep(0.01)

    async def record(self, id):
        [record] = await self.store.get([id], Want.ANSWER)
        return record

    def told(self):
        return [event.what for event in self.events]


def in_virtual_time(test):
    """Run an async test in virtual time."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        return virtual_time.run(test(*args, **kwargs))

    # pytest must see a plain function whose arguments are those of the test
    return run


def changed(settings, **egress):
    return settings.model_copy(update={"egress": settings.egress.model_copy(update=egress)})
