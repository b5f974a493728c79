"""The client, informer, election and Events on a real API server, also paused, killed and started again."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs
from tests.cluster.control_plane import ControlPlane

from openhqm_operator.kube.backoff import Backoff
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.election import Election, LeadershipLost, Terms
from openhqm_operator.kube.errors import (
    AlreadyExists,
    Conflict,
    FieldsTaken,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    Unauthorized,
    Unavailable,
    WatchSilent,
)
from openhqm_operator.kube.events import Events
from openhqm_operator.kube.login import from_kubeconfig, in_cluster
from openhqm_operator.kube.resources import (
    ASYNC_PROXIES,
    CONFIG_MAPS,
    DEPLOYMENTS,
    EVENTS,
    LEASES,
    NAMESPACES,
    SCALED_OBJECTS,
    Key,
    Object,
)
from openhqm_operator.kube.transport import Timeouts
from openhqm_operator.kube.watching import Informer

US, THEM = "openhqm-test", "somebody"
QUICK = Backoff(base=0.05, limit=0.2)
_numbers = itertools.count()


@pytest.fixture
def name() -> str:
    """Of an object that no other test knows."""
    return f"k1-{next(_numbers)}"


@pytest_asyncio.fixture
async def kube(api_server: ControlPlane) -> AsyncIterator[Kube]:
    async with Kube(await from_kubeconfig(api_server.kubeconfig)) as kube:
        yield kube


def config_map(name: str, **data: str) -> Object:
    metadata = {"namespace": "default", "name": name, "labels": {"set": name}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def deployment(name: str, replicas: int) -> Object:
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"namespace": "default", "name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "app", "image": "app"}]},
            },
        },
    }


# -- the client


async def test_the_life_of_an_object(kube: Kube, name: str) -> None:
    key = ("default", name)
    with pytest.raises(NotFound):
        await kube.get(CONFIG_MAPS, key)

    made = await kube.create(config_map(name, a="1"), manager=US)
    with pytest.raises(AlreadyExists):
        await kube.create(config_map(name, a="1"), manager=US)
    changed = await kube.update({**made, "data": {"a": "2"}}, manager=US)
    with pytest.raises(Conflict):
        await kube.update({**made, "data": {"a": "3"}}, manager=US)
    patched = await kube.patch_json(
        CONFIG_MAPS, key, [{"op": "replace", "path": "/data/a", "value": "4"}], manager=US
    )
    with pytest.raises(Invalid):
        await kube.patch_json(CONFIG_MAPS, key, [{"op": "test", "path": "/data/a", "value": "x"}], manager=US)
    merged = await kube.patch_merge(CONFIG_MAPS, key, {"data": {"a": None, "b": "5"}}, manager=US)

    assert changed["data"] == {"a": "2"}
    assert patched["data"] == {"a": "4"}
    assert merged["data"] == {"b": "5"}
    with pytest.raises(Conflict):
        await kube.delete(CONFIG_MAPS, key, uid="00000000-0000-0000-0000-000000000000")
    with pytest.raises(Conflict):
        await kube.delete(CONFIG_MAPS, key, resource_version=made["metadata"]["resourceVersion"])
    assert await kube.delete(CONFIG_MAPS, key, uid=made["metadata"]["uid"]) is True
    assert await kube.delete(CONFIG_MAPS, key) is False


async def test_an_apply_makes_changes_and_drops_only_its_own_fields(kube: Kube, name: str) -> None:
    await kube.apply(config_map(name, theirs="1"), manager=THEM, force=False)

    await kube.apply(config_map(name, ours="1"), manager=US, force=False)
    again = await kube.apply(config_map(name, ours="1"), manager=US, force=False)
    same = await kube.apply(config_map(name, ours="1"), manager=US, force=False)
    without = await kube.apply(config_map(name), manager=US, force=False)

    assert again["data"] == {"theirs": "1", "ours": "1"}
    assert again["metadata"]["resourceVersion"] == same["metadata"]["resourceVersion"]
    assert without["data"] == {"theirs": "1"}


async def test_an_apply_takes_the_fields_of_others_by_force_only(kube: Kube, name: str) -> None:
    await kube.apply(config_map(name, a="theirs"), manager=THEM, force=False)

    with pytest.raises(FieldsTaken) as caught:
        await kube.apply(config_map(name, a="ours"), manager=US, force=False)
    taken = await kube.apply(config_map(name, a="ours"), manager=US, force=True)

    assert list(caught.value.owners) == [".data.a"]
    assert THEM in caught.value.owners[".data.a"]
    assert taken["data"] == {"a": "ours"}


async def test_an_apply_to_an_object_that_changed_since_is_a_conflict(kube: Kube, name: str) -> None:
    made = await kube.apply(config_map(name, a="1"), manager=US, force=False)
    await kube.apply(config_map(name, a="2"), manager=US, force=False)
    late = config_map(name, a="3")
    late["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"]

    with pytest.raises(Conflict):
        await kube.apply(late, manager=US, force=True)


async def test_a_dry_run_changes_nothing_and_still_refuses(kube: Kube, name: str) -> None:
    shown = await kube.apply(config_map(name, a="1"), manager=US, force=False, dry_run=True)

    assert shown["data"] == {"a": "1"}
    with pytest.raises(NotFound):
        await kube.get(CONFIG_MAPS, ("default", name))
    with pytest.raises(Invalid, match=r"replicas"):
        await kube.apply(deployment(name, -1), manager=US, force=False, dry_run=True)
    assert kube.writes.total() == 0


async def test_a_status_is_applied_by_itself(kube: Kube, name: str) -> None:
    proxy: Object = {
        "apiVersion": ASYNC_PROXIES.api_version,
        "kind": ASYNC_PROXIES.kind,
        "metadata": {"namespace": "default", "name": name},
    }
    status = {**proxy, "status": {"configHash": "abc"}}
    with pytest.raises(NotFound):
        await kube.apply_status(status, manager=US, force=True)
    spec = {"targetRef": {"kind": "Deployment", "name": name}}
    await kube.apply({**proxy, "spec": spec}, manager=THEM, force=False)

    await kube.apply_status(status, manager=US, force=True)
    found = await kube.get(ASYNC_PROXIES, ("default", name))

    assert found["status"]["configHash"] == "abc"
    assert found["spec"]["targetRef"] == spec["targetRef"]


async def test_replicas_are_set_through_scale_unless_the_workload_changed(kube: Kube, name: str) -> None:
    key = ("default", name)
    await kube.create(deployment(name, 2), manager=THEM)
    before = await kube.get_scale(DEPLOYMENTS, key)

    after = await kube.apply_scale(
        DEPLOYMENTS, key, 5, resource_version=before.resource_version, manager=US, force=True
    )

    assert (before.wanted, after.wanted) == (2, 5)
    assert before.selector == f"app={name}"
    with pytest.raises(Conflict):
        await kube.apply_scale(
            DEPLOYMENTS, key, 7, resource_version=before.resource_version, manager=US, force=True
        )
    assert (await kube.get_scale(DEPLOYMENTS, key)).wanted == 5


async def test_replicas_that_others_own_are_seen_without_force(kube: Kube, name: str) -> None:
    key = ("default", name)
    await kube.apply(deployment(name, 2), manager=THEM, force=False)
    scale = await kube.get_scale(DEPLOYMENTS, key)

    with pytest.raises(FieldsTaken) as caught:
        await kube.apply_scale(
            DEPLOYMENTS, key, 5, resource_version=scale.resource_version, manager=US, force=False
        )

    assert THEM in "".join(caught.value.owners.values())


async def test_a_user_without_rights_is_forbidden(api_server: ControlPlane) -> None:
    async with Kube(await from_kubeconfig(api_server.kubeconfig_of("nobody"))) as kube:
        with pytest.raises(Forbidden, match="nobody"):
            await kube.list(CONFIG_MAPS)


async def test_a_pod_logs_in_and_gets_over_a_token_that_ran_out(
    api_server: ControlPlane, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = "/api/v1/namespaces/default/serviceaccounts"
    api_server.request("POST", accounts, {"metadata": {"name": name}})
    answer = api_server.request("POST", f"{accounts}/{name}/token", {"spec": {}})
    (tmp_path / "ca.crt").write_bytes(api_server.authority.bundle)
    (tmp_path / "token").write_text("one that ran out")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api_server.port))

    async with Kube(in_cluster(tmp_path)) as kube:
        with pytest.raises(Unauthorized):
            await kube.list(CONFIG_MAPS)
        (tmp_path / "token").write_text(answer["status"]["token"])
        with pytest.raises(Forbidden, match=f"system:serviceaccount:default:{name}"):
            await kube.list(CONFIG_MAPS)


async def test_a_resource_that_is_not_installed_is_not_found(kube: Kube) -> None:
    with pytest.raises(NotFound):
        await kube.list(SCALED_OBJECTS)


async def test_pages_add_up_to_one_list(kube: Kube, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        body = config_map(f"{name}-{number}")
        body["metadata"]["labels"] = {"set": name}
        await kube.create(body, manager=US)
    monkeypatch.setattr("openhqm_operator.kube.client.PAGE_LIMIT", 3)

    listing = await kube.list(CONFIG_MAPS, labels=f"set={name}")
    elsewhere = await kube.list(CONFIG_MAPS, "kube-system", labels=f"set={name}")

    assert [obj["metadata"]["name"] for obj in listing.items] == [f"{name}-{n}" for n in range(7)]
    assert {obj["kind"] for obj in listing.items} == {"ConfigMap"}
    assert elsewhere.items == []


async def test_a_watch_from_a_version_of_the_future_is_silent(api_server: ControlPlane) -> None:
    """Why an informer in doubt lists again after a watch that never said a word."""
    timeouts = Timeouts(watch_silence=0.5)
    async with Kube(await from_kubeconfig(api_server.kubeconfig), timeouts=timeouts) as kube:
        with pytest.raises(WatchSilent):
            async with kube.watch(CONFIG_MAPS, resource_version="99999999999") as events:
                await anext(events)


async def test_a_paused_server_is_unavailable_in_time(api_server: ControlPlane, kube: Kube) -> None:
    timeouts = Timeouts(connect=0.3, call=0.3)
    async with Kube(await from_kubeconfig(api_server.kubeconfig), timeouts=timeouts) as hasty:
        api_server.pause("kube-apiserver")
        try:
            started = time.monotonic()
            with pytest.raises(Unavailable):
                await hasty.get(NAMESPACES, ("", "default"))
            took = time.monotonic() - started
        finally:
            api_server.resume("kube-apiserver")
    await kube.get(NAMESPACES, ("", "default"))

    assert took < 2


# -- the informer


class Follower:
    """An informer of this test's ConfigMaps, running, and what it told."""

    def __init__(self, kube: Kube, name: str) -> None:
        self.informer = Informer(kube, CONFIG_MAPS, namespace="default", labels=f"set={name}", backoff=QUICK)
        self.told: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.informer.on_change(self._tell)
        self._task = asyncio.create_task(self.informer.run())

    def _tell(self, key: Key, before: Object | None, after: Object | None) -> None:
        self.told.put_nowait((key.name, after and after.get("data")))

    async def synced(self) -> None:
        async with asyncio.timeout(10):
            await self.informer.synced.wait()

    async def next(self) -> tuple[str, Any]:
        async with asyncio.timeout(30):
            return await self.told.get()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        assert self._task.cancelled()


