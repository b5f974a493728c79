"""The status of an AsyncProxy: what the operator found and did. Live numbers are metrics, not status."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import Field

from openhqm_operator.api.part import LARGEST, Part
from openhqm_operator.api.spec import Server

Generation = Annotated[int, Field(ge=0, le=LARGEST)]
Replicas = Annotated[int, Field(ge=0, le=2**31 - 1)]


class ConditionType(enum.StrEnum):
    """What is told about a proxy, each with a reason and a sentence that says what to do."""

    ACCEPTED = "Accepted"
    """The spec fits its target."""
    INJECTED = "Injected"
    """All Pods of the target have the sidecar, and all traffic meets it."""
    STORE_REACHABLE = "StoreReachable"
    """The sidecars reach their store."""
    AUTOSCALING_ACTIVE = "AutoscalingActive"
    """Somebody is scaling as asked."""
    DRAINING = "Draining"
    """The backlog is worked off before the sidecar goes."""
    READY = "Ready"
    """All is as asked for."""


class ConditionStatus(enum.StrEnum):
    """As for every Kubernetes condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Part):
    """Source: metav1.Condition (KEP-1623)."""

    type: ConditionType = Field(description="What is told about.")
    status: ConditionStatus = Field(description="Whether it is so.")
    observed_generation: Generation = Field(description="The metadata.generation this was found at.")
    last_transition_time: str = Field(
        description="When status last changed.", json_schema_extra={"format": "date-time"}
    )
    reason: Annotated[
        str, Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    ] = Field(description="Why, in one word for scripts.")
    message: Annotated[str, Field(max_length=32768)] = Field(description="Why, and what to do.")


class PodsStatus(Part):
    """Pods of the target."""

    total: Replicas = Field(0, description="Pods that are not ending.")
    injected: Replicas = Field(0, description="Of these, with the sidecar of the present configuration.")
    outdated: Replicas = Field(0, description="Of these, with a sidecar of an earlier configuration.")
    summary: Annotated[str, Field(max_length=32)] = Field("", description="injected/total, for the column.")


class ScalingStatus(Part):
    """What the autoscaler last did."""

    current_replicas: Replicas | None = Field(None, description="Replicas the workload asks for.")
    desired_replicas: Replicas | None = Field(None, description="Replicas the autoscaler wants.")
    last_scale_time: str | None = Field(
        None, description="When the replicas were last changed.", json_schema_extra={"format": "date-time"}
    )
    original_replicas: Replicas | None = Field(
        None, description="Replicas before the autoscaler changed them; restored at the end."
    )
    active_schedule: Annotated[str, Field(max_length=63)] | None = Field(
        None, description="Name of the schedule in force."
    )


class Status(Part):
    """What was found and done."""

    observed_generation: Generation | None = Field(
        None, description="The metadata.generation this status belongs to."
    )
    intercept: Annotated[str, Field(max_length=32)] | None = Field(
        None, description="The interception in force, where spec.intercept.type is Auto the one chosen."
    )
    config_hash: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Names the configuration new Pods get."
    )
    store: Server | None = Field(
        None,
        description="The stores in force, as long as spec.store names or named one used before: what that "
        "one holds is finished before spec.store takes effect without it.",
    )
    pods: PodsStatus | None = Field(None, description="Pods of the target.")
    scaling: ScalingStatus | None = Field(None, description="What the autoscaler last did.")
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = Field((), description="What is so and what is not, each with a reason and what to do.")
