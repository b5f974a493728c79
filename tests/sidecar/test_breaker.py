"""The breaker's states, driven by calls and a clock of the test's own."""

from __future__ import annotations

import pytest

from openhqm.breaker import WINDOW_CALLS, Breaker, BreakerState, CallResult
from openhqm.settings import BreakerSettings

SETTINGS = BreakerSettings(failures=3, open_seconds=1.0, max_open_seconds=5.0)


def opened(now=0.0):
    breaker = Breaker(SETTINGS)
    for _ in range(SETTINGS.failures):
        breaker.ended(CallResult.FAILURE, now)
    return breaker


def probe(breaker, result, now):
    assert breaker.permits(now, 8) == 1
    assert breaker.started()
    breaker.ended(result, now, probe=True)


def test_closed_breaker_permits_all_calls():
    breaker = Breaker(SETTINGS)

    assert breaker.permits(0.0, 8) == 8
    assert not breaker.started()
    assert breaker.wait_seconds(0.0) == 0.0


def test_failures_in_a_row_open_it():
    breaker = opened(now=10.0)

    assert breaker.state is BreakerState.OPEN
    assert breaker.permits(10.9, 8) == 0
    assert breaker.wait_seconds(10.25) == pytest.approx(0.75)


@pytest.mark.parametrize("result", [CallResult.SUCCESS, CallResult.UNAVAILABLE])
def test_answer_in_between_breaks_the_row(result):
    breaker = Breaker(SETTINGS)

    for outcome in (CallResult.FAILURE, CallResult.FAILURE, result, CallResult.FAILURE, CallResult.FAILURE):
        breaker.ended(outcome, 0.0)

    assert breaker.state is BreakerState.CLOSED


def test_neutral_calls_count_for_nothing():
    breaker = Breaker(SETTINGS)

    for _ in range(2):
        breaker.ended(CallResult.FAILURE, 0.0)
        breaker.ended(CallResult.NEUTRAL, 0.0)
    breaker.ended(CallResult.FAILURE, 0.0)

    assert breaker.state is BreakerState.OPEN


@pytest.mark.parametrize(("unavailable", "state"), [(0.4, BreakerState.CLOSED), (0.6, BreakerState.OPEN)])
def test_share_of_unavailable_answers_opens_it(unavailable, state):
    breaker = Breaker(SETTINGS)

    for number in range(WINDOW_CALLS):
        down = number < unavailable * WINDOW_CALLS
        breaker.ended(CallResult.UNAVAILABLE if down else CallResult.SUCCESS, 0.0)

    assert breaker.state is state


def test_few_unavailable_answers_do_not_open_it():
    breaker = Breaker(SETTINGS)

    for _ in range(WINDOW_CALLS - 1):
        breaker.ended(CallResult.UNAVAILABLE, 0.0)

    assert breaker.state is BreakerState.CLOSED


def test_one_probe_at_a_time_after_the_pause():
    breaker = opened()

    assert breaker.permits(1.0, 8) == 1
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.started()
    assert breaker.permits(1.0, 8) == 0


def test_successful_probe_closes_it():
    breaker = opened()

    probe(breaker, CallResult.SUCCESS, now=1.0)

    assert breaker.state is BreakerState.CLOSED
    assert breaker.permits(1.0, 8) == 8


@pytest.mark.parametrize("result", [CallResult.FAILURE, CallResult.UNAVAILABLE])
def test_failing_probes_double_the_pause_up_to_its_maximum(result):
    breaker, now, pauses = opened(), 0.0, []

    for _ in range(4):
        now += breaker.wait_seconds(now)
        probe(breaker, result, now)
        pauses.append(breaker.wait_seconds(now))

    assert pauses == [2.0, 4.0, 5.0, 5.0]


def test_closing_starts_again_with_the_short_pause():
    breaker = opened()
    probe(breaker, CallResult.FAILURE, now=1.0)
    probe(breaker, CallResult.SUCCESS, now=3.0)

    for _ in range(SETTINGS.failures):
        breaker.ended(CallResult.FAILURE, 4.0)

    assert breaker.wait_seconds(4.0) == 1.0


def test_probe_that_taught_nothing_is_followed_by_another():
    breaker = opened()

    probe(breaker, CallResult.NEUTRAL, now=1.0)

    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.permits(1.0, 8) == 1


@pytest.mark.parametrize("result", list(CallResult))
def test_calls_begun_before_it_opened_change_nothing(result):
    breaker = opened()

    breaker.ended(result, 0.5)

    assert breaker.state is BreakerState.OPEN
    assert breaker.wait_seconds(0.0) == 1.0
