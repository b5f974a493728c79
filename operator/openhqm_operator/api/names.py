"""Names that others see: labels, annotations, field managers, ports, objects of ours. One place for all."""

from __future__ import annotations

import hashlib

GROUP = "openhqm.io"

# --- on the user's workload ---------------------------------------------------------------------------

PROXY_LABEL = f"{GROUP}/proxy"
"""On the Pod template: names the AsyncProxy (`label_value`). The webhook selects Pods by it. On objects of
ours: the AsyncProxy they belong to."""

HASH_ANNOTATION = f"{GROUP}/config-hash"
"""On the Pod template: names the configuration new Pods must get; changing it rolls the workload."""

ENABLED_ANNOTATION = f"{GROUP}/enabled"
FORCE_EJECT_ANNOTATION = f"{GROUP}/force-eject"

# --- on Pods ------------------------------------------------------------------------------------------

INJECTED_ANNOTATION = f"{GROUP}/injected"
"""On a Pod, by the injector: JSON with the version, the configuration's hash and the interception."""

INJECT_LABEL = f"{GROUP}/admission"
"""`disabled` on a Pod or namespace keeps the webhook away."""

# --- on objects of ours, or that we changed -------------------------------------------------------------

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "openhqm"
COMPONENT_LABEL = "app.kubernetes.io/component"
GATEWAY = "gateway"
"""The component that stands in for a workload at zero."""
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
"""On an EndpointSlice: the Service it belongs to. Source: discovery/v1."""
SLICE_MANAGER_LABEL = "endpointslice.kubernetes.io/managed-by"
SLICE_MANAGER = "gateway.openhqm.io"
"""On an EndpointSlice: who looks after it. Only this tells ours: a controller gives its slices all labels of
their Service, so those of a Service of ours look like ours. Source: discovery/v1."""
AWAKE_ANNOTATION = f"{GROUP}/awake-since"
"""On a gateway's Deployment: since when its workload does without it."""
MANIFEST_ANNOTATION = f"{GROUP}/manifest"
"""On a gateway's Deployment: a digest of what it was made as."""
OWNER_ANNOTATION = f"{GROUP}/made-from"
"""On an AsyncProxy that the operator made from a workload's annotations: that workload's UID."""

ORIGINAL_PORTS_ANNOTATION = f"{GROUP}/original-ports"
"""On a Service whose targetPorts were switched: what they were, as JSON."""

FINALIZER = f"{GROUP}/finalizer"

HELD_ANNOTATION = f"{GROUP}/waits-for-deploy"
"""On an AsyncProxy with rollout OnNextDeploy: the template that is to be deployed over, as a digest."""

STORE_SECRET = "openhqm-store"  # noqa: S105 - the name of a Secret
"""In a workload's namespace: the URL of the Redis that the chart brings along, minted by the operator."""
STORE_SECRET_KEY = "url"  # noqa: S105 - the name of a key

HANDLE_SECRET_KEY = "keys"  # noqa: S105 - the name of a key
"""In `handle_secret(proxy)`: secrets between commas, the first signs handles, all verify."""

# --- who writes -----------------------------------------------------------------------------------------

OPERATOR_MANAGER = "openhqm-operator"
AUTOSCALER_MANAGER = "openhqm-autoscaler"

# --- in a Pod -------------------------------------------------------------------------------------------

SIDECAR_CONTAINER = "openhqm"
REDIRECT_CONTAINER = "openhqm-redirect"
SETTINGS_VOLUME = "openhqm-settings"
DATA_VOLUME = "openhqm-data"
"""Mounted by the sidecar as /data. A Pod that has a volume of this name keeps an embedded store in it;
otherwise it is empty and goes with the Pod."""
NO_TOKEN_VOLUME = "openhqm-no-token"  # noqa: S105 - the name of an empty volume
SETTINGS_FOLDER = "/etc/openhqm"
SETTINGS_FILE = "settings.yaml"

INTERCEPT_PORT = 16080
BYPASS_PORT = 16081
"""Where an app's port is redirected: leads the kubelet's probes and hooks past the redirection."""
HEALTH_PORT = 16020
ADMIN_PORT = 16000
INTERCEPT_PORT_NAME = "openhqm"
HEALTH_PORT_NAME = "openhqm-health"

SIDECAR_UID = 15080
"""Nobody else's: Istio uses 1337, Linkerd 2102."""

_LABEL_LIMIT = 63


def label_value(name: str) -> str:
    """Return *name* as a label value: itself if it is short enough, otherwise its start and a hash."""
    return _bounded(name, _LABEL_LIMIT)


def child_name(proxy: str, suffix: str, limit: int = _LABEL_LIMIT) -> str:
    """Name of an object of ours for *proxy*: `<proxy>-openhqm-<suffix>`, never longer than *limit*."""
    tail = f"-openhqm-{suffix}"
    return _bounded(proxy, limit - len(tail)) + tail


def settings_map(proxy: str) -> str:
    """Name of the ConfigMap with *proxy*'s settings."""
    return child_name(proxy, "settings")


def handle_secret(proxy: str) -> str:
    """Name of the Secret with the keys that sign *proxy*'s handles."""
    return child_name(proxy, "handles")


def queue_name(namespace: str, proxy: str) -> str:
    """Name of the queue in the store: `<namespace>.<proxy>`, short enough for `queue.name`."""
    return f"{namespace}.{_bounded(proxy, _LABEL_LIMIT)}"


def _bounded(name: str, limit: int) -> str:
    if len(name) <= limit:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: limit - 9].rstrip('-.')}-{digest}"
