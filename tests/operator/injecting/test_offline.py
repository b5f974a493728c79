"""`openhqm inject`: the webhook's result from files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.operator.pods import LEGACY, PLATFORM, TOKEN, proxy
from typer.testing import CliRunner

from openhqm.cli.commands import app
from openhqm_operator.injecting.injection import inject
from openhqm_operator.injecting.offline import InjectFailed, inject_documents


def deployment(**annotations: str) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "legacy", "namespace": "shop", "annotations": annotations},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "legacy"}},
            "template": {"metadata": {"labels": {"app": "legacy"}}, "spec": LEGACY["spec"]},
        },
    }


def service(target: int | str) -> dict[str, Any]:
    port = {"port": 80, "targetPort": target}
    spec = {"selector": {"app": "legacy"}, "ports": [port]}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "legacy", "namespace": "shop"},
        "spec": spec,
    }


ENABLED = {"openhqm.io/enabled": "true", "openhqm.io/port": "http"}


def made(*documents: Any, **options: Any) -> list[dict[str, Any]]:
    return inject_documents(documents, PLATFORM, TOKEN, **options).documents


def test_the_template_is_what_the_webhook_makes_of_its_pods() -> None:
    asked = proxy("NamedPort")
    [_, changed, _] = made(asked, deployment())

    template = changed["spec"]["template"]
    pod = {"metadata": {**template["metadata"]}, "spec": LEGACY["spec"]}
    del pod["metadata"]["annotations"]["openhqm.io/injected"]
    expected = inject(pod, asked, PLATFORM, TOKEN).pod
    assert template["spec"] == expected["spec"]
    assert template["metadata"]["labels"]["openhqm.io/proxy"] == "legacy"


def test_all_else_stays() -> None:
    before = deployment(**ENABLED)

    [service_, changed, settings] = made(service("http"), before)

    assert service_ == service("http")
    assert {**changed, "spec": None} == {**before, "spec": None}
    assert {**changed["spec"], "template": None} == {**before["spec"], "template": None}
    assert (settings["kind"], settings["metadata"]["name"]) == ("ConfigMap", "legacy-openhqm-settings")
    assert yaml.safe_load(settings["data"]["settings.yaml"])["queue"]["name"] == "shop.legacy"


@pytest.mark.parametrize(("target", "way"), [("http", "NamedPort"), (8080, "ServicePort")])
def test_auto_looks_at_the_services_among_the_documents(target: int | str, way: str) -> None:
    output = inject_documents([deployment(**ENABLED), service(target)], PLATFORM, TOKEN)

    assert any(f"interception {way}" in note for note in output.notes)
    assert any("targetPort" in note for note in output.notes) is (way == "ServicePort")


def test_twice_is_once() -> None:
    once = made(deployment(**ENABLED))

    assert made(*once) == once


def test_lists_are_read_and_workloads_that_do_not_ask_are_left() -> None:
    listed = {"apiVersion": "v1", "kind": "List", "items": [deployment(), None, service("http")]}

    assert made(listed) == [deployment(), service("http")]


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ([deployment(**{"openhqm.io/enabled": "true"})], "Deployment legacy: say with spec.port"),
        ([deployment(**ENABLED, **{"openhqm.io/prot": "80"})], "did you mean openhqm.io/port"),
        ([proxy(surprise=1), deployment()], "AsyncProxy legacy of Deployment legacy: surprise: Extra inputs"),
        ([{"no": "kind"}], "it has no kind"),
    ],
)
def test_says_which_workload_cannot_get_it_and_why(documents: list[Any], words: str) -> None:
    with pytest.raises(InjectFailed) as caught:
        made(*documents)

    assert words in str(caught.value)


# --- the command


def run(*arguments: str, input: str | None = None) -> Any:
    return CliRunner().invoke(app, ["inject", *arguments], input=input, env={"COLUMNS": "200"})


def test_the_command_prints_manifests_and_tells_what_they_need(tmp_path: Path) -> None:
    path = tmp_path / "deploy.yaml"
    path.write_text(yaml.safe_dump_all([service("http"), deployment(**ENABLED)]))

    result = run("-f", str(path), "--image", "mine:1")

    assert result.exit_code == 0, result.output
    documents = list(yaml.safe_load_all(result.stdout))
    assert [each["kind"] for each in documents] == ["Service", "Deployment", "ConfigMap"]
    sidecar = documents[1]["spec"]["template"]["spec"]["initContainers"][-1]
    assert sidecar["image"] == "mine:1"
    assert "need the Secrets openhqm-store (key url) and legacy-openhqm-handles (key keys)" in result.stderr


def test_the_command_reads_standard_input_and_the_injector_s_settings(tmp_path: Path) -> None:
    config = tmp_path / "injector.yaml"
    config.write_text("platform: {image: theirs}\n")

    result = run("-f", "-", "--config", str(config), input=yaml.safe_dump(deployment(**ENABLED)))

    assert "image: theirs" in result.stdout


def test_the_same_token_prints_the_same(tmp_path: Path) -> None:
    text = yaml.safe_dump(deployment(**ENABLED))

    first, second = (run("-f", "-", "--token", TOKEN, input=text).stdout for _ in range(2))

    assert first == second


@pytest.mark.parametrize("text", ["a: [", "a: b"])
def test_what_is_no_manifest_is_refused(text: str) -> None:
    assert run("-f", "-", input=text).exception


def test_it_needs_no_library_of_the_operator() -> None:
    """It comes with a plain `pip install openhqm`."""
    code = (
        "import sys; import openhqm_operator.injecting.offline, openhqm_operator.webhook.settings; "
        "print(sorted({'kopf','kubernetes_asyncio','cryptography','cronsim','aiohttp'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )

    assert done.stdout == "[]\n"
