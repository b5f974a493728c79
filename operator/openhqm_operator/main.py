"""The operator's process: watches, and where it is the leader, brings everything to what it should be.

    python -m openhqm_operator.main --config /etc/openhqm-operator/operator.yaml

    every replica:  informers -> caches           health port
    the leader:     kopf, other changes, resync -> work queue -> Reconciler    Autoscaler    /stats    Events

Standbys keep their caches warm, so a new leader works at once. On SIGTERM: take no more, finish what is under
way, give the Lease back, exit. A leader that lost its Lease exits with an error, whatever it was doing.

kopf says when to look at an AsyncProxy or an annotated workload (`noticing/`); what is looked at then, and
all else that calls for a look, comes from our informers (`kube/watching.py`), for kopf says neither when its
first list is complete nor what went while it was not watching. A leader whose kopf ends or tells nothing any
more ends too.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
import uuid
from contextlib import AsyncExitStack
from typing import NoReturn

import structlog
from aiohttp import web

from openhqm.errors import SettingsError
from openhqm_operator import entry
from openhqm_operator.certificates.keeper import CertificateKeeper
from openhqm_operator.certificates.serving import ServingCertificate
from openhqm_operator.gateway.stage import Sleep
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.election import Election, LeadershipLost
from openhqm_operator.kube.errors import KubeError
from openhqm_operator.kube.events import Events
from openhqm_operator.kube.login import Login
from openhqm_operator.kube.resources import ASYNC_PROXIES, PODS
from openhqm_operator.kube.watching import Informer
from openhqm_operator.kube.work_queue import WorkQueue
from openhqm_operator.noticing.kopf_thread import KopfThread
from openhqm_operator.noticing.triggers import Triggers, build_informers, caches_of
from openhqm_operator.operator_metrics import Figures, Health, build_health_app
from openhqm_operator.operator_settings import OperatorSettings
from openhqm_operator.reconciling.caches import Caches
from openhqm_operator.reconciling.observe import Observer
from openhqm_operator.reconciling.observed import Options
from openhqm_operator.reconciling.reconcile import Reconciler, Work
from openhqm_operator.reconciling.sidecars import SidecarWatch
from openhqm_operator.reconciling.stores import BundledStore, BundledStoreUnusable
from openhqm_operator.scaling.autoscaler import Autoscaler, Powers
from openhqm_operator.scaling.external_metrics import (
    build_keda_app,
    build_metrics_app,
    desired_from_status,
    find_front_proxy,
    let_in_only,
)
from openhqm_operator.scaling.sidecar_stats import SidecarStats
from openhqm_operator.webhook.owner import own_webhook

CERTIFICATE_SECONDS = 10.0
"""How often it is looked whether the metrics API's certificate was replaced."""

EVENTS_SECONDS = 2.0
"""What was posted may still be written at the end for so long."""

log = structlog.get_logger()


