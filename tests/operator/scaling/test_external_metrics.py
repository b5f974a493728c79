"""The number for HPAs and KEDA: its shape, and who may ask."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from tests.cluster.pki import Authority, Pair
from tests.operator.mounts import mount_pair

from openhqm_operator.certificates.serving import ServingCertificate
from openhqm_operator.kube.errors import Unavailable
from openhqm_operator.kube.resources import Key
from openhqm_operator.scaling.external_metrics import (
    FrontProxy,
    build_keda_app,
    build_metrics_app,
    let_in_only,
)

VALUES = "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/openhqm_desired_replicas"


async def desired(key: Key) -> int | None:
    if key.name == "broken":
        raise Unavailable("no answer")
    return 4 if key == Key("shop", "legacy") else None


@pytest_asyncio.fixture
async def open_client() -> AsyncIterator[TestClient[web.Request, web.Application]]:
    """Asks without TLS, where any name is allowed."""
    async with TestClient(TestServer(build_metrics_app(desired, FrontProxy("", frozenset())))) as client:
        yield client


async def ask(
    client: TestClient[web.Request, web.Application], path: str, selector: str = ""
) -> tuple[int, Any]:
    answer = await client.get(path, params={"labelSelector": selector} if selector else {})
    return answer.status, await answer.json()


async def test_the_number_has_the_shape_hpas_read(
    open_client: TestClient[web.Request, web.Application],
) -> None:
    status, body = await ask(open_client, VALUES, "openhqm.io/proxy=legacy")

    [item] = body["items"]
    assert (status, body["kind"]) == (200, "ExternalMetricValueList")
    assert (item["metricName"], item["value"]) == ("openhqm_desired_replicas", "4")
    assert item["timestamp"].endswith("Z")


async def test_discovery_tells_the_one_metric(open_client: TestClient[web.Request, web.Application]) -> None:
    _, group = await ask(open_client, "/apis/external.metrics.k8s.io")
    _, resources = await ask(open_client, "/apis/external.metrics.k8s.io/v1beta1")

    assert group["preferredVersion"]["version"] == "v1beta1"
    assert [one["name"] for one in resources["resources"]] == ["openhqm_desired_replicas"]


@pytest.mark.parametrize(
    ("path", "selector", "status"),
    [
        (VALUES, "", 400),
        (VALUES, "app=legacy", 400),
        (VALUES, "openhqm.io/proxy=a,openhqm.io/proxy=b", 400),
        (VALUES.replace("desired", "other"), "openhqm.io/proxy=legacy", 404),
        (VALUES, "openhqm.io/proxy=broken", 503),
        (VALUES, "openhqm.io/proxy=unknown", 200),
    ],
)
async def test_what_cannot_be_answered_is_no_number(
    open_client: TestClient[web.Request, web.Application], path: str, selector: str, status: int
) -> None:
    told, body = await ask(open_client, path, selector)

    assert told == status
    assert not body.get("items")


async def test_keda_reads_plain_json() -> None:
    async with TestClient(TestServer(build_keda_app(desired))) as client:
        known = await client.get("/scaling/shop/legacy")
        unknown = await client.get("/scaling/shop/unknown")

        assert await known.json() == {"desired": 4}
        assert unknown.status == 404


@pytest.mark.parametrize(
    ("name", "status"), [("front-proxy-client", 200), ("somebody", 403), (None, None), ("stranger", None)]
)
async def test_only_the_front_proxy_gets_in(tmp_path: Path, name: str | None, status: int | None) -> None:
    """Another name signed by its CA is refused with an answer, all others by TLS."""
    authority, others = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    pair = authority.issue("server", hosts=["127.0.0.1"])
    front_proxy = FrontProxy(authority.bundle.decode(), frozenset({"front-proxy-client"}))
    client = ssl.create_default_context(cafile=str(authority.certificate))
    if name is not None:
        own = (others if name == "stranger" else authority).issue(name)
        client.load_cert_chain(own.certificate, own.key)

    async with _serving(tmp_path, front_proxy, pair) as (url, _):
        assert await _status(url, client) == status


async def test_a_new_certificate_is_shown_without_a_restart_and_lets_in_nobody_else(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "a")
    front_proxy = FrontProxy(authority.bundle.decode(), frozenset({"front-proxy-client"}))
    client = ssl.create_default_context(cafile=str(authority.certificate))
    stranger = ssl.create_default_context(cafile=str(authority.certificate))
    own = authority.issue("front-proxy-client")
    client.load_cert_chain(own.certificate, own.key)

    first, second = (authority.issue(name, hosts=["127.0.0.1"]) for name in ("first", "second"))
    async with _serving(tmp_path, front_proxy, first) as (url, certificate):
        before = certificate.fingerprint
        mount_pair(tmp_path / "mounted", second.certificate.read_bytes(), second.key.read_bytes())
        assert certificate.reload()

        assert certificate.fingerprint != before
        assert await _status(url, client) == 200
        assert await _status(url, stranger) is None


@asynccontextmanager
async def _serving(
    folder: Path, front_proxy: FrontProxy, pair: Pair
) -> AsyncIterator[tuple[str, ServingCertificate]]:
    mounted = folder / "mounted"
    mount_pair(mounted, pair.certificate.read_bytes(), pair.key.read_bytes())
    certificate = ServingCertificate(mounted)
    let_in_only(front_proxy, certificate.context)
    server = TestServer(build_metrics_app(desired, front_proxy))
    await server.start_server(ssl=certificate.context)
    try:
        yield str(server.make_url(VALUES)), certificate
    finally:
        await server.close()


async def _status(url: str, tls: ssl.SSLContext) -> int | None:
    async with aiohttp.ClientSession() as session:
        try:
            async with session.get(
                url, ssl=tls, params={"labelSelector": "openhqm.io/proxy=legacy"}
            ) as answer:
                return answer.status
        except (aiohttp.ClientError, OSError):
            return None
