"""Gives every workload back as it was, before the chart goes: its hook runs this as a Job.

    python -m openhqm_operator.uninstall --config /etc/openhqm-operator/operator.yaml \\
        --webhook openhqm --operator openhqm-operator

    the operators go, the Lease is ours -> `reconciling/ending.py` ends every AsyncProxy -> the webhook goes

First the operators: they would make AsyncProxies anew from the annotations, which stay, as do AsyncProxies:
whoever installs again finds all as it was asked for. That one is to end is said here alone, where
`reconciling/reconcile.py` looks, never on the AsyncProxy. What takes too long is forced.

Last the webhook: workloads at zero wake for this, and only Pods with a sidecar can work off what they slept
upon; the same holds for a Pod that is replaced while its workload drains.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import os
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import structlog

from openhqm import logs
from openhqm.errors import SettingsError
from openhqm.settings_file import load_file
from openhqm_operator.api import names
from openhqm_operator.kube.cache import Cache
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.election import Election
from openhqm_operator.kube.errors import KubeError, NotFound
from openhqm_operator.kube.events import Events
from openhqm_operator.kube.login import LoginFailed, find_login
from openhqm_operator.kube.resources import (
    ASYNC_PROXIES,
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    MUTATING_WEBHOOKS,
    PODS,
    Key,
    Object,
    key_of,
)
from openhqm_operator.kube.watching import Informer
from openhqm_operator.noticing.triggers import build_informers, caches_of
from openhqm_operator.operator_settings import OperatorSettings
from openhqm_operator.reconciling.observe import Observer
from openhqm_operator.reconciling.observed import Observed, Options
from openhqm_operator.reconciling.reconcile import Reconciler, Work
from openhqm_operator.reconciling.sidecars import SidecarWatch

LOOK_SECONDS = 2.0

WAKE_SECONDS = 60.0
"""Workloads at zero may take this long until they serve without a gateway; until then nothing is forced."""

FORCED_SECONDS = 90.0
"""From giving up a backlog until finalizers are taken away from whatever is still not clean."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Release:
    """What of the chart stands in the way.

    Args:
        webhook: name of the MutatingWebhookConfiguration.
        operator: name of the operator's Deployment, in the Lease's namespace.
        drain_seconds: backlogs may take this long.
    """

    webhook: str
    operator: str
    drain_seconds: float


def as_ending(proxy: Object, *, forced: bool) -> Object:
    """Return *proxy* as it would look had somebody deleted it; *forced*: and given up its backlog."""
    ending = copy.deepcopy(proxy)
    metadata = ending["metadata"]
    metadata.setdefault("deletionTimestamp", metadata["creationTimestamp"])
    if forced:
        metadata["annotations"] = {
            **(metadata.get("annotations") or {}),
            names.FORCE_EJECT_ANNOTATION: "true",
        }
    return ending


def is_held(proxy: Object) -> bool:
    """Whether something of ours may be left on the workload or on Services."""
    return names.FINALIZER in (proxy["metadata"].get("finalizers") or ())


class EndingObserver(Observer):
    """Sees every AsyncProxy as deleted.

    Attributes:
        is_forced: and its backlog as given up.
    """

    is_forced = False

    async def look(self, key: Key, *, fresh: bool = False) -> Observed | None:
        """As `Observer.look`."""
        seen = await super().look(key, fresh=fresh)
        return None if seen is None else replace(seen, proxy=as_ending(seen.proxy, forced=self.is_forced))


