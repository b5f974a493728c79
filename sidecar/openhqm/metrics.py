"""What Prometheus reads: the tallies given names, labels and text when it asks.

Labels are bounded: states, lanes, status classes and our own reason slugs, never ids, paths or
anything a client chose.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from openhqm import __version__
from openhqm.breaker import BreakerState
from openhqm.lifecycle import Happening
from openhqm.stats import EgressFigures
from openhqm.stores.base import FINAL_STATES, Counts, Lane, State
from openhqm.tallies import BUCKETS_SECONDS, Tallies

_UNFINISHED = [state for state in State if state not in FINAL_STATES]


class Metrics(Collector):
    """The exposition of one process.

    Args:
        registry: where it registers; `render` writes all that is in it.
        egress: None where this process replays nothing.
    """

    def __init__(
        self, registry: CollectorRegistry, tallies: Tallies, egress: EgressFigures | None = None
    ) -> None:
        self._registry = registry
        self._tallies = tallies
        self._egress = egress
        registry.register(self)

    def render(self) -> bytes:
        """Return all figures in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Give the figures their shape; called by the registry."""
        counts = self._tallies.counts
        yield InfoMetricFamily("openhqm_build", "The running version.", {"version": __version__})
        yield from self._collect_requests()
        yield from self._collect_egress()
        if Lane.REQUESTS in counts:
            yield from _collect_queue(counts[Lane.REQUESTS])
        yield from _collect_records(counts)
        for name, documentation, read in self._tallies.figures:
            yield GaugeMetricFamily(name, documentation, value=read())

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance, so that registering reads no figure."""
        return ()

    def _collect_requests(self) -> Iterable[Metric]:
        tallies, happened = self._tallies, self._tallies.happened
        requests = CounterMetricFamily(
            "openhqm_requests", "Requests, by what became of them in this process.", labels=["outcome"]
        )
        for what, number in happened.items():
            if what.startswith("request."):
                requests.add_metric([what.removeprefix("request.")], number)
        yield requests
        yield CounterMetricFamily(
            "openhqm_queue_publish", "Requests put into the queue.", value=happened[Happening.ACCEPTED]
        )
        yield _by_label(
            "openhqm_refusals", "Requests refused at the door, by reason.", "reason", tallies.refusals
        )
        yield _by_label(
            "openhqm_dead_letters", "Requests given up, by reason.", "reason", tallies.dead_letters
        )
        yield CounterMetricFamily(
            "openhqm_retries", "Attempts to be followed by another.", value=happened[Happening.RETRIED]
        )
        yield CounterMetricFamily(
            "openhqm_leases_lost",
            "Results dropped because the lease was not ours any more.",
            value=happened[Happening.LEASE_LOST],
        )

    def _collect_egress(self) -> Iterable[Metric]:
        tallies = self._tallies
        answers = {f"{n}xx" if n else "none": count for n, count in enumerate(tallies.answers)}
        yield _by_label("openhqm_attempts", "Attempts ended, by status class.", "code", answers)
        yield HistogramMetricFamily(
            "openhqm_request_duration_seconds",
            "Duration of attempts.",
            buckets=_cumulative(tallies.buckets),
            sum_value=tallies.duration_seconds,
        )
        if self._egress is None:
            return
        yield GaugeMetricFamily("openhqm_worker_active", "Attempts under way.", value=self._egress.in_flight)
        yield GaugeMetricFamily("openhqm_worker_slots", "Attempts at once.", value=self._egress.concurrency)
        breaker = GaugeMetricFamily(
            "openhqm_breaker_state", "1 for the state the breaker is in.", labels=["state"]
        )
        for state in BreakerState:
            breaker.add_metric([state.value], float(self._egress.breaker_state == state))
        yield breaker


def _collect_queue(counts: Counts) -> Iterable[Metric]:
    yield GaugeMetricFamily("openhqm_queue_depth", "Unfinished requests.", value=counts.backlog)
    yield GaugeMetricFamily(
        "openhqm_queue_delayed", "Unfinished requests that are not due.", value=counts.delayed
    )
    yield GaugeMetricFamily("openhqm_queue_paused", "1 while leasing is paused.", value=counts.paused)
    yield GaugeMetricFamily("openhqm_store_bytes", "Bytes that admission counts.", value=counts.bytes)
    age_seconds = max(0.0, time.time() - counts.oldest_ready_at) if counts.oldest_ready_at else 0.0
    yield GaugeMetricFamily(
        "openhqm_queue_oldest_seconds", "Age of the longest waiting due request.", value=age_seconds
    )


def _collect_records(sampled: Mapping[Lane, Counts]) -> Iterable[Metric]:
    """The store's own counters; `accepted` equals the sum of all states of its lane (design R9)."""
    accepted = CounterMetricFamily("openhqm_records_accepted", "Records accepted.", labels=["lane"])
    unfinished = GaugeMetricFamily("openhqm_records", "Unfinished records.", labels=["lane", "state"])
    finished = CounterMetricFamily("openhqm_records_finished", "Records ended.", labels=["lane", "state"])
    held = GaugeMetricFamily("openhqm_dead_letters_held", "Dead letters to be decided.", labels=["lane"])
    stale = CounterMetricFamily("openhqm_stale_settlements", "Settlements refused.", labels=["lane"])
    conserved = GaugeMetricFamily(
        "openhqm_records_conserved", "1 while nothing was lost or invented.", labels=["lane"]
    )
    for lane, counts in sampled.items():
        accepted.add_metric([lane.value], counts.accepted)
        held.add_metric([lane.value], counts.dead_letters)
        stale.add_metric([lane.value], counts.stale_settlements)
        conserved.add_metric([lane.value], float(counts.conserved))
        for state in State:
            family = unfinished if state in _UNFINISHED else finished
            family.add_metric([lane.value, state.value], getattr(counts, state.value))
    return (accepted, unfinished, finished, held, stale, conserved)


def _by_label(name: str, documentation: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, documentation, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _cumulative(counts: list[int]) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for bound, count in zip((*map(str, BUCKETS_SECONDS), "+Inf"), counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
