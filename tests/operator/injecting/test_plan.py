"""Which port is the app's, which Pods cannot get a sidecar, what makes a configuration another one."""

from __future__ import annotations

from typing import Any

import pytest

from openhqm_operator.api.names import ADMIN_PORT, BYPASS_PORT, HEALTH_PORT, INTERCEPT_PORT
from openhqm_operator.api.spec import InterceptType, Spec
from openhqm_operator.injecting.plan import AppPort, NotInjectable, check_pod, config_hash, find_app_port

HTTP = {"name": "http", "containerPort": 8080}
PORT = AppPort("app", "http", 8080)


def pod(*ports: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"containers": [{"name": "app", "image": "app", "ports": list(ports)}], **more}


def two(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {"containers": [{"name": "app", "ports": [first]}, {"name": "other", "ports": [second]}]}


# --- the app's port


@pytest.mark.parametrize(
    ("pod_spec", "port", "expected"),
    [
        pytest.param(pod(HTTP), None, PORT, id="the only one"),
        pytest.param(pod({"containerPort": 80}), None, AppPort("app", None, 80), id="without a name"),
        pytest.param(pod(HTTP, {"containerPort": 53, "protocol": "UDP"}), None, PORT, id="the only TCP one"),
        pytest.param(pod(HTTP, {"name": "m", "containerPort": 9}), "http", PORT, id="by name"),
        pytest.param(pod(HTTP, {"name": "m", "containerPort": 9}), 8080, PORT, id="by number"),
        pytest.param(pod({"containerPort": 8080}, HTTP), 8080, PORT, id="the named of two entries"),
        pytest.param(pod(), 3000, AppPort("app", None, 3000), id="not declared"),
        pytest.param(
            two(HTTP, {"containerPort": 9}), 9, AppPort("other", None, 9), id="in a second container"
        ),
    ],
)
def test_finds_the_app_s_port(pod_spec: dict[str, Any], port: int | str | None, expected: AppPort) -> None:
    assert find_app_port(pod_spec, port) == expected


def test_a_mesh_s_proxy_is_not_the_app() -> None:
    pod_spec = pod(HTTP)
    pod_spec["containers"].insert(0, {"name": "istio-proxy", "ports": [{"containerPort": 15090}]})

    assert find_app_port(pod_spec, None) == PORT


@pytest.mark.parametrize(
    ("pod_spec", "port", "reason", "words"),
    [
        (pod(), None, "NoTcpPort", "say with spec.port"),
        (pod({"containerPort": 53, "protocol": "UDP"}), None, "NoTcpPort", "only HTTP over TCP"),
        (
            pod(HTTP, {"name": "admin", "containerPort": 9}),
            None,
            "PortAmbiguous",
            "app: 8080 (http), app: 9 (admin)",
        ),
        (pod(HTTP), "web", "PortNotFound", 'no container has a TCP port named "web"'),
        (pod({"name": "dns", "containerPort": 53, "protocol": "UDP"}), "dns", "PortNotFound", "no TCP ports"),
        (two(HTTP, {"containerPort": 9}), 3000, "PortNotFound", "declares TCP port 3000"),
    ],
)
def test_says_what_to_do_where_no_port_is_found(
    pod_spec: dict[str, Any], port: int | str | None, reason: str, words: str
) -> None:
    with pytest.raises(NotInjectable) as caught:
        find_app_port(pod_spec, port)

    assert caught.value.reason == reason
    assert words in caught.value.message


# --- Pods without a sidecar


def test_an_ordinary_pod_can_get_one() -> None:
    for intercept in (InterceptType.NAMED_PORT, InterceptType.SERVICE_PORT, InterceptType.REDIRECT):
        check_pod(pod(HTTP), PORT, intercept)


@pytest.mark.parametrize(
    ("pod_spec", "intercept", "reason"),
    [
        (pod(HTTP, hostNetwork=True), "ServicePort", "HostNetwork"),
        (pod(HTTP, nodeSelector={"kubernetes.io/os": "windows"}), "ServicePort", "WindowsNode"),
        (pod(HTTP, os={"name": "windows"}), "ServicePort", "WindowsNode"),
        (pod(HTTP | {"hostPort": 80}), "NamedPort", "HostPort"),
        (pod(HTTP | {"hostPort": 80}), "ServicePort", "HostPort"),
        (pod(HTTP, volumes=[{"name": "openhqm-settings"}]), "ServicePort", "NameTaken"),
        (pod(HTTP, initContainers=[{"name": "openhqm"}]), "ServicePort", "NameTaken"),
        (pod(HTTP, initContainers=[{"name": "istio-proxy"}]), "Redirect", "MeshRedirects"),
        *(
            (pod(HTTP, {"containerPort": each}), "ServicePort", "PortClash")
            for each in (INTERCEPT_PORT, BYPASS_PORT, HEALTH_PORT, ADMIN_PORT)
        ),
    ],
)
def test_some_pods_cannot(pod_spec: dict[str, Any], intercept: str, reason: str) -> None:
    with pytest.raises(NotInjectable) as caught:
        check_pod(pod_spec, PORT, InterceptType(intercept))

    assert caught.value.reason == reason


def test_a_host_port_is_redirected_too() -> None:
    check_pod(pod(HTTP | {"hostPort": 80}), PORT, InterceptType.REDIRECT)


def test_a_named_port_needs_a_name() -> None:
    with pytest.raises(NotInjectable, match="name it, or choose ServicePort"):
        check_pod(pod({"containerPort": 80}), AppPort("app", None, 80), InterceptType.NAMED_PORT)


# --- the hash


def spec(**fields: Any) -> Spec:
    return Spec.model_validate({"targetRef": {"kind": "Deployment", "name": "legacy"}} | fields)


def digest(intercept: str = "ServicePort", port: AppPort = PORT, **fields: Any) -> str:
    return config_hash(spec(**fields), InterceptType(intercept), port)


BASE = digest()


def test_the_hash_is_the_same_everywhere_and_always() -> None:
    """Another value would roll every workload with the next upgrade."""
    assert BASE == "8b0a9b25210a4217"


@pytest.mark.parametrize(
    "changed",
    [
        digest("NamedPort"),
        digest(port=AppPort("app", "http", 8081)),
        digest(store={"secretRef": {"name": "redis"}}),
        digest(broker={"secretRef": {"name": "kafka"}}),
        digest(readiness="App"),
        digest(settings={"queue": {"maxBacklog": 5}}),
        digest(settings={"drain": {"timeoutSeconds": 60}}),
    ],
)
def test_what_a_running_sidecar_cannot_take_over_makes_another_hash(changed: str) -> None:
    assert changed != BASE


@pytest.mark.parametrize(
    "same",
    [
        digest(settings={"egress": {"concurrency": 2}, "retry": {"maxAttempts": 2}}),
        digest(settings={"queue": {"maxBacklog": 1_000_000}, "log": {"level": "info"}}),
        digest(settings={"drain": {}}),
        digest(routes=[{"action": "Pass"}]),
        digest(paused=True),
        digest(key={"header": "X-Customer"}),
        digest(scaling={"mode": "Native"}),
        digest(rollout="OnNextDeploy"),
    ],
)
def test_what_it_takes_over_while_running_does_not(same: str) -> None:
    assert same == BASE
