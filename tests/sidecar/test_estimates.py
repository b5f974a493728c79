"""When to come back."""

from __future__ import annotations

from openhqm.estimates import DrainRate
from openhqm.stores.base import Counts, Lane


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_figures_clients_come_back_after_a_second():
    rate = DrainRate(Clock())

    assert rate.retry_after_seconds() == 1
    assert rate.eta_seconds(3) is None


def test_the_estimate_follows_from_backlog_and_finished_requests_per_second():
    clock = Clock()
    rate = DrainRate(clock)
    rate.sampled(Lane.REQUESTS, Counts(accepted=100, queued=100))
    clock.now += 2
    rate.sampled(Lane.REQUESTS, Counts(accepted=100, queued=79, done=20, failed=1))

    assert rate.per_second == 10.5
    assert rate.retry_after_seconds() == 8
    assert rate.retry_after_seconds(0) == 1
    assert rate.eta_seconds(20) == 2.0
    assert rate.eta_seconds(None) is None
    assert rate.retry_after_seconds(10**9) == 300


def test_an_app_that_stands_still_has_no_eta():
    clock = Clock()
    rate = DrainRate(clock)
    rate.sampled(Lane.REQUESTS, Counts(queued=5))
    clock.now += 1
    rate.sampled(Lane.REQUESTS, Counts(queued=5))

    assert (rate.eta_seconds(4), rate.retry_after_seconds()) == (None, 1)


def test_quiet_seconds_say_nothing_of_how_fast_the_app_is():
    clock = Clock()
    rate = DrainRate(clock)
    rate.sampled(Lane.REQUESTS, Counts(queued=100))
    clock.now += 1
    rate.sampled(Lane.REQUESTS, Counts(queued=90, done=10))
    for done in (100, 101, 101, 102):
        clock.now += 60
        rate.sampled(Lane.REQUESTS, Counts(done=done))

    assert rate.per_second == 10.0
    assert rate.retry_after_seconds() == 1


def test_what_waits_for_its_time_keeps_no_app_busy():
    clock = Clock()
    rate = DrainRate(clock)
    for _ in range(3):
        rate.sampled(Lane.REQUESTS, Counts(queued=5, delayed=5))
        clock.now += 1

    assert rate.per_second is None


def test_callbacks_say_nothing_about_requests():
    rate = DrainRate(Clock())

    rate.sampled(Lane.CALLBACKS, Counts(queued=7))

    assert rate.backlog == 0


def test_the_rate_is_forgotten_while_the_store_is_away():
    clock = Clock()
    rate = DrainRate(clock)
    rate.sampled(Lane.REQUESTS, Counts(queued=7))
    clock.now += 1
    rate.sampled(Lane.REQUESTS, Counts(queued=6, done=1))
    assert rate.per_second == 1.0

    rate.sampled(Lane.REQUESTS, None)

    assert rate.per_second is None
