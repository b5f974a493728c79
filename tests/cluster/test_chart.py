"""The chart on a real API server: what it installs is admitted, its accounts may do their work and no more.

RBAC is asked by SubjectAccessReview, the admission policies by writing as the operator's account does.
"""

from __future__ import annotations

import base64
import copy
import itertools
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_asyncio
import yaml
from tests.charts.rendering import NAMESPACE, RELEASE, Object, chart, find, render
from tests.cluster.control_plane import ControlPlane
from tests.cluster.test_operator import Shop

from openhqm_operator.api.spec import Spec
from openhqm_operator.gateway.manifests import (
    Gateway,
    build_budget,
    build_deployment,
    build_service,
    build_slices,
)
from openhqm_operator.injecting.plan import AppPort
from openhqm_operator.injecting.platform_settings import Platform
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.errors import KubeError
from openhqm_operator.kube.login import from_kubeconfig
from openhqm_operator.kube.resources import (
    DAEMON_SETS,
    DEPLOYMENTS,
    NAMESPACES,
    PODS,
    SECRETS,
    SERVICES,
    Key,
    key_of,
    resource_of,
)

try:
    from helm_python import Config
except ImportError:
    pytest.skip("helm-python-sdk is not there for this machine", allow_module_level=True)

OPERATOR = f"system:serviceaccount:{NAMESPACE}:openhqm-operator"
INJECTOR = f"system:serviceaccount:{NAMESPACE}:openhqm-injector"
SHOP = "chart-shop"
_numbers = itertools.count()

VALUES = {"crds": {"install": False}, "uninstall": {"enabled": False}}
"""The fixture has installed the definition."""


@pytest.fixture(scope="module")
def release(api_server: ControlPlane) -> Iterator[ControlPlane]:
    """The chart, installed by Helm on an API server that runs nothing."""
    api_server.request("POST", "/api/v1/namespaces", _namespace(SHOP))
    with Config(kubeconfig_path=api_server.kubeconfig, namespace=NAMESPACE) as config:
        config.install(chart(), RELEASE, VALUES, namespace=NAMESPACE, create_namespace=True)
        yield api_server
        config.uninstall(RELEASE)


def _namespace(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


# --- RBAC --------------------------------------------------------------------------------------------------


def may(plane: ControlPlane, user: str, verb: str, what: str, namespace: str = SHOP, name: str = "") -> bool:
    """Ask whether *user* may; *what* is `resource[/subresource][.group]`."""
    resource, _, group = what.partition(".")
    resource, _, subresource = resource.partition("/")
    attributes = {
        "verb": verb,
        "group": group,
        "resource": resource,
        "subresource": subresource,
        "namespace": namespace,
        "name": name,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": attributes},
    }
    answer = plane.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer["status"].get("allowed"))


ALLOWED = [
    (OPERATOR, "list", "asyncproxies.openhqm.io", ""),
    (OPERATOR, "patch", "asyncproxies/status.openhqm.io", SHOP),
    (OPERATOR, "patch", "deployments.apps", SHOP),
    (OPERATOR, "patch", "deployments/scale.apps", SHOP),
    (OPERATOR, "get", "secrets", SHOP),
    (OPERATOR, "create", "secrets", SHOP),
    (OPERATOR, "create", "leases.coordination.k8s.io", NAMESPACE),
    (OPERATOR, "create", "events.events.k8s.io", SHOP),
    (OPERATOR, "watch", "namespaces", ""),
    (INJECTOR, "watch", "asyncproxies.openhqm.io", ""),
]

