"""The examples for Kubernetes on a real API server; kinds of others are left out."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.control_plane import ControlPlane

from openhqm_operator.api.annotations import read_annotations
from openhqm_operator.api.spec import Spec
from openhqm_operator.injecting.plan import find_app_port
from openhqm_operator.injecting.sidecar_settings import problem_of
from openhqm_operator.kube.resources import resource_of

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MANIFESTS = sorted(EXAMPLES.glob("*/*.yaml"))
FOREIGN = ("argoproj.io/", "kustomize.toolkit.fluxcd.io/")
NAMESPACE = "examples"


def objects() -> list[tuple[str, dict[str, Any]]]:
    """Those of the examples that a plain cluster with our definition knows."""
    found = [(path, obj) for path in MANIFESTS for obj in yaml.safe_load_all(path.read_text())]
    return [
        (f"{path.parent.name}/{path.name}", obj)
        for path, obj in found
        if "kind" in obj and not obj["apiVersion"].startswith(FOREIGN)
    ]


@pytest.fixture(scope="module")
def plane(api_server: ControlPlane) -> ControlPlane:
    api_server.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    return api_server


@pytest.mark.parametrize(
    ("where", "obj"), objects(), ids=[f"{where}-{obj['kind']}" for where, obj in objects()]
)
def test_manifest_is_admitted(plane: ControlPlane, where: str, obj: dict[str, Any]) -> None:
    path = resource_of(obj).path(NAMESPACE)

    made = plane.request("POST", f"{path}?dryRun=All&fieldValidation=Strict", obj)

    assert made["metadata"]["name"] == obj["metadata"]["name"], where
    if obj["kind"] == "AsyncProxy":
        assert problem_of(Spec.model_validate(made["spec"])) is None


def test_async_proxies_fit_the_app() -> None:
    [app] = [obj for _, obj in objects() if obj["kind"] == "Deployment"]
    proxies = [obj for _, obj in objects() if obj["kind"] == "AsyncProxy"]
    port = find_app_port(app["spec"]["template"]["spec"], None)

    assert port.number == 8080
    assert proxies
    for proxy in proxies:
        assert proxy["spec"]["targetRef"] == {"kind": "Deployment", "name": app["metadata"]["name"]}


@pytest.mark.parametrize("page", sorted(EXAMPLES.glob("*/README.md")), ids=lambda page: page.parent.name)
def test_annotations_in_the_text_are_understood(page: Path) -> None:
    for command in re.findall(r"kubectl .*annotate deployment legacy (.*)", page.read_text()):
        words = [word for word in shlex.split(command) if "=" in word]
        annotations = dict(word.split("=", 1) for word in words)
        if annotations:
            assert read_annotations(annotations, "Deployment", "legacy")


@pytest.mark.parametrize("page", sorted(EXAMPLES.glob("*/README.md")), ids=lambda page: page.parent.name)
def test_files_in_the_text_are_there(page: Path) -> None:
    for name in re.findall(r"apply -f (\S+)", page.read_text()):
        assert (page.parent / name).exists(), name


def test_the_app_is_the_one_of_the_first_example() -> None:
    """But for its address and the types."""
    [config] = [obj for _, obj in objects() if obj["kind"] == "ConfigMap"]

    def answers(text: str) -> str:
        return re.sub(
            r" -> None|: bytes", "", text[text.index("class App") : text.index("ThreadingHTTPServer((")]
        )

    assert answers(config["data"]["app.py"]) == answers((EXAMPLES / "01-minimal/app.py").read_text())