class Uninstall:
    """The whole of it, once."""

    def __init__(self, settings: OperatorSettings, release: Release, kube: Kube) -> None:
        self._settings = settings
        self._release = release
        self._kube = kube

    async def run(self) -> Sequence[Key]:
        """Clean up.

        Returns: AsyncProxies whose workloads may still have something of ours: their finalizers were taken
            away because time was up.

        Raises:
            KubeError: the API server refuses; running it again goes on.
        """
        await self._stop_operators()
        lease = (self._settings.lease.namespace, self._settings.lease.name)
        election = Election(self._kube, lease, identity=f"uninstall_{uuid.uuid4().hex[:8]}")
        left: list[Key] = []

        async def lead() -> None:
            left.extend(await self._end_all())

        await election.run(lead)
        await self._remove_webhook()
        return left

    async def _remove_webhook(self) -> None:
        if await self._kube.delete(MUTATING_WEBHOOKS, ("", self._release.webhook)):
            log.info("webhook.removed", webhook=self._release.webhook)

    async def _stop_operators(self) -> None:
        """Ask for none; they give the Lease back as they go, and until it is ours nothing is written."""
        key = (self._settings.lease.namespace, self._release.operator)
        try:
            scale = await self._kube.get_scale(DEPLOYMENTS, key)
        except NotFound:
            return
        if scale.wanted:
            version, manager = scale.resource_version, names.OPERATOR_MANAGER
            await self._kube.apply_scale(
                DEPLOYMENTS, key, 0, resource_version=version, manager=manager, force=True
            )
            log.info("operator.stopped", deployment=self._release.operator)

    async def _end_all(self) -> Sequence[Key]:
        settings = self._settings
        informers = build_informers(self._kube, settings.namespace)
        caches = caches_of(informers)
        events = Events(self._kube, instance="openhqm-uninstall")
        sidecars = SidecarWatch(_endings(informers), caches[PODS], lambda key: None)
        options = Options(settings.store is not None, settings.pod_security, settings.gateway)
        observer = EndingObserver(self._kube, caches, sidecars, options)
        reconciler = Reconciler(self._kube, observer, events.post, None)
        loops = [*(informer.run() for informer in informers), sidecars.run(), events.run()]
        tasks = [asyncio.create_task(loop) for loop in loops]
        try:
            for informer in informers:
                await informer.synced.wait()
            return await self._end_each(reconciler, observer, caches[ENDPOINT_SLICES])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _end_each(
        self, reconciler: Reconciler, observer: EndingObserver, gateways: Cache
    ) -> Sequence[Key]:
        """End all of them; *gateways*: endpoints of those that stand in for workloads."""
        begun = draining_since = time.monotonic()
        while held := await self._held():
            now = time.monotonic()
            if any(_has_gateway(proxy, gateways) for proxy in held) and now - begun < WAKE_SECONDS:
                draining_since = now
            passed = now - draining_since
            if passed > self._release.drain_seconds + FORCED_SECONDS:
                return [await self._let_go(proxy) for proxy in held]
            if passed > self._release.drain_seconds and not observer.is_forced:
                observer.is_forced = True
                log.warning("drain.given_up", proxies=[str(key_of(proxy)) for proxy in held])
            for proxy in held:
                await self._end(reconciler, key_of(proxy))
            await asyncio.sleep(LOOK_SECONDS)
        return []

    async def _held(self) -> list[Object]:
        listing = await self._kube.list(ASYNC_PROXIES, self._settings.namespace)
        return [proxy for proxy in listing.items if is_held(proxy)]

    async def _end(self, reconciler: Reconciler, key: Key) -> None:
        try:
            await reconciler(Work(ASYNC_PROXIES.kind, key))
        except KubeError as exc:
            log.warning("proxy.not_ended_yet", proxy=str(key), error=str(exc))

    async def _let_go(self, proxy: Object) -> Key:
        """Take the finalizer away, so that the AsyncProxy can be deleted when nobody serves it any more."""
        others = [name for name in proxy["metadata"]["finalizers"] if name != names.FINALIZER]
        key = key_of(proxy)
        await self._kube.patch_merge(
            ASYNC_PROXIES, key, {"metadata": {"finalizers": others}}, manager=names.OPERATOR_MANAGER
        )
        return key


def _endings(informers: Sequence[Informer]) -> Cache:
    """AsyncProxies as they look when they end: those are asked for what is left, all Pods, every 5 s."""
    endings = Cache()

    def changed(key: Key, before: Object | None, after: Object | None) -> None:
        endings.put(key, None if after is None else as_ending(after, forced=False))

    for informer in informers:
        if informer.resource is ASYNC_PROXIES:
            informer.on_change(changed)
    return endings


def _has_gateway(proxy: Object, gateways: Cache) -> bool:
    """Whether a gateway stands in for its workload, which is at zero or about to serve again."""
    namespace, name = key_of(proxy)
    return bool(gateways.by("proxy", (namespace, names.label_value(name))))


async def _run(settings: OperatorSettings, release: Release, kubeconfig: Path | None) -> None:
    async with Kube(await find_login(kubeconfig)) as kube:
        left = await Uninstall(settings, release, kube).run()
    for key in left:
        log.error(
            "proxy.left",
            proxy=str(key),
            hint=f"look for the label {names.PROXY_LABEL} in its workload's template and remove it",
        )
    log.info("uninstall.finished", left=len(left))


def main() -> NoReturn:
    """Run it. Exit codes: 0 done, 1 the API server refused something, 2 the settings are wrong."""
    parser = argparse.ArgumentParser(prog="openhqm-uninstall", description="Gives workloads back.")
    parser.add_argument("--config", type=Path, required=True, help="the operator's settings file")
    parser.add_argument("--webhook", required=True, help="name of the MutatingWebhookConfiguration")
    parser.add_argument("--operator", required=True, help="name of the operator's Deployment")
    parser.add_argument("--drain-seconds", type=float, default=120.0, help="backlogs may take this long")
    parser.add_argument("--kubeconfig", type=Path, help="log in by this file instead of the Pod's account")
    given = parser.parse_args()
    try:
        settings = load_file(OperatorSettings, given.config, os.environ)
        logs.configure(settings.log)
        release = Release(given.webhook, given.operator, given.drain_seconds)
        asyncio.run(_run(settings, release, given.kubeconfig))
    except (SettingsError, LoginFailed) as exc:
        sys.stderr.write(f"openhqm-uninstall: {exc}\n")
        sys.exit(2)
    except KubeError as exc:
        sys.stderr.write(f"openhqm-uninstall: {exc}\n")
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
