"""What an AsyncProxy has or changes in its namespace: settings, Secrets, Services, marks on itself. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

import yaml

from openhqm_operator.api import names
from openhqm_operator.api.spec import Spec
from openhqm_operator.injecting.interception import restoring
from openhqm_operator.injecting.sidecar_settings import render_settings
from openhqm_operator.kube.owned import owned_metadata
from openhqm_operator.kube.resources import ASYNC_PROXIES, CONFIG_MAPS, SERVICES, Object, key_of
from openhqm_operator.reconciling.observed import Observed
from openhqm_operator.reconciling.steps import Action, Apply, MintHandleKey, MintStoreUser, Patch


def render(seen: Observed, spec: Spec) -> str:
    """The settings file of the sidecars."""
    settings = render_settings(spec, namespace=seen.namespace, name=seen.name)
    return yaml.safe_dump(settings, sort_keys=True)


def digest(settings: str) -> str:
    """Names a settings file, as the sidecars do that have it in force."""
    return hashlib.sha256(settings.encode()).hexdigest()


def provide(seen: Observed, settings: str) -> Iterator[Action]:
    if names.handle_secret(seen.name) not in seen.secrets:
        yield MintHandleKey(seen.proxy)
    needs_store = "secretRef" not in (seen.proxy["spec"].get("store") or {})
    if needs_store and names.STORE_SECRET not in seen.secrets:
        yield MintStoreUser(seen.proxy)
    data = {names.SETTINGS_FILE: settings}
    if seen.settings_map is None or seen.settings_map.get("data") != data:
        yield Apply(_settings_map(seen.proxy, data))


def _settings_map(proxy: Object, data: Mapping[str, str]) -> Object:
    metadata = owned_metadata(proxy, names.settings_map(proxy["metadata"]["name"]))
    return {
        "apiVersion": CONFIG_MAPS.api_version,
        "kind": CONFIG_MAPS.kind,
        "metadata": metadata,
        "data": dict(data),
    }


def set_field(path: str, value: object) -> Object:
    return {"op": "add", "path": path, "value": value}


def patch_proxy(seen: Observed, operations: Iterable[Object]) -> Patch:
    version = seen.proxy["metadata"]["resourceVersion"]
    unchanged = {"op": "test", "path": "/metadata/resourceVersion", "value": version}
    return Patch(ASYNC_PROXIES, key_of(seen.proxy), (unchanged, *operations))


def restore_services(seen: Observed) -> Iterator[Action]:
    for service in seen.services:
        if operations := restoring(service, seen.name):
            yield Patch(SERVICES, key_of(service), tuple(operations))
