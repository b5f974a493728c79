"""Metadata of what the operator makes for an AsyncProxy: whose it is, and that it goes with it."""

from __future__ import annotations

from openhqm_operator.api import names
from openhqm_operator.api.spec import API_VERSION, KIND
from openhqm_operator.kube.resources import Object


def owned_metadata(proxy: Object, name: str, component: str = "") -> Object:
    """Metadata of an object of ours that goes with the AsyncProxy; *component*: what it is, where Pods are
    told apart by it."""
    metadata = proxy["metadata"]
    return {
        "name": name,
        "namespace": metadata["namespace"],
        "labels": {
            names.MANAGED_BY_LABEL: names.MANAGED_BY,
            **({names.COMPONENT_LABEL: component} if component else {}),
            names.PROXY_LABEL: names.label_value(metadata["name"]),
        },
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": metadata["name"],
                "uid": metadata["uid"],
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
