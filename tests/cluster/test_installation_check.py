"""What `helm test` finds out, on a real API server with and without an injector."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.charts.rendering import find, render
from tests.cluster.control_plane import ClusterFailed, ControlPlane
from tests.cluster.injectors import WEBHOOKS, RunningInjector, configuration

from openhqm_operator.installation_check import CheckFailed, check
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.login import from_kubeconfig

NAMESPACE = "installation-check"
USER = "system:serviceaccount:openhqm:openhqm-test"
RBAC = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}"


@pytest.fixture(scope="module")
def plane(api_server: ControlPlane) -> ControlPlane:
    """A namespace, and in it the rights that the chart gives the test pod."""
    api_server.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    account = {"metadata": {"name": "default"}}
    api_server.request("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", account)
    objects = render({"test": {"namespace": NAMESPACE}})
    for kind in ("Role", "RoleBinding"):
        api_server.request("POST", f"{RBAC}/{kind.lower()}s", find(objects, kind, "openhqm-test"))
    return api_server


@pytest.fixture
def injector(plane: ControlPlane, tmp_path: Path) -> Iterator[RunningInjector]:
    injector = RunningInjector(plane, tmp_path)
    injector.wait_until_ready()
    plane.request("POST", WEBHOOKS, configuration(injector.port))
    yield injector
    plane.request("DELETE", f"{WEBHOOKS}/{configuration(0)['metadata']['name']}")
    injector.stop()


@pytest_asyncio.fixture
async def kube(plane: ControlPlane) -> AsyncIterator[Kube]:
    async with Kube(await from_kubeconfig(plane.kubeconfig_of(USER))) as kube:
        yield kube


async def test_a_pod_that_is_let_pass_shows_that_nobody_looks(kube: Kube) -> None:
    with pytest.raises(CheckFailed, match="was let pass without the injector"):
        await check(kube, NAMESPACE)


async def test_all_is_well_and_nothing_is_left_behind(
    kube: Kube, plane: ControlPlane, injector: RunningInjector
) -> None:
    # A webhook is called a moment after it was made.
    plane.wait("the webhook", "kube-apiserver", lambda: _is_refused(plane))

    await check(kube, NAMESPACE)

    assert not plane.request("GET", f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]
    proxies = plane.request("GET", f"/apis/openhqm.io/v1alpha1/namespaces/{NAMESPACE}/asyncproxies")
    assert not proxies["items"]


def _is_refused(plane: ControlPlane) -> bool:
    pod = {
        "metadata": {"name": "x", "labels": {"openhqm.io/proxy": "nobody"}},
        "spec": {"containers": [{"name": "app", "image": "x"}]},
    }
    try:
        plane.request("POST", f"/api/v1/namespaces/{NAMESPACE}/pods?dryRun=All", pod)
    except ClusterFailed as exc:
        return "denied the request" in str(exc)
    return False


async def test_missing_rights_are_told(plane: ControlPlane) -> None:
    async with Kube(await from_kubeconfig(plane.kubeconfig_of("nobody"))) as kube:
        with pytest.raises(CheckFailed, match="no AsyncProxy can be made"):
            await check(kube, NAMESPACE)
