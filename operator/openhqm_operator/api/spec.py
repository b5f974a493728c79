"""The AsyncProxy resource, declared once: parsed here, its CRD generated from here by `crd.py`.

Every description is what `kubectl explain` shows. The `settings` part is made from the sidecar's own
settings model, so that a setting has one definition, one bound and one default. Numbers are whole:
Kubernetes APIs have no floats.
"""

from __future__ import annotations

import enum
from typing import Annotated, ClassVar

from pydantic import Field

from openhqm.settings import MAX_SECONDS
from openhqm_operator.api.part import Part, Rule
from openhqm_operator.api.settings import SettingsPart

GROUP = "openhqm.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "AsyncProxy"
PLURAL = "asyncproxies"

MAX_REPLICAS = 10_000
Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
WholeSeconds = Annotated[int, Field(ge=0, le=int(MAX_SECONDS))]
PositiveWholeSeconds = Annotated[int, Field(ge=1, le=int(MAX_SECONDS))]
Text = Annotated[str, Field(min_length=1, max_length=1024)]


class TargetKind(enum.StrEnum):
    """Workloads that can be proxied."""

    DEPLOYMENT = "Deployment"
    STATEFUL_SET = "StatefulSet"
    DAEMON_SET = "DaemonSet"


class TargetRef(Part):
    """The workload, in the same namespace."""

    kind: TargetKind = Field(description="Deployment, StatefulSet or DaemonSet.")
    name: Name = Field(description="Name of the workload.")


class InterceptType(enum.StrEnum):
    """How traffic reaches the sidecar."""

    AUTO = "Auto"
    NAMED_PORT = "NamedPort"
    SERVICE_PORT = "ServicePort"
    REDIRECT = "Redirect"


class Intercept(Part):
    """How traffic reaches the sidecar, and how much of it is queued."""

    type: InterceptType = Field(
        InterceptType.AUTO,
        description="NamedPort: the app's named port moves to the sidecar; catches Services that target it "
        "by name. ServicePort: the Services' targetPort is switched. Redirect: an init container with "
        "NET_ADMIN redirects the port inside the Pod; catches everything. Auto: the least privileged that "
        "catches all traffic.",
    )
    shadow: bool = Field(
        False, description="Only count what would be queued; everything passes straight through."
    )
    percent: Annotated[int, Field(ge=0, le=100)] = Field(
        100, description="Share of the requests that queue routes match which is queued; the rest passes."
    )

    rules: ClassVar = (
        Rule(
            "!self.shadow || self.percent == 100",
            "shadow counts all requests: leave percent at 100 with it",
        ),
    )


class HeaderMatch(Part):
    """A condition on one request header."""

    name: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")] = (
        Field(description="Header name, any case.")
    )
    exact: Annotated[str, Field(max_length=1024)] | None = Field(
        None, description="The value must equal this. Without it being there is enough."
    )