async def test_an_informer_follows_a_real_server(kube: Kube, name: str) -> None:
    await kube.apply(config_map(name, a="1"), manager=US, force=False)
    follower = Follower(kube, name)

    await follower.synced()
    await kube.apply(config_map(name, a="2"), manager=US, force=False)
    await kube.delete(CONFIG_MAPS, ("default", name))
    told = [await follower.next() for _ in range(3)]
    await follower.stop()

    assert told == [(name, {"a": "1"}), (name, {"a": "2"}), (name, None)]
    assert follower.informer.relists == 1


async def test_an_informer_outlives_the_server(api_server: ControlPlane, kube: Kube, name: str) -> None:
    """Killed and started again: nothing missed, nothing told twice."""
    await kube.apply(config_map(name, a="1"), manager=US, force=False)
    follower = Follower(kube, name)
    await follower.synced()
    await follower.next()

    api_server.kill("kube-apiserver")
    while follower.informer.interruptions == 0:
        await asyncio.sleep(0.02)
    with capture_logs():
        api_server.start_api_server()  # in this thread: the server ends with the thread that started it
        await kube.apply(config_map(name, a="2"), manager=US, force=False)
        told = await follower.next()
    await follower.stop()

    assert told == (name, {"a": "2"})
    assert follower.told.empty()
    # It knows no version from before its start: who comes with one has to list.
    with pytest.raises(Gone):
        async with kube.watch(CONFIG_MAPS, resource_version="1") as events:
            await anext(events)


