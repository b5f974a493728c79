"""The chart's uninstall hook: its account and the rights the chart gives it."""

from __future__ import annotations

from pathlib import Path

from tests.charts.rendering import Object, of_kind
from tests.cluster.control_plane import ControlPlane

_RBAC = "/apis/rbac.authorization.k8s.io/v1"
_KINDS = ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")


def grant_hook(plane: ControlPlane, objects: list[Object], namespace: str) -> Path:
    """Make the rights that *objects*, the rendered chart, give to the hook; returns its kubeconfig.

    Args:
        namespace: the release's; it is there.
    """
    found = [obj for kind in _KINDS for obj in of_kind(objects, kind)]
    for obj in found:
        if obj["metadata"]["name"].endswith("-uninstall"):
            place = f"namespaces/{namespace}/" if "namespace" in obj["metadata"] else ""
            plane.request("POST", f"{_RBAC}/{place}{obj['kind'].lower()}s", obj)
    return plane.kubeconfig_of(f"system:serviceaccount:{namespace}:openhqm-uninstall")
