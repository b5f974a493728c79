"""Which keys are to be looked at, and by whom: each once, however often it is named, never twice at a time.

    queue = WorkQueue(reconcile, workers=4)                 # async reconcile(key) -> seconds or None
    tasks.create_task(queue.run(), name="reconcile")
    queue.add(key)                                          # from watches, from the resync timer
    queue.add_after(key, 30.0)

    add --> ready --worker--> active --> done; returned seconds: ready again after them
             ^                   |
             |                   +-----> raised: logged, ready again after this key's own backoff
             +-------------------------- named meanwhile: ready again at once

`reconcile` is level-triggered: a key says "look", never what happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import structlog

from openhqm_operator.kube.backoff import Backoff
from openhqm_operator.kube.errors import Conflict, Unavailable

K = TypeVar("K", bound=Hashable)

log = structlog.get_logger()


class WorkQueue(Generic[K]):
    """A deduplicating queue of keys and the workers that empty it.

    Args:
        reconcile: brings one key to what it should be; returns seconds after which to look again, or None.
        workers: keys looked at at once.
        backoff: of each key by itself.

    Attributes:
        failures: failures in a row, by key; a key that works is not in it.
    """

    def __init__(
        self,
        reconcile: Callable[[K], Awaitable[float | None]],
        *,
        workers: int = 4,
        backoff: Backoff | None = None,
    ) -> None:
        self.failures: dict[K, int] = {}
        self._reconcile = reconcile
        self._workers = workers
        self._backoff = backoff or Backoff(base=1.0, limit=300.0)
        self._ready: asyncio.Queue[K | _Stop] = asyncio.Queue()
        self._waiting: set[K] = set()
        self._active: dict[K, float] = {}
        self._again: set[K] = set()
        self._later: dict[K, asyncio.TimerHandle] = {}
        self._is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def depth(self) -> int:
        """Keys that wait for a worker."""
        return len(self._waiting) + len(self._again)

    @property
    def active(self) -> int:
        """Keys that a worker looks at now."""
        return len(self._active)

    @property
    def delayed(self) -> int:
        """Keys to be looked at later."""
        return len(self._later)

    def busy_seconds(self) -> float:
        """Seconds that the longest of the active keys has taken so far; 0 if none is active."""
        now = asyncio.get_running_loop().time()
        return max((now - since for since in self._active.values()), default=0.0)

    def add(self, key: K) -> None:
        """Look at *key* as soon as a worker is free; nothing new if it is waiting already."""
        if self._is_draining or key in self._waiting:
            return
        if key in self._active:
            self._again.add(key)
            return
        self._waiting.add(key)
        self._idle.clear()
        self._ready.put_nowait(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Look at *key* within *seconds*; a look before then, for another reason, serves as well."""
        if self._is_draining:
            return
        loop = asyncio.get_running_loop()
        planned = self._later.get(key)
        if planned is not None:
            if planned.when() <= loop.time() + seconds:
                return
            planned.cancel()
        self._later[key] = loop.call_later(seconds, self._is_due, key)

    async def join(self) -> None:
        """Wait until no key is ready or active; those to be looked at later do not count."""
        await self._idle.wait()

    async def run(self) -> None:
        """Work until drained or cancelled; then what is active is cancelled too."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._workers):
                tasks.create_task(self._work(), name=f"reconcile {number}")

    async def drain(self, seconds: float) -> bool:
        """Take no more, let what is active finish; `run` returns then.

        Returns: whether all finished within *seconds*; if not, cancel `run`.
        """
        self._is_draining = True
        for timer in self._later.values():
            timer.cancel()
        self._later.clear()
        self._again.clear()
        self._forget_ready()
        for _ in range(self._workers):
            self._ready.put_nowait(_STOP)
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def _work(self) -> None:
        while not isinstance(key := await self._ready.get(), _Stop):
            self._start(key)
            try:
                await self._look_at(key)
            finally:
                self._finish(key)

    def _start(self, key: K) -> None:
        self._waiting.discard(key)
        self._active[key] = asyncio.get_running_loop().time()
        planned = self._later.pop(key, None)
        if planned is not None:
            planned.cancel()

    async def _look_at(self, key: K) -> None:
        """Reconcile one key; the one guard around each, so that no key stops the others."""
        try:
            seconds = await self._reconcile(key)
        except (Unavailable, Conflict) as exc:
            asked = exc.retry_after if isinstance(exc, Unavailable) else 0.0
            delay = self._put_off(key, asked)
            log.warning("reconcile.postponed", key=str(key), error=str(exc), backoff_seconds=round(delay, 3))
        except Exception:
            delay = self._put_off(key, 0.0)
            log.exception("reconcile.failed", key=str(key), backoff_seconds=round(delay, 3))
        else:
            self.failures.pop(key, None)
            if seconds is not None:
                self.add_after(key, seconds)

    def _put_off(self, key: K, asked: float) -> float:
        self.failures[key] = self.failures.get(key, 0) + 1
        delay = self._backoff.delay(self.failures[key], at_least=asked)
        self.add_after(key, delay)
        return delay

    def _finish(self, key: K) -> None:
        del self._active[key]
        if key in self._again:
            self._again.discard(key)
            self.add(key)
        self._note_idle()

    def _is_due(self, key: K) -> None:
        del self._later[key]
        self.add(key)

    def _forget_ready(self) -> None:
        while not self._ready.empty():
            self._ready.get_nowait()
        self._waiting.clear()
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._active and not self._waiting:
            self._idle.set()


class _Stop:
    """Tells a worker to end."""


_STOP = _Stop()