async def test_quiet_is_no_failure_and_the_next_change_is_told(
    api_server: ControlPlane, kube: Kube, name: str
) -> None:
    timeouts = Timeouts(watch_silence=0.2)
    async with Kube(await from_kubeconfig(api_server.kubeconfig), timeouts=timeouts) as hasty:
        follower = Follower(hasty, name)
        await follower.synced()
        with capture_logs() as said:
            while follower.informer.silences < 5:
                await asyncio.sleep(0.02)
            await kube.apply(config_map(name, a="1"), manager=US, force=False)
            told = await follower.next()
        await follower.stop()

    assert told == (name, {"a": "1"})
    assert (follower.informer.relists, follower.informer.interruptions) == (1, 0)
    assert {one["log_level"] for one in said} == {"debug"}


async def test_a_server_that_stands_still_is_found_behind_a_quiet_watch(
    api_server: ControlPlane, kube: Kube, name: str
) -> None:
    timeouts = Timeouts(connect=0.3, call=0.3, watch_silence=0.2)
    async with Kube(await from_kubeconfig(api_server.kubeconfig), timeouts=timeouts) as hasty:
        follower = Follower(hasty, name)
        await follower.synced()
        api_server.pause("kube-apiserver")
        try:
            async with asyncio.timeout(10):
                while follower.informer.interruptions < 2:
                    await asyncio.sleep(0.02)
        finally:
            api_server.resume("kube-apiserver")
        await kube.apply(config_map(name, a="1"), manager=US, force=False)
        told = await follower.next()
        await follower.stop()

    assert told == (name, {"a": "1"})


