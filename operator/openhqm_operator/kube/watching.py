"""Keeps a cache in step with the API server: list, then watch, for ever, whatever happens in between.

    pods = Informer(kube, PODS, labels=PROXY_LABEL, project=needed_of_a_pod)
    pods.cache.add_index("proxy", ...)                      # before run
    pods.on_change(lambda key, before, after: queue.add(proxy_of(after or before)))
    tasks.create_task(pods.run(), name="watch pods")        # never returns
    await pods.synced.wait()                                # the first list is in the cache

    list ---> watch ---event---> cache ---> those who asked to be told
     ^          |  ended, reset, 429, 5xx: wait, watch again from the last version seen
     |          |  silent: watch again at once; opening it is what shows whether the server lives
     +----------+  410 Gone, silent and in doubt: list again; what changed in between is told as if watched

Silence is no failure. A server sends bookmarks each minute, but only of versions newer than the one the
watch began at, and of a resource that nobody touches it hears of those late: the first bookmark may take two
minutes (Kubernetes 1.34, five of eight resources). So for a while a quiet watch and a dead one look alike,
and each is opened anew after `watch_silence`.

A failure is never the end and never hidden: it is logged, counted, waited for, and `stale_seconds` grows
until the server is heard again; the liveness probe looks at that. `work_queue.py` is what comes after.
Source: k8s.io/apiserver 0.34, storage/cacher: `dispatchEvents`, `cacheWatcher.process`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, NoReturn

import structlog

from openhqm_operator.kube.backoff import Backoff
from openhqm_operator.kube.cache import Cache
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.errors import Gone, KubeError, NotFound, Unavailable, WatchSilent
from openhqm_operator.kube.resources import Key, Object, Resource, key_of
from openhqm_operator.kube.transport import WatchEvent

Changed = Callable[[Key, Object | None, Object | None], None]
"""Told of a key, the object before (None: new) and after (None: gone). Must be quick and must not raise."""

MISSING_SECONDS = 60.0
"""How often a resource that need not exist is looked for."""

SHORT_SECONDS = 1.0
"""A watch that ends sooner, with nothing said, is a failure: not to be repeated at once."""

log = structlog.get_logger()


class Informer:
    """One resource's cache and the loop that fills it.

    Args:
        namespace: None for all namespaces.
        labels: label selector.
        fields: field selector.
        project: returns what to keep of an object, for memory; changes outside of that are told to nobody.
        optional: the resource need not exist (a CRD of another project): then the cache is empty and in step.
        clock: seconds, monotonic.

    Attributes:
        cache: what is known; in step once `synced` is set.
        synced: set when the first list is in the cache.
        relists: lists so far.
        silences: watches that said nothing for too long and were opened anew.
        interruptions: failures so far.
    """

    def __init__(
        self,
        kube: Kube,
        resource: Resource,
        *,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
        project: Callable[[Object], Any] | None = None,
        optional: bool = False,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.resource = resource
        self.cache = Cache()
        self.synced = asyncio.Event()
        self.relists = 0
        self.silences = 0
        self.interruptions = 0
        self._kube = kube
        self._namespace = namespace
        self._selectors = {"labels": labels, "fields": fields}
        self._project = project or _whole
        self._optional = optional
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._heard_at = clock()
        self._version: str | None = None
        self._is_in_doubt = False
        self._failures = 0
        self._changed: list[Changed] = []

    def on_change(self, changed: Changed) -> None:
        """Tell *changed* of every change from now on, the first list included if it is yet to come."""
        self._changed.append(changed)

    def stale_seconds(self, now: float | None = None) -> float:
        """Seconds since the server was last heard: an event, a bookmark, a list, a watch that it opened."""
        return (self._clock() if now is None else now) - self._heard_at

    async def run(self) -> NoReturn:
        """Keep the cache in step until cancelled; an exception is a bug of ours."""
        while True:
            try:
                await self._step()
            except WatchSilent as exc:
                self._take_silence(exc)
            except Gone as exc:
                self._version = None
                await self._wait(exc)
            except KubeError as exc:
                self._is_in_doubt = True
                await self._wait(exc)

    async def _step(self) -> None:
        if self._version is None:
            self._version = await self._list()
        if self._version is None:
            await asyncio.sleep(MISSING_SECONDS)
        else:
            await self._follow(self._version)

    async def _list(self) -> str | None:
        """Bring the cache in step with a list; None if an optional resource does not exist."""
        version: str | None
        try:
            items, version = await self._kube.list(
                self.resource, self._namespace, project=self._keyed, **self._selectors
            )
        except NotFound:
            if not self._optional:
                raise
            items, version = [], None
        self.relists += 1
        self._is_in_doubt = False
        self._hear()
        self._replace(dict(items))
        self.synced.set()
        return version

    async def _follow(self, version: str) -> None:
        opened_at = self._clock()
        async with self._kube.watch(
            self.resource, self._namespace, resource_version=version, **self._selectors
        ) as events:
            self._hear()
            async for event in events:
                self._failures = 0
                self._hear()
                self._take(event)
        self._is_in_doubt = True
        if self._version == version and self._clock() - opened_at < SHORT_SECONDS:
            raise Unavailable(f"WATCH {self.resource}: ended at once")

    def _take_silence(self, exc: WatchSilent) -> None:
        """Go on from the version we have; list instead where the server may never have told that one.

        A server restored from a backup watches from a version it has yet to reach, and says nothing. It was
        stopped for that: connections ended, or could not be made, since it told us the version.
        """
        self.silences += 1
        self._failures = 0
        log.debug("watch.silent", resource=str(self.resource), why=str(exc), lists=self._is_in_doubt)
        if self._is_in_doubt:
            self._version = None

    def _take(self, event: WatchEvent) -> None:
        # The version goes with the event: what was told is never asked for again, nor is anything left out.
        if event.type != "BOOKMARK":
            key, obj = self._keyed(event.object)
            self._put(key, None if event.type == "DELETED" else obj)
        self._version = event.object["metadata"]["resourceVersion"]
        self._is_in_doubt = False

    def _replace(self, objects: dict[Key, Object]) -> None:
        for key in [key for key in self.cache if key not in objects]:
            self._put(key, None)
        for key, obj in objects.items():
            self._put(key, obj)

    def _put(self, key: Key, after: Object | None) -> None:
        before = self.cache.put(key, after)
        if before != after:
            for changed in self._changed:
                changed(key, before, after)

    def _keyed(self, obj: Object) -> tuple[Key, Any]:
        return key_of(obj), self._project(obj)

    def _hear(self) -> None:
        self._heard_at = self._clock()

    async def _wait(self, exc: KubeError) -> None:
        self.interruptions += 1
        self._failures += 1
        asked = exc.retry_after if isinstance(exc, Unavailable) else 0.0
        delay = self._backoff.delay(self._failures, at_least=asked)
        log.warning(
            "watch.interrupted",
            resource=str(self.resource),
            error=str(exc),
            failures=self._failures,
            backoff_seconds=round(delay, 3),
        )
        await asyncio.sleep(delay)


def _whole(obj: Object) -> Object:
    return obj
