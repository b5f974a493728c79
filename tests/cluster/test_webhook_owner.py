"""The webhook's configuration goes with the release's Namespace, on a real cluster."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest_asyncio
from tests.charts.rendering import find, render
from tests.cluster.control_plane import ClusterFailed, ControlPlane

from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.login import from_kubeconfig
from openhqm_operator.webhook.owner import own_webhook

SYSTEM = "owner-system"
NAME = f"openhqm-{SYSTEM}"
WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


@pytest_asyncio.fixture
async def operator(cluster: ControlPlane) -> AsyncIterator[Kube]:
    """A client with the rights that the chart gives the operator."""
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": SYSTEM}})
    objects = render(namespace=SYSTEM)
    cluster.request("POST", WEBHOOKS, find(objects, "MutatingWebhookConfiguration", NAME))
    for kind in ("ClusterRole", "ClusterRoleBinding"):
        cluster.request("POST", f"{RBAC}/{kind.lower()}s", find(objects, kind, f"{NAME}-operator"))
    user = f"system:serviceaccount:{SYSTEM}:openhqm-operator"
    async with Kube(await from_kubeconfig(cluster.kubeconfig_of(user))) as kube:
        yield kube


async def test_it_is_gone_with_the_namespace(operator: Kube, cluster: ControlPlane) -> None:
    assert await own_webhook(operator, NAME, SYSTEM)
    assert not await own_webhook(operator, NAME, SYSTEM), "once is enough"

    cluster.request("DELETE", f"/api/v1/namespaces/{SYSTEM}")

    cluster.wait("the webhook's end", "kube-controller-manager", lambda: _is_gone(cluster))


def _is_gone(cluster: ControlPlane) -> bool:
    with contextlib.suppress(ClusterFailed):
        cluster.request("GET", f"{WEBHOOKS}/{NAME}")
        return False
    return True
