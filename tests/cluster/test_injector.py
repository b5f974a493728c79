"""The injector as a real API server calls it: Pods of workloads, refusals, Pod Security, an outage."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.control_plane import ClusterFailed, ControlPlane
from tests.cluster.injectors import (
    WEBHOOKS,
    RunningInjector,
    configuration,
    deploy,
    make_pod,
    make_proxy,
    pods_of,
    sidecars_of,
    template,
    unmarked,
)

_numbers = itertools.count()


@pytest.fixture(scope="module")
def injector(cluster: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningInjector]:
    running = RunningInjector(cluster, tmp_path_factory.mktemp("injector"))
    running.wait_until_ready()
    cluster.request("POST", WEBHOOKS, configuration(running.port))
    yield running
    cluster.request("DELETE", f"{WEBHOOKS}/openhqm-injector")
    assert [line["event"] for line in running.stop() if line["level"] not in ("info", "warning")] == []


@pytest.fixture
def namespace(cluster: ControlPlane, request: pytest.FixtureRequest) -> str:
    name = f"injector-{next(_numbers)}"
    level = getattr(request, "param", "privileged")
    labels = {"pod-security.kubernetes.io/enforce": level}
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})

    def has_account() -> bool:
        return bool(cluster.request("GET", f"/api/v1/namespaces/{name}/serviceaccounts/default"))

    cluster.wait(f"the ServiceAccount of {name}", "kube-controller-manager", has_account)
    return name


def sidecar_of(pod: dict[str, Any]) -> dict[str, Any]:
    [sidecar] = sidecars_of(pod)
    return sidecar


# --- Pods


@pytest.mark.parametrize("namespace", ["restricted"], indirect=True)
@pytest.mark.parametrize("intercept", ["NamedPort", "ServicePort"])
def test_pods_of_a_deployment_get_the_sidecar_where_pod_security_is_restricted(
    cluster: ControlPlane, injector: RunningInjector, namespace: str, intercept: str
) -> None:
    digest = make_proxy(cluster, namespace, intercept)

    deploy(cluster, namespace, template(digest))

    def are_ready() -> bool:
        pods = pods_of(cluster, namespace)
        return len(pods) == 2 and all(
            any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))
            for pod in pods
        )

    cluster.wait("two Pods", "kube-controller-manager", are_ready)
    first, second = pods_of(cluster, namespace)
    said = json.loads(first["metadata"]["annotations"]["openhqm.io/injected"])
    assert (said["hash"], said["intercept"]) == (digest, intercept)
    assert sidecar_of(first)["restartPolicy"] == "Always"
    assert sidecar_of(first)["lifecycle"] != sidecar_of(second)["lifecycle"]  # a token of its own each
    # The ServiceAccount plugin mounts a token wherever nothing else is mounted.
    mounts = {m["mountPath"]: m["name"] for m in sidecar_of(first)["volumeMounts"]}
    assert mounts["/var/run/secrets/kubernetes.io/serviceaccount"] == "openhqm-no-token"
    [app] = first["spec"]["containers"]
    assert any("kube-api-access" in mount["name"] for mount in app["volumeMounts"])


@pytest.mark.parametrize("namespace", ["baseline"], indirect=True)
def test_redirect_is_refused_by_pod_security_not_by_surprise(
    cluster: ControlPlane, injector: RunningInjector, namespace: str
) -> None:
    digest = make_proxy(cluster, namespace, "Redirect")

    with pytest.raises(ClusterFailed, match="NET_ADMIN"):
        make_pod(cluster, namespace, template(digest))


def test_redirect_is_admitted_where_it_is_allowed(
    cluster: ControlPlane, injector: RunningInjector, namespace: str
) -> None:
    digest = make_proxy(cluster, namespace, "Redirect")

    pod = make_pod(cluster, namespace, template(digest))

    names = [each["name"] for each in pod["spec"]["initContainers"]]
    assert names == ["openhqm-redirect", "openhqm"]


def test_what_the_api_server_made_of_it_is_injected_to_the_same_again(
    cluster: ControlPlane, injector: RunningInjector, namespace: str
) -> None:
    """Defaults are filled in between two calls; a second one must not see anything to change."""
    pod = make_pod(cluster, namespace, template(make_proxy(cluster, namespace, "NamedPort")))
    again = {"metadata": {k: pod["metadata"][k] for k in ("labels", "annotations")}, "spec": pod["spec"]}

    second = make_pod(cluster, namespace, again, name="again")

    assert second["spec"]["initContainers"] == pod["spec"]["initContainers"]
    assert second["spec"]["containers"] == pod["spec"]["containers"]
    assert second["spec"]["terminationGracePeriodSeconds"] == 60


def test_a_dry_run_shows_the_sidecar(
    cluster: ControlPlane, injector: RunningInjector, namespace: str
) -> None:
    pod = make_pod(cluster, namespace, template(make_proxy(cluster, namespace)), query="?dryRun=All")

    assert sidecar_of(pod)
    assert pods_of(cluster, namespace) == []


# --- refusals


def test_a_pod_that_cannot_get_it_is_refused_with_the_reason(
    cluster: ControlPlane, injector: RunningInjector, namespace: str
) -> None:
    pod = template(make_proxy(cluster, namespace))
    pod["spec"]["containers"][0]["ports"].append({"containerPort": 81})

    with pytest.raises(ClusterFailed, match=r"say with spec\.port which port is the app's"):
        make_pod(cluster, namespace, pod)


def test_the_owner_of_refused_pods_tells_the_reason(
    cluster: ControlPlane, injector: RunningInjector, namespace: str
) -> None:
    deploy(cluster, namespace, template("any", serviceAccountName="default"))

    def is_told() -> bool:
        sets = cluster.request("GET", f"/apis/apps/v1/namespaces/{namespace}/replicasets")["items"]
        conditions = [c for each in sets for c in each["status"].get("conditions", ())]
        return any('names AsyncProxy "legacy", which is not in namespace' in c["message"] for c in conditions)

    cluster.wait("the ReplicaSet's condition", "kube-controller-manager", is_told)


def test_a_proxy_and_its_first_pod_may_come_in_one_breath(
    cluster: ControlPlane, injector: RunningInjector, namespace: str
) -> None:
    """No watch is that fast; the hash says that there is something newer."""
    digest = make_proxy(cluster, namespace)

    assert sidecar_of(make_pod(cluster, namespace, template(digest)))


# --- outage


def test_while_the_injector_is_away_only_its_own_pods_wait(
    cluster: ControlPlane, injector: RunningInjector, namespace: str, tmp_path: Path
) -> None:
    digest = make_proxy(cluster, namespace)
    other = RunningInjector(cluster, tmp_path)
    other.wait_until_ready()
    path = f"{WEBHOOKS}/openhqm-injector"
    live = cluster.request("GET", path)
    moved = copy.deepcopy(live)
    moved["webhooks"][0]["clientConfig"]["url"] = f"https://127.0.0.1:{other.port}/inject"
    cluster.request("PUT", path, moved)
    try:
        assert [line["event"] for line in other.stop()][-2:] == ["drain.started", "drain.finished"]
        plain = unmarked(template(digest))

        assert make_pod(cluster, namespace, plain, name="plain")["metadata"]["name"] == "plain"
        _wait_for_refusal(cluster, namespace, template(digest))
    finally:
        moved = cluster.request("GET", path)
        moved["webhooks"][0]["clientConfig"] = live["webhooks"][0]["clientConfig"]
        cluster.request("PUT", path, moved)


def _wait_for_refusal(plane: ControlPlane, namespace: str, pod: dict[str, Any]) -> None:
    """The API server follows its webhooks' configuration within a second or so."""
    numbers = itertools.count()

    def is_refused() -> bool:
        try:
            make_pod(plane, namespace, pod, name=f"probe-{next(numbers)}")
        except ClusterFailed as exc:
            return "failed calling webhook" in str(exc)
        return False

    plane.wait("a refusal", "kube-apiserver", is_refused)
