"""The loop itself: one broken AsyncProxy does not cost the others their turn. The rest: tests/cluster."""

from __future__ import annotations

from typing import Any

from structlog.testing import capture_logs
from tests.operator.fake_api import FakeApi

from openhqm_operator.kube.cache import Cache
from openhqm_operator.kube.events import Events
from openhqm_operator.kube.resources import (
    ASYNC_PROXIES,
    HORIZONTAL_POD_AUTOSCALERS,
    PODS,
    SCALED_OBJECTS,
    WORKLOADS,
    Key,
)
from openhqm_operator.scaling.autoscaler import Autoscaler, Powers
from openhqm_operator.scaling.sidecar_stats import SidecarStats


def proxy(name: str, **scaling: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "shop", "name": name, "uid": name},
        "spec": {"targetRef": {"kind": "Deployment", "name": name}, "scaling": scaling},
        "status": {
            "conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted", "message": ""}]
        },
    }


async def test_a_broken_proxy_and_an_unreadable_spec_do_not_stop_the_others() -> None:
    resources = (ASYNC_PROXIES, PODS, HORIZONTAL_POD_AUTOSCALERS, SCALED_OBJECTS, *WORKLOADS.values())
    caches = {resource: Cache() for resource in resources}
    caches[PODS].add_index("proxy", lambda one: [("shop", one["metadata"]["name"])])
    caches[ASYNC_PROXIES].put(Key("shop", "broken"), {**proxy("broken", mode="Native"), "spec": {}})
    caches[ASYNC_PROXIES].put(Key("shop", "newer"), proxy("newer", mode="Telepathy"))
    caches[ASYNC_PROXIES].put(Key("shop", "good"), proxy("good", mode="Native", paused=True))
    for resource in WORKLOADS.values():
        target = {"kind": "Deployment", "metadata": {"name": "good"}, "spec": {"replicas": 3}}
        caches[resource].put(Key("shop", "good"), target)
    api = FakeApi()
    await api.start()
    try:
        async with api.client() as kube, SidecarStats(lambda _: None) as stats:
            autoscaler = Autoscaler(kube, caches, stats, Events(kube, instance="test"), Powers())
            with capture_logs() as logs:
                await autoscaler.tick()
    finally:
        await api.stop()

    assert {(one["event"], one["proxy"]) for one in logs} == {
        ("scaling.broken", "shop/broken"),
        ("scaling.invalid", "shop/newer"),
        ("scaling.failed", "shop/good"),  # the fake server knows no such AsyncProxy
    }
    assert autoscaler.decisions[Key("shop", "good")].replicas == 3


async def test_a_tick_that_is_not_through_for_long_is_complained_of() -> None:
    resources = (ASYNC_PROXIES, PODS, HORIZONTAL_POD_AUTOSCALERS, SCALED_OBJECTS, *WORKLOADS.values())
    caches, now = {resource: Cache() for resource in resources}, 50.0
    async with FakeApi().client() as kube, SidecarStats(lambda _: None) as stats:
        events = Events(kube, instance="test")
        autoscaler = Autoscaler(kube, caches, stats, events, Powers(), clock=lambda: now)
        idle = autoscaler.complaint(300.0)
        await autoscaler.tick()
        now = 351.0

        assert idle is None
        assert autoscaler.complaint(300.0) == "the autoscaler's last tick was through 301 s ago"
        await autoscaler.tick()
        assert autoscaler.complaint(300.0) is None
