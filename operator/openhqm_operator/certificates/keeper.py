"""Keeps the injector's certificates: reads what is there, has `rotation.py` decide, writes it.

    Secret of the CA, Secret of the leaf, caBundle of the webhook, /readyz of the injectors
        --decide--> Secret of the CA -> Secret of the leaf -> caBundle

The leader's. Written in this order, each step leaves something that works and that the next leader can go on
from.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
from collections.abc import Callable, Collection
from typing import Any, NoReturn

import aiohttp
import structlog
from pydantic import Field

from openhqm.settings import Area, Port, PositiveSeconds
from openhqm_operator.api import names
from openhqm_operator.certificates.rotation import (
    Material,
    Mode,
    Seen,
    authority_data,
    decide,
    leaf_data,
    read_material,
)
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.errors import KubeError, NotFound
from openhqm_operator.kube.resources import MUTATING_WEBHOOKS, PODS, SECRETS, Object

RETRY_SECONDS = 5.0
"""After a call that did not work: without certificates no Pod gets its sidecar."""

ANSWER_SECONDS = 2.0
"""For an injector's /readyz."""

log = structlog.get_logger()


class CertificateSettings(Area):
    """The injector's certificates."""

    mode: Mode = Field(Mode.OPERATOR, description="Who makes them.")
    namespace: str = Field(description="Namespace of the Secrets and the injectors: the release's.")
    authority_secret: str = Field("openhqm-ca", description="Name of the Secret with the CA's key.")
    leaf_secret: str = Field("openhqm-injector-tls", description="Name of the Secret the injectors mount.")
    webhook: str = Field("openhqm", description="Name of the MutatingWebhookConfiguration.")
    hosts: tuple[str, ...] = Field(min_length=1, description="What the API server calls the injectors.")
    injector_labels: str = Field(description="Label selector of the injectors' Pods.")
    injector_health_port: Port = Field(names.HEALTH_PORT, description="Where they say what they show.")
    look_seconds: PositiveSeconds = Field(
        10.0,
        description="How often all is looked at: no Pod with a queue starts for so long where somebody "
        "replaces the webhook's caBundle.",
    )


