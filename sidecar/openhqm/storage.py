"""Opens the Store that the settings name, and refuses one that keeps less than was asked; makes the Broker.

Between the registries, which know schemes, and those who need an open Store: `main.py` and `openhqm check`.
Also here: the keys that sign handles, because an unconfigured one lives in the Store.
"""

from __future__ import annotations

import secrets

from pydantic import SecretStr

from openhqm.brokers import registry as broker_registry
from openhqm.brokers.base import Broker, BrokerOptions
from openhqm.errors import SettingsError
from openhqm.handles import Handles
from openhqm.settings import Settings
from openhqm.stores import registry
from openhqm.stores.base import Abilities, Durability, Options, Store

HANDLE_SECRET = "handle-key"  # noqa: S105 - the name of a secret, not one
HANDLE_KEY_BYTES = 32


def store_options(settings: Settings) -> Options:
    """What the settings say to every store."""
    return Options(
        queue=settings.queue.name,
        max_backlog=settings.queue.max_backlog,
        max_bytes=settings.queue.max_bytes,
        answer_reserve_bytes=settings.response.reserve_bytes,
        answer_ttl_seconds=settings.response.ttl_seconds,
        dead_letter_ttl_seconds=settings.dead_letters.ttl_seconds,
    )


async def open_store(settings: Settings) -> Store:
    """Create, open and check the Store.

    Raises:
        SettingsError: it must not be used as it is, or survives less than `store.require_durability`.
        StoreUnavailable: it cannot be reached.
    """
    store = _create(settings, settings.store.url)
    await store.open()
    try:
        _require_durability(store.abilities, settings.store.require_durability)
    except SettingsError:
        await store.close()
        raise
    return store


async def open_previous(settings: Settings) -> Store | None:
    """Open the store that was used before; None without one.

    Its durability is as it is: nothing new is promised there.

    Raises:
        SettingsError, StoreUnavailable: as `open_store`.
    """
    if settings.store.previous_url is None:
        return None
    try:
        store = _create(settings, settings.store.previous_url)
        await store.open()
    except SettingsError as exc:
        raise SettingsError(f"store.previous_url: {exc}") from exc
    return store


def make_broker(settings: Settings, store: Store) -> Broker | None:
    """Make the Broker that carries the backlog, not opened yet; None where the store does.

    Raises:
        SettingsError: it must not be used as it is.
    """
    if settings.broker.url is None:
        return None
    if settings.mode == "ingress" and not store.abilities.shared:
        raise SettingsError(
            "broker.url: in mode ingress others run what it carries, and the answers come back through the "
            "store: name one that can be shared in store.url, such as redis://"
        )
    return broker_registry.create(settings.broker.url.get_secret_value(), broker_options(settings))


def broker_options(settings: Settings) -> BrokerOptions:
    """What the settings say to every broker."""
    return BrokerOptions(
        settings.queue.name, publishes=settings.mode != "egress", receives=settings.mode != "ingress"
    )


def _create(settings: Settings, url: SecretStr) -> Store:
    blobs_url = settings.blobs.url.get_secret_value() if settings.blobs.url else None
    return registry.create(url.get_secret_value(), store_options(settings), blobs_url)


def _require_durability(abilities: Abilities, required: str) -> None:
    found = abilities.durability
    if found < Durability[required.upper()]:
        raise SettingsError(
            f"store.require_durability: {required} is required, but what this store commits survives only "
            f"{found.name.lower()!r} ({abilities.why}); strengthen the store, or say "
            f"store.require_durability: {max(found, Durability.NONE).name.lower()}"
        )


async def open_handles(settings: Settings, store: Store, previous: Store | None = None) -> Handles:
    """The signer of handles: the configured keys, or one key kept with the Store (put if absent).

    Handles that were signed by the previous store's key stay valid beside it.
    """
    keys = [key.get_secret_value().encode() for key in settings.handle.keys]
    if not keys:
        stores = [store] if previous is None else [store, previous]
        keys = [await each.secret(HANDLE_SECRET, secrets.token_bytes(HANDLE_KEY_BYTES)) for each in stores]
    return Handles(keys)