FORBIDDEN = [
    # Secrets are read by name, made, and never listed, changed or taken away.
    *(
        (OPERATOR, verb, "secrets", SHOP)
        for verb in ("list", "watch", "update", "patch", "delete", "deletecollection")
    ),
    # Workloads: no scaling but through `scale`, and of what it may make only Deployments.
    *((OPERATOR, verb, "deployments.apps", SHOP) for verb in ("update", "deletecollection")),
    *(
        (OPERATOR, verb, f"{kind}.apps", SHOP)
        for kind in ("statefulsets", "daemonsets")
        for verb in ("create", "update", "delete")
    ),
    (OPERATOR, "create", "replicasets.apps", SHOP),
    (OPERATOR, "create", "jobs.batch", SHOP),
    # Pods.
    *((OPERATOR, verb, "pods", SHOP) for verb in ("create", "update", "delete", "deletecollection")),
    *(
        (OPERATOR, "create", f"pods/{way}", SHOP)
        for way in ("exec", "attach", "portforward", "eviction", "binding")
    ),
    (OPERATOR, "get", "pods/log", SHOP),
    (OPERATOR, "update", "pods/ephemeralcontainers", SHOP),
    # The rest of a namespace.
    *((OPERATOR, verb, "services", SHOP) for verb in ("update", "deletecollection")),
    *((OPERATOR, verb, "networkpolicies.networking.k8s.io", SHOP) for verb in ("create", "patch", "delete")),
    *((OPERATOR, verb, "configmaps", SHOP) for verb in ("update", "delete")),
    *(
        (OPERATOR, verb, "horizontalpodautoscalers.autoscaling", SHOP)
        for verb in ("create", "patch", "delete")
    ),
    (OPERATOR, "create", "serviceaccounts", SHOP),
    (OPERATOR, "create", "serviceaccounts/token", SHOP),
    (OPERATOR, "impersonate", "serviceaccounts", SHOP),
    # Rights themselves, and what is cluster-wide.
    *(
        (OPERATOR, verb, f"{kind}.rbac.authorization.k8s.io", SHOP)
        for kind in ("roles", "rolebindings", "clusterroles", "clusterrolebindings")
        for verb in ("create", "patch", "bind", "escalate")
    ),
    *((OPERATOR, verb, "namespaces", "") for verb in ("create", "patch", "update", "delete")),
    *((OPERATOR, verb, "nodes", "") for verb in ("get", "list", "patch")),
    *(
        (OPERATOR, verb, "customresourcedefinitions.apiextensions.k8s.io", "")
        for verb in ("create", "patch", "delete")
    ),
    *(
        (OPERATOR, verb, f"{kind}.admissionregistration.k8s.io", "")
        for kind in (
            "mutatingwebhookconfigurations",
            "validatingwebhookconfigurations",
            "validatingadmissionpolicies",
            "validatingadmissionpolicybindings",
        )
        for verb in ("create", "patch", "delete")
    ),
    # In its own namespace: no other Lease, no other Secret, and not its own Deployment.
    (OPERATOR, "update", "leases.coordination.k8s.io", NAMESPACE),
    (OPERATOR, "update", "secrets", NAMESPACE),
    (OPERATOR, "delete", "leases.coordination.k8s.io", NAMESPACE),
    # The injector reads AsyncProxies, and that is all.
    *((INJECTOR, verb, "asyncproxies.openhqm.io", SHOP) for verb in ("create", "update", "patch", "delete")),
    *(
        (INJECTOR, "get", what, SHOP)
        for what in ("secrets", "configmaps", "pods", "services", "deployments.apps")
    ),
    (INJECTOR, "list", "namespaces", ""),
    (INJECTOR, "get", "secrets", NAMESPACE),
    (INJECTOR, "get", "leases.coordination.k8s.io", NAMESPACE),
]


@pytest.mark.parametrize(("user", "verb", "what", "namespace"), ALLOWED)
def test_account_may_do_its_work(
    release: ControlPlane, user: str, verb: str, what: str, namespace: str
) -> None:
    assert may(release, user, verb, what, namespace)


@pytest.mark.parametrize(("user", "verb", "what", "namespace"), FORBIDDEN)
def test_account_may_not(release: ControlPlane, user: str, verb: str, what: str, namespace: str) -> None:
    assert not may(release, user, verb, what, namespace)


