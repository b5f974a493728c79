"""The injector's certificates on a real API server: made, trusted, rotated, healed."""

from __future__ import annotations

import base64
import datetime as dt
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from tests.cluster.control_plane import ControlPlane

from openhqm_operator.certificates.keeper import CertificateKeeper, CertificateSettings
from openhqm_operator.certificates.rotation import AUTHORITY_LIFE, SETTLE, Mode, fingerprint
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.login import from_kubeconfig
from openhqm_operator.kube.resources import MUTATING_WEBHOOKS, PODS, SECRETS

WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
_numbers = itertools.count()


class Rig:
    """One release's certificates, an injector that shows what it mounts, and a clock."""

    def __init__(self, plane: ControlPlane, kube: Kube) -> None:
        self.plane = plane
        self.kube = kube
        self.name = f"certificates-{next(_numbers)}"
        self.now = dt.datetime.now(dt.UTC)
        self.shown = ""
        self.is_silent = False

    async def start(self) -> int:
        """Returns the port of the injector's health."""

        async def readyz(_: web.Request) -> web.Response:
            if self.is_silent:
                return web.Response(status=500)
            return web.json_response({"certificate": self.shown}, status=503)

        app = web.Application()
        app.router.add_get("/readyz", readyz)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return int(self.runner.addresses[0][1])

    def keeper(self, port: int, mode: Mode = Mode.OPERATOR) -> CertificateKeeper:
        settings = CertificateSettings(
            mode=mode,
            namespace=self.name,
            webhook=self.name,
            hosts=("injector.svc",),
            injector_labels="app=injector",
            injector_health_port=port,
        )
        return CertificateKeeper(self.kube, settings, lambda: self.now)

    async def data(self, name: str) -> dict[str, bytes]:
        secret = await self.kube.get(SECRETS, (self.name, name))
        return {key: base64.b64decode(value) for key, value in secret["data"].items()}

    async def trusted(self) -> bytes:
        webhook = await self.kube.get(MUTATING_WEBHOOKS, ("", self.name))
        [bundle] = {each["clientConfig"]["caBundle"] for each in webhook["webhooks"]}
        return base64.b64decode(bundle)

    async def mount(self) -> None:
        """Show what the Secret holds now, as the kubelet would let the injector do a minute later."""
        self.shown = fingerprint((await self.data("openhqm-injector-tls"))["tls.crt"])


@pytest_asyncio.fixture
async def rig(api_server: ControlPlane) -> AsyncIterator[Rig]:
    async with Kube(await from_kubeconfig(api_server.kubeconfig)) as kube:
        rig = Rig(api_server, kube)
        _make_surroundings(api_server, rig.name)
        yield rig
        await rig.runner.cleanup()
        api_server.request("DELETE", f"{WEBHOOKS}/{rig.name}")


