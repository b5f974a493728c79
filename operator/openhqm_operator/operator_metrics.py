"""The operator's figures for Prometheus, and whether it is well. Everything is read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.events import Events
from openhqm_operator.kube.resources import Key
from openhqm_operator.kube.watching import Informer
from openhqm_operator.kube.work_queue import WorkQueue
from openhqm_operator.noticing.kopf_thread import STALLED_SECONDS
from openhqm_operator.reconciling.reconcile import Work

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Figures(Collector):
    """What the operator does, as Prometheus asks for it."""

    def __init__(
        self,
        informers: Sequence[Informer],
        queue: WorkQueue[Work],
        kube: Kube,
        events: Events,
        missed: Mapping[Key, int],
        is_leading: Callable[[], bool],
    ) -> None:
        self._informers = informers
        self._queue = queue
        self._kube = kube
        self._events = events
        self._missed = missed
        self._is_leading = is_leading

    def collect(self) -> Iterator[Metric]:
        """Source: the collector protocol of prometheus_client."""
        yield _gauge("leader", "1 in the operator that works.", int(self._is_leading()))
        yield _gauge("queue_depth", "Keys that wait to be looked at.", self._queue.depth)
        yield _gauge("failing_keys", "Keys whose last look failed.", len(self._queue.failures))
        yield CounterMetricFamily(
            "openhqm_operator_events_unwritten", "Events that were lost.", value=self._events.unwritten
        )
        yield self._stale()
        yield self._writes()
        yield self._not_injected()

    def exposition(self) -> bytes:
        """All figures, in Prometheus' text format 0.0.4."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def _stale(self) -> Metric:
        family = GaugeMetricFamily(
            "openhqm_operator_cache_stale_seconds", "Since a resource was last heard of.", labels=["resource"]
        )
        for informer in self._informers:
            family.add_metric([str(informer.resource)], informer.stale_seconds())
        return family

    def _writes(self) -> Metric:
        family = CounterMetricFamily(
            "openhqm_operator_writes", "Writes attempted.", labels=["verb", "resource"]
        )
        for what, count in self._kube.writes.items():
            family.add_metric(what.split(" ", 1), count)
        return family

    def _not_injected(self) -> Metric:
        family = GaugeMetricFamily(
            "openhqm_operator_pods_not_injected",
            "Pods that ask for the sidecar and have none.",
            labels=["namespace", "proxy"],
        )
        for key, count in self._missed.items():
            family.add_metric(list(key), count)
        return family


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"openhqm_operator_{name}", meaning, value=value)


Complaint = Callable[[float], str | None]
"""Returns what has been wrong for longer than so many seconds; None: nothing."""


class Health:
    """Whether this process is any good.

    Args:
        kopf, autoscaler: say what is wrong with them for longer than so many seconds.
        stale_seconds: a watch not heard of, or a look not finished, for so long means no.
    """

    def __init__(
        self,
        informers: Sequence[Informer],
        queue: WorkQueue[Work],
        kopf: Complaint,
        autoscaler: Complaint,
        stale_seconds: float,
    ) -> None:
        self.is_draining = False
        self._informers = informers
        self._queue = queue
        self._kopf = kopf
        self._autoscaler = autoscaler
        self._stale_seconds = stale_seconds

    def complaint(self) -> str | None:
        """Why the process should be restarted, if it should."""
        for informer in self._informers:
            if informer.stale_seconds() > self._stale_seconds:
                return f"{informer.resource}: not heard of for {informer.stale_seconds():.0f} s"
        if self._queue.busy_seconds() > self._stale_seconds:
            return f"a look takes {self._queue.busy_seconds():.0f} s"
        # A leader ends by itself long before, and gives the Lease back; this is for one that cannot.
        kopf = self._kopf(max(self._stale_seconds, 2 * STALLED_SECONDS))
        return kopf or self._autoscaler(self._stale_seconds)

    @property
    def is_ready(self) -> bool:
        """Whether it could lead: all caches are filled."""
        return not self.is_draining and all(informer.synced.is_set() for informer in self._informers)


def build_health_app(health: Health, figures: Figures) -> web.Application:
    """Build the health port's application."""

    async def livez(_: web.Request) -> web.Response:
        complaint = health.complaint()
        return web.Response(text=f"{complaint or 'ok'}\n", status=503 if complaint else 200)

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(
            text="ok\n" if health.is_ready else "not in step\n", status=200 if health.is_ready else 503
        )

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=figures.exposition(), headers={"Content-Type": _CONTENT_TYPE})

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    return app