class RouteMatch(Part):
    """Which requests a route is for; conditions given must all hold."""

    methods: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=32, pattern=r"^[A-Z][A-Z-]*$")], ...],
        Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = Field((), description="Methods, upper case. Empty: all.")
    path: Text | None = Field(None, description="The path must equal this, without the query.")
    prefix: Text | None = Field(None, description="The path must start with this.")
    regex: Text | None = Field(
        None, description="The whole path must match this regular expression (Python)."
    )
    headers: Annotated[
        tuple[HeaderMatch, ...],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field((), description="Header conditions.")

    rules: ClassVar = (
        Rule(
            "[has(self.path), has(self.prefix), has(self.regex)].filter(given, given).size() <= 1",
            "path, prefix and regex exclude each other",
        ),
    )


class RouteAction(enum.StrEnum):
    """What happens to a request."""

    QUEUE = "Queue"
    PASS = "Pass"  # noqa: S105 - no password
    REJECT = "Reject"
    SHADOW = "Shadow"


class Delivery(enum.StrEnum):
    """What becomes of a request whose outcome is not known."""

    DECIDE = "Decide"
    REPEAT = "Repeat"


class Route(Part):
    """One rule; the first that matches wins."""

    match: RouteMatch = Field(default_factory=RouteMatch, description="Which requests. Empty: all.")
    action: RouteAction = Field(
        description="Queue; Pass straight through; Reject with 403; Shadow: pass, and count what Queue would "
        "have taken."
    )
    wait_seconds: WholeSeconds | None = Field(
        None, description="How long a queued request's connection is held for the answer before 202 is given."
    )
    timeout_seconds: PositiveWholeSeconds | None = Field(
        None, description="Overrides settings.egress.appTimeoutSeconds."
    )
    max_attempts: Count | None = Field(None, description="Overrides settings.retry.maxAttempts.")
    deadline_seconds: PositiveWholeSeconds | None = Field(
        None, description="Overrides settings.queue.maxAgeSeconds."
    )
    priority: Annotated[int, Field(ge=0, le=9)] | None = Field(
        None, description="Priority where the client gives none; 9 first."
    )
    delivery: Delivery | None = Field(
        None,
        description="Decide: POST and PATCH whose outcome is unknown are set aside for a decision. Repeat: "
        "they are run again.",
    )


class SecretRef(Part):
    """A key of a Secret in the same namespace that holds a URL."""

    name: Name = Field(description="Name of the Secret.")
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = Field(
        "url", description="Key whose value is the URL."
    )


class Server(Part):
    """A server this proxy uses, by the Secret that holds its URL."""

    secret_ref: SecretRef | None = Field(None, description="The one in use.")
    previous_secret_ref: SecretRef | None = Field(
        None, description="The one used before: what it still holds is finished, nothing new goes there."
    )

    rules: ClassVar = (
        Rule(
            "!has(self.secretRef) || !has(self.previousSecretRef) || "
            "self.secretRef.name != self.previousSecretRef.name || "
            "self.secretRef.key != self.previousSecretRef.key",
            "previousSecretRef is what was used before secretRef; they cannot be the same",
        ),
    )


class Key(Part):
    """Where the ordering key of a request is: those of one key run in order, one at a time."""

    header: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="Name of a request header."
    )
    cookie: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="Name of a cookie."
    )
    path: Text | None = Field(
        None, description="Regular expression (Python) on the path; its first group is the key."
    )
    json_field: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^(/[^/]*)+$")] | None = Field(
        None, alias="json", description="JSON Pointer (RFC 6901) into a JSON body, as /order/customer."
    )

    rules: ClassVar = (
        Rule(
            "[has(self.header), has(self.cookie), has(self.path), has(self.json)]"
            ".filter(given, given).size() == 1",
            "give exactly one of header, cookie, path and json",
        ),
    )


class ScalingMode(enum.StrEnum):
    """Who changes the replicas."""

    OFF = "Off"
    NATIVE = "Native"
    HPA = "HPA"
    KEDA = "KEDA"


class Step(Part):
    """How fast the replicas may change in one direction."""

    pods: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] = Field(
        description="Most replicas changed in periodSeconds."
    )
    percent: Annotated[int, Field(ge=0, le=10_000)] = Field(
        description="Most change in periodSeconds as a share of the present replicas; the larger of the two "
        "counts."
    )
    period_seconds: Annotated[int, Field(ge=1, le=3600)] = Field(15, description="See pods and percent.")
    window_seconds: Annotated[int, Field(ge=0, le=3600)] = Field(
        description="Act on the least change wanted within this window."
    )


class ScaleUp(Step):
    """How fast replicas are added."""

    pods: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] = Field(
        4, description="Most replicas added in periodSeconds."
    )
    percent: Annotated[int, Field(ge=0, le=10_000)] = Field(
        10_000,
        description="Most replicas added in periodSeconds, as a share of the present ones; the larger of "
        "the two counts. The default leaves it to maxReplicas: what is wanted is measured, and doubling step "
        "by step only makes the backlog wait.",
    )
    window_seconds: Annotated[int, Field(ge=0, le=3600)] = Field(
        0, description="Grow only to the least that was wanted within this window."
    )


class ScaleDown(Step):
    """How fast replicas are removed."""

    pods: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] = Field(
        0, description="Most replicas removed in periodSeconds."
    )
    percent: Annotated[int, Field(ge=0, le=10_000)] = Field(
        100,
        description="Most replicas removed in periodSeconds, as a share of the present ones; the larger of "
        "the two counts.",
    )
    window_seconds: Annotated[int, Field(ge=0, le=3600)] = Field(
        120, description="Shrink only to the most that was wanted within this window."
    )


