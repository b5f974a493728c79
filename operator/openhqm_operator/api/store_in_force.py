"""The store that sidecars get, which is not always the one that is asked for. Pure.

    spec.store      what is asked for
    status.store    what is in force, as long as a store used before is being finished beside the present one

A sidecar finishes the store of `previousSecretRef` and takes new work into that of `secretRef`. Who takes the
former out while it holds work would leave that work behind. So operator and injector go on with
`status.store` until `reconciling/store_change.py` finds the previous store empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def store_in_force(proxy: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """`status.store` of an AsyncProxy; None where what is asked for is in force."""
    found: Mapping[str, Any] | None = (proxy.get("status") or {}).get("store")
    return found


def spec_in_force(proxy: Mapping[str, Any]) -> Mapping[str, Any]:
    """The spec that Pods get now."""
    spec: Mapping[str, Any] = proxy["spec"]
    store = store_in_force(proxy)
    return spec if store is None else {**spec, "store": store}