# -- the election

TERMS = Terms(lease=5, renewal=3.3, retry=0.7)
"""A third of the real ones. That they are kept to the second is shown in virtual time."""


class Candidate:
    """An election in a process of its own, as far as the server can tell."""

    def __init__(self, api_server: ControlPlane, key: Key, identity: str) -> None:
        self._plane = api_server
        self._key = key
        self.identity = identity
        self.leads = asyncio.Event()
        self.ended_at = 0.0
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        timeouts = Timeouts(connect=0.5, call=0.8)
        async with Kube(await from_kubeconfig(self._plane.kubeconfig), timeouts=timeouts) as kube:
            self.election = Election(kube, self._key, identity=self.identity, terms=TERMS)
            await self.election.run(self._lead)

    async def _lead(self) -> None:
        self.leads.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended_at = time.monotonic()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    async def vanish(self) -> None:
        """End without giving the Lease back, as SIGKILL does."""
        self.election._release = _nothing  # type: ignore[method-assign]
        await self.stop()

    async def lost(self) -> BaseException | None:
        await asyncio.wait({self._task})
        return None if self._task.cancelled() else self._task.exception()


async def _nothing() -> None:
    """What a killed process does."""


async def test_a_released_lease_is_taken_at_once(api_server: ControlPlane, kube: Kube, name: str) -> None:
    key = Key("default", name)
    first = Candidate(api_server, key, "a")
    await first.leads.wait()
    second = Candidate(api_server, key, "b")

    await first.stop()
    stopped_at = time.monotonic()
    released = await kube.get(LEASES, key)
    await second.leads.wait()
    took = time.monotonic() - stopped_at
    held = await kube.get(LEASES, key)
    await second.stop()

    assert took < TERMS.lease / 2
    assert released["spec"]["leaseDurationSeconds"] in (1, TERMS.lease)
    assert held["spec"]["holderIdentity"] == "b"
    assert held["spec"]["leaseTransitions"] == 1


async def test_a_vanished_leader_is_followed_when_its_lease_runs_out(
    api_server: ControlPlane, name: str
) -> None:
    """15 s and a look every 2 s make 17 at most; here a third of it."""
    key = Key("default", name)
    first = Candidate(api_server, key, "a")
    await first.leads.wait()
    second = Candidate(api_server, key, "b")
    await asyncio.sleep(2 * TERMS.retry)

    await first.vanish()
    vanished_at = time.monotonic()
    await second.leads.wait()
    took = time.monotonic() - vanished_at
    await second.stop()

    assert TERMS.lease - 2 * TERMS.retry <= took <= TERMS.lease + TERMS.retry + 1


async def test_a_leader_whose_server_is_paused_gives_up_in_time(
    api_server: ControlPlane, kube: Kube, name: str
) -> None:
    key = Key("default", name)
    first = Candidate(api_server, key, "a")
    await first.leads.wait()

    api_server.pause("kube-apiserver")
    try:
        paused_at = time.monotonic()
        error = await first.lost()
    finally:
        api_server.resume("kube-apiserver")

    await kube.get(LEASES, key)  # the server is back, and has let go of the connections we gave up

    assert isinstance(error, LeadershipLost)
    assert first.ended_at - paused_at < TERMS.lease


# -- Events


async def test_an_event_and_its_series_are_what_the_server_takes(kube: Kube, name: str) -> None:
    now = 1000.0
    events = Events(kube, instance="operator-1", clock=lambda: now)
    proxy = {
        "apiVersion": ASYNC_PROXIES.api_version,
        "kind": ASYNC_PROXIES.kind,
        "metadata": {"namespace": "default", "name": name, "uid": f"uid-of-{name}"},
    }
    running = asyncio.create_task(events.run())

    for _ in range(2):
        events.post(proxy, "TargetMissing", "ä" * 2000, action="Reconcile", is_warning=True, related=proxy)
        await events.flush(10)
        now += 100
    running.cancel()
    await asyncio.wait({running})
    found = [
        event
        for event in (await kube.list(EVENTS, "default")).items
        if event["regarding"].get("uid") == f"uid-of-{name}"
    ]

    assert (events.written, events.unwritten) == (2, 0)
    assert len(found) == 1
    assert found[0]["series"]["count"] == 2
    assert found[0]["type"] == "Warning"