@pytest.mark.parametrize(
    ("verb", "what", "name"),
    [
        ("update", "leases.coordination.k8s.io", "openhqm-operator"),
        ("update", "secrets", "openhqm-injector-ca"),
        ("update", "secrets", "openhqm-injector-tls"),
        ("patch", "mutatingwebhookconfigurations.admissionregistration.k8s.io", "openhqm"),
    ],
)
def test_operator_may_change_these_by_name_alone(
    release: ControlPlane, verb: str, what: str, name: str
) -> None:
    assert may(release, OPERATOR, verb, what, NAMESPACE, name)
    assert not may(release, OPERATOR, verb, what, NAMESPACE, f"{name}-2")


def test_rights_end_at_the_one_namespace(release: ControlPlane) -> None:
    """With rbac.namespace nothing cluster-wide is left but reading that Namespace and the webhook's CA."""
    objects = render(VALUES | {"rbac": {"namespace": SHOP}}, name="narrow", namespace="narrow")
    rbac = [
        obj for obj in objects if obj["apiVersion"].startswith("rbac.") and "hook" not in str(obj["metadata"])
    ]
    release.request("POST", "/api/v1/namespaces", _namespace("narrow"))
    for obj in (obj for obj in rbac if not obj["metadata"]["name"].endswith(("-view", "-edit", "-admin"))):
        _create(release, obj)
    user = "system:serviceaccount:narrow:narrow-openhqm-operator"

    assert may(release, user, "patch", "deployments.apps", SHOP)
    assert may(release, user, "get", "namespaces", "", SHOP)
    for verb, what in (
        ("get", "secrets"),
        ("patch", "deployments.apps"),
        ("list", "asyncproxies.openhqm.io"),
    ):
        assert not may(release, user, verb, what, "default")
        assert not may(release, user, verb, what, "")
    assert not may(release, user, "list", "namespaces", "")


def test_users_roles_grow(release: ControlPlane) -> None:
    """The cluster's own role `edit` covers AsyncProxies; the aggregation is a controller's work."""
    role = release.request("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/openhqm-edit")

    assert role["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"


def _create(plane: ControlPlane, obj: Object) -> None:
    group, plural = obj["apiVersion"], f"{obj['kind'].lower()}s"
    namespace = obj["metadata"].get("namespace")
    place = f"namespaces/{namespace}/" if namespace else ""
    plane.request("POST", f"/apis/{group}/{place}{plural}", obj)


# --- the operator's account is confined -------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="function")
async def operator(release: ControlPlane) -> Any:
    """A client that is the operator's account."""
    async with Kube(await from_kubeconfig(release.kubeconfig_of(OPERATOR))) as kube:
        await _until_policies_are_in_force(kube)
        yield kube


async def _until_policies_are_in_force(kube: Kube) -> None:
    """A policy is compiled a moment after it was made."""
    deadline = time.monotonic() + 30
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "probe", "namespace": SHOP}}
    while True:
        try:
            await kube.create(body, manager="test", dry_run=True)
        except KubeError as exc:
            if "creates and deletes only" in str(exc):
                return
            raise
        assert time.monotonic() < deadline, "the policies are not in force"


@pytest.fixture
def deployment(release: ControlPlane) -> Object:
    """A user's Deployment."""
    return _workload(release, "Deployment")


def _workload(plane: ControlPlane, kind: str) -> Object:
    """A user's workload of *kind*."""
    name = f"legacy-{next(_numbers)}"
    body = {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": SHOP, "labels": {"team": "shop"}},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}, "annotations": {"note": "one"}},
                "spec": {
                    "containers": [{"name": "app", "image": "app:1", "ports": [{"containerPort": 8080}]}]
                },
            },
        },
    }
    return plane.request("POST", f"/apis/apps/v1/namespaces/{SHOP}/{kind.lower()}s", body)


