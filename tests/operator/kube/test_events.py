from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs
from tests.operator.fake_api import Answer, FakeApi, status

from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.events import BURST, Events, Ledger, Said, shorten

PROXY = {
    "apiVersion": "openhqm.io/v1alpha1",
    "kind": "AsyncProxy",
    "metadata": {"namespace": "shop", "name": "legacy", "uid": "u-1"},
    "spec": {},
}
SAME = Said("u-1", "Injected", "3 of 3")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def write(events: Events) -> None:
    running = asyncio.create_task(events.run())
    await events.flush(5)
    running.cancel()
    await asyncio.wait({running})


def test_what_goes_on_is_counted_and_written_once_a_minute() -> None:
    ledger = Ledger()

    writes = [(second, ledger.note(SAME, float(second))) for second in range(0, 181)]

    assert [second for second, series in writes if series] == [0, 60, 120, 180]
    assert writes[-1][1].count == 181  # type: ignore[union-attr]


def test_what_is_said_again_after_ten_minutes_is_a_new_event() -> None:
    ledger = Ledger()
    first = ledger.note(SAME, 0.0)

    within = ledger.note(SAME, 600.0)
    after = ledger.note(SAME, 1200.5)

    assert first is within
    assert after is not None
    assert (after.count, after.name != first.name) == (1, True)  # type: ignore[union-attr]


def test_one_object_cannot_flood_and_does_not_silence_others() -> None:
    ledger = Ledger()

    burst = [ledger.note(Said("u-1", "Scaled", f"to {n}"), 0.0) for n in range(50)]
    other = ledger.note(Said("u-2", "Scaled", "to 1"), 0.0)
    later = [ledger.note(Said("u-1", "Scaled", f"to {n}"), 60.0) for n in range(50, 60)]

    assert sum(series is not None for series in burst) == BURST
    assert other is not None
    assert sum(series is not None for series in later) == 2


def test_what_was_not_written_is_tried_again_when_said_again() -> None:
    ledger = Ledger()
    for n in range(BURST):
        ledger.note(Said("u-1", "Scaled", f"to {n}"), 0.0)
    assert ledger.note(SAME, 0.0) is None

    series = ledger.note(SAME, 30.0)

    assert series is not None
    assert series.count == 1


def test_it_forgets_what_no_longer_matters() -> None:
    ledger = Ledger()
    for n in range(100):
        ledger.note(Said(f"u-{n}", "Scaled", "to 1"), 0.0)

    ledger.forget(601.0)

    assert not ledger._series
    assert not ledger._buckets


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [("short", 5, "short"), ("longer", 5, "lo..."), ("äöü", 6, "äöü"), ("äöüx", 6, "ä...")],
)
def test_a_note_is_cut_between_characters(text: str, limit: int, expected: str) -> None:
    assert shorten(text, limit) == expected


async def test_an_event_says_who_what_and_why(api: FakeApi, kube: Kube) -> None:
    events = Events(kube, instance="operator-1")
    api.answers.append(Answer({"kind": "Event"}))

    events.post(PROXY, "TargetMissing", "no Deployment legacy", action="Reconcile", is_warning=True)
    await write(events)

    (request,) = api.requests
    assert (request.method, request.path) == ("POST", "/apis/events.k8s.io/v1/namespaces/shop/events")
    body = request.body
    assert body["metadata"]["name"].startswith("legacy.")
    assert body["regarding"] == {
        "apiVersion": "openhqm.io/v1alpha1",
        "kind": "AsyncProxy",
        "namespace": "shop",
        "name": "legacy",
        "uid": "u-1",
    }
    assert (body["type"], body["reason"], body["action"]) == ("Warning", "TargetMissing", "Reconcile")
    assert (body["reportingController"], body["reportingInstance"]) == ("openhqm.io/operator", "operator-1")


async def test_what_goes_on_becomes_a_series_of_the_same_event(api: FakeApi, kube: Kube) -> None:
    clock = Clock()
    events = Events(kube, instance="operator-1", clock=clock)
    api.answers += [Answer({"kind": "Event"}), Answer({"kind": "Event"})]

    for _ in range(3):
        events.post(PROXY, "Injected", "3 of 3", action="Reconcile")
        clock.now += 40
    await write(events)

    first, second = api.requests
    assert second.method == "PATCH"
    assert second.path.endswith(first.body["metadata"]["name"])
    assert second.body["series"]["count"] == 3


async def test_a_series_whose_event_ran_out_begins_again(api: FakeApi, kube: Kube) -> None:
    clock = Clock()
    events = Events(kube, instance="operator-1", clock=clock)
    api.answers += [Answer({"kind": "Event"}), status(404, "NotFound", "gone"), Answer({"kind": "Event"})]

    events.post(PROXY, "Injected", "3 of 3", action="Reconcile")
    clock.now += 100
    events.post(PROXY, "Injected", "3 of 3", action="Reconcile")
    await write(events)

    assert [r.method for r in api.requests] == ["POST", "PATCH", "POST"]
    assert events.written == 2


async def test_an_event_that_cannot_be_written_is_logged_and_no_more(api: FakeApi, kube: Kube) -> None:
    events = Events(kube, instance="operator-1")
    api.answers.append(status(403, "Forbidden", "namespace is being terminated"))

    with capture_logs() as logs:
        events.post(PROXY, "Injected", "3 of 3", action="Reconcile")
        await write(events)

    assert events.unwritten == 1
    assert [line["event"] for line in logs] == ["event.lost"]


async def test_posting_never_waits_for_a_server_that_does_not_take_them(kube: Kube) -> None:
    events = Events(kube, instance="operator-1")

    with capture_logs():
        for n in range(1100):
            proxy = {**PROXY, "metadata": {"namespace": "shop", "name": f"p{n}", "uid": f"u-{n}"}}
            events.post(proxy, "Injected", "3 of 3", action="Reconcile")

    assert events.unwritten == 100


async def test_events_of_cluster_wide_objects_go_to_the_default_namespace(api: FakeApi, kube: Kube) -> None:
    events = Events(kube, instance="operator-1")
    api.answers.append(Answer({"kind": "Event"}))
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "uid": "u-9"}}

    events.post(namespace, "StoreUserMade", "...", action="Reconcile", related=PROXY)
    await write(events)

    assert api.requests[0].path == "/apis/events.k8s.io/v1/namespaces/default/events"
    assert "namespace" not in api.requests[0].body["regarding"]
    assert api.requests[0].body["related"]["name"] == "legacy"