class CertificateKeeper:
    """Looks at the certificates again and again.

    Args:
        clock: the time of day.
    """

    def __init__(
        self,
        kube: Kube,
        settings: CertificateSettings,
        clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._kube = kube
        self._settings = settings
        self._clock = clock

    async def run(self) -> NoReturn:
        """Keep them until cancelled."""
        while True:
            try:
                changed = await self.look()
                # The next step follows once the injectors show this one.
                delay = RETRY_SECONDS if changed else self._settings.look_seconds
            except KubeError as exc:
                log.warning("certificates.unchecked", error=str(exc))
                delay = RETRY_SECONDS
            await asyncio.sleep(delay)

    async def look(self) -> bool:
        """Bring them one step further.

        Returns: whether anything was written.

        Raises:
            KubeError: some of it may have been written; look again.
        """
        match self._settings.mode:
            case Mode.CERT_MANAGER:
                return False
            case Mode.PROVIDED:
                return await self._trust_provided()
            case Mode.OPERATOR:
                return await self._keep()

    async def _keep(self) -> bool:
        authority = await self._secret(self._settings.authority_secret)
        leaf = await self._secret(self._settings.leaf_secret)
        webhook = await self._webhook()
        found = read_material(_data(authority), _data(leaf))
        served = await self._served() if found is not None and found.previous is not None else None
        seen = Seen(_trusted(webhook), served)
        wanted = decide(
            found,
            seen,
            name=self._settings.authority_secret,
            hosts=self._settings.hosts,
            now=self._clock(),
        )
        if wanted is not found:
            log.info("certificates.changed", **_stages(wanted))
        wrote = await self._write(
            authority, self._settings.authority_secret, "Opaque", authority_data(wanted)
        )
        wrote |= await self._write(leaf, self._settings.leaf_secret, "kubernetes.io/tls", leaf_data(wanted))
        return await self._trust(webhook, wanted.bundle) or wrote

    async def _trust_provided(self) -> bool:
        secret = await self._secret(self._settings.leaf_secret)
        bundle = base64.b64decode(_data(secret).get("ca.crt", ""))
        if not bundle:
            log.warning("certificates.missing", secret=self._settings.leaf_secret, key="ca.crt")
            return False
        return await self._trust(await self._webhook(), bundle)

    # --- reading and writing -----------------------------------------------------------------------------

    async def _secret(self, name: str) -> Object | None:
        try:
            return await self._kube.get(SECRETS, (self._settings.namespace, name))
        except NotFound:
            return None

    async def _webhook(self) -> Object | None:
        try:
            return await self._kube.get(MUTATING_WEBHOOKS, ("", self._settings.webhook))
        except NotFound:
            return None  # the release is going, or not yet whole

    async def _write(self, secret: Object | None, name: str, kind: str, data: dict[str, str]) -> bool:
        if _data(secret) == data:
            return False
        if secret is None:
            metadata = {
                "namespace": self._settings.namespace,
                "name": name,
                "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY},
            }
            body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": kind, "data": data}
            await self._kube.create(body, manager=names.OPERATOR_MANAGER)
        else:
            await self._kube.update(secret | {"data": data}, manager=names.OPERATOR_MANAGER)
        return True

    async def _trust(self, webhook: Object | None, bundle: bytes) -> bool:
        encoded = base64.b64encode(bundle).decode()
        operations: list[Object] = []
        for index, each in enumerate((webhook or {}).get("webhooks") or ()):
            if each["clientConfig"].get("caBundle") != encoded:
                place = f"/webhooks/{index}"
                operations.append({"op": "test", "path": f"{place}/name", "value": each["name"]})
                operations.append({"op": "add", "path": f"{place}/clientConfig/caBundle", "value": encoded})
        if operations:
            key = ("", self._settings.webhook)
            await self._kube.patch_json(MUTATING_WEBHOOKS, key, operations, manager=names.OPERATOR_MANAGER)
        return bool(operations)

    # --- what the injectors show -------------------------------------------------------------------------

    async def _served(self) -> Collection[str] | None:
        """The certificates that the injectors show; None if one of them does not say."""
        listing = await self._kube.list(PODS, self._settings.namespace, labels=self._settings.injector_labels)
        addresses = [_address(pod) for pod in listing.items if _is_living(pod)]
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            shown = await asyncio.gather(*(self._shown(session, address) for address in addresses))
        return None if not shown or None in shown else {each for each in shown if each}

    async def _shown(self, session: aiohttp.ClientSession, address: str | None) -> str | None:
        if address is None:
            return None  # about to start, with either leaf
        host = f"[{address}]" if ":" in address else address
        try:
            async with session.get(
                f"http://{host}:{self._settings.injector_health_port}/readyz"
            ) as answer:  # unready ones show theirs too
                told: Any = await answer.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
            log.info("injector.silent", address=address, error=str(exc))
            return None
        certificate = told.get("certificate") if isinstance(told, dict) else None
        return certificate if isinstance(certificate, str) else None


def _data(secret: Object | None) -> dict[str, str]:
    return dict((secret or {}).get("data") or {})


def _trusted(webhook: Object | None) -> bytes:
    """What every webhook of the configuration trusts; where they differ, the first one that is behind."""
    bundles = [each["clientConfig"].get("caBundle") or "" for each in (webhook or {}).get("webhooks") or ()]
    return base64.b64decode(min(bundles, key=len)) if bundles else b""


def _is_living(pod: Object) -> bool:
    return pod["status"].get("phase") not in ("Succeeded", "Failed")


def _address(pod: Object) -> str | None:
    address: str | None = pod["status"].get("podIP")
    return address


def _stages(material: Material) -> dict[str, bool]:
    return {"has_next": material.next is not None, "has_previous": material.previous is not None}
