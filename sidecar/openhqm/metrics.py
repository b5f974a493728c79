"""What Prometheus reads: plain integers counted as things happen, given a shape when it asks.

Listening to the lifecycle costs a few additions per request; names, labels and text are made at
scrape time by the collector below. Labels are bounded: states, lanes, status classes
and our own reason slugs, never ids, paths or anything a client chose.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

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
from openhqm.lifecycle import Event, Happening, Lifecycle
from openhqm.stats import EgressFigures
from openhqm.stores.base import FINAL_STATES, Counts, Lane, State

BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
MOST_REASONS = 64
"""Reasons are our own slugs, or a handler's package's; what exceeds this counts as `other`."""

_TIMED = frozenset({Happening.ANSWERED, Happening.RETRIED, Happening.DEAD_LETTERED})
_UNFINISHED = [state for state in State if state not in FINAL_STATES]


class Metrics(Collector):
    """The figures of one process, and the store's as last sampled.

    Args:
        registry: where they are registered; `render` writes all that is in it.
        egress: None where this process replays nothing.
    """

    def __init__(
        self, registry: CollectorRegistry, lifecycle: Lifecycle, egress: EgressFigures | None = None
    ) -> None:
        self._registry = registry
        self._egress = egress
        self._happened = lifecycle.happened
        self._answers = [0] * 6
        """By status class: 2 counts the 2xx; 0 what is none."""
        self._refusals: Counter[str] = Counter()
        self._dead_letters: Counter[str] = Counter()
        self._buckets = [0] * (len(BUCKETS_SECONDS) + 1)
        self._duration_seconds = 0.0
        self._sampled: dict[Lane, Counts] = {}
        self._figures: list[tuple[str, str, Callable[[], float]]] = []
        registry.register(self)
        lifecycle.listen(self._observe, _TIMED)
        lifecycle.listen(self._count_refusal, [Happening.REFUSED])
        lifecycle.listen(self._count_dead_letter, [Happening.DEAD_LETTERED])

    def _count_refusal(self, event: Event) -> None:
        _add(self._refusals, event.reason)

    def _count_dead_letter(self, event: Event) -> None:
        _add(self._dead_letters, event.reason)

    def figure(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Show a figure another module keeps, as the gauge *name*."""
        self._figures.append((name, documentation, read))

    def sampled(self, lane: Lane, counts: Counts | None) -> None:
        """Show *counts* from now on; while the store is away the last ones stay."""
        if counts is not None:
            self._sampled[lane] = counts

    def render(self) -> bytes:
        """Return all figures in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Give the figures their shape; called by the registry."""
        yield InfoMetricFamily("openhqm_build", "The running version.", {"version": __version__})
        yield from self._collect_requests()
        yield from self._collect_egress()
        for lane, counts in self._sampled.items():
            if lane is Lane.REQUESTS:
                yield from _collect_queue(counts)
        yield from _collect_records(self._sampled)
        for name, documentation, read in self._figures:
            yield GaugeMetricFamily(name, documentation, value=read())

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance, so that registering reads no figure."""
        return ()

    def _observe(self, event: Event) -> None:
        seconds = event.duration_seconds
        self._buckets[bisect_left(BUCKETS_SECONDS, seconds)] += 1
        self._duration_seconds += seconds
        self._answers[event.status // 100 if 100 <= event.status < 600 else 0] += 1

    def _collect_requests(self) -> Iterable[Metric]:
        happened = self._happened
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
            "openhqm_refusals", "Requests refused at the door, by reason.", "reason", self._refusals
        )
        yield _by_label("openhqm_dead_letters", "Requests given up, by reason.", "reason", self._dead_letters)
        yield CounterMetricFamily(
            "openhqm_retries", "Attempts to be followed by another.", value=happened[Happening.RETRIED]
        )
        yield CounterMetricFamily(
            "openhqm_leases_lost",
            "Results dropped because the lease was not ours any more.",
            value=happened[Happening.LEASE_LOST],
        )

    def _collect_egress(self) -> Iterable[Metric]:
        answers = {f"{number}xx" if number else "none": count for number, count in enumerate(self._answers)}
        yield _by_label("openhqm_attempts", "Attempts ended, by status class.", "code", answers)
        yield HistogramMetricFamily(
            "openhqm_request_duration_seconds",
            "Duration of attempts.",
            buckets=_cumulative(self._buckets),
            sum_value=self._duration_seconds,
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


def _add(counter: Counter[str], reason: str) -> None:
    known = reason in counter or len(counter) < MOST_REASONS
    counter[reason or "none" if known else "other"] += 1


def _cumulative(counts: list[int]) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for bound, count in zip((*map(str, BUCKETS_SECONDS), "+Inf"), counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
