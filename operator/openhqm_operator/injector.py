"""The injector's process. It reads, never writes; any number of them may run.

    python -m openhqm_operator.injector --config /etc/openhqm-injector/injector.yaml

`webhook/server.py` is what it serves. On SIGTERM: unready, answer a little longer while routes move, finish
what is under way, exit.
"""

from __future__ import annotations

import asyncio
import sys
from typing import NoReturn

import structlog
from aiohttp import web

from openhqm.errors import SettingsError
from openhqm_operator import entry
from openhqm_operator.certificates.serving import ServingCertificate
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.login import Login
from openhqm_operator.kube.resources import ASYNC_PROXIES
from openhqm_operator.kube.watching import Informer
from openhqm_operator.webhook.metrics import InjectorMetrics
from openhqm_operator.webhook.proxy_lookup import ProxyLookup
from openhqm_operator.webhook.server import (
    REVIEW_SECONDS,
    Injector,
    Readiness,
    build_health_app,
    build_webhook_app,
)
from openhqm_operator.webhook.settings import InjectorSettings

log = structlog.get_logger()


class Process:
    """One injector, from its settings to its end.

    Attributes:
        listening: set once both ports are open; `/readyz` says when reviews can be answered.
        port: of the webhook.
        health_port: of the probes.
    """

    def __init__(self, settings: InjectorSettings, login: Login) -> None:
        self.listening = asyncio.Event()
        self.port = 0
        self.health_port = 0
        self._settings = settings
        self._login = login
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Begin to end."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until `stop`.

        Raises:
            SettingsError: there is no usable certificate, or a port is taken.
        """
        certificate = ServingCertificate(self._settings.certificate_folder)
        async with Kube(self._login) as kube:
            informers = [
                Informer(kube, ASYNC_PROXIES, namespace=each) for each in self._settings.namespaces or (None,)
            ]
            readiness = Readiness(informers, certificate)
            metrics = InjectorMetrics(informers, certificate)
            lookup = ProxyLookup([informer.cache for informer in informers], kube)
            injector = Injector(self._settings.platform, lookup, metrics)
            webhook = await self._listen(
                build_webhook_app(injector, readiness), self._settings.port, certificate
            )
            health = await self._listen(build_health_app(readiness, metrics), self._settings.health_port)
            self.port, self.health_port = webhook.addresses[0][1], health.addresses[0][1]
            self.listening.set()
            log.info("injector.started", port=self.port, health_port=self.health_port)
            await self._serve(informers, certificate)
            await self._drain(readiness, webhook, health)

    async def _serve(self, informers: list[Informer], certificate: ServingCertificate) -> None:
        """Keep what reviews rest on fresh until told to end; a loop that ends by itself ends the process."""
        async with asyncio.TaskGroup() as tasks:
            loops = [tasks.create_task(informer.run(), name="watch proxies") for informer in informers]
            looking = certificate.keep_fresh(self._settings.certificate_check_seconds)
            loops.append(tasks.create_task(looking, name="certificate"))
            await self._stopping.wait()
            for loop in loops:
                loop.cancel()

    async def _drain(self, readiness: Readiness, webhook: web.AppRunner, health: web.AppRunner) -> None:
        log.info("drain.started")
        readiness.is_draining = True
        await asyncio.sleep(self._settings.drain_seconds)
        await webhook.cleanup()
        await health.cleanup()
        log.info("drain.finished")

    async def _listen(
        self, app: web.Application, port: int, certificate: ServingCertificate | None = None
    ) -> web.AppRunner:
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=REVIEW_SECONDS)
        await runner.setup()
        context = certificate.context if certificate else None
        try:
            await web.TCPSite(runner, self._settings.host, port, ssl_context=context).start()
        except OSError as exc:
            await runner.cleanup()
            raise SettingsError(f"cannot listen on {self._settings.host}:{port}: {exc.strerror}") from exc
        return runner


def main() -> NoReturn:
    """Run the injector. Exit codes: 0 ended by a signal, 2 the settings are wrong."""
    entry.run("openhqm-injector", "Gives Pods their OpenHQM sidecar.", InjectorSettings, Process)
    sys.exit(0)


if __name__ == "__main__":
    main()
