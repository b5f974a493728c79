"""A change names those whose decision it concerns, and nobody else."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.objects import LABELS, deployment, pod, proxy, service

from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.login import Login
from openhqm_operator.kube.resources import ASYNC_PROXIES, DEPLOYMENTS, PODS, SERVICES, Key, Resource, key_of
from openhqm_operator.kube.watching import Informer
from openhqm_operator.noticing.triggers import Triggers, build_informers, caches_of
from openhqm_operator.reconciling.reconcile import Work

PROXY = Work("AsyncProxy", Key("shop", "legacy"))
WORKLOAD = Work("Deployment", Key("shop", "legacy"))


class Watched:
    """Informers that are told of changes by the test, and the work that follows."""

    def __init__(self, login: Login) -> None:
        self.informers = {one.resource: one for one in build_informers(Kube(login), None)}
        self.caches = caches_of(self.informers.values())
        self.work: list[Work] = []
        self.later: list[Work] = []
        self.triggers = Triggers(self.caches, self.work.append, lambda work, _: self.later.append(work))
        self.triggers.listen(self.informers.values())

    def change(self, resource: Resource, obj: dict[str, Any], *, is_gone: bool = False) -> set[Work]:
        """Our informer sees *obj*; returns what is to be looked at now, `later` is what is within seconds."""
        self.work.clear()
        self.later.clear()
        informer: Informer = self.informers[resource]
        informer._put(key_of(obj), None if is_gone else obj)
        return set(self.work)

    def tell(self, resource: Resource, obj: dict[str, Any]) -> set[Work]:
        """Kopf sees *obj*."""
        self.work.clear()
        version = int(obj["metadata"]["resourceVersion"])
        self.triggers.sightings.told(Work(resource.kind, key_of(obj)), version)
        return set(self.work)


class Nowhere:
    server = "https://127.0.0.1:1"
    tls = server_name = proxy = None

    async def authorization(self) -> None: ...

    def refused(self) -> None: ...


@pytest.fixture
def watched() -> Watched:
    return Watched(Nowhere())  # type: ignore[arg-type]


@pytest.fixture
def settled(watched: Watched) -> Watched:
    """One proxy, its workload and its Service are known."""
    watched.change(DEPLOYMENTS, deployment())
    watched.change(ASYNC_PROXIES, proxy())
    watched.change(SERVICES, service())
    return watched


def test_a_proxy_is_looked_at_when_kopf_tells_of_it(watched: Watched) -> None:
    assert watched.change(ASYNC_PROXIES, proxy()) == set()
    assert watched.later == [PROXY]
    assert watched.tell(ASYNC_PROXIES, proxy()) == {PROXY}


def test_a_proxy_that_our_caches_lack_is_looked_at_when_they_have_it(watched: Watched) -> None:
    assert watched.tell(ASYNC_PROXIES, proxy()) == set()
    assert watched.change(ASYNC_PROXIES, proxy()) == {PROXY}


def test_a_proxy_that_goes_names_its_rivals_and_who_waits_for_its_name(
    settled: Watched,
) -> None:
    settled.change(ASYNC_PROXIES, proxy("rival"))

    found = settled.change(ASYNC_PROXIES, proxy(), is_gone=True)

    assert Work("AsyncProxy", Key("shop", "rival")) in found
    assert WORKLOAD in found


def test_a_workload_names_its_proxy_and_kopf_the_workload_itself(settled: Watched) -> None:
    annotated = deployment()
    annotated["metadata"]["annotations"] = {"openhqm.io/enabled": "true"}

    assert settled.change(DEPLOYMENTS, annotated) == {PROXY}
    assert settled.tell(DEPLOYMENTS, annotated) == {WORKLOAD}


def test_a_workload_that_no_longer_says_anything_is_looked_at_for_its_proxy(settled: Watched) -> None:
    assert settled.tell(DEPLOYMENTS, deployment()) == {WORKLOAD}


def test_a_workload_that_never_said_anything_is_left_alone(watched: Watched) -> None:
    assert watched.change(DEPLOYMENTS, deployment()) == set()
    assert watched.tell(DEPLOYMENTS, deployment()) == set()
    assert watched.later == []


def test_a_pod_names_the_proxy_of_its_label(settled: Watched) -> None:
    assert settled.change(PODS, pod("a", None)) == {PROXY}


def test_a_service_names_the_proxies_of_the_pods_it_selects_or_selected(settled: Watched) -> None:
    elsewhere = service(selector={"app": "other"})

    assert settled.change(SERVICES, elsewhere) == {PROXY}
    assert settled.change(SERVICES, service(8080, selector={"app": "other"})) == set()
    assert settled.change(SERVICES, service(selector=LABELS)) == {PROXY}


def test_a_resync_names_all_proxies_and_annotated_workloads(settled: Watched) -> None:
    annotated = deployment()
    annotated["metadata"]["annotations"] = {"openhqm.io/enabled": "true"}
    settled.change(DEPLOYMENTS, annotated)
    settled.work.clear()

    settled.triggers.everything()

    assert set(settled.work) == {PROXY, WORKLOAD}
