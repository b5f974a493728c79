"""The whole life of one process: open the store, build the parts, serve, drain.

Called by `openhqm serve`. Owns no behaviour: it makes the objects, hands them to each other, runs
their loops as named tasks, and ends them in the order that loses nothing (`_drain`).

    Front (ingress, results) ──accept──> Store ──lease──> Egress ──> app or handlers
                                           ├──────────── Callbacks, Housekeeping
    Stats, Metrics <── Lifecycle <── all of them
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
import uvloop
from aiohttp.web import Application

from openhqm import logs
from openhqm.admin import build_admin_app
from openhqm.callbacks import Callbacks
from openhqm.egress import Egress, Runner
from openhqm.forwarder import Forwarder
from openhqm.front import Figures, Front
from openhqm.handlers import Handlers, load_handlers
from openhqm.handles import IdMint
from openhqm.health import build_health_app, listen
from openhqm.housekeeping import Housekeeping
from openhqm.http1 import Client
from openhqm.lifecycle import Happening, Lifecycle
from openhqm.probe import AppProbe
from openhqm.reloading import Reloader
from openhqm.sampling import Sampler
from openhqm.settings import Settings
from openhqm.settings_docs import mask_url
from openhqm.stats import EgressFigures, Phase, Stats
from openhqm.storage import make_broker, open_handles, open_previous, open_store
from openhqm.stores.base import Store
from openhqm.tallies import Tallies

if TYPE_CHECKING:
    from openhqm.carrying import Carrying
    from openhqm.metrics import Metrics
    from openhqm.pod import Pod

CLOSE_SECONDS = 1.0
"""Of the drain's time, kept back for closing connections and the store."""

log = structlog.get_logger("openhqm.main")

AnyEgress = TypeVar("AnyEgress", bound=Egress)
Checkpoint = Callable[[str], None]
Exposition = Callable[[], bytes]


Loop = Callable[[], Coroutine[Any, Any, None]]
"""What runs until the process ends; it is begun when all ports are open."""


@dataclass(frozen=True, slots=True)
class Replays:
    """What works off one store, and its loops by name."""

    egress: Egress
    callbacks: Callbacks
    loops: dict[str, Loop]