def _make_surroundings(plane: ControlPlane, name: str) -> None:
    plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    plane.request("POST", f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "default"}})
    webhook: dict[str, Any] = {
        "clientConfig": {"service": {"name": "injector", "namespace": name}},
        "rules": [
            {"operations": ["CREATE"], "apiGroups": ["none"], "apiVersions": ["v1"], "resources": ["none"]}
        ],
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
    }
    webhooks = [{"name": f"{each}.openhqm.io", **webhook} for each in ("first", "second")]
    plane.request("POST", WEBHOOKS, {"metadata": {"name": name}, "webhooks": webhooks})
    pods = f"/api/v1/namespaces/{name}/pods"
    spec = {"containers": [{"name": "injector", "image": "i"}]}
    pod = plane.request(
        "POST", pods, {"metadata": {"name": "injector", "labels": {"app": "injector"}}, "spec": spec}
    )
    pod["status"] = {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
    plane.request("PUT", f"{pods}/injector/status", pod)


async def test_makes_what_is_missing_and_has_it_trusted(rig: Rig) -> None:
    keeper = rig.keeper(await rig.start())

    assert await keeper.look() is True
    assert await keeper.look() is False

    assert await rig.trusted() == (await rig.data("openhqm-injector-tls"))["ca.crt"]
    assert set(await rig.data("openhqm-injector-tls")) == {"tls.crt", "tls.key", "ca.crt"}


async def test_a_lost_leaf_and_a_changed_bundle_are_healed(rig: Rig) -> None:
    keeper = rig.keeper(await rig.start())
    await keeper.look()
    trusted = await rig.trusted()
    await rig.kube.delete(SECRETS, (rig.name, "openhqm-injector-tls"))
    operation = {"op": "remove", "path": "/webhooks/1/clientConfig/caBundle"}
    await rig.kube.patch_json(MUTATING_WEBHOOKS, ("", rig.name), [operation], manager="somebody")

    assert await keeper.look() is True

    assert await rig.trusted() == trusted
    assert (await rig.data("openhqm-injector-tls"))["ca.crt"] == trusted


async def test_a_ca_is_replaced_step_by_step_as_injectors_follow(rig: Rig) -> None:
    keeper = rig.keeper(await rig.start())
    await keeper.look()
    await rig.mount()
    old = await rig.trusted()
    rig.now += AUTHORITY_LIFE * 2 / 3
    await keeper.look()  # the leaf first
    await rig.mount()

    assert await keeper.look() is True
    both = await rig.trusted()
    assert old in both
    assert len(both) > len(old)
    assert await keeper.look() is False  # not everybody can know it yet

    rig.now += SETTLE
    assert await keeper.look() is True  # signed by the new one
    assert await keeper.look() is False  # the injector shows the old leaf
    assert old in await rig.trusted()
    assert len(await rig.trusted()) == len(both)
    await rig.mount()
    rig.is_silent = True
    assert await keeper.look() is False
    rig.is_silent = False

    assert await keeper.look() is True
    assert old not in await rig.trusted()
    assert "previous.crt" not in await rig.data("openhqm-ca")
    assert await keeper.look() is False


async def test_a_pod_that_is_about_to_start_holds_the_old_ca(rig: Rig) -> None:
    keeper = rig.keeper(await rig.start())
    pod = await rig.kube.get(PODS, (rig.name, "injector"))
    assert pod["status"]["podIP"] == "127.0.0.1"
    body = {"metadata": {"name": "starting", "labels": {"app": "injector"}}, "spec": pod["spec"]}
    for gone in ("volumes", "nodeName"):
        body["spec"].pop(gone, None)
    body["spec"]["containers"][0].pop("volumeMounts", None)
    rig.plane.request("POST", f"/api/v1/namespaces/{rig.name}/pods", body)
    await keeper.look()
    rig.now += AUTHORITY_LIFE * 2 / 3
    for _ in range(2):
        await keeper.look()
    rig.now += SETTLE
    await keeper.look()
    await rig.mount()

    assert await keeper.look() is False
    assert "previous.crt" in await rig.data("openhqm-ca")


async def test_provided_certificates_are_trusted_and_never_written(rig: Rig) -> None:
    port = await rig.start()
    await rig.keeper(port).look()
    bundle = await rig.trusted()
    operation = {"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}
    await rig.kube.patch_json(MUTATING_WEBHOOKS, ("", rig.name), [operation], manager="somebody")
    rig.now += AUTHORITY_LIFE
    rig.kube.writes.clear()

    assert await rig.keeper(port, Mode.PROVIDED).look() is True

    assert await rig.trusted() == bundle
    assert [write for write in rig.kube.writes if "secrets" in write] == []


@pytest.mark.parametrize("mode", [Mode.CERT_MANAGER, Mode.PROVIDED])
async def test_without_a_secret_of_ours_nothing_is_written(rig: Rig, mode: Mode) -> None:
    assert await rig.keeper(await rig.start(), mode).look() is False
