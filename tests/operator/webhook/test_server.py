"""The injector's process: reviews by TLS, what it does when its cache is behind, its certificate, its end."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import io
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import jsonpatch
import pytest
import pytest_asyncio
from structlog.testing import capture_logs
from tests.operator.fake_api import HANGS, Answer, FakeApi, FakeLogin, status
from tests.operator.mounts import mount_pair
from tests.operator.pods import PLATFORM, legacy, proxy

from openhqm.errors import SettingsError
from openhqm.settings_file import load_file
from openhqm_operator.certificates.rotation import issue_leaf, make_authority
from openhqm_operator.injecting.injection import inject
from openhqm_operator.injector import Process
from openhqm_operator.webhook import proxy_lookup
from openhqm_operator.webhook.server import BODY_BYTES
from openhqm_operator.webhook.settings import InjectorSettings

NOW = dt.datetime.now(dt.UTC)
AUTHORITY = make_authority("test", NOW)
HASH = "0123"
PROXY = proxy() | {"status": {"intercept": "ServicePort", "configHash": HASH}}
BODY = {"spec": PROXY["spec"], "status": PROXY["status"]}


def write_pair(folder: Path) -> None:
    leaf = issue_leaf(AUTHORITY, ["127.0.0.1"], NOW)
    mount_pair(folder, leaf.certificate, leaf.key)


@pytest.fixture
def api(api: FakeApi) -> FakeApi:
    """One that has an AsyncProxy."""
    api.put("legacy", **BODY)
    return api


class Client:
    """An API server that asks the webhook."""

    def __init__(self, process: Process, session: aiohttp.ClientSession) -> None:
        self.process = process
        self.session = session

    async def review(self, pod: dict[str, Any] | None, **request: Any) -> dict[str, Any]:
        kind = {"group": "", "version": "v1", "kind": "Pod"}
        asked = {"uid": "u-1", "operation": "CREATE", "kind": kind, "namespace": "shop", "object": pod}
        body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": asked | request}
        return await self.post(json.dumps(body).encode())

    async def post(self, body: bytes) -> dict[str, Any]:
        url = f"https://127.0.0.1:{self.process.port}/inject?timeout=5s"
        async with self.session.post(url, data=io.BytesIO(body)) as response:
            assert response.status == 200, await response.text()
            answer = await response.json()
        assert answer["response"]["uid"] == "u-1"
        return dict(answer["response"])

    async def health(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.process.health_port}{path}"
        async with self.session.get(url) as response:
            return response.status, await response.text()


def patched(pod: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    assert response["patchType"] == "JSONPatch"
    return dict(jsonpatch.apply_patch(pod, json.loads(base64.b64decode(response["patch"]))))


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cadata=AUTHORITY.certificate.decode())


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while not await holds():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(api: FakeApi, folder: Path) -> AsyncIterator[Client]:
    write_pair(folder)
    settings = InjectorSettings(
        platform=PLATFORM,
        host="127.0.0.1",
        port=0,
        health_port=0,
        certificate_folder=folder,
        certificate_check_seconds=0.02,
        drain_seconds=0.0,
    )
    process = Process(settings, FakeLogin(api.server))
    running = asyncio.create_task(process.run())
    connector = aiohttp.TCPConnector(ssl=trusting())
    async with aiohttp.ClientSession(connector=connector) as session:
        await process.listening.wait()
        client = Client(process, session)
        try:
            yield client
        finally:
            process.stop()
            await running


async def is_ready(client: Client) -> bool:
    return (await client.health("/readyz"))[0] == 200


@pytest_asyncio.fixture
async def client(api: FakeApi, tmp_path: Path) -> AsyncIterator[Client]:
    async with serving(api, tmp_path / "tls") as client:
        await eventually(lambda: is_ready(client))
        yield client


# --- reviews


async def test_a_pod_gets_its_sidecar(client: Client) -> None:
    response = await client.review(legacy())

    pod = patched(legacy(), response)
    token = pod["spec"]["initContainers"][-1]["lifecycle"]["preStop"]["httpGet"]["httpHeaders"][0]["value"]
    assert pod == inject(legacy(), PROXY, PLATFORM, token).pod
    assert len(token) == 32


async def test_every_pod_has_a_token_of_its_own(client: Client) -> None:
    first, second = await client.review(legacy()), await client.review(legacy())

    assert first["patch"] != second["patch"]


async def test_a_dry_run_is_answered_like_any_other(client: Client) -> None:
    assert (await client.review(legacy(), dryRun=True))["allowed"] is True


async def test_a_pod_that_has_it_is_not_changed(client: Client) -> None:
    pod = patched(legacy(), await client.review(legacy()))

    response = await client.review(pod)

    assert response == {"uid": "u-1", "allowed": True}


@pytest.mark.parametrize(
    ("labels", "request_"),
    [
        ({}, {}),
        ({"openhqm.io/proxy": "legacy", "openhqm.io/admission": "disabled"}, {}),
        ({"openhqm.io/proxy": "legacy"}, {"operation": "UPDATE"}),
        ({"openhqm.io/proxy": "legacy"}, {"kind": {"kind": "Deployment"}}),
    ],
)
async def test_what_is_not_ours_passes(
    client: Client, labels: dict[str, str], request_: dict[str, Any]
) -> None:
    pod = legacy()
    pod["metadata"]["labels"] = labels

    assert await client.review(pod, **request_) == {"uid": "u-1", "allowed": True}


async def test_a_pod_that_cannot_get_it_is_refused_with_a_reason(client: Client) -> None:
    response = await client.review(legacy(hostNetwork=True))

    assert response["allowed"] is False
    assert response["status"]["reason"] == "HostNetwork"
    assert "set hostNetwork to false" in response["status"]["message"]


async def test_its_owner_is_warned(client: Client) -> None:
    pod = legacy()
    pod["spec"]["containers"][0]["readinessProbe"] = {"exec": {"command": ["true"]}}

    response = await client.review(pod)

    assert "is a command and keeps its meaning" in response["warnings"][0]


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}']
)
async def test_what_is_no_review_gets_400(client: Client, body: bytes) -> None:
    url = f"https://127.0.0.1:{client.process.port}/inject"
    async with client.session.post(url, data=body) as response:
        assert response.status == 400


async def test_a_large_pod_is_read_and_a_giant_one_is_not(client: Client) -> None:
    pod = legacy()
    pod["metadata"]["annotations"]["large"] = "x" * (BODY_BYTES // 2)
    assert (await client.review(pod))["allowed"] is True

    url = f"https://127.0.0.1:{client.process.port}/inject"
    async with client.session.post(url, data=io.BytesIO(b" " * (BODY_BYTES + 1))) as response:
        assert response.status == 413


async def test_a_bug_refuses_the_pod_and_is_told(client: Client) -> None:
    pod = legacy(containers=[None])
    url = f"https://127.0.0.1:{client.process.port}/inject"
    body = {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u",
            "operation": "CREATE",
            "kind": {"kind": "Pod"},
            "namespace": "shop",
            "object": pod,
        },
    }

    with capture_logs() as logged:
        async with client.session.post(url, json=body) as response:
            assert response.status == 500

    assert [each["event"] for each in logged] == ["review.failed"]


# --- a cache that is behind


def with_hash(digest: str) -> dict[str, Any]:
    pod = legacy()
    pod["metadata"]["annotations"]["openhqm.io/config-hash"] = digest
    return pod


def live(digest: str, version: str = "200", **spec: Any) -> Answer:
    metadata = {"name": "legacy", "namespace": "shop", "resourceVersion": version}
    fields = {"spec": PROXY["spec"] | spec, "status": {"intercept": "ServicePort", "configHash": digest}}
    return Answer({"metadata": metadata, **fields})


async def test_a_newer_hash_reads_the_proxy_live(client: Client, api: FakeApi) -> None:
    api.answers.append(live("new", store={"secretRef": {"name": "new-redis"}}))

    pod = patched(with_hash("new"), await client.review(with_hash("new")))

    assert "new-redis" in json.dumps(pod["spec"]["initContainers"][-1]["env"])


async def test_a_newer_hash_that_cannot_be_read_is_refused(client: Client, api: FakeApi) -> None:
    api.answers.append(status(500, "InternalError", "etcd is away"))

    response = await client.review(with_hash("new"))

    assert response["allowed"] is False
    assert response["status"]["reason"] == "ConfigurationUnknown"
    assert "works again when the API server answers" in response["status"]["message"]


async def test_an_api_server_that_does_not_answer_costs_two_seconds_at_most(
    client: Client, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_lookup, "READ_SECONDS", 0.05)
    api.answers.append(Answer(HANGS))

    response = await client.review(with_hash("new"))

    assert response["status"]["reason"] == "ConfigurationUnknown"


async def test_an_older_template_gets_the_present_configuration_and_asks_once(
    client: Client, api: FakeApi
) -> None:
    """As with rollout OnNextDeploy: each of its Pods would otherwise read live."""
    version = str(api._version)
    api.answers.append(live(HASH, version))

    first = await client.review(with_hash("old"))
    second = await client.review(with_hash("old"))

    assert first["allowed"] is second["allowed"] is True
    assert not api.answers
    assert len([each for each in api.requests if each.path.endswith("/asyncproxies/legacy")]) == 1


async def test_pods_of_one_burst_read_once(client: Client, api: FakeApi) -> None:
    api.answers.append(live("new"))

    responses = await asyncio.gather(*(client.review(with_hash("new")) for _ in range(10)))

    assert all(response["allowed"] for response in responses)
    assert not api.answers


async def test_a_pod_without_a_hash_takes_what_is_known(client: Client, api: FakeApi) -> None:
    pod = legacy()
    pod["metadata"]["annotations"] = {}

    assert (await client.review(pod))["allowed"] is True


async def test_a_proxy_that_does_not_exist_is_named(client: Client, api: FakeApi) -> None:
    pod = legacy()
    pod["metadata"]["labels"]["openhqm.io/proxy"] = "gone"
    api.answers.append(status(404, "NotFound", "no such thing"))

    response = await client.review(pod)

    assert response["status"]["reason"] == "NoSuchProxy"
    assert api.requests[-1].path.endswith(
        "/asyncproxies/gone"
    )  # all of them are read for shortened names alone
    assert 'names AsyncProxy "gone", which is not in namespace shop' in response["status"]["message"]


async def test_a_long_name_is_found_by_its_short_label(client: Client, api: FakeApi) -> None:
    long = "legacy-" + "x" * 100
    pod = legacy()
    pod["metadata"]["labels"]["openhqm.io/proxy"] = proxy_lookup.label_value(long)
    api.put(long, **BODY)

    async def is_known() -> bool:
        return json.loads((await client.health("/readyz"))[1])["proxies"] == 2

    await eventually(is_known)

    assert (await client.review(pod))["allowed"] is True


async def test_a_long_name_is_read_live_too(client: Client, api: FakeApi) -> None:
    long = "legacy-" + "y" * 100
    pod = legacy()
    pod["metadata"]["labels"]["openhqm.io/proxy"] = proxy_lookup.label_value(long)
    metadata = {"name": long, "namespace": "shop", "resourceVersion": "9"}
    listed = {"metadata": {"resourceVersion": "9"}, "items": [{"metadata": metadata, **BODY}]}
    api.answers.extend(
        [status(404, "NotFound", "no such thing"), Answer({"kind": "AsyncProxyList", **listed})]
    )

    assert (await client.review(pod))["allowed"] is True


# --- the process


async def test_is_ready_once_it_knows_the_proxies(api: FakeApi, tmp_path: Path) -> None:
    api.answers.append(Answer(HANGS))

    async with serving(api, tmp_path / "tls") as client:
        status_, text = await client.health("/readyz")
        live_status, _ = await client.health("/livez")

    assert (status_, json.loads(text)["ready"], live_status) == (503, False, 200)


async def test_tells_what_it_did(client: Client) -> None:
    await client.review(legacy())
    await client.review(legacy(hostNetwork=True))

    _, text = await client.health("/metrics")

    assert 'openhqm_injector_reviews_total{outcome="injected",reason=""} 1.0' in text
    assert 'openhqm_injector_reviews_total{outcome="denied",reason="HostNetwork"} 1.0' in text
    assert "openhqm_injector_proxies 1.0" in text


async def test_the_log_names_the_pod_and_no_secret(client: Client) -> None:
    with capture_logs() as logged:
        pod = patched(legacy(), await client.review(legacy()))

    [line] = logged
    token = pod["spec"]["initContainers"][-1]["lifecycle"]["preStop"]["httpGet"]["httpHeaders"][0]["value"]
    assert (line["event"], line["namespace"], line["pod"]) == ("pod.injected", "shop", "legacy-5d8-")
    assert token not in str(logged)


async def test_a_new_certificate_is_shown_and_open_connections_stay(client: Client, tmp_path: Path) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.process.port, ssl=trusting())
    old = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    write_pair(tmp_path / "tls")

    async def is_new() -> bool:
        _, other = await asyncio.open_connection("127.0.0.1", client.process.port, ssl=trusting())
        shown = other.get_extra_info("ssl_object").getpeercert(binary_form=True)
        other.close()
        return bool(shown != old)

    await eventually(is_new)

    writer.write(b"POST /inject HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 400")
    writer.close()


async def test_a_broken_certificate_leaves_the_old_one(client: Client, tmp_path: Path) -> None:
    key = tmp_path / "tls" / "tls.key"
    write_pair(tmp_path / "tls")
    with capture_logs() as logged:
        key.resolve().write_text("no key")

        async def is_told() -> bool:
            return any(each["event"] in ("certificate.unusable", "certificate.replaced") for each in logged)

        await eventually(is_told)

    assert (await client.review(legacy()))["allowed"] is True


async def test_without_a_certificate_it_does_not_start(api: FakeApi, tmp_path: Path) -> None:
    settings = InjectorSettings(platform=PLATFORM, certificate_folder=tmp_path)

    with pytest.raises(SettingsError, match=r"no usable tls\.crt and tls\.key"):
        await Process(settings, FakeLogin(api.server)).run()


async def test_a_review_under_way_is_answered_at_the_end(
    client: Client, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_lookup, "READ_SECONDS", 0.3)
    api.answers.append(Answer(HANGS))
    under_way = asyncio.create_task(client.review(with_hash("new")))
    while api.answers:
        await asyncio.sleep(0.01)

    client.process.stop()

    assert (await under_way)["status"]["reason"] == "ConfigurationUnknown"


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    path = tmp_path / "injector.yaml"
    path.write_text("platform: {image: i, imagee: j}\n")

    with pytest.raises(SettingsError, match=r"platform\.imagee: Extra inputs are not permitted"):
        load_file(InjectorSettings, path, {})


def test_the_settings_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "injector.yaml"
    path.write_text("platform: {image: i, pull_secrets: [a]}\nport: 8443\n")

    settings = load_file(InjectorSettings, path, {})

    assert (settings.port, settings.platform.pull_secrets) == (8443, ("a",))
