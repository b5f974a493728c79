"""Every setting, declared once; read by all modules, printed by `openhqm settings`.

Sources, strongest first: command line flags, environment (`OPENHQM_<AREA>__<NAME>`), the YAML file
given by `--config` with `${VAR}` and `${VAR:-default}`, the defaults here. Unknown keys, wrong types
and contradicting values stop the start with a SettingsError that names the key.
A field marked `structural` needs a restart; the others are hot. `settings_docs.py` prints them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from openhqm.errors import SettingsError
from openhqm.settings_sources import Sources

MAX_SECONDS = 315_360_000.0
"""Ten years, the longest duration: the moments it leads to must be dates that can be written."""

Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS)]
PositiveSeconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
Port = Annotated[int, Field(ge=0, le=65535)]
KiB, MiB, GiB = 1024, 1024**2, 1024**3


def _compiled(regex: str | bytes) -> re.Pattern[Any]:
    try:
        return re.compile(regex)
    except re.error as exc:
        raise ValueError(f"not a regular expression: {exc}") from exc


def is_structural(field: FieldInfo) -> bool:
    """Whether a changed value waits for a restart."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("structural"))


class Area(BaseModel):
    """One area of the settings: immutable, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes, on and true as a truth value, which pydantic would take for 1."""
        if isinstance(value, bool):
            annotation = cls.model_fields[info.field_name or ""].annotation
            if bool not in (annotation, *get_args(annotation)):
                raise ValueError("true and false (also written yes, no, on, off) are not what belongs here")
        return value


class AppSettings(Area):
    """The container we front."""

    url: str | None = Field(
        None,
        description="Base URL of the app, http://host:port. None: API mode, requests come by the submit "
        "API and "
        "run in handlers.",
        json_schema_extra={"structural": True},
    )
    health_path: str | None = Field(
        None,
        description="Path probed while the circuit breaker is open; None lets the next request be the probe.",
        json_schema_extra={"structural": True},
    )

    @field_validator("url")
    @classmethod
    def _plain_http(cls, value: str | None) -> str | None:
        if value is not None and re.match(r"https?://[^/?#]*@", value):
            raise ValueError("must be http://host:port; a user and password are not supported there")
        if value is not None and not re.fullmatch(r"http://(\[[0-9a-fA-F:]+\]|[^/:@?#\s]+)(:\d+)?/?", value):
            raise ValueError("must be http://host:port without a path; the app's own paths are kept")
        return value.rstrip("/") if value else value


class KeySettings(Area):
    """Where the ordering key of a request is, for clients that send no OpenHQM-Key; at most one of these."""

    header: str | None = Field(None, description="Name of a request header; the first of that name counts.")
    cookie: str | None = Field(None, description="Name of a cookie.")
    path: str | None = Field(
        None,
        description="Regular expression, searched in the path (without the query, as sent); its first group "
        "is the key.",
    )
    json_field: str | None = Field(
        None,
        alias="json",
        pattern=r"^(/([^/~]|~[01])*)+$",
        description="JSON Pointer (RFC 6901) to a text or number in a JSON body, such as /order/customer. "
        "Bodies above store.spill_bytes have no key.",
    )

    @field_validator("path")
    @classmethod
    def _has_a_group(cls, value: str | None) -> str | None:
        if value is not None and _compiled(value.encode()).groups < 1:
            raise ValueError("needs a group, which is the key: ^/orders/([^/]+)")
        return value

    @model_validator(mode="after")
    def _one_place(self) -> KeySettings:
        if sum(v is not None for v in (self.header, self.cookie, self.path, self.json_field)) > 1:
            raise ValueError("header, cookie, path and json exclude each other")
        return self


class QueueSettings(Area):
    """What is queued, and how much."""

    name: str = Field(
        "default",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
        description="Separates proxies that share a store server.",
        json_schema_extra={"structural": True},
    )
    max_backlog: PositiveInt = Field(
        1_000_000,
        description="Unfinished requests admitted; beyond it clients get 503 with Retry-After.",
        json_schema_extra={"structural": True},
    )
    max_bytes: PositiveInt = Field(
        8 * GiB,
        description="Bytes of requests and answers held, with room reserved for the answers still to come.",
        json_schema_extra={"structural": True},
    )
    max_age_seconds: Seconds = Field(
        86_400.0,
        description="Deadline of a request that names none, in seconds from when it may first start; 0 for "
        "no deadline.",
    )
    key: KeySettings = Field(
        default_factory=KeySettings, description="Where the ordering key of a request is; none by default."
    )


