"""Settings of the operator, from one YAML file that the chart writes.

    lease: {namespace: openhqm}
    store: {url: "redis://operator:${REDIS_PASSWORD}@openhqm-redis:6379/0", public_url: "redis://openhqm-redis.openhqm.svc:6379/0"}

Unknown keys and wrong values stop the start with a sentence that names the key. `${NAME}` is a variable.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, SecretStr

from openhqm.settings import Area, LogSettings, Port, PositiveSeconds, Seconds
from openhqm_operator.certificates.keeper import CertificateSettings
from openhqm_operator.injecting.platform_settings import Platform


class LeaseSettings(Area):
    """The Lease that says which operator works."""

    namespace: str = Field(description="Namespace of the Lease: the release's.")
    name: str = Field("openhqm-operator", description="Its name.")


class BundledStoreSettings(Area):
    """The Redis that the chart brings along."""

    url: SecretStr = Field(description="Logs in as a user who may make users.")
    public_url: str = Field(description="As sidecars reach it, without credentials.")


class KedaSettings(Area):
    """Where KEDA reads how many replicas are wanted."""

    url: str = Field(description="As KEDA reaches `port`, without a slash at the end.")
    port: Port = Field(16030, description="Port it is answered on; 0 picks a free one.")


class MetricsApiSettings(Area):
    """The external metrics API that HPAs read."""

    certificate_folder: Path = Field(description="Has tls.crt and tls.key; looked at again and again.")
    port: Port = Field(16443, description="Port it is answered on, TLS; 0 picks a free one.")


class OperatorSettings(Area):
    """All settings of one operator process."""

    lease: LeaseSettings
    store: BundledStoreSettings | None = Field(None, description="None: proxies must name a store.")
    certificates: CertificateSettings | None = Field(
        None, description="The injector's; None: they are somebody else's business."
    )
    gateway: Platform | None = Field(
        None,
        description="How gateways run; None: no workload goes to zero, and one that is there wakes.",
    )
    keda: KedaSettings | None = Field(None, description="None: scaling mode KEDA is refused.")
    metrics_api: MetricsApiSettings | None = Field(None, description="None: scaling mode HPA is refused.")
    namespace: str | None = Field(None, description="The one namespace looked after; none: all.")
    pod_security: Literal["privileged", "baseline", "restricted"] = Field(
        "privileged", description="Pod Security level enforced in namespaces without a label for it."
    )
    host: str = Field("0.0.0.0", description="Address the health port binds.")  # noqa: S104 - a Pod's own network
    health_port: Port = Field(16020, description="/livez /readyz /metrics; 0 picks a free one.")
    workers: PositiveInt = Field(8, description="AsyncProxies looked at at once.")
    resync_seconds: PositiveSeconds = Field(600.0, description="Everything is looked at again this often.")
    stale_seconds: PositiveSeconds = Field(
        300.0,
        description="A resource not heard of, a look or tick not finished, or (at least 300 s) kopf standing "
        "still for so long fails /livez. A leader whose kopf stands still ends after 150 s.",
    )
    drain_seconds: Seconds = Field(10.0, description="What is under way at SIGTERM may take this long.")
    log: LogSettings = Field(default_factory=LogSettings)
