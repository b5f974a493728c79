"""AsyncProxies that the operator keeps for annotated workloads: made, changed, discarded. Pure.

    workload, AsyncProxies of its namespace --own--> Create | Change | Discard | Tell, or nothing to do

An AsyncProxy is ours if it says so by the workload's UID; one that a user made is never touched.
Annotations that cannot be followed change no spec; where there is no AsyncProxy yet, one that asks for
nothing is made, to have a place for the condition (`acceptance.py` refuses it).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from openhqm_operator.api import names
from openhqm_operator.api.annotations import AnnotationsInvalid, is_enabled, read_annotations
from openhqm_operator.api.spec import API_VERSION, KIND, Spec
from openhqm_operator.kube.resources import Object
from openhqm_operator.reconciling.acceptance import is_made_from
from openhqm_operator.reconciling.observed import annotations_of
from openhqm_operator.reconciling.steps import Tell


@dataclass(frozen=True, slots=True)
class Create:
    """Make the AsyncProxy."""

    proxy: Object


@dataclass(frozen=True, slots=True)
class Change:
    """Replace the spec of the AsyncProxy, if it is still of this version."""

    proxy: Object


@dataclass(frozen=True, slots=True)
class Discard:
    """Delete the AsyncProxy; its finalizer then sees to the drain."""

    proxy: Object


Owning = Create | Change | Discard | Tell


def own(workload: Object, proxies: Iterable[Object]) -> Owning | None:
    """Decide what the workload's annotations ask to be done about AsyncProxies of its namespace."""
    proxies = list(proxies)
    ours = next((proxy for proxy in proxies if is_made_from(proxy, workload)), None)
    wish = is_enabled(annotations_of(workload))
    if wish is False:
        return _without(ours)
    if wish is None:
        return _misspelled(workload)
    if ours is not None:
        return _kept(workload, ours)
    name = workload["metadata"]["name"]
    namesake = next((proxy for proxy in proxies if proxy["metadata"]["name"] == name), None)
    if namesake is None:
        return Create(_new(workload, _asked(workload) or {"targetRef": _reference(workload)}))
    return _name_taken(workload, namesake)


def _misspelled(workload: Object) -> Tell:
    """Neither yes nor no: whatever is in force stays."""
    return Tell(
        workload,
        "InvalidAnnotation",
        f'{names.ENABLED_ANNOTATION} is neither "true" nor "false": nothing was changed.',
        is_warning=True,
    )


def _without(ours: Object | None) -> Discard | None:
    if ours is None or "deletionTimestamp" in ours["metadata"]:
        return None
    return Discard(ours)


def _kept(workload: Object, ours: Object) -> Change | None:
    """Compared as models: the API server fills in the defaults of what was not asked for."""
    asked = _asked(workload)
    if asked is None or "deletionTimestamp" in ours["metadata"]:
        return None
    if Spec.model_validate(asked) == Spec.model_validate(ours["spec"]):
        return None
    return Change({**ours, "spec": asked})


def _asked(workload: Object) -> dict[str, Any] | None:
    """The spec the annotations ask for; None if they cannot be followed."""
    try:
        return read_annotations(annotations_of(workload), workload["kind"], workload["metadata"]["name"])
    except AnnotationsInvalid:
        return None


def _name_taken(workload: Object, namesake: Object) -> Tell | None:
    if names.OWNER_ANNOTATION in annotations_of(namesake) and "deletionTimestamp" in namesake["metadata"]:
        return None  # of a workload that is gone, and about to go: its end brings us here again
    return Tell(
        workload,
        "NameTaken",
        f"There is an AsyncProxy {namesake['metadata']['name']} that was not made from these annotations, so "
        "they have no effect: delete it to follow them, or take the annotation openhqm.io/enabled away.",
        is_warning=True,
    )


def _reference(workload: Object) -> Object:
    return {"kind": workload["kind"], "name": workload["metadata"]["name"]}


def _new(workload: Object, spec: dict[str, Any]) -> Object:
    metadata = workload["metadata"]
    owner = {
        "apiVersion": workload["apiVersion"],
        **_reference(workload),
        "uid": metadata["uid"],
        "controller": True,
        # The workload goes without waiting for us: Pods that end drain by themselves.
        "blockOwnerDeletion": False,
    }
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY},
            "annotations": {names.OWNER_ANNOTATION: metadata["uid"]},
            "ownerReferences": [owner],
        },
        "spec": spec,
    }
