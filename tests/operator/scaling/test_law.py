"""The scaling law: bounds, steps and windows always hold, more work never means fewer replicas."""

from __future__ import annotations

import dataclasses
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.loads import load, stats_body

from openhqm_operator.api.spec import ScaleDown, ScaleUp, Scaling, ScalingMode
from openhqm_operator.scaling.figures import Load, Pods, Series, read_figures
from openhqm_operator.scaling.law import RETRY_SECONDS, Decision, Growth, Reason, State, decide, needed
from openhqm_operator.scaling.schedules import Bounds

AT = 1000.0
WIDE = Bounds(1, 100)

loads = st.builds(
    load,
    arrivals=st.floats(0, 1000),
    burst_per_second=st.floats(0, 2000),
    sigma_per_second=st.floats(0, 100),
    due=st.integers(0, 10_000),
    service=st.none() | st.floats(0.001, 100),
    concurrency=st.integers(0, 50),
    running=st.integers(0, 50),
    oldest_age_seconds=st.floats(0, 1000),
    idle_seconds=st.floats(0, 1000),
    is_sending=st.booleans(),
    least_due=st.integers(0, 100),
    startup=st.floats(0, 100),
)
bounds = st.tuples(st.integers(0, 20), st.integers(1, 60)).map(lambda pair: Bounds(min(pair), max(pair)))
counts = st.integers(0, 60)


def scaling(**values: Any) -> Scaling:
    return Scaling(mode=ScalingMode.NATIVE, min_replicas=1, max_replicas=100, **values)


def decided(
    what: Load | None, replicas: int, spec: Scaling | None = None, state: State | None = None
) -> Decision:
    return decide(what, spec or scaling(), WIDE, state or State(), replicas=replicas, at=AT)


def held_for_the_window(what: Load, replicas: int, spec: Scaling) -> Decision:
    """What is decided once the load has been so for longer than any window."""
    state, answer = State(), None
    for second in range(0, 10 + 2 * max(spec.down.window_seconds, spec.up.window_seconds), 2):
        answer = decide(what, spec, WIDE, state, replicas=replicas, at=AT + second)
        state = answer.state
    assert answer is not None
    return answer


# --- what always holds ------------------------------------------------------------------------------------


@given(st.none() | loads, bounds, counts)
def test_bounds_are_kept(what: Load | None, within: Bounds, replicas: int) -> None:
    spec = scaling(down=ScaleDown(window_seconds=0))

    answer = decide(what, spec, within, State(), replicas=replicas, at=AT)

    assert within.least <= answer.replicas <= within.most


@given(loads, st.integers(1, 60), st.integers(1, 5000))
def test_more_backlog_never_means_fewer_replicas(what: Load, replicas: int, more: int) -> None:
    what = dataclasses.replace(what, is_sending=True, service_seconds=what.service_seconds or 1.0)

    longer = dataclasses.replace(what, due=what.due + more)

    assert decided(longer, replicas).replicas >= decided(what, replicas).replicas


@given(loads, st.integers(1, 60), st.floats(0, 500))
def test_more_arrivals_never_mean_fewer_replicas(what: Load, replicas: int, more: float) -> None:
    what = dataclasses.replace(what, is_sending=True, service_seconds=what.service_seconds or 1.0)
    for field in ("arrivals_per_second", "burst_per_second"):
        busier = dataclasses.replace(what, **{field: getattr(what, field) + more})

        assert decided(busier, replicas).replicas >= decided(what, replicas).replicas


@given(st.integers(1, 100))
def test_without_figures_nothing_changes(replicas: int) -> None:
    answer = decided(None, replicas)

    assert (answer.replicas, answer.reason, answer.is_held) == (replicas, Reason.NO_FIGURES, True)


@given(loads, counts)
def test_paused_nothing_changes_not_even_into_the_bounds(what: Load, replicas: int) -> None:
    answer = decide(what, scaling(paused=True), Bounds(30, 40), State(), replicas=replicas, at=AT)

    assert (answer.replicas, answer.reason) == (replicas, Reason.PAUSED)


@given(st.floats(0.1, 400), st.floats(0.01, 2), st.integers(1, 20), st.integers(1, 100))
def test_at_a_steady_load_the_replicas_come_to_rest(
    arrivals: float, service: float, concurrency: int, replicas: int
) -> None:
    spec = scaling(down=ScaleDown(window_seconds=6))
    what = load(arrivals=arrivals, service=service, concurrency=concurrency)
    state, chosen = State(), [replicas]
    for second in range(0, 60, 2):
        answer = decide(what, spec, WIDE, state, replicas=chosen[-1], at=AT + second)
        state = answer.state
        chosen.append(answer.replicas)

    assert chosen in (sorted(chosen), sorted(chosen, reverse=True))
    assert len(set(chosen[-20:])) == 1


