"""Figures as Prometheus reads them."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from openhqm.breaker import BreakerState
from openhqm.lifecycle import Event, Happening, Lifecycle
from openhqm.metrics import Metrics
from openhqm.stores.base import Counts, Lane
from openhqm.tallies import MOST_REASONS, Tallies


class Egress:
    in_flight = 3
    concurrency = 8
    breaker_state = BreakerState.HALF_OPEN


class Figures:
    def __init__(self, egress=None):
        self.lifecycle = Lifecycle()
        self.tallies = Tallies(self.lifecycle)
        self.metrics = Metrics(CollectorRegistry(), self.tallies, egress)

    def __call__(self, name, **labels):
        """The value of one sample, None when there is none."""
        for family in text_string_to_metric_families(self.metrics.render().decode()):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return sample.value
        return None


def test_requests_are_counted_by_what_became_of_them():
    figures = Figures()

    for what, times in [(Happening.ACCEPTED, 5), (Happening.ANSWERED, 3), (Happening.RETRIED, 2)]:
        for _ in range(times):
            figures.lifecycle.emit(Event(what, status=200))

    assert figures("openhqm_requests_total", outcome="accepted") == 5
    assert figures("openhqm_requests_total", outcome="answered") == 3
    assert figures("openhqm_queue_publish_total") == 5
    assert figures("openhqm_retries_total") == 2


@pytest.mark.parametrize(("status", "code"), [(200, "2xx"), (404, "4xx"), (503, "5xx"), (0, "none")])
def test_attempts_are_counted_by_status_class(status, code):
    figures = Figures()

    figures.lifecycle.emit(Event(Happening.DEAD_LETTERED, status=status, reason="timeout"))

    assert figures("openhqm_attempts_total", code=code) == 1


def test_durations_fall_into_cumulative_buckets():
    figures = Figures()

    for seconds in (0.001, 0.005, 0.3, 1000.0):
        figures.lifecycle.emit(Event(Happening.ANSWERED, status=200, duration_seconds=seconds))

    bucket = "openhqm_request_duration_seconds_bucket"
    assert [figures(bucket, le=le) for le in ("0.005", "0.25", "0.5", "300.0", "+Inf")] == [2, 2, 3, 3, 4]
    assert figures("openhqm_request_duration_seconds_sum") == pytest.approx(1000.306)
    assert figures("openhqm_request_duration_seconds_count") == 4


def test_reasons_are_labels_and_stay_bounded():
    figures = Figures()

    for number in range(10 * MOST_REASONS):
        figures.lifecycle.emit(Event(Happening.REFUSED, reason=f"reason-{number}"))
    figures.lifecycle.emit(Event(Happening.REFUSED, reason="reason-1"))
    figures.lifecycle.emit(Event(Happening.DEAD_LETTERED, reason="poison"))

    assert figures("openhqm_refusals_total", reason="reason-1") == 2
    assert figures("openhqm_refusals_total", reason="other") == 9 * MOST_REASONS
    assert figures("openhqm_dead_letters_total", reason="poison") == 1


def test_egress_shows_its_slots_and_breaker():
    figures = Figures(Egress())

    assert figures("openhqm_worker_active") == 3
    assert figures("openhqm_worker_slots") == 8
    assert figures("openhqm_breaker_state", state="half-open") == 1
    assert figures("openhqm_breaker_state", state="closed") == 0


def test_process_without_egress_shows_no_slots():
    assert Figures()("openhqm_worker_active") is None


def test_store_counters_add_up():
    figures = Figures()

    figures.tallies.sampled(Lane.REQUESTS, Counts(accepted=9, queued=1, running=2, done=6, bytes=100))
    figures.tallies.sampled(Lane.CALLBACKS, Counts(accepted=2, done=1))

    assert figures("openhqm_queue_depth") == 3
    assert figures("openhqm_store_bytes") == 100
    assert figures("openhqm_records", lane="requests", state="running") == 2
    assert figures("openhqm_records_finished_total", lane="requests", state="done") == 6
    assert figures("openhqm_records_conserved", lane="requests") == 1
    assert figures("openhqm_records_conserved", lane="callbacks") == 0


def test_figures_of_other_modules_are_read_when_asked():
    figures, waits = Figures(), [4]
    figures.tallies.figure("openhqm_waiting_clients", "Clients held for an answer.", lambda: waits[0])
    waits[0] = 7

    assert figures("openhqm_waiting_clients") == 7


def test_while_the_store_is_away_its_last_figures_stay():
    figures = Figures()
    assert figures("openhqm_queue_depth") is None
    figures.tallies.sampled(Lane.REQUESTS, Counts(accepted=1, queued=1))

    figures.tallies.sampled(Lane.REQUESTS, None)

    assert figures("openhqm_queue_depth") == 1


def test_two_processes_worth_of_metrics_do_not_meet():
    """No state in the module: a test, or a second server in one process, starts from zero."""
    first, second = Figures(), Figures()

    first.lifecycle.emit(Event(Happening.ACCEPTED))

    assert second("openhqm_queue_publish_total") == 0
