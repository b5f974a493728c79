"""A gateway's manifests: whole as a golden file, and what must hold for every one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.operator.objects import proxy, service

from openhqm.settings import load
from openhqm_operator.api import names
from openhqm_operator.api.spec import Spec
from openhqm_operator.gateway.manifests import (
    Gateway,
    app_ports,
    build_budget,
    build_deployment,
    build_service,
    build_slices,
    refresh_slice,
    service_name,
    slice_name,
)
from openhqm_operator.injecting.plan import AppPort
from openhqm_operator.injecting.platform_settings import Platform

GOLDEN = Path(__file__).parents[1] / "golden" / "gateway.yaml"
PLATFORM = Platform(image="registry/openhqm:1", pull_secrets=("pull",))
PORT = AppPort("app", "http", 8080)


def gateway(name: str = "legacy", **spec: Any) -> Gateway:
    made = proxy(name, **spec)
    return Gateway(made, Spec.model_validate(made["spec"]), PORT, {"app": "legacy"}, "0123")


def gateway_pod(number: int, *, is_ready: bool = True, **metadata: Any) -> dict[str, Any]:
    ready = {"type": "Ready", "status": "True" if is_ready else "False"}
    addresses = [{"ip": f"10.0.0.{number}"}, {"ip": f"fd00::{number}"}]
    return {
        "metadata": {"name": f"gateway-{number}", "namespace": "shop", "uid": f"g-{number}", **metadata},
        "spec": {"nodeName": f"node-{number}"},
        "status": {"podIP": addresses[0]["ip"], "podIPs": addresses, "conditions": [ready]},
    }


def slices(pods: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    return build_slices(proxy(), service(**changes), PORT, pods)


def test_the_manifests_are_what_they_were() -> None:
    """`GOLDEN=write pytest tests/operator/gateway` writes them anew; the diff shows what changed."""
    made = [
        build_service(gateway()),
        build_deployment(gateway(), PLATFORM),
        build_budget(gateway()),
        *slices([gateway_pod(1), gateway_pod(2, is_ready=False)]),
    ]
    text = yaml.safe_dump_all(made, sort_keys=False, width=110)

    if os.environ.get("GOLDEN") == "write":
        GOLDEN.write_text(text)

    assert text == GOLDEN.read_text()


# --- the Pods ----------------------------------------------------------------------------------------------


def pod_spec(**spec: Any) -> dict[str, Any]:
    found: dict[str, Any] = build_deployment(gateway(**spec), PLATFORM)["spec"]["template"]["spec"]
    return found


def environment(**spec: Any) -> dict[str, Any]:
    [container] = pod_spec(**spec)["containers"]
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def test_the_sidecar_takes_its_settings_and_only_takes_in() -> None:
    secrets = {"OPENHQM_STORE__URL": "redis://store", "OPENHQM_HANDLE__KEYS": "k" * 64}
    found = load(environ=environment() | secrets, flags={"mode": "ingress"})

    assert (found.mode, found.app.url) == ("ingress", "http://legacy-openhqm-app.shop.svc:8080")
    assert found.queue.name == "shop.legacy"
    assert found.ingress.hold_seconds == 60
    [container] = pod_spec()["containers"]
    assert container["args"] == ["serve", "--mode", "ingress", "--config", "/etc/openhqm/settings.yaml"]


@pytest.mark.parametrize(
    ("asked", "held"), [({}, "60"), ({"holdSeconds": 0}, "60"), ({"holdSeconds": 5}, "5")]
)
def test_what_cannot_be_queued_is_held_as_long_as_the_async_proxy_says(
    asked: dict[str, int], held: str
) -> None:
    found = environment(settings={"ingress": asked})

    assert found["OPENHQM_INGRESS__HOLD_SECONDS"] == held


def test_store_and_handle_keys_are_the_sidecars_own() -> None:
    chosen = {"secretRef": {"name": "theirs", "key": "dsn"}, "previousSecretRef": {"name": "old"}}

    assert environment()["OPENHQM_STORE__URL"] == {"secretKeyRef": {"name": "openhqm-store", "key": "url"}}
    found = environment(store=chosen)
    assert found["OPENHQM_STORE__URL"] == {"secretKeyRef": {"name": "theirs", "key": "dsn"}}
    assert found["OPENHQM_STORE__PREVIOUS_URL"] == {"secretKeyRef": {"name": "old", "key": "url"}}
    assert found["OPENHQM_HANDLE__KEYS"] == {
        "secretKeyRef": {"name": "legacy-openhqm-handles", "key": "keys"}
    }


def test_the_pods_pass_pod_security_restricted_and_hold_no_token() -> None:
    spec = pod_spec()
    [container] = spec["containers"]

    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert "lifecycle" not in container
    assert "restartPolicy" not in container


def test_the_webhook_keeps_away_and_no_service_of_the_app_selects_the_pods() -> None:
    labels = build_deployment(gateway(), PLATFORM)["spec"]["template"]["metadata"]["labels"]

    assert labels[names.INJECT_LABEL] == "disabled"
    assert labels[names.PROXY_LABEL] == "legacy"
    assert "app" not in labels


def test_the_drain_has_its_time() -> None:
    assert pod_spec()["terminationGracePeriodSeconds"] == 30
    assert pod_spec(settings={"drain": {"timeoutSeconds": 70}})["terminationGracePeriodSeconds"] == 75


def test_another_image_or_configuration_makes_another_manifest() -> None:
    def digest(platform: Platform, **spec: Any) -> str:
        made = build_deployment(gateway(**spec), platform)
        return str(made["metadata"]["annotations"][names.MANIFEST_ANNOTATION])

    assert digest(PLATFORM) == digest(PLATFORM)
    assert digest(PLATFORM) != digest(Platform(image="registry/openhqm:2"))
    assert digest(PLATFORM) != digest(PLATFORM, store={"secretRef": {"name": "theirs"}})


# --- names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["legacy", "legacy.v2", "2fa", "a" * 253])
def test_the_services_name_is_one(name: str) -> None:
    assert len(service_name(name)) <= 63
    assert service_name(name)[0].isalpha()
    assert "." not in service_name(name)
    assert service_name(name) != service_name(f"{name[:-1]}x")


def test_no_two_pairs_of_proxy_and_service_share_a_slice() -> None:
    assert slice_name("a-b", "c", "IPv4") != slice_name("a", "b-c", "IPv4")
    assert slice_name("a", "b", "IPv4") != slice_name("a", "b", "IPv6")
    assert len(slice_name("a" * 253, "b" * 63, "IPv4")) <= 253


# --- endpoints ----------------------------------------------------------------------------------------------


def test_a_slice_names_all_ports_that_lead_to_the_app_and_no_other() -> None:
    ports = [
        {"name": "web", "port": 80, "targetPort": "http"},
        {"name": "alt", "port": 8080, "appProtocol": "http"},
        {"name": "led", "port": 81, "targetPort": names.INTERCEPT_PORT},
        {"name": "metrics", "port": 9090},
        {"name": "quic", "port": 8080, "protocol": "UDP"},
    ]
    [made] = slices([], ports=ports)

    assert [one["name"] for one in app_ports(service(ports=ports), PORT)] == ["web", "alt", "led"]
    assert made["ports"] == [
        {"name": "web", "port": 16080, "protocol": "TCP"},
        {"name": "alt", "port": 16080, "protocol": "TCP", "appProtocol": "http"},
        {"name": "led", "port": 16080, "protocol": "TCP"},
    ]


def test_each_family_of_the_service_has_its_slice() -> None:
    four, six = slices([gateway_pod(1)], ipFamilies=["IPv4", "IPv6"])

    assert (four["addressType"], four["endpoints"][0]["addresses"]) == ("IPv4", ["10.0.0.1"])
    assert (six["addressType"], six["endpoints"][0]["addresses"]) == ("IPv6", ["fd00::1"])
    assert four["metadata"]["name"] != six["metadata"]["name"]


def test_an_endpoint_says_what_its_pod_is_like() -> None:
    pods = [
        gateway_pod(3, deletionTimestamp="2026-11-22T12:00:00Z"),
        gateway_pod(2, is_ready=False),
        gateway_pod(1),
    ]
    [made] = slices(pods)

    assert [one["conditions"] for one in made["endpoints"]] == [
        {"ready": True, "serving": True, "terminating": False},
        {"ready": False, "serving": False, "terminating": False},
        {"ready": False, "serving": True, "terminating": True},
    ]
    assert made["endpoints"][0]["nodeName"] == "node-1"
    assert made["endpoints"][0]["targetRef"] == {
        "kind": "Pod",
        "namespace": "shop",
        "name": "gateway-1",
        "uid": "g-1",
    }


def test_a_pod_without_an_address_or_at_its_end_is_no_endpoint() -> None:
    without, ended = gateway_pod(1), gateway_pod(2)
    without["status"] = {"phase": "Pending"}
    ended["status"]["phase"] = "Failed"

    assert slices([without, ended])[0]["endpoints"] == []


def test_a_refreshed_slice_is_the_one_made_with_those_pods() -> None:
    [before], [after] = slices([gateway_pod(1)]), slices([gateway_pod(2)])

    assert refresh_slice(proxy(), before, [gateway_pod(2)]) == after
