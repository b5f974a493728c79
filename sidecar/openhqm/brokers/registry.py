"""Which class a broker URL means; imported on first use, so that nobody needs every client library.

A class is made by `from_url(url, options)`. Other distributions add schemes through the entry point group
that stores use too (`stores/registry.py`); a broker is told from a store by its `publish`.
"""

from __future__ import annotations

from typing import Protocol

from openhqm.brokers.base import Broker, BrokerOptions
from openhqm.errors import SettingsError
from openhqm.stores.registry import STORES, find

BROKERS: dict[str, tuple[str, str | None]] = {
    "nats": ("openhqm.brokers.nats:NatsBroker", "nats"),
    "nats+tls": ("openhqm.brokers.nats:NatsBroker", "nats"),
}
"""Scheme -> (module:Class, extra that brings its client library)."""


class BrokerClass(Protocol):
    """What the registry finds under a scheme."""

    def from_url(self, url: str, options: BrokerOptions) -> Broker: ...


def create(url: str, options: BrokerOptions) -> Broker:
    """Make the broker *url* names; it is not opened yet.

    Raises:
        SettingsError: the scheme is unknown or a store's, its client library is missing, or the URL is wrong.
    """
    scheme = url.partition(":")[0].lower()
    if scheme in STORES:
        raise SettingsError(f"broker.url: {scheme} is a store, not a broker; say store.url for it")
    broker_class: BrokerClass = find(scheme, BROKERS, "broker.url")
    if not hasattr(broker_class, "publish"):
        raise SettingsError(f"broker.url: {scheme} is a store, not a broker; say store.url for it")
    return broker_class.from_url(url, options)
