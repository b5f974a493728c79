"""When a process should be restarted, as `/livez` tells it."""

from __future__ import annotations

import pytest
from tests.operator.fake_api import FakeApi

from openhqm_operator.kube.resources import CONFIG_MAPS
from openhqm_operator.kube.watching import Informer
from openhqm_operator.kube.work_queue import WorkQueue
from openhqm_operator.noticing.kopf_thread import STALLED_SECONDS
from openhqm_operator.operator_metrics import Health
from openhqm_operator.reconciling.reconcile import Work


def fine(limit_seconds: float) -> str | None:
    return None


async def look(work: Work) -> float | None:
    return None


@pytest.mark.parametrize(("stale_seconds", "limit"), [(300.0, 300.0), (60.0, 300.0), (900.0, 900.0)])
async def test_a_leader_has_time_to_end_by_itself_before_it_is_killed_for_kopf(
    api: FakeApi, stale_seconds: float, limit: float
) -> None:
    asked: list[float] = []

    def complaint(limit_seconds: float) -> str | None:
        asked.append(limit_seconds)
        return "kopf's thread has stood still for 400 s"

    async with api.client() as kube:
        informer = Informer(kube, CONFIG_MAPS)
        health = Health([informer], WorkQueue(look, workers=1), complaint, fine, stale_seconds)

        assert health.complaint() == "kopf's thread has stood still for 400 s"
    assert asked == [limit]
    assert limit > STALLED_SECONDS


async def test_a_watch_not_heard_of_is_told_of(api: FakeApi) -> None:
    now = 0.0
    async with api.client() as kube:
        informer = Informer(kube, CONFIG_MAPS, clock=lambda: now)
        health = Health([informer], WorkQueue(look, workers=1), fine, fine, 300.0)

        well = health.complaint()
        now = 301.0

        assert well is None
        assert health.complaint() == "configmaps: not heard of for 301 s"


async def test_an_autoscaler_that_stands_still_is_told_of(api: FakeApi) -> None:
    def complaint(limit_seconds: float) -> str | None:
        return f"no tick for {limit_seconds:.0f} s"

    async with api.client() as kube:
        informer = Informer(kube, CONFIG_MAPS)
        health = Health([informer], WorkQueue(look, workers=1), fine, complaint, 300.0)

        assert health.complaint() == "no tick for 300 s"
