"""Annotations on a workload, read into the spec of the AsyncProxy they stand for. Pure.

    annotations of a Deployment --read_annotations--> spec of its AsyncProxy, or every problem at once

Bounds are those of the resource itself (`spec.py`); only how a value is spelled is decided here. An unknown
name is a problem too: a typo that is ignored would leave an app without its queue. What comes next is
`reconciling/ownership.py`.
"""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from openhqm.invalid import problems
from openhqm_operator.api import names
from openhqm_operator.api.spec import (
    Delivery,
    InterceptType,
    Readiness,
    Rollout,
    RouteAction,
    ScalingMode,
    Spec,
    TargetKind,
)

_PREFIX = f"{names.GROUP}/"
_OURS = {names.ENABLED_ANNOTATION, names.FORCE_EJECT_ANNOTATION}
_CHANGING = ("POST", "PUT", "PATCH", "DELETE")
"""What is queued where no route says otherwise."""

_SHOWN_CHARACTERS = 80
_MOST_ROUTES = 30


class AnnotationsInvalid(Exception):
    """Annotations that cannot be followed; `problems` names each with what is allowed."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class _Unfit(ValueError):
    """A value that is not spelled as it must be; the text completes "<annotation>: <value> is "."""


def is_enabled(annotations: Mapping[str, str]) -> bool | None:
    """Whether the workload asks for a queue; None if what it says is neither yes nor no: a problem."""
    return {"true": True, "false": False}.get(annotations.get(names.ENABLED_ANNOTATION, "false"))


def is_forced(annotations: Mapping[str, str]) -> bool:
    """Whether the sidecar is to go without waiting for the backlog."""
    return annotations.get(names.FORCE_EJECT_ANNOTATION) == "true"


# --- how values are spelled ------------------------------------------------------------------------------


def _whole(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,16}", text):
        raise _Unfit("not a whole number")
    return int(text)


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise _Unfit('neither "true" nor "false"')
    return text == "true"


def _port(text: str) -> int | str:
    if text.isdecimal():
        if not 1 <= int(text) <= 65535:
            raise _Unfit("not from 1 to 65535")
        return int(text)
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?", text):
        raise _Unfit("not the name of a containerPort")
    return text


def _secret(text: str) -> dict[str, str]:
    name, slash, key = text.partition("/")
    return {"name": name, "key": key} if slash else {"name": name}


def _one_of(choices: type[enum.StrEnum]) -> Callable[[str], str]:
    allowed = [choice.value for choice in choices]

    def read(text: str) -> str:
        if text not in allowed:
            close = difflib.get_close_matches(text, allowed, n=1, cutoff=0.5)
            raise _Unfit("not one of them" + (f", did you mean {close[0]}?" if close else ""))
        return text

    return read


def _matches(text: str) -> list[dict[str, Any]]:
    """`POST /jobs, /reports` -> matches of routes."""
    return [_match(part.strip()) for part in text.split(",")]


def _match(part: str) -> dict[str, Any]:
    found = re.fullmatch(r"(?:([A-Z][A-Z-]*) +)?(/\S*)", part)
    if found is None:
        raise _Unfit(f"not a list of path prefixes: {_shown(part)}")
    method, prefix = found.groups()
    return {"methods": [method], "prefix": prefix} if method else {"prefix": prefix}


@dataclass(frozen=True, slots=True)
class Setting:
    """One annotation.

    Args:
        path: where its value goes in the spec; empty: it takes part in making the routes.
        allowed: its values, for people.
    """

    name: str
    path: tuple[str, ...]
    read: Callable[[str], Any]
    allowed: str
    meaning: str

    @property
    def annotation(self) -> str:
        return _PREFIX + self.name


SETTINGS = (
    Setting(
        "port", ("port",), _port, "name or number of a containerPort", "the app's port; default: its only one"
    ),
    Setting(
        "intercept",
        ("intercept", "type"),
        _one_of(InterceptType),
        ", ".join(InterceptType),
        "how traffic reaches the sidecar",
    ),
    Setting("shadow", ("intercept", "shadow"), _truth, "true, false", "only count what would be queued"),
    Setting(
        "percent",
        ("intercept", "percent"),
        _whole,
        "0 to 100",
        "share of the matching requests that is queued",
    ),
    Setting(
        "queue",
        (),
        _matches,
        "path prefixes between commas, each with a method before it or without: `POST /jobs, /reports`",
        "queue these alone, all else passes; default: every POST, PUT, PATCH and DELETE",
    ),
    Setting("pass", (), _matches, "as for `queue`", "never queue these"),
    Setting(
        "wait",
        (),
        _whole,
        "whole seconds, 0 or more",
        "hold the connection this long for the answer before 202 is given",
    ),
    Setting(
        "delivery",
        (),
        _one_of(Delivery),
        ", ".join(Delivery),
        "what becomes of a POST or PATCH whose outcome is not known",
    ),
    Setting(
        "concurrency",
        ("settings", "egress", "concurrency"),
        _whole,
        "a whole number, 1 or more",
        "requests in flight to the app at once, per Pod",
    ),
    Setting(
        "timeout",
        ("settings", "egress", "appTimeoutSeconds"),
        _whole,
        "whole seconds, 1 or more",
        "how long the app may take for a request",
    ),
    Setting(
        "rate",
        ("settings", "egress", "ratePerSecond"),
        _whole,
        "a whole number, 0 or more",
        "most requests per second to the app, per Pod; 0: no limit",
    ),
    Setting(
        "max-attempts",
        ("settings", "retry", "maxAttempts"),
        _whole,
        "a whole number, 1 or more",
        "sends in all, the first included",
    ),
    Setting(
        "max-age",
        ("settings", "queue", "maxAgeSeconds"),
        _whole,
        "whole seconds, 0 or more",
        "deadline of a request that names none; 0: none",
    ),
    Setting(
        "max-backlog",
        ("settings", "queue", "maxBacklog"),
        _whole,
        "a whole number, 1 or more",
        "unfinished requests admitted; beyond it 503 with Retry-After",
    ),
    Setting(
        "max-replicas",
        ("scaling", "maxReplicas"),
        _whole,
        "1 to 10000",
        "turns scaling by the operator on, up to this many",
    ),
    Setting(
        "min-replicas",
        ("scaling", "minReplicas"),
        _whole,
        "0 to 10000",
        "least replicas; 0: an idle workload goes to zero",
    ),
    Setting(
        "drain-seconds",
        ("scaling", "drainSeconds"),
        _whole,
        "1 to 86400",
        "aim of scaling: the backlog is gone within this",
    ),
    Setting(
        "idle-after",
        ("scaling", "idleAfterSeconds"),
        _whole,
        "10 to 86400",
        "seconds without work after which it goes to zero",
    ),
    Setting(
        "store-secret",
        ("store", "secretRef"),
        _secret,
        "`name` or `name/key` of a Secret in this namespace; key `url` by default",
        "store to use in place of the bundled Redis",
    ),
    Setting(
        "readiness",
        ("readiness",),
        _one_of(Readiness),
        ", ".join(Readiness),
        "what readiness of the app's container means",
    ),
    Setting(
        "rollout",
        ("rollout",),
        _one_of(Rollout),
        ", ".join(Rollout),
        "when a change that needs new Pods takes effect",
    ),
    Setting("paused", ("paused",), _truth, "true, false", "accept requests, send none to the app"),
)

_BY_NAME = {setting.annotation: setting for setting in SETTINGS}
_SCALING = tuple(setting.annotation for setting in SETTINGS if setting.path[:1] == ("scaling",))
_MAX_REPLICAS = f"{_PREFIX}max-replicas"


# --- reading ---------------------------------------------------------------------------------------------


def read_annotations(annotations: Mapping[str, str], kind: str, name: str) -> dict[str, Any]:
    """Make the spec that the annotations of the workload *kind* *name* ask for.

    Returns: a spec in the resource's own (camelCase) words, with nothing in it that was not asked for.
    Raises: AnnotationsInvalid with all problems; then nothing of it may be followed.
    """
    problems = list(_unknown(annotations))
    values: dict[str, Any] = {}
    for annotation, setting in _BY_NAME.items():
        if annotation in annotations:
            try:
                values[annotation] = setting.read(annotations[annotation].strip())
            except _Unfit as exc:
                problems.append(_problem(annotation, annotations[annotation], str(exc)))
    problems += _contradictions(annotations, values, kind)
    spec = _spec(values, kind, name)
    problems += _out_of_bounds(spec, annotations)
    if problems:
        raise AnnotationsInvalid(tuple(problems))
    return spec


def _unknown(annotations: Mapping[str, str]) -> Iterator[str]:
    for annotation in sorted(annotations):
        if not annotation.startswith(_PREFIX) or annotation in _BY_NAME:
            continue
        if annotation not in _OURS:
            close = difflib.get_close_matches(annotation, [*_BY_NAME, *_OURS], n=1, cutoff=0.75)
            yield f"{annotation} is not known" + (f", did you mean {close[0]}?" if close else "")
        elif annotations[annotation] not in ("true", "false"):
            yield _problem(annotation, annotations[annotation], 'neither "true" nor "false"')


def _problem(annotation: str, value: str, what: str) -> str:
    setting = _BY_NAME.get(annotation)
    allowed = f" (allowed: {setting.allowed})" if setting else ""
    return f"{annotation}: {_shown(value)} is {what}{allowed}"


def _shown(value: str) -> str:
    return f'"{value[:_SHOWN_CHARACTERS]}"'


def _contradictions(annotations: Mapping[str, str], values: Mapping[str, Any], kind: str) -> Iterator[str]:
    """What the API server would refuse by its rules, told in the words of annotations."""
    scaling = [annotation for annotation in _SCALING if annotation in annotations]
    if scaling and _MAX_REPLICAS not in annotations:
        yield f"{scaling[0]} has no effect without {_MAX_REPLICAS}, which turns scaling on"
    if scaling and kind == TargetKind.DAEMON_SET:
        yield f"{scaling[0]}: a DaemonSet has one Pod per node and cannot be scaled"
    least, most = values.get(f"{_PREFIX}min-replicas", 1), values.get(_MAX_REPLICAS)
    if most is not None and least > most:
        yield f"{_PREFIX}min-replicas must not exceed {_MAX_REPLICAS}"
    if values.get(f"{_PREFIX}shadow") and values.get(f"{_PREFIX}percent", 100) != 100:
        yield f"{_PREFIX}shadow counts all requests: leave {_PREFIX}percent at 100 with it"
    for annotation in (f"{_PREFIX}queue", f"{_PREFIX}pass"):
        if len(values.get(annotation, ())) > _MOST_ROUTES:
            yield f"{annotation}: more than {_MOST_ROUTES} prefixes; make an AsyncProxy with routes instead"


def _spec(values: Mapping[str, Any], kind: str, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = {"targetRef": {"kind": kind, "name": name}}
    for annotation, value in values.items():
        if path := _BY_NAME[annotation].path:
            _put(spec, path, value)
    if _MAX_REPLICAS in values:
        _put(spec, ("scaling", "mode"), ScalingMode.NATIVE.value)
    if routes := _routes(values):
        spec["routes"] = routes
    return spec


def _put(spec: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        spec = spec.setdefault(part, {})
    spec[path[-1]] = value


def _routes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Routes, first match first: what passes, what is queued, and what the rest does."""
    passing = [
        {"match": match, "action": RouteAction.PASS.value} for match in values.get(f"{_PREFIX}pass", ())
    ]
    manner = {
        field: values[annotation]
        for annotation, field in ((f"{_PREFIX}wait", "waitSeconds"), (f"{_PREFIX}delivery", "delivery"))
        if annotation in values
    }
    only = values.get(f"{_PREFIX}queue")
    if only is None and not manner:
        return passing
    matches = only if only is not None else [{"methods": list(_CHANGING)}]
    queued = [{"match": match, "action": RouteAction.QUEUE.value, **manner} for match in matches]
    rest = [{"match": {}, "action": RouteAction.PASS.value}] if only is not None else []
    return passing + queued + rest


def _out_of_bounds(spec: Mapping[str, Any], annotations: Mapping[str, str]) -> Iterator[str]:
    try:
        Spec.model_validate(spec)
    except ValidationError as exc:
        told = set()
        for problem in problems(exc):
            annotation = _origin(problem["loc"])
            if annotation is not None and annotation not in told:
                told.add(annotation)
                yield _problem(annotation, annotations[annotation], "out of bounds")


def _origin(place: tuple[int | str, ...]) -> str | None:
    """The annotation that gave the value at *place* of the spec."""
    if place[0] == "routes":
        return {"waitSeconds": f"{_PREFIX}wait"}.get(str(place[-1]), f"{_PREFIX}queue")
    for annotation, setting in _BY_NAME.items():
        if setting.path and place[: len(setting.path)] == setting.path:
            return annotation
    return None


def render_table() -> str:
    """The annotations as a Markdown table, for docs/kubernetes.md."""
    rows = [f"| `{one.annotation}` | {one.allowed} | {one.meaning} |" for one in SETTINGS]
    return "\n".join(["| annotation | values | meaning |", "| --- | --- | --- |", *rows]) + "\n"
