"""Which AsyncProxy a Pod asks for: from the cache, and from the API server when the cache may be behind.

    label and hash of the Pod --> cached proxy with this hash      nearly always
                              --> read once, live                  the watch is a moment behind, or the Pod's
                                                                   template is older than the proxy
                              --> LookupFailed                     rather than a sidecar of yesterday

The operator writes a proxy's status before the hash on the template, so a live read that still shows another
hash means an older template: its Pods get the present configuration.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from openhqm_operator.api.names import PROXY_LABEL, label_value
from openhqm_operator.kube.cache import Cache
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.errors import KubeError, NotFound
from openhqm_operator.kube.resources import ASYNC_PROXIES, Key, Object, key_of

READ_SECONDS = 2.0
"""For the live read; the API server gives the whole review 5 s."""

INDEX = "label"

_SHORTENED = re.compile(r"-[0-9a-f]{8}$")
"""How `names.label_value` ends that of a long name."""


class LookupFailed(Exception):
    """No answer can be given.

    Attributes:
        reason: one CamelCase word.
        message: what to do, as a sentence.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class ProxyLookup:
    """Finds AsyncProxies for Pods.

    Args:
        caches: of AsyncProxies, filled by informers; more than one where only some namespaces are watched.

    Attributes:
        live_reads: so far.
    """

    def __init__(self, caches: Sequence[Cache], kube: Kube) -> None:
        self.live_reads = 0
        self._caches = caches
        self._kube = kube
        self._under_way: dict[tuple[str, str], asyncio.Task[Object | None]] = {}
        self._confirmed: dict[Key, tuple[str, str]] = {}
        for cache in caches:
            cache.add_index(INDEX, _labels)

    async def find(self, namespace: str, label: str, wanted: str | None) -> Object:
        """Return the AsyncProxy for a Pod.

        Args:
            label: value of the Pod's label.
            wanted: the Pod's hash; None if it has none, which any configuration satisfies.

        Raises:
            LookupFailed: there is none, or the API server does not say.
        """
        cached = next((each for cache in self._caches for each in cache.by(INDEX, (namespace, label))), None)
        if cached is not None and (wanted in (None, _hash(cached)) or self._is_confirmed(cached, wanted)):
            return cached
        found = await self._read_once(namespace, label)
        if found is None:
            raise LookupFailed(
                "NoSuchProxy",
                f'label {PROXY_LABEL} names AsyncProxy "{label}", which is not in namespace {namespace}: '
                "create it, or remove the label from the Pod template",
            )
        if wanted is not None:
            self._confirmed[key_of(found)] = (wanted, found["metadata"]["resourceVersion"])
        return found

    def _is_confirmed(self, cached: Object, wanted: str | None) -> bool:
        """Whether a live read showed that this very version is what Pods with this hash get."""
        return self._confirmed.get(key_of(cached)) == (wanted, cached["metadata"]["resourceVersion"])

    async def _read_once(self, namespace: str, label: str) -> Object | None:
        """Read live; everyone who asks meanwhile gets the same answer."""
        place = (namespace, label)
        reading = self._under_way.get(place)
        if reading is None:
            reading = self._under_way[place] = asyncio.create_task(self._read(namespace, label))
            reading.add_done_callback(lambda _: self._under_way.pop(place))
        return await asyncio.shield(reading)

    async def _read(self, namespace: str, label: str) -> Object | None:
        self.live_reads += 1
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await self._read_by_label(namespace, label)
        except (KubeError, TimeoutError) as exc:
            raise LookupFailed(
                "ConfigurationUnknown",
                f'AsyncProxy "{label}" could not be read, and what is known of it is older than this Pod: it '
                "works again when the API server answers the injector",
            ) from exc

    async def _read_by_label(self, namespace: str, label: str) -> Object | None:
        try:
            return await self._kube.get(ASYNC_PROXIES, (namespace, label))
        except NotFound:
            if not _SHORTENED.search(label):
                return None
            # The label of a long name is its start and a digest; only a list tells whose it is.
            listing = await self._kube.list(ASYNC_PROXIES, namespace)
            named = (each for each in listing.items if label_value(each["metadata"]["name"]) == label)
            return next(named, None)


def _labels(proxy: Any) -> Iterable[Hashable]:
    metadata = proxy["metadata"]
    return [(metadata["namespace"], label_value(metadata["name"]))]


def _hash(proxy: Object) -> str | None:
    digest: str | None = (proxy.get("status") or {}).get("configHash")
    return digest