def _touch(workload: Object, **more: Any) -> Object:
    """What the operator applies to a workload, and *more* of the template."""
    metadata = {"labels": {"openhqm.io/proxy": "legacy"}, "annotations": {"openhqm.io/config-hash": "1"}}
    return {
        "apiVersion": "apps/v1",
        "kind": workload["kind"],
        "metadata": {name: workload["metadata"][name] for name in ("name", "namespace")},
        "spec": {"template": {"metadata": metadata, **more}},
    }


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet"])
async def test_operator_touches_label_and_annotation(
    operator: Kube, release: ControlPlane, kind: str
) -> None:
    """Also where the API server answers a new template with an annotation of its own (DaemonSet)."""
    workload = _workload(release, kind)
    touched = await operator.apply(_touch(workload), manager="openhqm-operator", force=True)
    assert touched["spec"]["template"]["metadata"]["labels"]["openhqm.io/proxy"] == "legacy"

    bare = _touch(workload)
    del bare["spec"]
    restored = await operator.apply(bare, manager="openhqm-operator", force=True)

    assert restored["spec"]["template"] == workload["spec"]["template"]


async def test_operator_writes_no_annotation_of_a_daemon_set(operator: Kube, release: ControlPlane) -> None:
    """The one that the API server counts in is not the operator's excuse for others."""
    workload = _workload(release, "DaemonSet")
    operation = {"op": "add", "path": "/metadata/annotations/x", "value": "y"}

    with pytest.raises(KubeError, match="own labels"):
        await operator.patch_json(
            DAEMON_SETS, (SHOP, workload["metadata"]["name"]), [operation], manager="openhqm-operator"
        )


WORKLOAD_CHANGES = [
    ("replace", "/spec/template/spec/containers/0/image", "evil", "nothing of a workload"),
    ("add", "/spec/template/spec/hostNetwork", True, "nothing of a workload"),
    ("replace", "/spec/replicas", 7, "nothing of a workload"),
    ("add", "/spec/paused", True, "nothing of a workload"),
    ("add", "/spec/minReadySeconds", 5, "nothing of a workload"),
    ("add", "/spec/template/metadata/labels/other", "x", "template labels"),
    ("replace", "/spec/template/metadata/annotations/note", "two", "template annotations"),
    ("remove", "/spec/template/metadata/annotations/note", None, "template annotations"),
    # Two policies refuse this one, and the API server reports either.
    (
        "add",
        "/metadata/labels/app.kubernetes.io~1managed-by",
        "openhqm",
        "own labels|the sidecar's image alone",
    ),
    ("replace", "/metadata/labels/team", "thief", "own labels"),
    ("add", "/metadata/annotations", {"x": "y"}, "own labels"),
    ("add", "/metadata/finalizers", ["x.io/y"], "own labels"),
]


@pytest.mark.parametrize(("op", "path", "value", "sentence"), WORKLOAD_CHANGES)
async def test_operator_changes_nothing_else_of_a_workload(
    operator: Kube, deployment: Object, op: str, path: str, value: Any, sentence: str
) -> None:
    operation = {"op": op, "path": path} | ({} if op == "remove" else {"value": value})
    key = (SHOP, deployment["metadata"]["name"])

    with pytest.raises(KubeError, match=sentence):
        await operator.patch_json(DEPLOYMENTS, key, [operation], manager="openhqm-operator")


@pytest.fixture
def service(release: ControlPlane) -> Object:
    """A user's Service with two ports."""
    body = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"web-{next(_numbers)}", "namespace": SHOP},
        "spec": {
            "selector": {"app": "legacy"},
            "ports": [
                {"name": "http", "port": 80, "targetPort": 8080},
                {"name": "other", "port": 81, "targetPort": 8081},
            ],
        },
    }
    return release.request("POST", f"/api/v1/namespaces/{SHOP}/services", body)


async def test_operator_switches_a_services_target_port(operator: Kube, service: Object) -> None:
    operations = [
        {"op": "add", "path": "/metadata/annotations", "value": {"openhqm.io/original-ports": "{}"}},
        {"op": "replace", "path": "/spec/ports/0/targetPort", "value": 16080},
    ]

    key = (SHOP, service["metadata"]["name"])
    switched = await operator.patch_json(SERVICES, key, operations, manager="openhqm-operator")

    assert switched["spec"]["ports"][0]["targetPort"] == 16080