class Process:
    """One operator, from its settings to its end.

    Attributes:
        health_port: where it listens, once `listening` is set.
    """

    def __init__(self, settings: OperatorSettings, login: Login) -> None:
        self.listening = asyncio.Event()
        self.health_port = 0
        self._settings = settings
        self._login = login
        self._certificate: ServingCertificate | None = None
        self._stopping = asyncio.Event()
        self._identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"

    def stop(self) -> None:
        """Begin to end."""
        self._stopping.set()

    async def run(self) -> None:
        """Work until `stop`.

        Raises:
            SettingsError: the health port is taken.
            LeadershipLost: somebody else may lead now.
        """
        settings = self._settings
        async with AsyncExitStack() as stack:
            reading = await stack.enter_async_context(Kube(self._login))
            lease = (settings.lease.namespace, settings.lease.name)
            election = Election(reading, lease, identity=self._identity)
            writing = await stack.enter_async_context(Kube(self._login, fence=election.check))
            informers = build_informers(reading, settings.namespace)
            leader = Leader(settings, self._login, writing, caches_of(informers), self._identity)
            stack.push_async_callback(leader.close)
            leader.triggers.listen(informers)
            health = Health(
                informers,
                leader.queue,
                leader.kopf.complaint,
                leader.autoscaler.complaint,
                settings.stale_seconds,
            )
            figures = Figures(
                informers,
                leader.queue,
                writing,
                leader.events,
                leader.reconciler.missed,
                lambda: election.is_leading,
            )
            self.health_port = await self._listen(
                stack, build_health_app(health, figures), settings.health_port, "health_port"
            )
            await self._tell_others(stack, reading)
            self.listening.set()
            await self._work(informers, election, leader, health)

    async def _tell_others(self, stack: AsyncExitStack, kube: Kube) -> None:
        """Answer HPAs and KEDA, on every replica: the number wanted is in the status."""
        wanted = desired_from_status(kube)
        if (keda := self._settings.keda) is not None:
            await self._listen(stack, build_keda_app(wanted), keda.port, "keda.port")
        if (api := self._settings.metrics_api) is not None:
            self._certificate = ServingCertificate(api.certificate_folder)
            front_proxy = await find_front_proxy(kube)
            let_in_only(front_proxy, self._certificate.context)
            app, context = build_metrics_app(wanted, front_proxy), self._certificate.context
            await self._listen(stack, app, api.port, "metrics_api.port", context)

    async def _listen(
        self,
        stack: AsyncExitStack,
        app: web.Application,
        port: int,
        setting: str,
        tls: ssl.SSLContext | None = None,
    ) -> int:
        """Serve *app* until the end; returns its port."""
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        try:
            await web.TCPSite(runner, self._settings.host, port, ssl_context=tls).start()
        except OSError as exc:
            raise SettingsError(f"{setting}: cannot listen on {port}: {exc.strerror}") from exc
        return int(runner.addresses[0][1])

    async def _work(
        self, informers: list[Informer], election: Election, leader: Leader, health: Health
    ) -> None:
        leading = asyncio.create_task(_lead(informers, election, leader), name="lead")
        try:
            async with asyncio.TaskGroup() as tasks:
                loops = [
                    tasks.create_task(informer.run(), name=f"watch {informer.resource}")
                    for informer in informers
                ]
                if self._certificate is not None:
                    looking = self._certificate.keep_fresh(CERTIFICATE_SECONDS)
                    loops.append(tasks.create_task(looking, name="certificate"))
                await self._until_stopped(leading)
                health.is_draining = True
                await leader.drain()
                await _ended(leading)
                for loop in loops:
                    loop.cancel()
        finally:
            await _ended(leading)
        if not leading.cancelled():
            leading.result()

    async def _until_stopped(self, leading: asyncio.Task[None]) -> None:
        stopping = asyncio.create_task(self._stopping.wait(), name="stop")
        await asyncio.wait({leading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel *task* and wait for its end, whatever that is."""
    task.cancel()
    await asyncio.wait({task})


async def _lead(informers: list[Informer], election: Election, leader: Leader) -> None:
    for informer in informers:
        await informer.synced.wait()
    await election.run(leader.run)


class Leader:
    """What the leader does, and nobody else.

    Attributes:
        queue: keys to be looked at; filled by `triggers`, also while somebody else leads.
        kopf: runs while we lead.
    """

    def __init__(
        self, settings: OperatorSettings, login: Login, kube: Kube, caches: Caches, identity: str
    ) -> None:
        self._settings = settings
        self._kube = kube
        self._caches = caches
        self._store = (
            BundledStore(kube, settings.store.url.get_secret_value(), settings.store.public_url)
            if settings.store
            else None
        )
        self._certificates = CertificateKeeper(kube, settings.certificates) if settings.certificates else None
        self.events = Events(kube, instance=identity)
        self.queue: WorkQueue[Work] = WorkQueue(self._look, workers=settings.workers)
        self.triggers = Triggers(caches, self._add, self._add_after)
        self.kopf = KopfThread(login, settings.namespace, self.triggers.sightings)
        self.sidecars = SidecarWatch(caches[ASYNC_PROXIES], caches[PODS], self.triggers.proxy)
        options = Options(
            has_bundled_store=settings.store is not None,
            pod_security=settings.pod_security,
            gateway=settings.gateway,
        )
        observer = Observer(
            kube, caches, self.sidecars, options, wants_sleep=lambda key: self.autoscaler.wants_sleep(key)
        )
        mint = self._store.mint if self._store else None
        self.reconciler = Reconciler(kube, observer, self.events.post, mint)
        powers = Powers(
            has_external_metrics=settings.metrics_api is not None,
            keda_url=settings.keda.url if settings.keda else "",
            sleep=lambda key: self.reconciler.sleeps.get(key, Sleep()),
            tell_sleepy=self.triggers.proxy,
        )
        self.autoscaler = Autoscaler(kube, caches, SidecarStats(), self.events, powers)
        self._is_leading = False

    async def run(self) -> None:
        """Work until cancelled."""
        self._is_leading = True
        self.triggers.everything()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.kopf.run(), name="kopf")
            tasks.create_task(self.queue.run(), name="queue")
            tasks.create_task(self._resync(), name="resync")
            tasks.create_task(self.sidecars.run(), name="sidecars")
            tasks.create_task(self.autoscaler.run(), name="autoscaler")
            tasks.create_task(self.events.run(), name="events")
            if self._certificates is not None:
                tasks.create_task(self._certificates.run(), name="certificates")

    async def drain(self) -> None:
        """Take no more and let what is under way finish."""
        if self._is_leading:
            log.info("drain.started")
            await self.queue.drain(self._settings.drain_seconds)
            await self.events.flush(EVENTS_SECONDS)

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()

    def _add(self, work: Work) -> None:
        # A standby would collect every key there is; it looks at all of them when it becomes the leader.
        if self._is_leading:
            self.queue.add(work)

    def _add_after(self, work: Work, seconds: float) -> None:
        if self._is_leading:
            self.queue.add_after(work, seconds)

    async def _look(self, work: Work) -> float | None:
        return await self.reconciler(work)

    async def _resync(self) -> NoReturn:
        while True:
            await self._repair_store()
            await self._own_webhook()
            await asyncio.sleep(self._settings.resync_seconds)
            self.triggers.everything()

    async def _own_webhook(self) -> None:
        if (settings := self._settings.certificates) is None:
            return
        try:
            await own_webhook(self._kube, settings.webhook, settings.namespace)
        except KubeError as exc:
            log.warning("webhook.unowned", error=str(exc))

    async def _repair_store(self) -> None:
        if self._store is None:
            return
        proxies = self._caches[ASYNC_PROXIES].values()
        using = {
            proxy["metadata"]["namespace"]
            for proxy in proxies
            if "secretRef" not in (proxy["spec"].get("store") or {})
        }
        try:
            await self._store.repair(using)
        except (BundledStoreUnusable, KubeError) as exc:
            log.warning("store_users.unchecked", error=str(exc))


def main() -> NoReturn:
    """Run the operator. Exit codes: 0 ended by a signal, 1 the Lease was lost, 2 the settings are wrong."""
    try:
        entry.run("openhqm-operator", "Keeps AsyncProxies.", OperatorSettings, Process)
    except LeadershipLost as exc:
        if not exc.has_ended:
            os._exit(1)  # something still runs that might write
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
