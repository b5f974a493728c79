"""The `settings` part of the AsyncProxy resource, made from the sidecar's own settings model.

A setting so has one definition, one bound and one default. Numbers are whole: Kubernetes APIs have no
floats. Which settings are offered is said here; all others belong to the injector or to Secrets.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import Field, create_model
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

from openhqm.settings import MAX_SECONDS, Area, Settings
from openhqm_operator.api.part import LARGEST, Part, Rule

_OFFERED: dict[str, tuple[str, ...] | None] = {
    "queue": ("max_backlog", "max_bytes", "max_age_seconds"),
    "ingress": (
        "max_body_bytes",
        "max_wait_seconds",
        "body_timeout_seconds",
        "max_connections",
        "keepalive_seconds",
        "hold_seconds",
        "max_held",
        "identity_header",
        "reserved_prefix",
        "trusted_proxies",
        "forwarded_headers",
    ),
    "egress": (
        "concurrency",
        "lease_seconds",
        "app_timeout_seconds",
        "connect_timeout_seconds",
        "reuse_idle_seconds",
        "rate_per_second",
    ),
    "breaker": None,
    "retry": None,
    "response": None,
    "dead_letters": None,
    "drain": None,
    "log": ("level", "access"),
}
"""Areas and settings an AsyncProxy may set; None: all of the area. Ports, addresses and file places are the
injector's; keys and secrets come from Secrets; `egress.paused` is `spec.paused`."""


def _settings_part() -> type[Part]:
    areas: dict[str, Any] = {}
    for area, offered in _OFFERED.items():
        model = Settings.model_fields[area].annotation
        assert isinstance(model, type)
        assert issubclass(model, Area)
        fields: dict[str, Any] = {
            name: _whole(name, field)
            for name, field in model.model_fields.items()
            if offered is None or name in offered
        }
        part = create_model(f"{to_camel(area).title()}Settings", __base__=_BASES.get(area, Part), **fields)
        areas[area] = (part | None, Field(None, description=model.__doc__))
    return create_model("SettingsPart", __base__=Part, **areas)


def _whole(name: str, field: FieldInfo) -> tuple[Any, FieldInfo]:
    """A setting as a field of the resource: optional, and whole where the setting is a float."""
    annotation, default = field.annotation, field.default
    description = re.sub(r"[a-z]+(_[a-z]+)+", lambda word: to_camel(word[0]), field.description or "")
    if annotation is float:
        annotation, default = int, int(default)
    limits: dict[str, Any] = {}
    if annotation is int:
        limits = _limits(name, field)
    elif get_origin(annotation) is tuple:
        limits = {"max_length": 64, "json_schema_extra": {"x-kubernetes-list-type": "atomic"}}
        if get_args(annotation)[0] is str:
            annotation = tuple[Annotated[str, Field(min_length=1, max_length=256)], ...]
    elif annotation is str:
        patterns = [limit.pattern for limit in field.metadata if hasattr(limit, "pattern")]
        limits = {"min_length": 1, "max_length": 256, "pattern": next(iter(patterns), None)}
    return annotation, Field(default, description=description, **limits)


def _limits(name: str, field: FieldInfo) -> dict[str, Any]:
    least, most = 0, int(MAX_SECONDS) if name.endswith("_seconds") else LARGEST
    for limit in field.metadata:
        if isinstance(limit, Gt):
            least = max(least, 1)
        elif isinstance(limit, Ge):
            least = max(least, int(limit.ge))  # type: ignore[call-overload]
        elif isinstance(limit, Le):
            most = min(most, int(limit.le))  # type: ignore[call-overload]
    return {"ge": least, "le": most}


class _Retry(Part):
    rules: ClassVar = (
        Rule(
            "self.initialBackoffSeconds <= self.maxBackoffSeconds",
            "initialBackoffSeconds must not exceed maxBackoffSeconds",
        ),
    )


class _Drain(Part):
    rules: ClassVar = (
        Rule("self.acceptSeconds < self.timeoutSeconds", "acceptSeconds must be less than timeoutSeconds"),
    )


_BASES: dict[str, type[Part]] = {"retry": _Retry, "drain": _Drain}

_Settings: Any = _settings_part()


class SettingsPart(_Settings):  # type: ignore[misc]  # its fields are known at run time only
    """Settings of the sidecar."""
