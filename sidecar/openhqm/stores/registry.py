"""Which class a store URL means; imported on first use, so that nobody needs every client library.

A class is made by `from_url(url, options, blobs)`: *blobs* is None unless `blobs.url` says where
large bodies go, and the store then uses its own place. Other distributions add schemes through the
entry point group `openhqm.backends`: the name is the scheme, the value the class.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol

from openhqm.errors import SettingsError
from openhqm.stores.base import Blobs, Options, Store

ENTRY_POINTS = "openhqm.backends"

STORES: dict[str, tuple[str, str | None]] = {
    "memory": ("openhqm.stores.memory:MemoryStore", None),
    "sqlite": ("openhqm.stores.sqlite:SqliteStore", None),
    "redis": ("openhqm.stores.redis:RedisStore", "redis"),
    "rediss": ("openhqm.stores.redis:RedisStore", "redis"),
    "redis+sentinel": ("openhqm.stores.redis:RedisStore", "redis"),
    "rediss+sentinel": ("openhqm.stores.redis:RedisStore", "redis"),
    "redis+cluster": ("openhqm.stores.redis:RedisStore", "redis"),
    "rediss+cluster": ("openhqm.stores.redis:RedisStore", "redis"),
}
"""Scheme -> (module:Class, extra that brings its client library)."""

BLOBS: dict[str, tuple[str, str | None]] = {
    "memory": ("openhqm.stores.blobs:MemoryBlobs", None),
    "file": ("openhqm.stores.blobs:FileBlobs", None),
    "s3": ("openhqm.stores.s3_blobs:S3Blobs", "s3"),
}


class StoreClass(Protocol):
    """What the registry finds under a scheme."""

    def from_url(self, url: str, options: Options, blobs: Blobs | None) -> Store: ...


class BlobsClass(Protocol):
    """The same for large bodies."""

    def from_url(self, url: str) -> Blobs: ...


def create(url: str, options: Options, blobs_url: str | None = None) -> Store:
    """Make the store *url* names; it is not opened yet.

    Raises:
        SettingsError: the scheme is unknown, its client library is missing, or the URL is wrong.
    """
    scheme = url.partition(":")[0].lower()
    store_class: StoreClass = find(scheme, STORES, "store.url")
    return store_class.from_url(url, options, create_blobs(blobs_url))


def create_blobs(url: str | None) -> Blobs | None:
    """Make the place for large bodies that `blobs.url` names; None leaves it to the store."""
    if url is None:
        return None
    blobs_class: BlobsClass = find(url.partition(":")[0].lower(), BLOBS, "blobs.url")
    return blobs_class.from_url(url)


def find(scheme: str, table: dict[str, tuple[str, str | None]], key: str) -> Any:
    """Return the class under *scheme*, built in or of another distribution.

    Args:
        key: the setting, for the message.

    Raises:
        SettingsError: there is none, or its client library is missing.
    """
    if scheme in table:
        return _load(*table[scheme])
    for entry in entry_points(group=ENTRY_POINTS, name=scheme):
        return entry.load()
    known = sorted({*table, *(entry.name for entry in entry_points(group=ENTRY_POINTS))})
    raise SettingsError(f"{key}: unknown scheme {scheme!r}; known are {', '.join(known)}")


def _load(target: str, extra: str | None) -> Any:
    module, _, name = target.partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as exc:
        if extra is None or (exc.name or "").startswith("openhqm"):
            raise
        raise SettingsError(f"{exc.name} is not installed; pip install 'openhqm[{extra}]'") from exc
