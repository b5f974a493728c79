"""`openhqm check` and `openhqm backends`: what would stop `serve`, found without serving."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from urllib.parse import urlsplit

from openhqm.brokers import registry as broker_registry
from openhqm.errors import BrokerUnavailable, SettingsError, StoreUnavailable
from openhqm.settings import Settings
from openhqm.settings_docs import mask_url
from openhqm.storage import broker_options, open_previous, open_store
from openhqm.stores import registry


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing tried, and what came of it."""

    what: str
    ok: bool
    detail: str


async def check_all(settings: Settings) -> list[Finding]:
    """Try everything that the settings name; the settings themselves have been read already."""
    findings = [Finding("settings", True, f"mode {settings.mode}"), await _store(settings)]
    if settings.store.previous_url is not None:
        findings.append(await _previous(settings, settings.store.previous_url.get_secret_value()))
    if settings.broker.url is not None:
        findings.append(await _broker(settings, settings.broker.url.get_secret_value()))
    return [*findings, await _app(settings)]


async def _store(settings: Settings) -> Finding:
    shown = mask_url(settings.store.url.get_secret_value())
    try:
        store = await open_store(settings)
    except (SettingsError, StoreUnavailable) as exc:
        return Finding("store", False, f"{shown}: {exc}")
    abilities = store.abilities
    await store.close()
    return Finding(
        "store", True, f"{shown}: durability {abilities.durability.name.lower()} ({abilities.why})"
    )


async def _previous(settings: Settings, url: str) -> Finding:
    try:
        store = await open_previous(settings)
        assert store is not None
        unfinished = (await store.counts()).backlog
    except (SettingsError, StoreUnavailable) as exc:
        return Finding("previous store", False, f"{mask_url(url)}: {exc}")
    await store.close()
    return Finding("previous store", True, f"{mask_url(url)}: {unfinished} unfinished requests")


async def _broker(settings: Settings, url: str) -> Finding:
    shown = mask_url(url)
    try:
        broker = broker_registry.create(url, broker_options(settings))
        await broker.open()
    except (SettingsError, BrokerUnavailable) as exc:
        return Finding("broker", False, f"{shown}: {exc}")
    abilities = broker.abilities
    await broker.close()
    return Finding(
        "broker", True, f"{shown}: durability {abilities.durability.name.lower()} ({abilities.why})"
    )


async def _app(settings: Settings) -> Finding:
    if settings.app.url is None:
        return Finding("app", True, "none: API mode")
    parts = urlsplit(settings.app.url)
    connecting = asyncio.open_connection(parts.hostname, parts.port or 80)
    try:
        _, writer = await asyncio.wait_for(connecting, settings.egress.connect_timeout_seconds)
    except TimeoutError:
        return Finding("app", False, f"{settings.app.url} does not take connections")
    except OSError as exc:
        return Finding("app", False, f"{settings.app.url}: {exc.strerror or exc}")
    writer.close()
    await writer.wait_closed()
    return Finding("app", True, f"{settings.app.url} takes connections")


@dataclass(frozen=True, slots=True)
class Backend:
    """One scheme of `store.url` or `broker.url`.

    Args:
        kind: "store" or "broker"; "" for one of another distribution that cannot be imported.
        install: the command that brings its client library, "" when none is needed.
        summary: the first line of its module's docstring, "" while it cannot be imported.
    """

    url: str
    kind: str
    installed: bool
    install: str
    summary: str


def known_backends() -> list[Backend]:
    """List the schemes built in, then those of other distributions."""
    built_in = [
        _backend(scheme, kind, target, f"pip install 'openhqm[{extra}]'" if extra else "")
        for kind, table in (("store", registry.STORES), ("broker", broker_registry.BROKERS))
        for scheme, (target, extra) in table.items()
    ]
    others = entry_points(group=registry.ENTRY_POINTS)
    return built_in + [_backend(entry.name, "", entry.value, "") for entry in others]


def _backend(scheme: str, kind: str, target: str, install: str) -> Backend:
    url = "memory:" if scheme == "memory" else f"{scheme}://"
    place, _, name = target.partition(":")
    try:
        module = import_module(place)
    except ModuleNotFoundError:
        return Backend(url, kind, False, install, "")
    kind = kind or ("broker" if hasattr(getattr(module, name, None), "publish") else "store")
    return Backend(url, kind, True, install, (module.__doc__ or "").partition("\n")[0])