@pytest.mark.parametrize(
    ("op", "path", "value", "sentence"),
    [
        ("replace", "/spec/ports/0/port", 443, "targetPort alone"),
        ("replace", "/spec/ports/0/name", "web", "targetPort alone"),
        ("remove", "/spec/ports/1", None, "targetPort alone"),
        ("add", "/spec/ports/0/appProtocol", "h2c", "targetPort alone"),
        ("replace", "/spec/selector", {"app": "mine"}, "where its ports lead"),
        ("replace", "/spec/type", "NodePort", "where its ports lead"),
        ("add", "/spec/externalIPs", ["1.2.3.4"], "where its ports lead"),
        ("add", "/metadata/annotations", {"x": "y"}, "original-ports alone"),
        (
            "add",
            "/metadata/labels",
            {"app.kubernetes.io/managed-by": "openhqm"},
            "labels, owners or finalizers",
        ),
    ],
)
async def test_operator_changes_nothing_else_of_a_service(
    operator: Kube, service: Object, op: str, path: str, value: Any, sentence: str
) -> None:
    operation = {"op": op, "path": path} | ({} if op == "remove" else {"value": value})
    key = (SHOP, service["metadata"]["name"])

    with pytest.raises(KubeError, match=sentence):
        await operator.patch_json(SERVICES, key, [operation], manager="openhqm-operator")


async def test_operator_marks_pods_and_does_no_more(operator: Kube, release: ControlPlane) -> None:
    name = f"pod-{next(_numbers)}"
    release.request("POST", f"/api/v1/namespaces/{SHOP}/serviceaccounts", _account(f"{name}-account"))
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": SHOP},
        "spec": {
            "serviceAccountName": f"{name}-account",
            "containers": [{"name": "app", "image": "app:1"}],
        },
    }
    release.request("POST", f"/api/v1/namespaces/{SHOP}/pods", body)
    key = Key(SHOP, name)

    await operator.patch_merge(
        PODS,
        key,
        {"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-1000"}}},
        manager="openhqm-autoscaler",
    )

    for change, sentence in (
        ({"metadata": {"annotations": {"x": "y"}}}, "pod-deletion-cost alone"),
        ({"metadata": {"labels": {"x": "y"}}}, "how dear its end is"),
        ({"spec": {"activeDeadlineSeconds": 1}}, "how dear its end is"),
    ):
        with pytest.raises(KubeError, match=sentence):
            await operator.patch_merge(PODS, key, change, manager="openhqm-operator")


def _account(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": SHOP}}


async def test_operator_makes_and_takes_only_what_is_its_own(operator: Kube, release: ControlPlane) -> None:
    ours = {"app.kubernetes.io/managed-by": "openhqm"}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "handles", "namespace": SHOP, "labels": ours},
    }
    await operator.create(secret, manager="openhqm-operator")
    foreign = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "foreign", "namespace": SHOP}}
    release.request("POST", f"/api/v1/namespaces/{SHOP}/configmaps", foreign)

    taken = foreign | {"metadata": foreign["metadata"] | {"labels": ours}}

    with pytest.raises(KubeError, match="changes only what carries"):
        await operator.apply(taken, manager="openhqm-operator", force=True)
    with pytest.raises(KubeError, match="creates and deletes only"):
        await operator.create(
            secret | {"metadata": {"name": "other", "namespace": SHOP}}, manager="openhqm-operator"
        )
    with pytest.raises(KubeError):
        await operator.delete(SECRETS, (SHOP, "handles"))
    assert (
        release.request("GET", f"/api/v1/namespaces/{SHOP}/configmaps/foreign")["metadata"].get("labels")
        is None
    )


async def test_operator_cannot_delete_a_users_deployment(operator: Kube, deployment: Object) -> None:
    with pytest.raises(KubeError, match="creates and deletes only"):
        await operator.delete(DEPLOYMENTS, (SHOP, deployment["metadata"]["name"]))


