"""The steps that may have to be taken for an AsyncProxy; data alone.

`desired.py` puts them in order, `reconcile.py` takes them.
"""

from __future__ import annotations

from dataclasses import dataclass

from openhqm_operator.gateway.stage import NOT_YET, Sleep
from openhqm_operator.kube.resources import Object, Resource


@dataclass(frozen=True, slots=True)
class Patch:
    """A JSON Patch that holds for the version looked at."""

    resource: Resource
    key: tuple[str, str]
    operations: tuple[Object, ...]


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply of an object of ours."""

    body: Object


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete an object of ours, if it is still this very one."""

    body: Object


@dataclass(frozen=True, slots=True)
class MintHandleKey:
    """Make the Secret that signs a proxy's handles, unless there is one."""

    proxy: Object


@dataclass(frozen=True, slots=True)
class MintStoreUser:
    """Make the user of the namespace in the bundled store and its Secret, unless there is one."""

    proxy: Object


@dataclass(frozen=True, slots=True)
class TouchTemplate:
    """Set label and hash of a workload's template; without a hash, take both back."""

    target: Object
    label: str
    hash: str | None


@dataclass(frozen=True, slots=True)
class SetReplicas:
    """Give a workload the replicas it had before it was scaled for the proxy."""

    target: Object
    replicas: int


@dataclass(frozen=True, slots=True)
class SetStatus:
    """Server-side apply of the status."""

    body: Object


@dataclass(frozen=True, slots=True)
class Tell:
    """An Event."""

    regarding: Object
    reason: str
    note: str
    is_warning: bool = False


Action = (
    Patch | Apply | Delete | MintHandleKey | MintStoreUser | TouchTemplate | SetReplicas | SetStatus | Tell
)


@dataclass(frozen=True, slots=True)
class Desired:
    """What is to be done.

    Args:
        steps: in order; empty: all is as it should be.
        look_again_seconds: None: something will happen to be told of.
        missed: Pods without the sidecar they ask for, for the metric.
        sleep: for the autoscaler.
    """

    steps: tuple[Action, ...] = ()
    look_again_seconds: float | None = None
    missed: int = 0
    sleep: Sleep = NOT_YET


def earliest(*seconds: float | None) -> float | None:
    """When to look again, of several wishes; None: nobody has one."""
    return min((each for each in seconds if each is not None), default=None)
