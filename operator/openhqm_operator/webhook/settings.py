"""Settings of the injector, from one YAML file that the chart writes.

    platform:
      image: registry/openhqm:1.0
    port: 9443

Unknown keys and wrong values stop the start with a sentence that names the key.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from openhqm.settings import Area, LogSettings, Port, Seconds
from openhqm_operator.injecting.platform_settings import Platform


class InjectorSettings(Area):
    """All settings of one injector process."""

    platform: Platform = Field(description="How sidecars run in this cluster.")
    host: str = Field("0.0.0.0", description="Address both ports bind.")  # noqa: S104 - a Pod's own network
    port: Port = Field(9443, description="Webhook, TLS; 0 picks a free one.")
    health_port: Port = Field(16020, description="/livez /readyz /metrics; 0 picks a free one.")
    certificate_folder: Path = Field(
        Path("/etc/openhqm-injector/tls"), description="Has tls.crt and tls.key; read again when they change."
    )
    certificate_check_seconds: Seconds = Field(10.0, description="How often the certificate is looked at.")
    drain_seconds: Seconds = Field(
        5.0,
        description="Reviews are still answered this long after SIGTERM, while the Service's routes move.",
    )
    namespaces: tuple[str, ...] = Field(
        (), description="Namespaces whose AsyncProxies are watched; empty: all of them."
    )
    log: LogSettings = Field(default_factory=LogSettings)