class HandleSettings(Area):
    """Keys that sign handles."""

    keys: tuple[SecretStr, ...] = Field(
        (),
        description="Secrets of at least 16 characters that sign the handles given to clients: the "
        "first signs, all verify. "
        "Empty: one is made and kept beside an embedded store or inside a shared one.",
        json_schema_extra={"structural": True},
    )

    @field_validator("keys")
    @classmethod
    def _long_enough(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(len(key.get_secret_value()) < 16 for key in value):
            raise ValueError("every key needs at least 16 characters")
        return value


class StoreSettings(Area):
    """Where requests are kept."""

    url: SecretStr = Field(
        SecretStr("sqlite:///./openhqm-data/openhqm.db"),
        description="memory:, sqlite:///path, redis://, rediss://, redis+sentinel://, redis+cluster://.",
        json_schema_extra={"structural": True},
    )
    require_durability: Literal["none", "process", "power", "quorum"] = Field(
        "process",
        description="Refuse to start on a store whose commits survive less: none, process (kill -9), "
        "power (power cut), "
        "quorum.",
        json_schema_extra={"structural": True},
    )
    previous_url: SecretStr | None = Field(
        None,
        description="The store used before, while it still holds requests: they are finished and their "
        "answers given, nothing new goes there.",
        json_schema_extra={"structural": True},
    )
    spill_bytes: PositiveInt = Field(
        256 * KiB, description="Bodies larger than this are kept beside the record instead of in it."
    )


class BlobSettings(Area):
    """Where large bodies are kept."""

    url: SecretStr | None = Field(
        None,
        description="Where large bodies go: None beside the store, file:///folder, or s3://bucket/prefix.",
        json_schema_extra={"structural": True},
    )


class BrokerSettings(Area):
    """What carries the backlog besides the store."""

    url: SecretStr | None = Field(
        None,
        description="A broker that carries the backlog: nats://, nats+tls://; None: the store carries it.",
        json_schema_extra={"structural": True},
    )


class HeaderMatch(Area):
    """A condition on one request header."""

    name: str = Field(description="Header name, any case.")
    exact: str | None = Field(None, description="The value must equal this; None: being there is enough.")


class RouteMatch(Area):
    """Which requests a route is for; conditions given must all hold."""

    methods: tuple[str, ...] = Field((), description="Methods, upper case; empty: all.")
    path: str | None = Field(None, description="The path must equal this (without the query).")
    prefix: str | None = Field(None, description="The path must start with this.")
    regex: str | None = Field(None, description="The whole path must match this regular expression.")
    headers: tuple[HeaderMatch, ...] = Field(
        (),
        description="Header conditions, each {name: ..., exact: ...}; without exact being there is enough. "
        "All must hold.",
    )

    @field_validator("regex")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            _compiled(value)
        return value

    @model_validator(mode="after")
    def _one_path_condition(self) -> RouteMatch:
        if sum(v is not None for v in (self.path, self.prefix, self.regex)) > 1:
            raise ValueError("path, prefix and regex exclude each other")
        return self


class RouteSettings(Area):
    """One rule: requests that match take this action. The first match wins."""

    match: RouteMatch = Field(default_factory=RouteMatch, description="Which requests.")
    action: Literal["queue", "pass", "reject", "shadow"] = Field(
        description="queue; pass straight through; reject with 403; shadow: pass, and count what queue "
        "would have taken."
    )
    wait_seconds: Seconds = Field(
        0.0, description="How long a queued request's connection is held for the answer before 202 is given."
    )
    timeout_seconds: PositiveSeconds | None = Field(None, description="Overrides egress.app_timeout_seconds.")
    max_attempts: PositiveInt | None = Field(None, description="Overrides retry.max_attempts.")
    deadline_seconds: PositiveSeconds | None = Field(None, description="Overrides queue.max_age_seconds.")
    delivery: Literal["decide", "repeat"] = Field(
        "decide",
        description="decide: POST and PATCH whose outcome is unknown are set aside; repeat: they are "
        "run again.",
    )
    priority: Annotated[int, Field(ge=0, le=9)] | None = Field(
        None, description="Priority where the client gives none."
    )


class InterceptSettings(Area):
    """How much of what routes would queue is queued."""

    shadow: bool = Field(
        False, description="Only count what would be queued; all of it passes straight through."
    )
    percent: Annotated[int, Field(ge=0, le=100)] = Field(
        100, description="Share of the requests that queue routes match which is queued; the rest passes."
    )


class IngressSettings(Area):
    """What clients meet."""

    host: str = Field(
        "0.0.0.0", description="Address the intercept port binds.", json_schema_extra={"structural": True}
    )
    port: Port = Field(
        8000, description="Intercept port; 0 picks a free one.", json_schema_extra={"structural": True}
    )
    max_body_bytes: PositiveInt = Field(
        64 * MiB,
        description="Largest body of a request that is queued or submitted; beyond it 413. What passes "
        "straight through has no limit.",
    )
    max_wait_seconds: Seconds = Field(60.0, description="Upper bound of Prefer: wait and ?wait=.")
    body_timeout_seconds: PositiveSeconds = Field(
        60.0,
        description="A request body that makes no progress for this long ends its connection; so does "
        "an answer that the client stopped reading, and a body to be queued that falls this far behind "
        "240 bytes a second.",
    )
    max_connections: PositiveInt = Field(
        10_000,
        description="Client connections at once; more are answered with 503 and closed. Each needs a file "
        "descriptor (ulimit -n).",
        json_schema_extra={"structural": True},
    )
    keepalive_seconds: PositiveSeconds = Field(
        75.0,
        description="Idle client connections are closed after this.",
        json_schema_extra={"structural": True},
    )
    hold_seconds: Seconds = Field(
        0.0,
        description="How long a request that passes straight through waits for an app that takes no "
        "connections yet; then 503 with Retry-After. 0: 502 at once.",
    )
    max_held: PositiveInt = Field(
        1000, description="Requests that wait so at once; more get the 503 without waiting."
    )
    submit_api: bool | None = Field(
        None,
        description="Serve the submit API: /api/v1/submit, /api/v1/status, /api/v1/response, /health, "
        "/metrics and POST to requests under the reserved prefix; the app's own pages of these names are "
        "out of reach then, and ingress.api_keys is needed. None: only when app.url is not set.",
        json_schema_extra={"structural": True},
    )
    api_keys: tuple[SecretStr, ...] = Field(
        (),
        description="When set, submitting and reading by the submit API need one of these as Bearer "
        "token or X-API-Key.",
    )
    identity_header: str = Field(
        "Authorization", description="Header that tells callers apart for Idempotency-Key; hashed."
    )
    reserved_prefix: str = Field(
        "/.openhqm",
        pattern=r"^/[A-Za-z0-9._~-]+$",
        description="Path prefix of our own calls; never forwarded.",
        json_schema_extra={"structural": True},
    )
    trusted_proxies: tuple[str, ...] = Field(
        (),
        description="CIDRs whose X-Forwarded-* and Forwarded headers are kept and extended; others' are "
        "replaced.",
    )
    forwarded_headers: bool = Field(
        True, description="Add X-Forwarded-For/-Proto/-Host and Via to replayed requests."
    )

    @field_validator("api_keys")
    @classmethod
    def _can_be_sent(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        # An empty key, as of a variable nobody set, would let everyone in who sends an empty header.
        if not all(re.fullmatch(r"[!-~]([ -~]*[!-~])?", key.get_secret_value()) for key in value):
            raise ValueError("every key must be printable ASCII without blanks around it, and not empty")
        return value


class EgressSettings(Area):
    """How requests are replayed."""

    concurrency: PositiveInt = Field(8, description="Requests in flight to the app at once, per process.")
    lease_seconds: PositiveSeconds = Field(
        30.0,
        description="Seconds a lease lasts unless extended; renewed every third of it. Shorter finds "
        "dead processes sooner "
        "and writes more.",
    )
    app_timeout_seconds: PositiveSeconds = Field(300.0, description="Seconds one attempt may take in all.")
    connect_timeout_seconds: PositiveSeconds = Field(
        5.0, description="Seconds to connect to the app.", json_schema_extra={"structural": True}
    )
    reuse_idle_seconds: Seconds = Field(
        1.0,
        description="A kept connection is used again only if idle for less than this; 0 opens a fresh "
        "one each time.",
        json_schema_extra={"structural": True},
    )
    rate_per_second: NonNegativeFloat = Field(
        0.0, description="Most requests started per second, per process; 0: no limit."
    )
    paused: bool = Field(
        False,
        description="Send nothing to the app; requests are still accepted. For one process, where "
        "`openhqm pause` is for all of a queue.",
    )


class BreakerSettings(Area):
    """When to leave a failing app alone."""

    failures: PositiveInt = Field(
        5,
        description="Refused or lost connections in a row that open the breaker. It also opens when half of "
        "a window of 32 attempts ended so, timed out or were answered 502, 503 or 504; then the next "
        "window begins. Only attempts of queued requests count.",
    )
    open_seconds: PositiveSeconds = Field(
        1.0,
        description="First pause before a probe; doubles up to max_open_seconds while probes fail. A probe "
        "that is answered 502, 503 or 504, or too late, has failed too; one of the health path by anything "
        "but 200 to 399.",
    )
    max_open_seconds: PositiveSeconds = Field(30.0, description="Longest pause between probes.")


class RetrySettings(Area):
    """When a request is sent again."""

    max_attempts: PositiveInt = Field(5, description="Sends in all, the first included.")
    max_claims: PositiveInt = Field(5, description="Leases that lapse before a request counts as poison.")
    initial_backoff_seconds: PositiveSeconds = Field(
        1.0, description="Backoff before the second attempt; doubles, full jitter."
    )
    max_backoff_seconds: PositiveSeconds = Field(300.0, description="Longest backoff, also for Retry-After.")
    statuses: tuple[Annotated[int, Field(ge=200, le=599)], ...] = Field(
        (429, 503),
        description="Answers that are retried for every method. 502 and 504 are retried for idempotent "
        "methods besides.",
    )
    budget_percent: Annotated[int, Field(ge=1, le=100)] = Field(
        10, description="Most retries as a share of first attempts once the app fails broadly."
    )

    @model_validator(mode="after")
    def _ordered(self) -> RetrySettings:
        if self.initial_backoff_seconds > self.max_backoff_seconds:
            raise ValueError("retry.initial_backoff_seconds must not exceed retry.max_backoff_seconds")
        return self


class ResponseSettings(Area):
    """What is kept of answers."""

    ttl_seconds: PositiveSeconds = Field(
        86_400.0,
        description="How long an answer is kept, from the moment it is final.",
        json_schema_extra={"structural": True},
    )
    max_bytes: PositiveInt = Field(
        64 * MiB, description="Largest answer; a larger one fails the request with that reason."
    )
    reserve_bytes: NonNegativeInt = Field(
        2 * KiB,
        description="Room kept in queue.max_bytes for each answer to come.",
        json_schema_extra={"structural": True},
    )


class DeadLetterSettings(Area):
    """Requests given up on."""

    ttl_seconds: PositiveSeconds = Field(
        30 * 86_400.0,
        description="How long a dead letter is kept for a decision, from the moment it failed.",
        json_schema_extra={"structural": True},
    )


class CallbackSettings(Area):
    """Notices posted to clients."""

    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Where callbacks may go: host, *.suffix (not the suffix itself) or CIDR; empty refuses "
        "callbacks. A name permits its scheme's port, name:port that one, name:* all; a CIDR permits all "
        "ports, and private addresses inside it. Only public addresses are dialled otherwise.",
    )
    signing_secrets: tuple[SecretStr, ...] = Field(
        (),
        description="whsec_... secrets (Standard Webhooks); each signs, so that they can be rotated. "
        "Needed for callbacks.",
    )
    allow_http: bool = Field(False, description="Allow http:// besides https://.")
    timeout_seconds: PositiveSeconds = Field(20.0, description="Seconds one delivery may take.")
    max_attempts: PositiveInt = Field(10, description="Deliveries tried before the notice is a dead letter.")
    initial_backoff_seconds: PositiveSeconds = Field(
        5.0, description="Backoff before the second delivery; doubles, full jitter."
    )
    max_backoff_seconds: PositiveSeconds = Field(3600.0, description="Longest backoff between deliveries.")
    concurrency: PositiveInt = Field(4, description="Deliveries in flight at once, per process.")


class DrainSettings(Area):
    """How the process ends."""

    accept_seconds: Seconds = Field(
        2.0, description="Seconds new requests are still accepted after SIGTERM, while routes move."
    )
    timeout_seconds: PositiveSeconds = Field(
        25.0, description="Seconds in all from SIGTERM to exit; work still in flight then is left to R4."
    )


class HealthSettings(Area):
    """Probes and figures."""

    host: str = Field(
        "0.0.0.0", description="Address the health port binds.", json_schema_extra={"structural": True}
    )
    port: Port = Field(
        16020,
        description="/livez /readyz /startupz /metrics /stats, and the kubelet's hooks (pod.*); 0 picks a "
        "free one.",
        json_schema_extra={"structural": True},
    )


class HttpProbe(Area):
    """A GET request; 200 to 399 is success."""

    port: Annotated[int, Field(ge=1, le=65535)] = Field(description="Port of the app.")
    path: str = Field("/", description="Path and query.")
    scheme: Literal["HTTP", "HTTPS"] = Field("HTTP", description="HTTPS certificates are not verified.")
    headers: tuple[tuple[str, SecretStr], ...] = Field((), description="Name and value of each header.")
    timeout_seconds: PositiveSeconds = Field(1.0, description="Later is a failure.")


class TcpProbe(Area):
    """A connection that is accepted is success."""

    port: Annotated[int, Field(ge=1, le=65535)] = Field(description="Port of the app.")
    timeout_seconds: PositiveSeconds = Field(1.0, description="Later is a failure.")


class GrpcProbe(Area):
    """A call of grpc.health.v1.Health/Check; SERVING is success."""

    port: Annotated[int, Field(ge=1, le=65535)] = Field(description="Port of the app.")
    service: str = Field("", description="Name of the service asked about; empty: the server as a whole.")
    timeout_seconds: PositiveSeconds = Field(1.0, description="Later is a failure.")


class Probe(Area):
    """How one container is asked whether it is ready, as Kubernetes would ask it."""

    http: HttpProbe | None = Field(None, description="By HTTP.")
    tcp: TcpProbe | None = Field(None, description="By connecting.")
    grpc: GrpcProbe | None = Field(None, description="By gRPC's health protocol.")

    @model_validator(mode="after")
    def _one_way(self) -> Probe:
        if sum(v is not None for v in (self.http, self.tcp, self.grpc)) != 1:
            raise ValueError("give exactly one of http, tcp and grpc")
        return self


class PodSettings(Area):
    """What the injector tells a sidecar about its Pod."""

    token: SecretStr | None = Field(
        None,
        description="Lets the kubelet's hooks in, /app-stopping and /drain; None: there are none.",
        json_schema_extra={"structural": True},
    )
    probes: dict[str, Probe] = Field(
        {},
        description="Container -> its readiness probe (http, tcp or grpc), which /app-ready/{container} "
        "relays; JSON.",
        json_schema_extra={"structural": True},
    )
    readiness: Literal["proxy", "app"] = Field(
        "proxy",
        description="proxy: after its first success /app-ready/{container} says whether we serve; app: it "
        "always relays.",
        json_schema_extra={"structural": True},
    )

    @field_validator("token")
    @classmethod
    def _can_be_sent(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"[!-~]{16,}", value.get_secret_value()):
            raise ValueError("must be at least 16 printable ASCII characters without blanks")
        return value


class AdminSettings(Area):
    """The operator's own port."""

    host: str = Field(
        "127.0.0.1", description="Address the admin port binds.", json_schema_extra={"structural": True}
    )
    port: Port = Field(
        16000,
        description="Dead letters, pause, settings, dashboard; 0 picks a free one.",
        json_schema_extra={"structural": True},
    )


class LogSettings(Area):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level written.", json_schema_extra={"structural": True}
    )
    format: Literal["json", "console", "auto"] = Field(
        "auto",
        description="json; console for people; auto: console on a terminal.",
        json_schema_extra={"structural": True},
    )
    access: Literal["none", "errors", "all"] = Field(
        "errors", description="Which requests get a line of their own."
    )


