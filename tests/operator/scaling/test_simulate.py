"""The simulator, and what it must show: our law against Knative's autoscaler and KEDA through an HPA."""

from __future__ import annotations

import json
import random

import pytest

from openhqm_operator.api.spec import ScaleDown
from openhqm_operator.scaling.simulate import (
    CURVES,
    POD_RATE,
    SCALING,
    Score,
    Workload,
    compare,
    count_reversals,
    main,
    poisson,
    run,
    table,
)
from openhqm_operator.scaling.simulate_policies import OurLaw


def by_policy(seed: int) -> dict[str, dict[str, Score]]:
    scores: dict[str, dict[str, Score]] = {curve: {} for curve in CURVES}
    for score in compare(seed):
        scores[score.curve][score.policy] = score
    return scores


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_our_law_is_as_good_as_knative_calmer_and_better_than_a_queue_length(seed: int) -> None:
    for curve, scores in by_policy(seed).items():
        ours, keda, knative = scores["OpenHQM"], scores["KEDA length/10, HPA"], scores["Knative KPA"]

        assert ours.misses_percent <= knative.misses_percent + 0.5, curve
        assert ours.reversals <= knative.reversals / 4, curve
        assert ours.misses_percent < keda.misses_percent, curve
        assert ours.pod_seconds < keda.pod_seconds, curve
        assert ours.reversals < keda.reversals, curve


def test_where_bursts_follow_each_other_the_window_decides_who_is_calmer() -> None:
    """By default ours is shorter than an HPA's: it turns once more here, and costs a fifth less."""
    scores = by_policy(8)["trace"]
    ours, keda = scores["OpenHQM"], scores["KEDA length/10, HPA"]
    like_hpa = run("trace", OurLaw(SCALING.model_copy(update={"down": ScaleDown(window_seconds=300)})), 8)

    assert (ours.reversals, keda.reversals) == (18, 17)
    assert ours.pod_seconds < 0.8 * keda.pod_seconds
    assert like_hpa.reversals < keda.reversals / 3
    assert like_hpa.pod_seconds < keda.pod_seconds
    assert like_hpa.misses_percent < keda.misses_percent


def test_the_same_seed_gives_the_same_scores() -> None:
    assert run("trace", OurLaw(SCALING), 7) == run("trace", OurLaw(SCALING), 7)


def test_a_workload_serves_first_come_first_served_and_counts_the_late() -> None:
    workload = Workload(random.Random(1), replicas=1)

    worlds = [workload.step(at, 16 if at < 10 else 0) for at in range(40)]

    assert worlds[9].waiting == pytest.approx(160 - 10 * POD_RATE, abs=20)
    assert (worlds[-1].waiting, worlds[-1].completed, worlds[-1].accepted) == (0, 160, 160)
    # The last of twice as much as it can do is answered ten seconds after it came: hardly any is late.
    assert workload.late < 40


def test_pods_take_their_time_to_start_and_starting_ones_go_first() -> None:
    workload = Workload(random.Random(1), replicas=2)

    workload.scale(0, 6)
    workload.scale(1, 3)

    assert workload.step(19, 0).ready == 2
    assert workload.step(20, 0).ready == 3


@pytest.mark.parametrize(
    ("numbers", "reversals"), [([1, 1, 2, 3], 0), ([1, 2, 2, 1], 1), ([1, 3, 2, 3, 3, 1], 3), ([4], 0)]
)
def test_reversals_are_turns_not_changes(numbers: list[int], reversals: int) -> None:
    assert count_reversals(numbers) == reversals


@pytest.mark.parametrize("mean", [0.0, 2.5, 200.0])
def test_arrivals_have_the_mean_asked_for(mean: float) -> None:
    dice = random.Random(1)

    assert sum(poisson(dice, mean) for _ in range(2000)) / 2000 == pytest.approx(mean, rel=0.05)


def test_the_command_prints_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--seed", "3", "--json"])
    scores = json.loads(capsys.readouterr().out)

    assert {score["curve"] for score in scores} == set(CURVES)


def test_the_table_has_a_line_for_each_policy_on_each_curve() -> None:
    drawn = table([Score("spike", "OpenHQM", 1.234, 1.5, 7), Score("spike", "Knative KPA", 1.0, 1.2, 70)])

    assert [list(column.cells) for column in drawn.columns][2] == ["1.23", "1.00"]