class Schedule(Part):
    """Other bounds at certain times."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")] = (
        Field(description="Shown in status and events.")
    )
    start: Annotated[str, Field(min_length=9, max_length=128)] = Field(
        description="When it begins: five cron fields."
    )
    duration_seconds: Annotated[int, Field(ge=60, le=604_800)] = Field(description="How long it lasts.")
    time_zone: Annotated[str, Field(min_length=1, max_length=64)] = Field(
        "Etc/UTC", description="IANA time zone of start."
    )
    min_replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] | None = Field(
        None, description="Replaces scaling.minReplicas meanwhile; the largest of those in force counts."
    )
    max_replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] | None = Field(
        None, description="Replaces scaling.maxReplicas meanwhile; the largest of those in force counts."
    )

    rules: ClassVar = (
        Rule(
            "!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
            "minReplicas must not exceed maxReplicas",
        ),
    )


class Scaling(Part):
    """Replicas of the workload, from backlog and arrival rate."""

    mode: ScalingMode = Field(
        ScalingMode.OFF,
        description="Off; Native: the operator writes the scale; HPA: a HorizontalPodAutoscaler executes the "
        "operator's number (needs externalMetrics.enabled in the chart); KEDA: a ScaledObject does.",
    )
    min_replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] = Field(
        1,
        description="Least replicas. 0: an idle workload is scaled to zero and a gateway keeps its Service.",
    )
    max_replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = Field(10, description="Most replicas.")
    idle_after_seconds: Annotated[int, Field(ge=10, le=86_400)] = Field(
        300, description="Without work for this long, a workload with minReplicas 0 goes to zero."
    )
    drain_seconds: Annotated[int, Field(ge=1, le=86_400)] = Field(
        30, description="Aim: the present backlog is gone within this."
    )
    utilization_percent: Annotated[int, Field(ge=10, le=100)] = Field(
        70, description="Aim: this share of the replicas' capacity is in use by what arrives."
    )
    oldest_age_seconds: PositiveWholeSeconds | None = Field(
        None,
        description="Grow further, up to twice, when the oldest request that is due waits longer than this.",
    )
    up: ScaleUp = Field(ScaleUp(), description="How fast replicas are added.")
    down: ScaleDown = Field(ScaleDown(), description="How fast replicas are removed.")
    schedules: Annotated[
        tuple[Schedule, ...],
        Field(
            max_length=32,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field((), description="Other bounds at certain times.")
    paused: bool = Field(False, description="Leave the replicas as they are.")

    rules: ClassVar = (
        Rule("self.minReplicas <= self.maxReplicas", "minReplicas must not exceed maxReplicas"),
        Rule(
            "self.mode != 'HPA' || self.minReplicas >= 1",
            "an HPA cannot wake a workload from zero: set minReplicas to 1 or more, or use mode Native "
            "or KEDA",
        ),
    )


class Readiness(enum.StrEnum):
    """What the readiness of the app's container means."""

    PROXY = "Proxy"
    APP = "App"


class Rollout(enum.StrEnum):
    """When a change that needs new Pods takes effect."""

    AUTOMATIC = "Automatic"
    ON_NEXT_DEPLOY = "OnNextDeploy"


class Spec(Part):
    """What is asked for."""

    target_ref: TargetRef = Field(description="The workload. Cannot be changed.")
    port: int | str | None = Field(
        None,
        description="Name or number of the app's containerPort. Default: its only one.",
        json_schema_extra={"x-kubernetes-int-or-string": True},
    )
    intercept: Intercept = Field(Intercept(), description="How traffic reaches the sidecar.")
    routes: Annotated[
        tuple[Route, ...], Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "atomic"})
    ] = Field(
        (),
        description="Ordered rules; the first match wins. After them: POST, PUT, PATCH and DELETE queue, "
        "all else passes.",
    )
    store: Server | None = Field(
        None, description="Where requests are kept. Default: the Redis the chart brings along."
    )
    broker: Server | None = Field(
        None,
        description="A broker that carries the backlog, for foreign producers or consumers. Default: none.",
    )
    key: Key | None = Field(None, description="What orders requests. Default: the OpenHQM-Key header alone.")
    settings: SettingsPart | None = Field(None, description="Settings of the sidecar.")
    scaling: Scaling = Field(Scaling(), description="Replicas of the workload.")
    readiness: Readiness = Field(
        Readiness.PROXY,
        description="Proxy: once the app was ready, the Pod stays ready while the proxy serves, so that the "
        "queue takes what an overloaded app cannot. App: the app's own readiness.",
    )
    rollout: Rollout = Field(
        Rollout.AUTOMATIC,
        description="Automatic: a change that needs new Pods rolls the workload. OnNextDeploy: it waits for "
        "the next one.",
    )
    paused: bool = Field(False, description="Nothing is sent to the app; requests are still accepted.")

    rules: ClassVar = (
        Rule("self.targetRef == oldSelf.targetRef", "targetRef cannot be changed: make another AsyncProxy"),
        Rule(
            "!has(self.port) || (type(self.port) == int ? self.port >= 1 && self.port <= 65535 : "
            "self.port.matches('^[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?$'))",
            "port is a number from 1 to 65535, or the name of a containerPort",
        ),
        Rule(
            "self.scaling.mode == 'Off' || self.targetRef.kind != 'DaemonSet'",
            "a DaemonSet has one Pod per node and cannot be scaled: leave scaling.mode Off",
        ),
    )
