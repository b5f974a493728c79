"""What the chart makes: valid, complete, and the same as last time unless somebody wants it otherwise."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from helm_python import lint
from tests.charts import schemas
from tests.charts.rendering import (
    CHART,
    NAMESPACE,
    RELEASE,
    VARIANTS,
    find,
    notes,
    of_kind,
    pod_specs,
    render,
    rendered,
    values_of,
    without_secrets,
)

from openhqm.settings_file import load_file
from openhqm_operator.api import names
from openhqm_operator.certificates.rotation import Mode
from openhqm_operator.operator_settings import OperatorSettings
from openhqm_operator.webhook.settings import InjectorSettings

ROOT = CHART.parents[1]
GOLDEN = Path(__file__).parent / "golden"
VERSIONS = ("1.30", "1.34", schemas.LATEST)
"""Kubernetes versions whose schemas the objects must fit; 1.29 lacks only ValidatingAdmissionPolicy v1."""

UNKNOWN_TO_KUBERNETES = {"Certificate", "Issuer", "PodMonitor", "PrometheusRule", "ServiceMonitor"}
"""Kinds of others; their schemas are not Kubernetes'."""


@pytest.mark.parametrize("variant", VARIANTS)
def test_lint_finds_nothing(variant: str) -> None:
    report = lint(
        CHART,
        values_of(variant),
        strict=True,
        namespace=NAMESPACE,
        kube_version="v1.29.0",
        with_subcharts=True,
    )

    complaints = [each for each in report["messages"] if "icon is recommended" not in each["error"]]
    assert (complaints, report["errors"]) == ([], [])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_objects_fit_their_schemas(variant: str, version: str) -> None:
    for obj in rendered(variant):
        if obj["kind"] not in UNKNOWN_TO_KUBERNETES | {"CustomResourceDefinition"}:
            schemas.check(obj, version)


@pytest.mark.parametrize("variant", ["default", "everything", "namespaced"])
def test_rendering_is_what_it_was(variant: str) -> None:
    """Golden files. `GOLDEN=write pytest tests/charts` writes them anew; the diff shows what changed."""
    objects = [obj for obj in without_secrets(rendered(variant)) if not _is_ours_elsewhere(obj)]
    text = yaml.safe_dump_all(objects, sort_keys=False, width=110)
    golden = GOLDEN / f"{variant}.yaml"

    if os.environ.get("GOLDEN") == "write":
        golden.write_text(text)

    assert text == golden.read_text()


def _is_ours_elsewhere(obj: dict) -> bool:
    """What is compared with its source instead."""
    is_dashboard = obj["kind"] == "ConfigMap" and obj["metadata"]["name"].endswith("-dashboard")
    return is_dashboard or obj["kind"] == "CustomResourceDefinition"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_object_says_where_it_belongs(variant: str) -> None:
    values = values_of(variant)
    for obj in render(values):
        metadata = obj["metadata"]
        if metadata["name"].endswith("-extra"):
            continue
        labels = metadata["labels"]
        assert labels["app.kubernetes.io/instance"] == RELEASE, metadata["name"]
        assert labels["app.kubernetes.io/managed-by"] == "Helm", "openhqm would make it the operator's"
        assert values.get("commonLabels", {}).items() <= labels.items()


def test_rendering_twice_differs_in_nothing_but_what_is_random() -> None:
    """No drift where manifests are rendered again and again."""
    assert without_secrets(render()) == without_secrets(render())


# --- the definition ------------------------------------------------------------------------------------


def test_definition_is_the_committed_one() -> None:
    committed = (ROOT / "crds" / "asyncproxies.yaml").read_text()
    assert (CHART / "files" / "asyncproxies.yaml").read_text() == committed, "make crd"

    [rendered] = of_kind(render(), "CustomResourceDefinition")

    metadata = rendered["metadata"]
    assert metadata.pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert metadata.pop("labels")
    assert rendered == yaml.safe_load(committed)


def test_definition_can_be_left_out_and_be_let_go() -> None:
    assert not of_kind(render({"crds": {"install": False}}), "CustomResourceDefinition")
    [going] = of_kind(render({"crds": {"keep": False}}), "CustomResourceDefinition")
    assert "annotations" not in going["metadata"]


# --- Pods ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_pods_pass_pod_security_restricted(variant: str) -> None:
    for where, pod in pod_specs(rendered(variant)):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, where
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert {*pod} & {"hostPID", "hostIPC"} == set(), where
        for container in pod["containers"]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, where
            assert own["capabilities"] == {"drop": ["ALL"]}, where
            assert own["readOnlyRootFilesystem"] is True, where
            assert container["resources"]["limits"]["memory"], where


