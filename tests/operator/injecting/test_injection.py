"""A Pod with its sidecar: whole Pods as golden files, and what must hold for every Pod."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.operator.pods import PLATFORM, TOKEN, legacy, proxy

from openhqm.settings import load
from openhqm_operator.api.names import HEALTH_PORT, INJECTED_ANNOTATION, INTERCEPT_PORT
from openhqm_operator.api.spec import InterceptType, Spec
from openhqm_operator.injecting.injection import Injected, inject
from openhqm_operator.injecting.plan import NotInjectable, config_hash, find_app_port
from openhqm_operator.injecting.platform_settings import Platform

GOLDEN = Path(__file__).parents[1] / "golden"
MODES = ("NamedPort", "ServicePort", "Redirect")


def injected(pod: dict[str, Any], intercept: str = "ServicePort", **spec: Any) -> dict[str, Any]:
    return inject(pod, proxy(intercept, **spec), PLATFORM, TOKEN).pod


def sidecar_of(pod: dict[str, Any]) -> dict[str, Any]:
    return next(each for each in pod["spec"]["initContainers"] if each["name"] == "openhqm")


def app_of(pod: dict[str, Any]) -> dict[str, Any]:
    return pod["spec"]["containers"][0]


def environment(pod: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in sidecar_of(pod)["env"] if "value" in each}


# --- whole Pods


@pytest.mark.parametrize("intercept", MODES)
def test_the_whole_pod(intercept: str) -> None:
    """`OPENHQM_GOLDEN=write pytest ...` writes the files anew."""
    pod = injected(legacy(), intercept)
    pod["metadata"]["annotations"][INJECTED_ANNOTATION] = "{...}"
    path = GOLDEN / f"injected-{intercept}.yaml"
    text = yaml.safe_dump(pod, sort_keys=False, width=110)
    if os.environ.get("OPENHQM_GOLDEN") == "write":
        path.write_text(text)

    assert text == path.read_text()


def test_the_pod_given_is_left_alone() -> None:
    pod = legacy()

    injected(pod, "NamedPort")

    assert pod == legacy()


def test_the_annotation_says_what_was_done() -> None:
    pod = injected(legacy(), "NamedPort")

    said = json.loads(pod["metadata"]["annotations"][INJECTED_ANNOTATION])
    spec = Spec.model_validate(proxy()["spec"])
    assert said["intercept"] == "NamedPort"
    assert said["hash"] == config_hash(
        spec, InterceptType.NAMED_PORT, find_app_port(legacy()["spec"], "http")
    )
    assert pod["metadata"]["annotations"]["openhqm.io/config-hash"] == "0123"


# --- again


@pytest.mark.parametrize("intercept", MODES)
def test_once_more_changes_nothing(intercept: str) -> None:
    once = injected(legacy(), intercept)

    again = inject(once, proxy("ServicePort", readiness="App"), PLATFORM, "another token")

    assert again == Injected(once)


def test_a_container_that_came_since_gets_its_hook() -> None:
    """Other webhooks run after ours, and ours then once more."""
    pod = injected(legacy())
    pod["spec"]["containers"].append({"name": "istio-proxy", "image": "mesh"})

    again = inject(pod, proxy(), PLATFORM, "another token").pod

    header = again["spec"]["containers"][2]["lifecycle"]["preStop"]["httpGet"]["httpHeaders"]
    assert header == [{"name": "OpenHQM-Pod-Token", "value": TOKEN}]


def test_a_mesh_that_came_since_is_refused_where_both_redirect() -> None:
    pod = injected(legacy(), "Redirect")
    pod["spec"]["containers"].append({"name": "istio-proxy", "image": "mesh"})

    with pytest.raises(NotInjectable, match="istio-proxy redirects the Pod's traffic already"):
        inject(pod, proxy("Redirect"), PLATFORM, TOKEN)


def test_the_annotation_alone_is_not_believed() -> None:
    pod = legacy()
    pod["metadata"]["annotations"][INJECTED_ANNOTATION] = "{}"

    assert sidecar_of(injected(pod))


# --- ports


def test_a_named_port_keeps_its_name_and_means_the_sidecar() -> None:
    pod = injected(legacy(), "NamedPort")

    assert app_of(pod)["ports"] == [
        {"name": "http", "containerPort": INTERCEPT_PORT, "protocol": "TCP"},
        {"name": "admin", "containerPort": 9000, "protocol": "TCP"},
        {"containerPort": 8080, "protocol": "TCP"},
    ]
    # Twice the same port in a Pod, and the API server would warn at each.
    assert [port["containerPort"] for port in sidecar_of(pod)["ports"]] == [HEALTH_PORT]


def test_all_names_of_the_port_are_handed_over() -> None:
    pod = legacy()
    app_of(pod)["ports"].append({"name": "web", "containerPort": 8080})

    ports = app_of(injected(pod, "NamedPort"))["ports"]

    assert {port["name"]: port["containerPort"] for port in ports if "name" in port} == {
        "http": INTERCEPT_PORT,
        "web": INTERCEPT_PORT,
        "admin": 9000,
    }


@pytest.mark.parametrize("intercept", ["ServicePort", "Redirect"])
def test_otherwise_ports_stay_and_the_sidecar_declares_its_own(intercept: str) -> None:
    pod = injected(legacy(), intercept)

    assert app_of(pod)["ports"] == app_of(legacy())["ports"]
    assert {port["name"]: port["containerPort"] for port in sidecar_of(pod)["ports"]} == {
        "openhqm": INTERCEPT_PORT,
        "openhqm-health": HEALTH_PORT,
    }


# --- probes and hooks


def test_named_ports_in_probes_and_hooks_become_the_app_s_number() -> None:
    app = app_of(injected(legacy(), "NamedPort"))

    assert app["livenessProbe"] == {"httpGet": {"path": "/alive", "port": 8080}, "periodSeconds": 7}
    assert app["lifecycle"]["postStart"]["httpGet"]["port"] == 8080


def test_the_app_s_readiness_goes_through_the_sidecar() -> None:
    pod = injected(legacy())

    assert app_of(pod)["readinessProbe"] == {
        "httpGet": {"path": "/app-ready/app", "port": HEALTH_PORT, "scheme": "HTTP"},
        "timeoutSeconds": 3,
        "failureThreshold": 4,
    }
    assert json.loads(environment(pod)["OPENHQM_POD__PROBES"]) == {
        "app": {
            "http": {
                "port": 8080,
                "path": "/ready?deep=1",
                "scheme": "HTTP",
                "headers": [["X-Probe", "1"]],
                "timeout_seconds": 3.0,
            }
        }
    }


@pytest.mark.parametrize(
    ("probe", "relayed"),
    [
        ({"tcpSocket": {"port": "http"}}, {"tcp": {"port": 8080, "timeout_seconds": 1.0}}),
        ({"grpc": {"port": 9000}}, {"grpc": {"port": 9000, "service": "", "timeout_seconds": 1.0}}),
    ],
)
def test_readiness_by_other_means_is_relayed_too(probe: dict[str, Any], relayed: dict[str, Any]) -> None:
    pod = legacy()
    app_of(pod)["readinessProbe"] = copy.deepcopy(probe)

    assert json.loads(environment(injected(pod))["OPENHQM_POD__PROBES"]) == {"app": relayed}


@pytest.mark.parametrize(
    "probe", [{"exec": {"command": ["true"]}}, {"httpGet": {"port": 80, "host": "10.0.0.1"}}]
)
def test_what_cannot_be_relayed_stays(probe: dict[str, Any]) -> None:
    pod = legacy()
    app_of(pod)["readinessProbe"] = probe

    again = injected(pod)

    assert app_of(again)["readinessProbe"] == probe
    assert "OPENHQM_POD__PROBES" not in environment(again)


def test_a_readiness_command_is_warned_about() -> None:
    pod = legacy()
    app_of(pod)["readinessProbe"] = {"exec": {"command": ["true"]}}

    [warning] = inject(pod, proxy(), PLATFORM, TOKEN).warnings

    assert "is a command and keeps its meaning" in warning


def test_the_app_s_own_readiness_stays_if_asked_for() -> None:
    pod = injected(legacy(), readiness="App")

    assert app_of(pod)["readinessProbe"]["httpGet"]["port"] == 8080
    assert "OPENHQM_POD__PROBES" not in environment(pod)


def test_where_the_port_is_redirected_probes_go_past_it() -> None:
    pod = legacy()
    pod["spec"]["containers"][1]["readinessProbe"] = {"tcpSocket": {"port": 8080}}

    app, logger = injected(pod, "Redirect", readiness="App")["spec"]["containers"]

    assert app["startupProbe"]["tcpSocket"]["port"] == 16081
    assert app["livenessProbe"]["httpGet"]["port"] == 16081
    assert app["readinessProbe"]["httpGet"]["port"] == 16081
    assert app["lifecycle"]["postStart"]["httpGet"]["port"] == 16081
    assert logger["readinessProbe"]["tcpSocket"]["port"] == 16081


def test_only_containers_without_a_hook_get_one() -> None:
    app, logger = injected(legacy())["spec"]["containers"]

    hook = app["lifecycle"]["preStop"]["httpGet"]
    assert (hook["path"], hook["port"], "host" in hook) == ("/app-stopping", HEALTH_PORT, False)
    assert logger["lifecycle"] == {"preStop": {"exec": {"command": ["flush"]}}}


@pytest.mark.parametrize(("given", "drain", "expected"), [(20, 25, 50), (None, 25, 60), (0, 60, 65)])
def test_the_grace_period_has_room_for_the_drain(given: int | None, drain: int, expected: int) -> None:
    pod = legacy(terminationGracePeriodSeconds=given)

    spec = injected(pod, settings={"drain": {"timeoutSeconds": drain}})["spec"]

    assert spec["terminationGracePeriodSeconds"] == expected


# --- the sidecar


def test_the_sidecar_can_read_its_environment() -> None:
    variables = environment(injected(legacy())) | {
        "OPENHQM_STORE__URL": "redis://store",
        "OPENHQM_HANDLE__KEYS": "a-key-of-enough-length",
    }

    settings = load(environ=variables)

    assert settings.app.url == "http://127.0.0.1:8080"
    assert (settings.ingress.port, settings.health.port, settings.admin.port) == (16080, 16020, 16000)
    assert settings.queue.name == "shop.legacy"
    assert settings.pod.token is not None
    assert settings.pod.token.get_secret_value() == TOKEN
    assert settings.pod.probes["app"].http is not None
    assert settings.pod.probes["app"].http.path == "/ready?deep=1"


def test_secrets_come_from_secrets() -> None:
    pod = injected(legacy(), store={"secretRef": {"name": "my-redis", "key": "dsn"}})

    references = {
        each["name"]: each["valueFrom"]["secretKeyRef"]
        for each in sidecar_of(pod)["env"]
        if "valueFrom" in each
    }
    assert references == {
        "OPENHQM_STORE__URL": {"name": "my-redis", "key": "dsn"},
        "OPENHQM_HANDLE__KEYS": {"name": "legacy-openhqm-handles", "key": "keys"},
    }


def test_a_store_used_before_is_named_too() -> None:
    before = {"secretRef": {"name": "new"}, "previousSecretRef": {"name": "old", "key": "dsn"}}

    pod = injected(legacy(), store=before)

    [previous] = [each for each in sidecar_of(pod)["env"] if each["name"] == "OPENHQM_STORE__PREVIOUS_URL"]
    assert previous["valueFrom"]["secretKeyRef"] == {"name": "old", "key": "dsn"}


def test_stores_in_force_go_before_those_asked_for() -> None:
    """The operator finishes the previous one first; a Pod that is replaced meanwhile helps."""
    before = {"secretRef": {"name": "new"}, "previousSecretRef": {"name": "old"}}
    asked = proxy(store={"secretRef": {"name": "new"}})
    asked["status"] = {**asked["status"], "store": before}

    pod = inject(legacy(), asked, PLATFORM, TOKEN).pod

    assert [one["name"] for one in sidecar_of(pod)["env"]].count("OPENHQM_STORE__PREVIOUS_URL") == 1


def test_the_proxy_s_own_log_settings_win_over_the_administrator_s() -> None:
    platform = PLATFORM.model_copy(update={"log": PLATFORM.log.model_copy(update={"level": "debug"})})

    plain = inject(legacy(), proxy(), platform, TOKEN).pod
    own = inject(legacy(), proxy(settings={"log": {"level": "error"}}), platform, TOKEN).pod

    assert environment(plain)["OPENHQM_LOG__LEVEL"] == "debug"
    assert "OPENHQM_LOG__LEVEL" not in environment(own)


def test_a_platform_may_pick_the_user_itself() -> None:
    pod = inject(legacy(), proxy(), Platform(image="i", uid=None), TOKEN).pod

    assert sidecar_of(pod)["securityContext"].keys().isdisjoint({"runAsUser", "runAsGroup"})
    assert sidecar_of(pod)["securityContext"]["runAsNonRoot"] is True


@pytest.mark.parametrize("container", ["openhqm", "openhqm-redirect"])
def test_the_app_s_token_is_out_of_reach(container: str) -> None:
    pod = injected(legacy(), "Redirect")

    ours = next(each for each in pod["spec"]["initContainers"] if each["name"] == container)
    [cover] = [m for m in ours["volumeMounts"] if m["mountPath"].endswith("/serviceaccount")]
    assert {"name": cover["name"], "emptyDir": {}} in pod["spec"]["volumes"]


@pytest.mark.parametrize("intercept", ["NamedPort", "ServicePort"])
def test_passes_pod_security_restricted(intercept: str) -> None:
    """Source: the restricted profile of Kubernetes 1.34, for containers and volumes of ours."""
    pod = injected(legacy(), intercept)

    security = sidecar_of(pod)["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] != 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "privileged" not in security
    assert all(volume.keys() & {"emptyDir", "configMap"} for volume in pod["spec"]["volumes"])
    assert not any("hostPort" in port for port in sidecar_of(pod)["ports"])


def test_a_volume_for_an_embedded_store_is_the_pod_s_own() -> None:
    claim = {"name": "openhqm-data", "persistentVolumeClaim": {"claimName": "legacy"}}

    pod = injected(legacy(volumes=[claim]))

    assert [each for each in pod["spec"]["volumes"] if each["name"] == "openhqm-data"] == [claim]
    assert {"name": "openhqm-data", "mountPath": "/data"} in sidecar_of(pod)["volumeMounts"]


def test_pull_secrets_are_added_once() -> None:
    pod = injected(legacy(imagePullSecrets=[{"name": "mine"}]))
    same = injected(legacy(imagePullSecrets=[{"name": "pull"}]))

    assert pod["spec"]["imagePullSecrets"] == [{"name": "mine"}, {"name": "pull"}]
    assert same["spec"]["imagePullSecrets"] == [{"name": "pull"}]


# --- what cannot be done


def test_what_the_operator_has_not_decided_is_refused() -> None:
    undecided = proxy()
    del undecided["status"]

    with pytest.raises(NotInjectable, match="has not decided how traffic reaches the sidecar") as caught:
        inject(legacy(), undecided, PLATFORM, TOKEN)

    assert caught.value.reason == "NotDecided"


def test_a_field_of_a_later_version_is_named() -> None:
    with pytest.raises(NotInjectable, match=r"AsyncProxy legacy: spec\.surprise: Extra inputs"):
        injected(legacy(), surprise=1)


def test_redirect_needs_an_image() -> None:
    with pytest.raises(NotInjectable, match="not offered in this cluster"):
        inject(legacy(), proxy("Redirect"), Platform(image="i"), TOKEN)


# --- every Pod

NAMES = st.sampled_from(["http", "web", "admin", "grpc"])
PORTS = st.lists(
    st.fixed_dictionaries(
        {"containerPort": st.sampled_from([80, 8080, 9000])},
        optional={"name": NAMES, "protocol": st.sampled_from(["TCP", "UDP"])},
    ),
    max_size=3,
    unique_by=lambda port: port.get("name", id(port)),
)
ACTIONS = st.one_of(
    st.builds(lambda port: {"httpGet": {"path": "/", "port": port}}, NAMES | st.just(8080)),
    st.builds(lambda port: {"tcpSocket": {"port": port}}, NAMES | st.just(8080)),
    st.just({"grpc": {"port": 8080}}),
    st.just({"exec": {"command": ["true"]}}),
)
CONTAINERS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["app", "other", "istio-proxy"]), "image": st.just("i"), "ports": PORTS},
        optional={
            "readinessProbe": ACTIONS,
            "livenessProbe": ACTIONS,
            "lifecycle": st.fixed_dictionaries({}, optional={"preStop": ACTIONS, "postStart": ACTIONS}),
        },
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda container: container["name"],
)
PODS = st.builds(lambda containers, **more: legacy(containers=containers, **more), CONTAINERS)
CHANGED = {"ports", "readinessProbe", "livenessProbe", "startupProbe", "lifecycle"}


@settings(deadline=None)
@given(
    pod=PODS,
    port=st.sampled_from([None, "http", 8080]),
    mode=st.sampled_from(MODES),
    readiness=st.sampled_from(["Proxy", "App"]),
)
def test_what_holds_for_every_pod(pod: dict[str, Any], port: Any, mode: str, readiness: str) -> None:
    """Injected once or twice is the same; nothing of the user's changes but what is said to."""
    spec = {"readiness": readiness} | ({} if port is None else {"port": port})
    try:
        once = injected(pod, mode, **spec)
    except NotInjectable:
        return

    assert inject(once, proxy(mode, **spec), PLATFORM, "another").pod == once
    assert len(once["spec"]["containers"]) == len(pod["spec"]["containers"])
    for before, after in zip(pod["spec"]["containers"], once["spec"]["containers"], strict=True):
        assert {k: v for k, v in before.items() if k not in CHANGED} == {
            k: v for k, v in after.items() if k not in CHANGED
        }
        assert after["lifecycle"]["preStop"]
        numbers = {each["containerPort"] for each in before["ports"]}
        assert numbers <= {each["containerPort"] for each in after["ports"]}
    assert (
        once["spec"]["initContainers"][: len(pod["spec"]["initContainers"])] == pod["spec"]["initContainers"]
    )
