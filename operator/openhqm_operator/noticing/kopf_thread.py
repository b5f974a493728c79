"""Runs kopf beside the leader's work: in a thread and an event loop of its own, until it ends or we do.

    tasks.create_task(KopfThread(login, namespace, sightings).run())    raises KopfEnded: the leader ends too

In a thread because `kopf.operator` takes over the signals of the main thread, cancels every task of its event
loop that came after it, whosoever it is, and must not keep the Lease from being renewed. Our informers watch
the same objects, as kopf says neither when its first list is complete nor which objects went while it was not
watching: caches need both, and what kopf leaves untold for too long shows that it does not work any more.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import kopf
import structlog
import uvloop

from openhqm_operator.kube.login import Login
from openhqm_operator.noticing.handlers import build_registry, quieten
from openhqm_operator.noticing.sightings import Sightings
from openhqm_operator.reconciling.reconcile import Work

STALLED_SECONDS = 150.0
"""Twice what kopf takes to give up a silent watch, and some; then the leader ends. `/livez` waits longer."""

CHECK_SECONDS = 5.0
BEAT_SECONDS = 1.0
STOP_SECONDS = 1.0
"""It holds nothing that must be given back: the process may end without it."""

log = structlog.get_logger()


class KopfEnded(Exception):
    """kopf ended, or tells nothing any more; the text says which."""


class KopfThread:
    """One run of kopf.

    Args:
        namespace: the one namespace looked after; None: all.
        sightings: told of what kopf sees, on the event loop that `run` is called on.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        login: Login,
        namespace: str | None,
        sightings: Sightings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._login = login
        self._namespace = namespace
        self._sightings = sightings
        self._clock = clock
        self._beat_at: float | None = None
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._kopf: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    def complaint(self, limit_seconds: float) -> str | None:
        """What is wrong with kopf for longer than *limit_seconds*; None if nothing, or before `run`."""
        if self._beat_at is None:
            return None
        if (still := self._clock() - self._beat_at) > limit_seconds:
            return f"kopf's thread has stood still for {still:.0f} s"
        if (late := self._sightings.late_seconds()) > limit_seconds:
            return f"kopf has not told of a change for {late:.0f} s"
        return None

    async def run(self) -> NoReturn:
        """Keep kopf running until cancelled.

        Raises:
            KopfEnded: it does not run any more.
        """
        quieten()
        self._sightings.begin()
        self._beat_at = self._clock()
        ours = asyncio.get_running_loop()
        threading.Thread(target=self._live, args=(ours,), name="kopf", daemon=True).start()
        ended = asyncio.wrap_future(self._ended)
        try:
            while not ended.done():
                await asyncio.wait({ended}, timeout=CHECK_SECONDS)
                if complaint := self.complaint(STALLED_SECONDS):
                    raise KopfEnded(complaint)
            raise KopfEnded("kopf ended") from ended.exception()
        finally:
            await self._end(ended)

    async def _end(self, ended: asyncio.Future[None]) -> None:
        if self._kopf is None:
            self._stop.set()
        elif not ended.done():
            self._kopf.call_soon_threadsafe(self._stop.set)
        await asyncio.wait({ended}, timeout=STOP_SECONDS)

    def _live(self, ours: asyncio.AbstractEventLoop) -> None:
        """The thread."""
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._operate(ours))
        except BaseException as exc:
            self._ended.set_exception(exc)
        else:
            self._ended.set_result(None)

    async def _operate(self, ours: asyncio.AbstractEventLoop) -> None:
        self._kopf = asyncio.get_running_loop()
        registry = build_registry(
            self._login,
            _called_on(ours, self._login),
            _told_on(ours, self._sightings.told),
            _told_on(ours, self._sightings.told_gone),
        )
        beating = asyncio.create_task(self._beat(), name="beat")  # before kopf, which ends tasks after it
        await kopf.operator(
            registry=registry,
            settings=kopf.OperatorSettings(),
            standalone=True,
            clusterwide=self._namespace is None,
            namespaces=[] if self._namespace is None else [self._namespace],
            stop_flag=self._stop,
        )
        beating.cancel()

    async def _beat(self) -> NoReturn:
        """Show, from kopf's thread, that its event loop turns."""
        while True:
            self._beat_at = self._clock()
            await asyncio.sleep(BEAT_SECONDS)


def _called_on(ours: asyncio.AbstractEventLoop, login: Login) -> Callable[[], asyncio.Future[str | None]]:
    def authorization() -> asyncio.Future[str | None]:
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(login.authorization(), ours))

    return authorization


def _told_on(
    ours: asyncio.AbstractEventLoop, tell: Callable[[Work, int], None]
) -> Callable[[Work, int], None]:
    def told(work: Work, version: int) -> None:
        ours.call_soon_threadsafe(tell, work, version)

    return told
