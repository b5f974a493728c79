"""Other stores asked for than those in force, while the one used before still holds work. Pure.

    the one used before is not in spec.store any more ---kept_store---> status.store stays in force, or None

`api/store_in_force.py` says why. What the previous store holds is known once every sidecar uses the stores in
force and says so.
"""

from __future__ import annotations

from openhqm_operator.api import names
from openhqm_operator.api.spec import SecretRef, Server, Spec
from openhqm_operator.api.store_in_force import store_in_force
from openhqm_operator.kube.resources import Object
from openhqm_operator.reconciling.ejection import about
from openhqm_operator.reconciling.observed import Observed, hash_of


def kept_store(seen: Observed, spec: Spec) -> Server | None:
    """The stores that stay in force though *spec* asks for others; None if it may have its way."""
    found = store_in_force(seen.proxy)
    kept = Server.model_validate(found) if found is not None else None
    if kept is None or kept.previous_secret_ref in _stores_of(spec):
        return None
    is_used = seen.is_labelled or any(hash_of(pod) is not None for pod in seen.pods)
    return kept if is_used and seen.told.previous != 0 and not seen.is_forced else None


def _stores_of(spec: Spec) -> tuple[SecretRef | None, ...]:
    """Those that sidecars with *spec* would use; the bundled one where none is named."""
    store = spec.store or Server()
    bundled = SecretRef(name=names.STORE_SECRET, key=names.STORE_SECRET_KEY)
    return store.secret_ref or bundled, store.previous_secret_ref


def as_status(spec: Spec) -> Object:
    """`status.store` of a *spec* that comes into force."""
    if spec.store is None or spec.store.previous_secret_ref is None:
        return {}
    return {"store": spec.store.model_dump(mode="json", by_alias=True, exclude_none=True)}


def why_kept(seen: Observed) -> str:
    """Why the stores asked for are not in force yet, as a sentence."""
    left = seen.told.previous
    held = "is not told yet by the sidecars" if left is None else f"is {about(left)} requests"
    return (
        f"spec.store takes effect when the store used before is empty; what it holds {held}. The annotation "
        "openhqm.io/force-eject: true gives that up."
    )
