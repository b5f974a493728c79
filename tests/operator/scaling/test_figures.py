"""What sidecars tell becomes a load: rates, app time, signs of work."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from tests.operator.loads import stats_body

from openhqm_operator.scaling.figures import BadFigures, Figures, Load, Pods, Series, read_figures


def figures(**values: Any) -> Figures:
    return read_figures(orjson.dumps(stats_body(**values)))


def after(*samples: tuple[float, dict[str, Figures]], pods: Pods = Pods(2)) -> Load:  # noqa: B008 - frozen
    series = Series()
    for at, told in samples:
        series.add(at, told, pods)
    load = series.load()
    assert load is not None
    return load


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>", "the body"),
        (b"[]", "the body"),
        (orjson.dumps(stats_body(due=-1)), "due"),
        (orjson.dumps(stats_body() | {"requests": {"accepted": 1}}), "requests.done"),
        (orjson.dumps(stats_body(busy_seconds="NaN")), "busy_seconds"),
    ],
)
def test_an_answer_that_is_none_is_refused_by_name(body: bytes, words: str) -> None:
    with pytest.raises(BadFigures, match=words):
        read_figures(body)


def test_one_sample_is_no_load() -> None:
    series = Series()
    series.add(0.0, {"a": figures()}, Pods(1))

    assert series.load() is None


def test_rates_come_from_counters() -> None:
    load = after(
        (0, {"a": figures(accepted=0)}),
        (28, {"a": figures(accepted=140)}),
        (40, {"a": figures(accepted=200, done=200)}),
        (56, {"a": figures(accepted=280, done=280)}),
        (60, {"a": figures(accepted=360, done=300)}),
    )

    assert load.arrivals_per_second == pytest.approx(6.0)
    assert load.burst_per_second == pytest.approx(20.0)
    assert load.completed_per_second == pytest.approx(5.0)


def test_the_mean_forgets_what_is_older_than_a_minute() -> None:
    samples = [(2.0 * tick, {"a": figures(accepted=min(tick, 50) * 20)}) for tick in range(90)]

    assert after(*samples).arrivals_per_second == 0.0


def test_counts_of_a_shared_queue_are_not_added_up() -> None:
    load = after(
        (0, {"a": figures(accepted=0), "b": figures(accepted=0)}),
        (10, {"a": figures(accepted=98, due=7), "b": figures(accepted=100, due=9)}),
    )

    assert (load.arrivals_per_second, load.due) == (10.0, 9)


def test_app_time_is_added_up_over_processes_and_their_restarts() -> None:
    load = after(
        (0, {"a": figures(busy_seconds=100.0), "b": figures(busy_seconds=50.0)}),
        (2, {"a": figures(busy_seconds=103.0, done=6), "b": figures(busy_seconds=1.0, done=6)}),
        (
            4,
            {
                "a": figures(busy_seconds=104.0, done=10),
                "c": figures(busy_seconds=1.0, uptime_seconds=1, done=10),
            },
        ),
        (6, {"d": figures(busy_seconds=900.0, done=12)}),
    )

    # 3 + 1 (b restarted), 1 + 1 (c is new); d has been there for long and was not seen before.
    assert load.service_seconds == pytest.approx(6.0 / 12)


def test_app_time_is_remembered_while_nothing_ends() -> None:
    samples = [(0.0, {"a": figures()}), (2.0, {"a": figures(busy_seconds=10.0, done=20)})]
    samples += [(2.0 + 2 * tick, {"a": figures(busy_seconds=10.0, done=20)}) for tick in range(1, 60)]

    assert after(*samples).service_seconds == pytest.approx(0.5)


def test_before_anything_ended_the_sidecars_own_means_count() -> None:
    load = after(
        (0, {"a": figures(mean_app_seconds=1.0), "b": figures(mean_app_seconds=3.0)}),
        (2, {"a": figures(mean_app_seconds=1.0), "b": figures(mean_app_seconds=3.0)}),
    )

    assert load.service_seconds == 2.0


def test_what_runs_for_long_without_an_end_takes_at_least_that() -> None:
    samples = [(2.0 * tick, {"a": figures(accepted=8, running=4, due=4)}) for tick in range(16)]

    assert after(*samples[:4]).service_seconds is None
    assert after(*samples).service_seconds == pytest.approx(30.0)


def test_a_gap_makes_the_old_samples_worthless() -> None:
    series = Series()
    series.add(0.0, {"a": figures(accepted=0)}, Pods(1))
    series.add(2.0, {"a": figures(accepted=10)}, Pods(1))
    series.add(100.0, {"a": figures(accepted=5000)}, Pods(1))

    assert series.load() is None


@pytest.mark.parametrize(
    ("last", "idle"),
    [
        ({}, 20.0),
        ({"accepted": 1, "done": 1}, 0.0),
        ({"due": 1}, 0.0),
        ({"running": 1}, 0.0),
        ({"held": 1}, 0.0),
        ({"passing": 1}, 0.0),
        ({"passed": 1}, 0.0),
        ({"delayed": 1}, 20.0),
    ],
)
def test_it_knows_since_when_nobody_wanted_anything(last: dict[str, int], idle: float) -> None:
    load = after((0, {"a": figures()}), (10, {"a": figures()}), (20, {"a": figures(**last)}))

    assert load.idle_seconds == idle


@pytest.mark.parametrize(
    ("values", "sending"),
    [
        ([{}, {}], True),
        ([{"paused": True}, {"paused": True}], False),
        ([{"breaker": "open"}, {}], True),
        ([{"breaker": "open"}, {"breaker": "open"}], False),
        ([{"breaker": "open"}, {"breaker": None, "concurrency": 0}], False),  # a gateway has no breaker
    ],
)
def test_it_knows_whether_anything_is_sent(values: list[dict[str, Any]], sending: bool) -> None:
    told = {str(number): figures(**each) for number, each in enumerate(values)}

    assert after((0, told), (2, told)).is_sending is sending


def test_a_gateway_does_not_change_what_a_pod_runs_at_once() -> None:
    told = {"pod": figures(concurrency=8), "gateway": figures(concurrency=0, held=3)}

    load = after((0, told), (2, told))

    assert (load.concurrency, load.held) == (8, 3)


def test_jagged_arrivals_have_a_sigma_and_even_ones_none() -> None:
    even = [(2.0 * tick, {"a": figures(accepted=tick * 20)}) for tick in range(30)]
    jagged = [(2.0 * tick, {"a": figures(accepted=(tick // 4) * 80)}) for tick in range(30)]

    assert after(*even).sigma_per_second == 0.0
    assert after(*jagged).sigma_per_second > 5.0