def run(
    settings: Settings,
    *,
    config: Path | None = None,
    reread: Callable[[], Settings] | None = None,
    checkpoint: Checkpoint | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        config: the settings file; its hot settings are taken over when it changes, and at SIGHUP.
        reread: reads all sources of settings anew; None: they stay as they are.
        checkpoint: called with the name of each step of a replay; crash tests end the process there.

    Returns: the exit code: 0 after a drain, 1 when a loop of ours ended that must not.

    Raises:
        SettingsError: these settings cannot be served.
        StoreUnavailable: the store cannot be reached.
    """
    logs.configure(settings.log)
    return uvloop.run(Process(settings, config, reread, checkpoint).run())


class Process:
    """One running sidecar. `run` calls the other methods in the order they stand here."""

    def __init__(
        self,
        settings: Settings,
        config: Path | None = None,
        reread: Callable[[], Settings] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self._settings = settings
        self._config = config
        self._reread = reread
        self._checkpoint = checkpoint
        self._lifecycle = Lifecycle()
        self._hot: list[Callable[[Settings], None]] = []
        """Who takes over hot settings."""
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._draining_since: float | None = None
        self._failed = False

    async def run(self) -> int:
        """Open, build, serve, drain, close; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        async with AsyncExitStack() as stack:
            store = await open_store(self._settings)
            stack.push_async_callback(store.close)
            previous = await open_previous(self._settings)
            if previous is not None:
                stack.push_async_callback(previous.close)
            await self._live(store, previous, stack)
        log.info("process.ended", failed=self._failed)
        return int(self._failed)

    def _on_signal(self) -> None:
        """The first signal begins the drain, the second cuts it short."""
        (self._hurry if self._stopping.is_set() else self._stopping).set()

    async def _live(self, store: Store, previous: Store | None, stack: AsyncExitStack) -> None:
        settings, lifecycle = self._settings, self._lifecycle
        client = _app_client(settings)
        if client is not None:
            stack.push_async_callback(client.close)
        tallies = Tallies(lifecycle)
        replays = self._build_replays(store, previous, client, tallies)
        figures = _figures(replays)
        stats = Stats(store, figures, lifecycle, settings.queue.name)
        stats.previous = previous
        exposition = _exposition(tallies, figures)
        self._log_requests()
        carrying = await self._build_carrying(store, stack)
        seen = _seen(store, previous)
        front = await self._build_front(seen, previous, client, stats, exposition)

        sampler = Sampler(store)
        sampler.add(stats.sampled)
        sampler.add(tallies.sampled)
        loops = {"housekeeping": Housekeeping(store, lifecycle).run, "sampler": sampler.run}
        if front is not None:
            sampler.add(front.drain_rate.sampled)
            _show(front, stats, tallies)
        for each in replays:
            loops |= each.loops
        if carrying is not None:
            loops["carrying"] = carrying.run
            stats.carried = carrying.backlog
        pod = self._build_pod(client, stats, front, replays)
        if pod is not None:
            loops["pod"] = pod.run
        if self._reread is not None:
            loops["reloading"] = self._build_reloader(self._reread, stats).run

        health_app = build_health_app(stats, exposition, pod.routes() if pod is not None else ())
        await self._listen(stack, seen, stats, health_app, front)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._guard(name, loop), name=name) for name, loop in loops.items()]
            stats.phase = Phase.SERVING
            self._announce(store, stats)
            await self._stopping.wait()
            await self._drain(stats, front, replays, carrying)
            for task in tasks:
                task.cancel()

    def _build_replays(
        self, store: Store, previous: Store | None, client: Client | None, tallies: Tallies
    ) -> list[Replays]:
        """Build what works off the store, and what finishes the previous one."""
        if self._settings.mode == "ingress":
            return []
        if previous is None:
            return [self._replays_of(store, self._build_egress(Egress, store, client), "")]
        from openhqm.sharing import PreviousBacklog, SharingEgress

        backlog = PreviousBacklog()
        tallies.figure("openhqm_previous_backlog", "Unfinished requests in the previous store.", backlog.read)
        sampler = Sampler(previous)
        sampler.add(backlog.sampled)
        egress = self._build_egress(SharingEgress, store, client)
        finishing = self._build_egress(SharingEgress, previous, client)
        egress.share(finishing, backlog, is_previous=False)
        finishing.share(egress, backlog, is_previous=True)
        finished = self._replays_of(previous, finishing, "-previous")
        finished.loops["housekeeping-previous"] = Housekeeping(previous, self._lifecycle).run
        finished.loops["sampler-previous"] = sampler.run
        return [self._replays_of(store, egress, ""), finished]

    def _replays_of(self, store: Store, egress: Egress, suffix: str) -> Replays:
        callbacks = self._build_callbacks(store)
        return Replays(
            egress, callbacks, {f"egress{suffix}": egress.run, f"callbacks{suffix}": callbacks.run}
        )

    def _build_egress(self, made: type[AnyEgress], store: Store, client: Client | None) -> AnyEgress:
        settings = self._settings
        handlers = Handlers(
            load_handlers(),
            store.blobs,
            timeout_seconds=settings.egress.app_timeout_seconds,
            max_answer_bytes=settings.response.max_bytes,
        )
        self._hot.append(handlers.apply)
        runners: dict[str, Runner] = {"handler": handlers}
        if client is not None:
            forwarder = Forwarder(client, store.blobs, settings, checkpoint=self._checkpoint)
            self._hot.append(forwarder.apply)
            runners["app"] = forwarder
        egress = made(
            store,
            settings,
            self._lifecycle,
            runners,
            probe_app=_app_probe(settings, client),
            checkpoint=self._checkpoint,
        )
        self._hot.append(egress.apply)
        self._lifecycle.listen(egress.on_event, [Happening.CANCEL_REQUESTED])
        return egress

    def _build_callbacks(self, store: Store) -> Callbacks:
        callbacks = Callbacks(store, self._settings)
        self._hot.append(callbacks.apply)
        return callbacks

    async def _build_carrying(self, store: Store, stack: AsyncExitStack) -> Carrying | None:
        """Build what publishes to the broker and takes in from it; None without a broker."""
        broker = make_broker(self._settings, store)
        if broker is None:
            return None
        from openhqm.carrying import Carrying
        from openhqm.intake import Intake
        from openhqm.publishing import Publishing

        publishing = intake = None
        if self._settings.mode != "egress":
            publishing = Publishing(store, broker, self._lifecycle)
        if self._settings.mode != "ingress":
            intake = Intake(store, broker, self._lifecycle, self._settings)
            self._hot.append(intake.apply)
        carrying = Carrying(broker, publishing, intake)
        stack.push_async_callback(carrying.close)
        await carrying.open()
        return carrying

    def _log_requests(self) -> None:
        request_log = logs.RequestLog(self._settings.log)

        def apply(settings: Settings) -> None:
            request_log.apply(settings.log)
            self._lifecycle.listen(request_log.on_event, request_log.wanted)

        apply(self._settings)
        self._hot.append(apply)

    async def _build_front(
        self,
        store: Store,
        previous: Store | None,
        client: Client | None,
        stats: Stats,
        exposition: Exposition,
    ) -> Front | None:
        if self._settings.mode == "egress":
            return None
        handles = await open_handles(self._settings, store, previous)
        figures = Figures(stats.readiness, exposition)
        front = Front(self._settings, store, handles, client, self._lifecycle, figures)
        self._hot.append(front.apply)
        return front

    def _build_pod(
        self, client: Client | None, stats: Stats, front: Front | None, replays: Sequence[Replays]
    ) -> Pod | None:
        """Build the kubelet's part; only an injector asks for it."""
        settings = self._settings
        if settings.pod.token is None and not settings.pod.probes:
            return None
        from openhqm.pod import Pod

        pod = Pod(
            settings,
            address=client.address if client is not None else None,
            sending=[each.egress for each in replays],
            passing=front.passing if front is not None else asyncio.sleep,
            is_serving=lambda: stats.phase is not Phase.DRAINING,
            end=partial(self._begin_drain, stats, front, replays),
        )
        self._hot.append(pod.apply)
        stats.app_stopping = lambda: pod.is_stopped
        return pod

    def _build_reloader(self, reread: Callable[[], Settings], stats: Stats) -> Reloader:
        reloader = Reloader(self._settings, reread, self._apply, self._config)
        stats.settings = lambda: reloader.digest
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.reload)
        return reloader

    def _apply(self, settings: Settings) -> None:
        """Hand hot settings to everyone who has some; structural ones stay as they were built."""
        self._settings = settings
        for apply in self._hot:
            apply(settings)

    async def _listen(
        self, stack: AsyncExitStack, store: Store, stats: Stats, health_app: Application, front: Front | None
    ) -> None:
        """Open the ports: probes first, the app's traffic last, when everything behind it is ready."""
        settings = self._settings
        health, admin = settings.health, settings.admin
        runner, stats.ports["health"] = await listen(health_app, "health", health.host, health.port)
        stack.push_async_callback(runner.cleanup)
        admin_app = build_admin_app(lambda: self._settings, store, stats, self._lifecycle, IdMint())
        runner, stats.ports["admin"] = await listen(admin_app, "admin", admin.host, admin.port)
        stack.push_async_callback(runner.cleanup)
        if front is not None:
            stats.ports["ingress"] = await front.listen()

    def _announce(self, store: Store, stats: Stats) -> None:
        log.info(
            "process.serving",
            app=self._settings.app.url,
            store=mask_url(self._settings.store.url.get_secret_value()),
            durability=store.abilities.durability.name.lower(),
            why=store.abilities.why,
            queue=self._settings.queue.name,
            mode=self._settings.mode,
            **{f"{name}_port": port for name, port in stats.ports.items()},
        )
        if self._settings.mode != "combined" and not store.abilities.shared:
            log.warning(
                "store.not_shared",
                mode=self._settings.mode,
                hint="no other process can use this store while this one does, and this one only takes in "
                "or only sends: set mode combined, or a store that can be shared",
            )

    async def _guard(self, name: str, loop: Loop) -> None:
        """Run a loop that must last as long as the process; its end starts the drain."""
        try:
            await loop()
        except Exception:
            log.exception("loop.failed", loop=name)
        if not self._stopping.is_set():
            log.error("loop.ended", loop=name)
            self._failed = True
            self._stopping.set()

    def _begin_drain(self, stats: Stats, front: Front | None, replays: Sequence[Replays]) -> None:
        """Be unready, turn held waits into 202s, take no new leases; once, however often it is asked for."""
        if self._draining_since is not None:
            return
        self._draining_since = asyncio.get_running_loop().time()
        log.info("drain.started", timeout_seconds=self._settings.drain.timeout_seconds)
        stats.phase = Phase.DRAINING
        for each in replays:
            each.egress.stop_leasing()
        if front is not None:
            front.begin_drain()

    async def _drain(
        self, stats: Stats, front: Front | None, replays: Sequence[Replays], carrying: Carrying | None
    ) -> None:
        """End in the order that loses nothing (design R8).

        Unready, held waits become 202s, no new leases (a Pod's preStop may have said all that before us),
        accept while routes move, finish what is in flight or release it by R4, then close.
        """
        settings = self._settings.drain
        clock = asyncio.get_running_loop().time
        deadline = clock() + settings.timeout_seconds - CLOSE_SECONDS
        self._begin_drain(stats, front, replays)
        if carrying is not None:
            carrying.stop_receiving()
        assert self._draining_since is not None
        if front is not None:
            moved_at = self._draining_since + settings.accept_seconds
            await self._unless_hurried(asyncio.sleep(max(moved_at - clock(), 0.0)))
        parts: list[Front | Egress | Callbacks | Carrying] = [] if front is None else [front]
        parts += [] if carrying is None else [carrying]
        parts += [part for each in replays for part in (each.egress, each.callbacks)]

        def endings(seconds: float) -> list[Coroutine[Any, Any, None]]:
            return [part.drain(seconds) for part in parts]

        if not await self._unless_hurried(_together(endings(max(deadline - clock(), 0.0)))):
            await _together(endings(0.0))
        log.info("drain.ended", hurried=self._hurry.is_set())

    async def _unless_hurried(self, work: Coroutine[Any, Any, None]) -> bool:
        """Await *work* and return True; or give it up and return False when a second signal comes."""
        task = asyncio.create_task(work)
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait([task, hurry], return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if task.done():
            task.result()
            return True
        task.cancel()
        return False


async def _together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    await asyncio.gather(*works)


def _seen(store: Store, previous: Store | None) -> Store:
    """Return what clients and operators see."""
    if previous is None:
        return store
    from openhqm.succession import Succession

    return Succession(store, previous)


def _figures(replays: Sequence[Replays]) -> EgressFigures | None:
    """Return the figures of all replays; None where this process replays nothing."""
    if len(replays) < 2:
        return replays[0].egress if replays else None
    from openhqm.sharing import Together

    return Together([each.egress for each in replays])


def _show(front: Front, stats: Stats, tallies: Tallies) -> None:
    """Let /stats and /metrics tell of the clients that wait."""
    stats.waiting_clients, stats.held, stats.passed = front.waiting_clients, front.held, front.passed
    tallies.figure("openhqm_waiting_clients", "Clients held for an answer.", front.waiting_clients)
    tallies.figure("openhqm_held_requests", "Requests held until the app takes connections.", front.held)


def _exposition(tallies: Tallies, egress: EgressFigures | None) -> Exposition:
    """Return what renders /metrics; its library is loaded at the first scrape."""

    @cache
    def metrics() -> Metrics:
        from prometheus_client import CollectorRegistry

        from openhqm.metrics import Metrics

        return Metrics(CollectorRegistry(), tallies, egress)

    return lambda: metrics().render()


def _app_client(settings: Settings) -> Client | None:
    if settings.app.url is None:
        return None
    return Client(
        settings.app.url,
        connect_timeout_seconds=settings.egress.connect_timeout_seconds,
        reuse_idle_seconds=settings.egress.reuse_idle_seconds,
        max_idle=settings.egress.concurrency,
    )


def _app_probe(settings: Settings, client: Client | None) -> AppProbe | None:
    if client is None or settings.app.url is None or settings.app.health_path is None:
        return None
    return AppProbe(client, settings.app.url, settings.app.health_path)
