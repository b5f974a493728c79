"""What the cluster's administrator decides about every sidecar: image, resources, log. Never a proxy's own.

An AsyncProxy that could name an image or a user would let everybody who edits proxies create Pods. So these
come from the chart's values, in the injector's settings file (`webhook/settings.py`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt

from openhqm.settings import Area
from openhqm_operator.api.names import SIDECAR_UID

Quantities = dict[Literal["cpu", "memory", "ephemeral-storage"], str | int]


class Resources(Area):
    """What a container asks for and may use, as in every Pod."""

    requests: Quantities = Field({"cpu": "50m", "memory": "64Mi"}, description="Kept free on the node.")
    limits: Quantities = Field(
        {"memory": "256Mi"},
        description="Never exceeded. No CPU limit: it would throttle requests while the node is idle.",
    )


class PlatformLog(Area):
    """What sidecars log where their proxy does not say."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level written.")
    format: Literal["json", "console"] = Field("json", description="json, or console for people.")
    access: Literal["none", "errors", "all"] = Field(
        "errors", description="Which requests get a line of their own."
    )


class Platform(Area):
    """How sidecars run in this cluster."""

    image: str = Field(min_length=1, description="Image of the sidecar.")
    redirect_image: str | None = Field(
        None, description="Image with nft for interception Redirect. None: that interception is refused."
    )
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        "IfNotPresent", description="When the node pulls these images."
    )
    pull_secrets: tuple[str, ...] = Field(
        (), description="Names of Secrets, in the workloads' namespaces, that these images are pulled with."
    )
    resources: Resources = Field(default_factory=Resources)
    uid: NonNegativeInt | None = Field(
        SIDECAR_UID,
        ge=1,
        description="User and group the sidecar runs as. None: the platform picks one (OpenShift).",
    )
    log: PlatformLog = Field(default_factory=PlatformLog)
