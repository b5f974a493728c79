"""The JSON Patch (RFC 6902) that makes one object of another. Pure.

Made for what an injector does: values change and lists grow at their end. Lists that changed otherwise are
replaced whole, which is always right and here never happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from openhqm_operator.kube.resources import Object


def make_patch(before: Any, after: Any) -> list[Object]:
    """Return the operations that turn *before* into *after*, in the order they are applied; maybe none."""
    return list(_difference("", before, after))


def _difference(path: str, before: Any, after: Any) -> Iterator[Object]:
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        yield from _of_maps(path, before, after)
    elif isinstance(before, list) and isinstance(after, list) and len(before) <= len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=False)):
            yield from _difference(f"{path}/{index}", old, new)
        for new in after[len(before) :]:
            yield {"op": "add", "path": f"{path}/-", "value": new}
    else:
        yield {"op": "replace", "path": path, "value": after}


def _of_maps(path: str, before: Object, after: Object) -> Iterator[Object]:
    for key in before.keys() - after.keys():
        yield {"op": "remove", "path": f"{path}/{_escaped(key)}"}
    for key, value in after.items():
        place = f"{path}/{_escaped(key)}"
        if key in before:
            yield from _difference(place, before[key], value)
        else:
            yield {"op": "add", "path": place, "value": value}


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