class Settings(Area):
    """All settings of one process. Built from keyword arguments alone; `load` adds the sources."""

    model_config = ConfigDict(hide_input_in_errors=True)

    mode: Literal["combined", "ingress", "egress"] = Field(
        "combined",
        description="combined: everything beside the app; ingress: accept only; egress: replay only.",
        json_schema_extra={"structural": True},
    )
    app: AppSettings = Field(default_factory=AppSettings)
    queue: QueueSettings = Field(default_factory=QueueSettings)
    handle: HandleSettings = Field(default_factory=HandleSettings)
    store: StoreSettings = Field(default_factory=StoreSettings)
    blobs: BlobSettings = Field(default_factory=BlobSettings)
    broker: BrokerSettings = Field(default_factory=BrokerSettings)
    routes: tuple[RouteSettings, ...] = Field(
        (),
        description="Ordered rules; the first match wins. After them: POST, PUT, PATCH, DELETE queue, "
        "all else passes.",
    )
    intercept: InterceptSettings = Field(default_factory=InterceptSettings)
    ingress: IngressSettings = Field(default_factory=IngressSettings)
    egress: EgressSettings = Field(default_factory=EgressSettings)
    breaker: BreakerSettings = Field(default_factory=BreakerSettings)
    retry: RetrySettings = Field(default_factory=RetrySettings)
    response: ResponseSettings = Field(default_factory=ResponseSettings)
    dead_letters: DeadLetterSettings = Field(default_factory=DeadLetterSettings)
    callback: CallbackSettings = Field(default_factory=CallbackSettings)
    drain: DrainSettings = Field(default_factory=DrainSettings)
    health: HealthSettings = Field(default_factory=HealthSettings)
    admin: AdminSettings = Field(default_factory=AdminSettings)
    pod: PodSettings = Field(default_factory=PodSettings)
    log: LogSettings = Field(default_factory=LogSettings)

    @model_validator(mode="after")
    def _fit_together(self) -> Settings:
        ports = [p for p in (self.ingress.port, self.health.port, self.admin.port) if p]
        if len(set(ports)) != len(ports):
            raise ValueError("ingress.port, health.port and admin.port must differ")
        if (
            self.store.url.get_secret_value().startswith("memory:")
            and self.store.require_durability != "none"
        ):
            raise ValueError(
                "store.url memory: loses everything when the process ends; "
                "say store.require_durability: none to accept that"
            )
        if self.store.previous_url is not None and self.store.previous_url == self.store.url:
            raise ValueError("store.previous_url is what was used before store.url; they cannot be the same")
        if self.drain.accept_seconds >= self.drain.timeout_seconds:
            raise ValueError("drain.accept_seconds must be less than drain.timeout_seconds")
        if self.ingress.submit_api and self.app.url is not None and not self.ingress.api_keys:
            raise ValueError(
                "ingress.submit_api beside app.url needs ingress.api_keys: who submits reaches all of the app"
            )
        if self.mode == "egress" and self.ingress.submit_api:
            raise ValueError("ingress.submit_api needs an ingress, but mode is egress")
        if (
            self.store.spill_bytes > self.ingress.max_body_bytes
            and "spill_bytes" in self.store.model_fields_set
        ):
            raise ValueError("store.spill_bytes must not exceed ingress.max_body_bytes")
        return self

    @property
    def submit_api_enabled(self) -> bool:
        """Whether the submit API is served: said so, or nothing else to serve."""
        if self.ingress.submit_api is None:
            return self.app.url is None
        return self.ingress.submit_api


def load(
    *,
    config: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read settings from all sources.

    Args:
        config: a YAML file.
        flags: nested like the model; they win over everything else.
        environ: the environment, os.environ if not given.

    Raises:
        SettingsError: one line naming the key and what is wrong with it.
    """
    sources = Sources(Settings, config, flags or {}, os.environ if environ is None else environ)
    try:
        return Settings(**sources.merged())
    except ValidationError as exc:
        raise SettingsError(sources.describe(exc)) from exc