@given(
    st.lists(st.floats(0, 2000), min_size=2, max_size=40),
    st.integers(0, 10),
    st.integers(0, 200),
    st.integers(2, 60),
)
def test_steps_are_kept_in_every_period(series: list[float], pods: int, percent: int, period: int) -> None:
    step = {"pods": pods, "percent": percent, "period_seconds": period, "window_seconds": 0}
    spec = scaling(up=ScaleUp(**step), down=ScaleDown(**step))
    state, chosen = State(), [10]
    for tick, arrivals in enumerate(series):
        answer = decide(load(arrivals=arrivals), spec, WIDE, state, replicas=chosen[-1], at=AT + 2 * tick)
        state = answer.state
        chosen.append(answer.replicas)

    ticks = -(-period // 2) + 1
    for now in range(1, len(chosen)):
        period_before = chosen[max(now - ticks, 0) : now]
        most, least = max(period_before), min(period_before)
        assert chosen[now] <= max(most + pods, most * (100 + percent) / 100 + 1)
        assert chosen[now] >= min(least - pods, least * (100 - percent) / 100 - 1)


# --- what it wants ----------------------------------------------------------------------------------------


def test_the_utilization_asked_for_is_left_to_spare() -> None:
    # 80 a second, half a second each: 40 slots busy, of 70 %: 57.1, of 4 each: 14.3.
    assert needed(load(arrivals=80), scaling()) == pytest.approx(14.29, abs=0.01)


def test_a_small_load_gets_a_square_root_to_spare() -> None:
    """70 % of one slot would make every second request wait."""
    assert needed(load(arrivals=2, concurrency=1), scaling()) == pytest.approx(2.0)


def test_the_backlog_adds_what_drains_it_in_time() -> None:
    # 600 x 0.5 s in 30 - 20 s, but at least 15 s: 20 slots, 5 replicas.
    assert needed(load(due=600), scaling(drain_seconds=30)) == pytest.approx(5.0)
    assert needed(load(due=600, startup=5), scaling(drain_seconds=30)) == pytest.approx(3.0)


def test_requests_that_wait_for_their_retry_do_not_count() -> None:
    assert needed(load(delayed=10_000), scaling()) == 0


def test_a_burst_counts_at_once_by_what_is_certain_of_it() -> None:
    calm, burst = load(arrivals=20), load(arrivals=20, burst_per_second=200)
    jagged = load(arrivals=20, burst_per_second=200, sigma_per_second=90)

    assert needed(burst, scaling()) > 8 * needed(calm, scaling())
    assert needed(jagged, scaling()) == needed(calm, scaling())


@pytest.mark.parametrize(("age", "factor"), [(10, 1.0), (30, 1.0), (45, 1.5), (60, 2.0), (600, 2.0)])
def test_an_old_request_raises_the_need_up_to_twice(age: float, factor: float) -> None:
    spec = scaling(oldest_age_seconds=30)

    grown = needed(load(arrivals=80, oldest_age_seconds=age), spec) / needed(load(arrivals=80), spec)

    assert grown == pytest.approx(factor)


# --- when it acts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrivals", "kept"),
    [(56.0, True), (61.0, True), (62.0, False), (43.0, True), (41.0, False)],
)
def test_a_small_difference_is_left_alone_more_so_downwards(arrivals: float, kept: bool) -> None:
    # Ten replicas are right for 56 a second; They stay until 11 are needed, or 9 are enough with a fifth to
    # spare.
    answer = held_for_the_window(load(arrivals=arrivals), 10, scaling())

    assert (answer.replicas == 10) is kept


def test_shrinking_waits_for_the_window_and_goes_to_the_most_that_was_wanted_in_it() -> None:
    spec = scaling(down=ScaleDown(window_seconds=60))
    state, chosen = State(), {}
    for second in range(0, 130, 2):
        arrivals = 80 if second == 0 else 40 if second <= 30 else 0
        answer = decide(load(arrivals=arrivals), spec, WIDE, state, replicas=20, at=AT + second)
        state, chosen[second] = answer.state, answer.replicas

    assert (chosen[58], chosen[80], chosen[128]) == (20, 9, 1)


def test_a_new_leader_does_not_shrink_at_once() -> None:
    assert decided(load(), 20).replicas == 20


def test_growing_waits_for_its_window_if_asked_to() -> None:
    spec = scaling(up=ScaleUp(window_seconds=10))

    assert decided(load(arrivals=80), 2, spec).replicas == 2
    assert held_for_the_window(load(arrivals=80), 2, spec).replicas == 15


def test_growing_keeps_to_the_larger_of_the_two_steps() -> None:
    few = scaling(up=ScaleUp(pods=4, percent=100))

    assert decided(load(arrivals=800), 2, few).replicas == 6
    assert decided(load(arrivals=800), 20, few).replicas == 40


def test_steps_of_zero_keep_the_replicas() -> None:
    fixed = scaling(up=ScaleUp(pods=0, percent=0), down=ScaleDown(pods=0, percent=0, window_seconds=0))

    assert decided(load(arrivals=800), 5, fixed).replicas == 5
    assert decided(load(), 5, fixed).replicas == 5


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (load(arrivals=50, is_sending=False), Reason.NOT_SENDING),
        (load(arrivals=50, due=3, service=None), Reason.UNMEASURED),
    ],
)
def test_what_more_replicas_cannot_help_or_nobody_knows_holds_them(what: Load, reason: Reason) -> None:
    answer = decided(what, 3)

    assert (answer.replicas, answer.reason) == (3, reason)


