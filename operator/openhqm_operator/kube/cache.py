"""What we know of a resource, in memory, with indexes. Filled by `watching.py`, read by everybody. Pure.

    pods = Cache()
    pods.add_index("proxy", lambda pod: [pod["metadata"]["labels"].get(PROXY_LABEL)])
    pods.get(("shop", "legacy-1"))        the object or None
    pods.by("proxy", "legacy")            objects, possibly none, in the order of their keys

Objects in it are shared by all readers: never change one, copy it first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, KeysView
from typing import Any

from openhqm_operator.kube.resources import Key, Object

Index = Callable[[Any], Iterable[Hashable]]
"""Returns the values under which an object is to be found, possibly none."""


class Cache:
    """Objects of one resource by key, and by what the indexes say of them."""

    def __init__(self) -> None:
        self._objects: dict[Key, Object] = {}
        self._indexes: dict[str, Index] = {}
        self._keys: dict[str, dict[Hashable, dict[Key, None]]] = {}

    def add_index(self, name: str, index: Index) -> None:
        """Keep objects findable by what *index* returns for them; also those that are here already."""
        self._indexes[name] = index
        self._keys[name] = {}
        for key, obj in self._objects.items():
            self._enter(name, key, obj)

    def get(self, key: tuple[str, str]) -> Object | None:
        return self._objects.get(Key(*key))

    def keys(self) -> KeysView[Key]:
        return self._objects.keys()

    def values(self) -> Collection[Object]:
        return self._objects.values()

    def by(self, index: str, value: Hashable) -> list[Object]:
        """Objects for which *index* has *value*, possibly none.

        In the order of their keys, so that what is made of them does not change while they do not.

        Raises:
            KeyError: no such index.
        """
        return [self._objects[key] for key in sorted(self._keys[index].get(value, ()))]

    def __contains__(self, key: object) -> bool:
        return key in self._objects

    def __iter__(self) -> Iterator[Key]:
        return iter(self._objects)

    def __len__(self) -> int:
        return len(self._objects)

    def put(self, key: Key, obj: Object | None) -> Object | None:
        """Set or, with None, remove an object; for whoever fills the cache.

        Returns: what was there before.
        """
        before = self._objects.pop(key, None)
        for name in self._indexes:
            if before is not None:
                self._leave(name, key, before)
            if obj is not None:
                self._enter(name, key, obj)
        if obj is not None:
            self._objects[key] = obj
        return before

    def _enter(self, name: str, key: Key, obj: Object) -> None:
        for value in self._indexes[name](obj):
            self._keys[name].setdefault(value, {})[key] = None

    def _leave(self, name: str, key: Key, obj: Object) -> None:
        by_value = self._keys[name]
        for value in self._indexes[name](obj):
            keys = by_value.get(value, {})
            keys.pop(key, None)
            if not keys:
                by_value.pop(value, None)