@pytest.mark.parametrize("variant", VARIANTS)
def test_ports_that_services_name_exist(variant: str) -> None:
    objects = rendered(variant)
    for service in of_kind(objects, "Service"):
        labels = service["spec"]["selector"]
        [pod] = [
            obj["spec"]["template"]
            for obj in objects
            if obj["kind"] in ("Deployment", "StatefulSet")
            and labels.items() <= obj["spec"]["template"]["metadata"]["labels"].items()
        ]
        ports = {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports, service["metadata"]["name"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_images_come_from_the_mirror(variant: str) -> None:
    values = values_of(variant) | {"global": {"imageRegistry": "mirror.example:5000"}}
    objects = render(values)

    images = [container["image"] for _, pod in pod_specs(objects) for container in pod["containers"]]
    config = find(objects, "ConfigMap", "openhqm-injector")["data"]["injector.yaml"]
    images.append(yaml.safe_load(config)["platform"]["image"])

    assert all(image.startswith("mirror.example:5000/") for image in images)


def test_image_by_digest() -> None:
    digest = f"sha256:{'0' * 64}"

    objects = render({"operator": {"image": {"digest": digest}}})

    image = find(objects, "Deployment", "openhqm-operator")["spec"]["template"]["spec"]["containers"][0][
        "image"
    ]
    assert image == f"ghcr.io/openhqm/openhqm-operator@{digest}"


# --- settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_are_what_the_processes_read(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = rendered(variant)
    monkeypatch.setenv("REDIS_PASSWORD", "secret")
    monkeypatch.setenv("STORE_URL", "rediss://operator:secret@redis.example:6379/0")
    injector, operator = tmp_path / "injector.yaml", tmp_path / "operator.yaml"
    injector.write_text(find(objects, "ConfigMap", "openhqm-injector")["data"]["injector.yaml"])
    operator.write_text(find(objects, "ConfigMap", "openhqm-operator")["data"]["operator.yaml"])

    platform = load_file(InjectorSettings, injector, os.environ).platform
    settings = load_file(OperatorSettings, operator, os.environ)

    assert platform.image
    assert settings.gateway == (platform if _has_gateways(variant) else None)
    assert settings.lease.namespace == NAMESPACE
    assert settings.certificates is not None


def test_gateways_turned_off_can_be_taken_away_and_none_made() -> None:
    role = find(render({"gateway": {"enabled": False}}), "ClusterRole", "openhqm-operator")
    verbs: dict[str, set[str]] = {}
    for rule in role["rules"]:
        for resource in rule["resources"]:
            verbs.setdefault(resource, set()).update(rule["verbs"])

    for resource in ("deployments", "services", "endpointslices", "poddisruptionbudgets"):
        assert verbs[resource] >= {"get", "list", "watch", "delete"}
        assert "create" not in verbs[resource]


def _has_gateways(variant: str) -> bool:
    return bool(values_of(variant).get("gateway", {}).get("enabled", True))


def test_certificate_modes_are_the_operators() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    modes = schema["properties"]["webhook"]["properties"]["certs"]["properties"]["mode"]["enum"]

    assert set(modes) == {mode.value for mode in Mode}


@pytest.mark.parametrize("variant", VARIANTS)
def test_credentials_are_in_no_settings(variant: str) -> None:
    values = values_of(variant)
    if variant == "default":
        values = {"redis": {"external": {"url": "redis://admin:hunter2@redis.example:6379/0"}}}
    for obj in render(values):
        if obj["kind"] != "Secret":
            assert "hunter2" not in json.dumps(obj), obj["metadata"]["name"]


def test_external_store_by_url_turns_the_bundled_one_off() -> None:
    objects = render({"redis": {"external": {"url": "rediss://admin:pw@redis.example:6380/2"}}})

    assert not of_kind(objects, "StatefulSet")
    assert (
        find(objects, "Secret", "openhqm-store")["stringData"]["url"]
        == "rediss://admin:pw@redis.example:6380/2"
    )
    settings = yaml.safe_load(find(objects, "ConfigMap", "openhqm-operator")["data"]["operator.yaml"])
    assert settings["store"] == {"url": "${STORE_URL}", "public_url": "rediss://redis.example:6380/2"}


# --- the webhook -------------------------------------------------------------------------------------------


def test_webhook_sees_only_pods_that_ask() -> None:
    [webhook] = find(render(), "MutatingWebhookConfiguration", "openhqm")["webhooks"]

    assert {
        name: webhook[name]
        for name in ("failurePolicy", "timeoutSeconds", "matchPolicy", "sideEffects", "reinvocationPolicy")
    } == {
        "failurePolicy": "Fail",
        "timeoutSeconds": 5,
        "matchPolicy": "Equivalent",
        "sideEffects": "None",
        "reinvocationPolicy": "IfNeeded",
    }
    assert {"key": names.PROXY_LABEL, "operator": "Exists"} in webhook["objectSelector"]["matchExpressions"]
    disabled = {"key": names.INJECT_LABEL, "operator": "NotIn", "values": ["disabled"]}
    assert disabled in webhook["objectSelector"]["matchExpressions"]
    assert disabled in webhook["namespaceSelector"]["matchExpressions"]
    [excluded] = [
        each["values"]
        for each in webhook["namespaceSelector"]["matchExpressions"]
        if (each["key"], each["operator"]) == ("kubernetes.io/metadata.name", "NotIn")
    ]
    assert {"kube-system", NAMESPACE} <= set(excluded)
    assert "caBundle" not in webhook["clientConfig"]


def test_certificate_names_what_the_webhook_calls() -> None:
    objects = render()
    [webhook] = find(objects, "MutatingWebhookConfiguration", "openhqm")["webhooks"]
    service = webhook["clientConfig"]["service"]
    settings = yaml.safe_load(find(objects, "ConfigMap", "openhqm-operator")["data"]["operator.yaml"])

    assert f"{service['name']}.{service['namespace']}.svc" in settings["certificates"]["hosts"]
    assert settings["certificates"]["webhook"] == "openhqm"


def test_releases_in_two_namespaces_share_nothing_cluster_wide() -> None:
    first = {
        (obj["kind"], obj["metadata"]["name"]) for obj in render(namespace="openhqm") if _is_cluster_wide(obj)
    }
    second = {
        (obj["kind"], obj["metadata"]["name"]) for obj in render(namespace="other") if _is_cluster_wide(obj)
    }

    assert first & second == {("CustomResourceDefinition", "asyncproxies.openhqm.io")}


def _is_cluster_wide(obj: dict) -> bool:
    return "namespace" not in obj["metadata"]


# --- values ----------------------------------------------------------------------------------------------


def test_every_value_has_a_comment() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    bare = []
    for number, line in enumerate(lines):
        is_value = re.match(r"^ *[A-Za-z]+:", line) is not None
        opens_area = line.rstrip().endswith(":")
        if is_value and not opens_area and not _has_comment(lines, number):
            bare.append(line.strip())
    assert bare == []


def _has_comment(lines: list[str], number: int) -> bool:
    """Above it, or above the value of the same block right before it (`requests`, `limits`)."""
    before = lines[number - 1].strip()
    return before.startswith("#") or lines[number].strip().startswith(("requests:", "limits:", "secretKey:"))


def test_defaults_fit_their_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load((CHART / "values.yaml").read_text()), schema)


def test_schema_knows_exactly_the_values() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(part: dict, value: object, where: str) -> None:
        part = schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        if not part.get("properties"):
            return
        assert where == "values.global" or part["additionalProperties"] is False, where
        assert isinstance(value, dict), where
        assert set(value) <= set(part["properties"]), where
        for name in value:
            compare(part["properties"][name], value[name], f"{where}.{name}")

    compare(schema, values, "values")


# --- the rest ----------------------------------------------------------------------------------------------


def test_notes_say_the_next_command() -> None:
    assert "annotate deployment <name> openhqm.io/enabled=true" in notes()
    assert "kubectl -n shop annotate" in notes(values_of("namespaced"))
    assert "must name its store" in notes(values_of("no-store"))
    assert "One injector alone" in notes(values_of("namespaced"))


def test_redis_keeps_everything_and_its_administrator_to_itself(tmp_path: Path) -> None:
    """The start script, run: the administrator's line is made anew, users of namespaces stay."""
    config = find(render(), "ConfigMap", "openhqm-redis")["data"]
    assert "appendfsync always" in config["redis.conf"]
    assert "maxmemory-policy noeviction" in config["redis.conf"]
    assert "requirepass" not in config["redis.conf"]
    folder, binaries = tmp_path / "data", tmp_path / "bin"
    folder.mkdir()
    binaries.mkdir()
    (folder / "users.acl").write_text(
        "user default on nopass ~* &* +@all\nuser openhqm on #0\nuser ns-shop on #1 ~a\n"
    )
    (binaries / "redis-server").write_text('#!/bin/sh\nenv | grep -c REDIS_PASSWORD; echo "started $1"\n')
    (binaries / "redis-server").chmod(0o755)
    script = config["start.sh"].replace("/data/", f"{folder}/")

    done = subprocess.run(
        ["sh", "-c", script],
        env={"PATH": f"{binaries}:/usr/bin:/bin", "REDIS_PASSWORD": "hunter2"},
        capture_output=True,
        text=True,
        check=True,
    )

    users = (folder / "users.acl").read_text().splitlines()
    assert users == [
        "user default on nopass resetkeys resetchannels -@all +ping",
        "user openhqm on #f52fbd32b2b3b86ff88ef6c490628285f482af15ddcb29541f94bcf526a3f6c7 ~* &* +@all",
        "user ns-shop on #1 ~a",
    ]
    assert done.stdout.split("\n")[:2] == ["0", "started /etc/redis/redis.conf"], "the password stays behind"


def test_annotations_for_artifact_hub() -> None:
    described = yaml.safe_load((CHART / "Chart.yaml").read_text())
    [example] = yaml.safe_load(described["annotations"]["artifacthub.io/crdsExamples"])
    [crd] = yaml.safe_load(described["annotations"]["artifacthub.io/crds"])
    definition = yaml.safe_load((ROOT / "crds" / "asyncproxies.yaml").read_text())

    assert described["kubeVersion"] == ">=1.29.0-0"
    assert crd["name"] == definition["metadata"]["name"]
    assert example["apiVersion"] == "openhqm.io/v1alpha1"
