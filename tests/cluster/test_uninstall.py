"""The chart's hook that gives workloads back, on a real API server, with the rights the chart gives it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio
from tests.charts.rendering import find, render
from tests.cluster.control_plane import ControlPlane
from tests.cluster.hook import grant_hook
from tests.cluster.shop import Shop

from openhqm.settings import LogSettings
from openhqm_operator.api import names
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.errors import NotFound
from openhqm_operator.kube.login import from_kubeconfig
from openhqm_operator.kube.resources import DEPLOYMENTS, MUTATING_WEBHOOKS
from openhqm_operator.operator_settings import LeaseSettings, OperatorSettings
from openhqm_operator.uninstall import Release, Uninstall, as_ending

SYSTEM = "uninstall-system"
LONG_SECONDS = 60.0


class Installed(NamedTuple):
    plane: ControlPlane
    hook: Path


@pytest.fixture(scope="module")
def release(api_server: ControlPlane) -> Installed:
    """What of the chart matters to the hook, and the hook's own account."""
    # No injector runs here; Shop plays it.
    values = {"webhook": {"excludedNamespaces": ["uninstall-shop"]}}
    objects = render(values, namespace=SYSTEM)
    api_server.request("POST", "/api/v1/namespaces", {"metadata": {"name": SYSTEM}})
    webhook = find(objects, "MutatingWebhookConfiguration", f"openhqm-{SYSTEM}")
    api_server.request("POST", "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", webhook)
    operator = find(objects, "Deployment", "openhqm-operator")
    api_server.request("POST", f"/apis/apps/v1/namespaces/{SYSTEM}/deployments", operator)
    return Installed(api_server, grant_hook(api_server, objects, SYSTEM))


@pytest_asyncio.fixture
async def admin(release: Installed) -> AsyncIterator[Kube]:
    async with Kube(await from_kubeconfig(release.plane.kubeconfig)) as kube:
        yield kube


@pytest_asyncio.fixture
async def hook(release: Installed) -> AsyncIterator[Kube]:
    async with Kube(await from_kubeconfig(release.hook)) as kube:
        yield kube


@contextlib.asynccontextmanager
async def controllers(shop: Shop) -> AsyncIterator[None]:
    """Let Pods follow the template, as long as the block lasts."""

    async def control() -> None:
        while True:
            await shop.control()
            await asyncio.sleep(0.2)

    task = asyncio.create_task(control())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_everything_is_as_before_and_can_be_asked_for_again(admin: Kube, hook: Kube) -> None:
    shop = Shop(admin, "uninstall-shop")
    await shop.open(target_port=8080)
    before, service = json.dumps(await shop.spec()), await shop.service_spec()
    await shop.annotate(enabled="true")
    await shop.converge(admin)
    assert "openhqm.io/proxy" in (await shop.spec())["template"]["metadata"]["labels"]
    settings = OperatorSettings(
        lease=LeaseSettings(namespace=SYSTEM), log=LogSettings(format="json", level="info")
    )
    # Nothing answers here, so nobody knows what is queued: it is given up after no seconds.
    release = Release(webhook=f"openhqm-{SYSTEM}", operator="openhqm-operator", drain_seconds=0.0)

    async with controllers(shop), asyncio.timeout(LONG_SECONDS):
        left = await Uninstall(settings, release, hook).run()

    assert left == []
    assert json.dumps(await shop.spec()) == before
    assert await shop.service_spec() == service
    with pytest.raises(NotFound):
        await admin.get(MUTATING_WEBHOOKS, ("", f"openhqm-{SYSTEM}"))
    assert (await admin.get_scale(DEPLOYMENTS, (SYSTEM, "openhqm-operator"))).wanted == 0
    proxy = await shop.proxy()
    assert not proxy["metadata"].get("finalizers"), "it can be deleted without an operator"
    assert "deletionTimestamp" not in proxy["metadata"], "it is still asked for"
    assert names.FORCE_EJECT_ANNOTATION not in proxy["metadata"]["annotations"]
    # Whoever installs again finds the annotation and the AsyncProxy, and all is as it was.
    await shop.converge(admin)
    assert "openhqm.io/proxy" in (await shop.spec())["template"]["metadata"]["labels"]


async def test_running_it_twice_is_no_harm(admin: Kube, hook: Kube) -> None:
    settings = OperatorSettings(lease=LeaseSettings(namespace=SYSTEM), namespace="uninstall-empty")
    release = Release(webhook=f"openhqm-{SYSTEM}", operator="openhqm-operator", drain_seconds=0.0)

    async with asyncio.timeout(LONG_SECONDS):
        assert await Uninstall(settings, release, hook).run() == []


def test_ending_is_said_on_a_copy() -> None:
    proxy = {"metadata": {"name": "p", "creationTimestamp": "2026-11-22T12:00:00Z"}}

    ending = as_ending(proxy, forced=True)

    assert ending["metadata"]["deletionTimestamp"]
    assert ending["metadata"]["annotations"] == {"openhqm.io/force-eject": "true"}
    assert proxy == {"metadata": {"name": "p", "creationTimestamp": "2026-11-22T12:00:00Z"}}
