"""The injector as a real API server calls it: Pods of workloads, refusals, Pod Security, an outage."""

from __future__ import annotations

import base64
import copy
import datetime as dt
import itertools
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.control_plane import ClusterFailed, ControlPlane, free_port

from openhqm_operator.api.spec import InterceptType, Spec
from openhqm_operator.certificates.rotation import issue_leaf, make_authority
from openhqm_operator.injecting.plan import config_hash, find_app_port

NOW = dt.datetime.now(dt.UTC)
AUTHORITY = make_authority("injector-ca", NOW)
WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
_numbers = itertools.count()

POD_SPEC: dict[str, Any] = {
    "containers": [
        {
            "name": "app",
            "image": "legacy:1",
            "ports": [{"name": "http", "containerPort": 8080}],
            "readinessProbe": {"httpGet": {"path": "/", "port": "http"}},
            "securityContext": {
                "runAsNonRoot": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        }
    ]
}


class RunningInjector:
    """The injector's own process, as its image starts it."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        leaf = issue_leaf(AUTHORITY, ["127.0.0.1"], NOW)
        (folder / "tls.crt").write_bytes(leaf.certificate)
        (folder / "tls.key").write_bytes(leaf.key)
        self.port, self.health_port = free_port(), free_port()
        settings = {
            "platform": {"image": "openhqm:test", "redirect_image": "operator:test"},
            "host": "127.0.0.1",
            "port": self.port,
            "health_port": self.health_port,
            "certificate_folder": str(folder),
            "drain_seconds": 0,
            "log": {"format": "json"},
        }
        (folder / "injector.yaml").write_text(json.dumps(settings))
        program = [sys.executable, "-m", "openhqm_operator.injector", "--config", folder / "injector.yaml"]
        self._process = subprocess.Popen(
            [*program, "--kubeconfig", plane.kubeconfig], stderr=subprocess.PIPE, text=True
        )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 20
        while not self._is_ready():
            assert self._process.poll() is None, self._process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> list[dict[str, Any]]:
        """End it as Kubernetes does; returns its log, in which every line must be of ours."""
        self._process.terminate()
        _, written = self._process.communicate(timeout=20)
        assert self._process.returncode == 0, written
        return [json.loads(line) for line in written.splitlines()]


def configuration(port: int) -> dict[str, Any]:
    """As the chart writes it, but for the address."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "openhqm-injector"},
        "webhooks": [
            {
                "name": "pods.openhqm.io",
                "clientConfig": {
                    "url": f"https://127.0.0.1:{port}/inject",
                    "caBundle": base64.b64encode(AUTHORITY.certificate).decode(),
                },
                "objectSelector": {
                    "matchExpressions": [
                        {"key": "openhqm.io/proxy", "operator": "Exists"},
                        {"key": "openhqm.io/admission", "operator": "NotIn", "values": ["disabled"]},
                    ]
                },
                "rules": [
                    {
                        "operations": ["CREATE"],
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "resources": ["pods"],
                    }
                ],
                "admissionReviewVersions": ["v1"],
                "failurePolicy": "Fail",
                "reinvocationPolicy": "IfNeeded",
                "sideEffects": "None",
                "matchPolicy": "Equivalent",
                "timeoutSeconds": 5,
            }
        ],
    }


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


def make_proxy(plane: ControlPlane, namespace: str, intercept: str = "ServicePort") -> str:
    """Make AsyncProxy `legacy` with the status an operator would give it; returns its hash."""
    spec = {"targetRef": {"kind": "Deployment", "name": "legacy"}, "intercept": {"type": intercept}}
    path = f"/apis/openhqm.io/v1alpha1/namespaces/{namespace}/asyncproxies"
    metadata = {"name": "legacy"}
    made = plane.request(
        "POST",
        path,
        {"apiVersion": "openhqm.io/v1alpha1", "kind": "AsyncProxy", "metadata": metadata, "spec": spec},
    )
    digest = config_hash(
        Spec.model_validate(made["spec"]), InterceptType(intercept), find_app_port(POD_SPEC, None)
    )
    made["status"] = {"intercept": intercept, "configHash": digest}
    plane.request("PUT", f"{path}/legacy/status", made)
    return digest


def template(digest: str, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "labels": {"app": "legacy", "openhqm.io/proxy": "legacy"},
            "annotations": {"openhqm.io/config-hash": digest},
        },
        "spec": copy.deepcopy(POD_SPEC) | spec,
    }


def make_pod(
    plane: ControlPlane, namespace: str, pod: dict[str, Any], name: str = "legacy", query: str = ""
) -> dict[str, Any]:
    body = copy.deepcopy(pod) | {"apiVersion": "v1", "kind": "Pod"}
    body["metadata"]["name"] = name
    return plane.request("POST", f"/api/v1/namespaces/{namespace}/pods{query}", body)


def deploy(plane: ControlPlane, namespace: str, pod: dict[str, Any], replicas: int = 2) -> None:
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "legacy"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "legacy"}}, "template": pod},
    }
    plane.request("POST", f"/apis/apps/v1/namespaces/{namespace}/deployments", deployment)


def pods_of(plane: ControlPlane, namespace: str) -> list[dict[str, Any]]:
    return list(plane.request("GET", f"/api/v1/namespaces/{namespace}/pods")["items"])


def sidecar_of(pod: dict[str, Any]) -> dict[str, Any]:
    return next(each for each in pod["spec"].get("initContainers", ()) if each["name"] == "openhqm")


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
        plain = template(digest)
        del plain["metadata"]["labels"]["openhqm.io/proxy"]

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