def test_the_reason_has_the_numbers() -> None:
    answer = decided(load(arrivals=80, due=300), 2)

    assert answer.message == (
        "17 replicas for a need of 16.8: 80.0/s arrive, each takes 0.50 s of one of 4 slots; 300 wait, to be "
        "gone in 15 s"
    )


# --- zero -------------------------------------------------------------------------------------------------

TO_ZERO = Bounds(0, 100)


def at_zero_allowed(what: Load, replicas: int, **values: Any) -> Decision:
    spec = scaling(idle_after_seconds=300, **values)
    return decide(what, spec, TO_ZERO, State(), replicas=replicas, at=AT)


def test_an_idle_workload_goes_to_zero_and_no_further_reason_is_needed() -> None:
    assert at_zero_allowed(load(idle_seconds=299), 1).replicas == 1
    assert at_zero_allowed(load(idle_seconds=300), 1).replicas == 0
    assert at_zero_allowed(load(idle_seconds=9999), 0).replicas == 0


def test_a_workload_with_a_minimum_never_goes_to_zero() -> None:
    assert decided(load(idle_seconds=9999), 1).replicas == 1


@pytest.mark.parametrize("work", [{"due": 1}, {"held": 1}, {"running": 1}])
def test_any_work_wakes_it(work: dict[str, int]) -> None:
    asleep = load(service=None, concurrency=0, is_sending=False, ready=0, **work)

    assert at_zero_allowed(asleep, 0).replicas == 1


def test_waking_waits_for_no_window_and_no_step() -> None:
    slow = {"up": ScaleUp(pods=0, percent=100, window_seconds=600)}

    assert at_zero_allowed(load(due=4000), 0, **slow).replicas == 2
    assert at_zero_allowed(load(due=4000), 0).replicas > 4


def test_requests_that_wait_for_their_retry_let_it_sleep() -> None:
    assert at_zero_allowed(load(delayed=5, idle_seconds=400), 0).replicas == 0


# --- saturation -------------------------------------------------------------------------------------------


def backlogged(ready: int, completed: float) -> Load:
    return load(arrivals=200, due=500, least_due=400, ready=ready, completed_per_second=completed)


def grow(*steps: tuple[int, float]) -> Decision:
    """Decide on one window after the other, each with so many replicas and so much throughput."""
    state, answer = State(), None
    for number, (ready, completed) in enumerate(steps):
        answer = decide(
            backlogged(ready, completed), scaling(), WIDE, state, replicas=ready, at=AT + 30 * number
        )
        state = answer.state
    assert answer is not None
    return answer


def test_replicas_that_raise_the_throughput_are_followed_by_more() -> None:
    assert grow((4, 32), (8, 60), (16, 100)).replicas > 16


def test_replicas_that_do_not_are_the_last() -> None:
    answer = grow((4, 32), (8, 34))

    assert (answer.replicas, answer.reason) == (8, Reason.SATURATED)
    assert "8 replicas complete 34.0/s, 4 completed 32.0/s" in answer.message


def test_a_saturated_workload_may_still_shrink_and_grows_again_after_a_while() -> None:
    state = dataclasses.replace(State(), growth=Growth(4, 32.0, held_at=AT))
    full = load(arrivals=200, due=500, least_due=400, ready=8, completed_per_second=34)

    held = decide(full, scaling(), WIDE, state, replicas=8, at=AT + 10)
    later = decide(full, scaling(), WIDE, held.state, replicas=8, at=AT + RETRY_SECONDS)
    gone = decide(load(ready=8), scaling(), WIDE, held.state, replicas=8, at=AT + 20)

    assert (held.reason, later.reason, gone.reason) == (Reason.SATURATED, Reason.SCALING, Reason.SCALING)
    assert later.replicas > 8


def test_few_completed_requests_prove_nothing() -> None:
    assert grow((4, 0.5), (8, 0.5)).reason is Reason.SCALING


def test_growing_step_by_step_stops_where_what_is_behind_the_app_is_full() -> None:
    """A database lets 100 requests a second through, however many replicas wait for it."""
    spec = scaling(up=ScaleUp(percent=100))
    series, state, replicas, ready = Series(), State(), 4, [4] * 10
    accepted = done = 0
    busy, reasons = 0.0, set()
    for tick in range(150):
        accepted += 2 * 250
        done = min(done + 2 * min(8 * ready[0], 100), accepted)
        busy += 2 * 4 * ready[0]
        body = stats_body(accepted=accepted, done=done, due=accepted - done, busy_seconds=busy)
        series.add(2.0 * tick, {"all": read_figures(orjson.dumps(body))}, Pods(ready[0]))
        answer = decide(series.load(), spec, WIDE, state, replicas=replicas, at=2.0 * tick)
        state, replicas = answer.state, answer.replicas
        reasons.add(answer.reason)
        ready = [*ready[1:], replicas]  # ready after twenty seconds

    assert Reason.SATURATED in reasons
    # 13 would do; two doublings are under way before the first of them can show its worth.
    assert replicas <= 64