GATEWAY_CHANGES = [
    ({"image": "evil:1"}, {}, "the sidecar's image alone"),
    ({"securityContext": {"privileged": True}}, {}, "no privileges"),
    (
        {"securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"add": ["NET_ADMIN"]}}},
        {},
        "no privileges",
    ),
    ({}, {"hostNetwork": True}, "the node's namespaces"),
    ({}, {"automountServiceAccountToken": True}, "neither a token"),
    ({}, {"volumes": [{"name": "root", "hostPath": {"path": "/"}}]}, "empty folders alone"),
]


def _gateway(container: Object, pod: Object) -> Object:
    """The gateway that the operator would make with the chart's settings, changed."""
    config = find(render(), "ConfigMap", "openhqm-operator")["data"]["operator.yaml"]
    platform = Platform.model_validate(yaml.safe_load(config)["gateway"])
    proxy = {"metadata": {"name": f"app-{next(_numbers)}", "namespace": SHOP, "uid": str(uuid.uuid4())}}
    spec = Spec.model_validate({"targetRef": {"kind": "Deployment", "name": "legacy"}})
    gateway = Gateway(proxy, spec, AppPort("app", "http", 8080), {"app": "legacy"}, "1")
    made = build_deployment(gateway, platform)
    whole = made["spec"]["template"]["spec"]
    whole["containers"][0] |= container
    whole |= {name: value for name, value in pod.items() if name != "volumes"}
    whole["volumes"] += pod.get("volumes", [])
    return made


async def test_operator_makes_gateways_that_do_nothing_but_that(operator: Kube) -> None:
    await operator.create(_gateway({}, {}), manager="openhqm-operator")
    for container, pod, sentence in GATEWAY_CHANGES:
        with pytest.raises(KubeError, match=sentence):
            await operator.create(_gateway(container, pod), manager="openhqm-operator")


async def test_operator_notes_upon_a_gateway_of_an_earlier_image_and_takes_it_away(
    operator: Kube, release: ControlPlane
) -> None:
    """After an upgrade that turns gateways off nobody makes it anew."""
    gateway = _gateway({"image": "earlier:1"}, {})
    gateway["metadata"]["annotations"] = {"noted": "once"}
    release.request("POST", f"/apis/apps/v1/namespaces/{SHOP}/deployments", gateway)
    key = key_of(gateway)
    note = [{"op": "add", "path": "/metadata/annotations/noted", "value": "again"}]
    evil = [{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "evil:1"}]

    await operator.patch_json(DEPLOYMENTS, key, note, manager="openhqm-operator")
    with pytest.raises(KubeError, match="the sidecar's image alone"):
        await operator.patch_json(DEPLOYMENTS, key, evil, manager="openhqm-operator")
    assert await operator.delete(DEPLOYMENTS, key)


async def test_operator_has_a_gateway_join_a_service_and_takes_all_of_it_away(
    operator: Kube, service: Object
) -> None:
    """Without an AsyncProxy of that name: only whether the account may write all this is looked at."""
    name = f"sleepy-{next(_numbers)}"
    proxy = {"metadata": {"name": name, "namespace": SHOP, "uid": str(uuid.uuid4())}}
    spec = Spec.model_validate({"targetRef": {"kind": "Deployment", "name": "legacy"}})
    port = AppPort("app", "http", 8080)
    gateway = Gateway(proxy, spec, port, {"app": "legacy"}, "1")
    pod_metadata = {"name": "gateway-1", "namespace": SHOP, "uid": str(uuid.uuid4())}
    pod = {"metadata": pod_metadata, "spec": {"nodeName": "node"}, "status": {"podIP": "10.1.2.3"}}

    made = [build_service(gateway), build_budget(gateway), *build_slices(proxy, service, port, [pod])]
    for one in [*made, *made]:
        await operator.apply(one, manager="openhqm-operator", force=True)

    for one in made:
        assert await operator.delete(resource_of(one), key_of(one))


async def test_operator_leaves_a_users_async_proxy_as_it_was_asked_for(
    operator: Kube, release: ControlPlane
) -> None:
    path = f"/apis/openhqm.io/v1alpha1/namespaces/{SHOP}/asyncproxies"
    proxy = {
        "apiVersion": "openhqm.io/v1alpha1",
        "kind": "AsyncProxy",
        "metadata": {"name": "mine", "namespace": SHOP},
        "spec": {"targetRef": {"kind": "Deployment", "name": "legacy"}},
    }
    made = release.request("POST", path, proxy)

    held = copy.deepcopy(made)
    held["metadata"]["finalizers"] = ["openhqm.io/finalizer"]
    held = await operator.update(held, manager="openhqm-operator")

    for change, sentence in (
        ({"spec": {"paused": True}}, "that it made from annotations"),
        ({"metadata": {"annotations": {"openhqm.io/made-from": "x"}}}, "its own afterwards"),
        ({"metadata": {"labels": {"app.kubernetes.io/managed-by": "openhqm"}}}, "its own afterwards"),
    ):
        changed = copy.deepcopy(held)
        for part, fields in change.items():
            changed[part] |= fields
        with pytest.raises(KubeError, match=sentence):
            await operator.update(changed, manager="openhqm-operator")
    held["metadata"]["finalizers"] = []
    await operator.update(held, manager="openhqm-operator")


# --- Helm --------------------------------------------------------------------------------------------------


def test_password_survives_an_upgrade(release: ControlPlane) -> None:
    path = f"/api/v1/namespaces/{NAMESPACE}/secrets/openhqm-redis"
    before = release.request("GET", path)["data"]

    with Config(kubeconfig_path=release.kubeconfig, namespace=NAMESPACE) as config:
        config.upgrade(chart(), RELEASE, VALUES | {"injector": {"replicas": 3}}, namespace=NAMESPACE)

    assert release.request("GET", path)["data"] == before


def test_what_others_added_survives_an_upgrade(release: ControlPlane) -> None:
    """The operator's CA and owner stay in the webhook's configuration."""
    path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/openhqm"
    webhook = release.request("GET", path)
    webhook["webhooks"][0]["clientConfig"]["caBundle"] = _ca(release)
    release.request("PUT", path, webhook)

    with Config(kubeconfig_path=release.kubeconfig, namespace=NAMESPACE) as config:
        config.upgrade(chart(), RELEASE, VALUES | {"injector": {"replicas": 4}}, namespace=NAMESPACE)

    assert release.request("GET", path)["webhooks"][0]["clientConfig"]["caBundle"] == _ca(release)


def _ca(plane: ControlPlane) -> str:
    return base64.b64encode(plane.authority.certificate.read_bytes()).decode()


# --- the operator's work is within its rights ------------------------------------------------------------


@pytest.mark.parametrize("target_port", ["http", 8080], ids=["NamedPort", "ServicePort"])
async def test_operator_does_its_whole_work_within_its_rights(
    operator: Kube, release: ControlPlane, target_port: int | str
) -> None:
    """From the annotation to the sidecar and back, as the account that the chart makes."""
    excluded = {"openhqm.io/admission": "disabled"}  # Shop plays the injector
    async with Kube(await from_kubeconfig(release.kubeconfig)) as admin:
        shop = Shop(admin, f"rights-{next(_numbers)}")
        await shop.open(target_port=target_port)
        namespace = {"metadata": {"labels": excluded}}
        await admin.patch_merge(NAMESPACES, ("", shop.namespace), namespace, manager="test")
        before = await shop.spec()

        await shop.annotate(enabled="true")
        await shop.converge(operator)
        touched = await shop.spec()
        await shop.annotate(concurrency="2")
        await shop.converge(operator)
        await shop.annotate(enabled=None, concurrency=None)
        await shop.converge(operator)

        assert touched["template"]["metadata"]["labels"]["openhqm.io/proxy"] == "legacy"
        assert await shop.spec() == before
