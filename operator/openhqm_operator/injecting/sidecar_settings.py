"""The settings file of a proxy's sidecars, from its spec. Pure.

    Spec ---render_settings---> settings.yaml in the proxy's ConfigMap ---mounted---> `openhqm serve --config`

What differs from Pod to Pod, and every URL with a password, is in the container's environment instead
(`injection.py`), which wins over this file. The sidecar reads a changed file anew: what is hot takes effect
at once, what is structural with the next Pods, whose hash (`plan.config_hash`) differs.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from openhqm.errors import SettingsError
from openhqm.invalid import describe
from openhqm.routes import Routes
from openhqm.settings import Settings
from openhqm_operator.api.names import queue_name
from openhqm_operator.api.spec import Route, Spec


def render_settings(spec: Spec, *, namespace: str, name: str) -> dict[str, Any]:
    """Return the content of `settings.yaml` for the sidecars of AsyncProxy *namespace*/*name*."""
    rendered: dict[str, Any] = _literal(_settings(spec, queue_name(namespace, name)))
    return rendered


def problem_of(spec: Spec) -> str | None:
    """Say why sidecars would refuse the settings of *spec*; None if they would not.

    What the API server cannot check: regular expressions, and rules across settings.
    """
    if spec.broker is not None:
        return "spec.broker: this version has no brokers; the store carries the backlog"
    try:
        Routes(Settings.model_validate(_settings(spec, "any")).routes)
    except ValidationError as exc:
        return describe(exc)
    except SettingsError as exc:
        return str(exc)
    return None


def _settings(spec: Spec, queue: str) -> dict[str, Any]:
    settings = spec.settings.model_dump(mode="json", exclude_none=True) if spec.settings else {}
    settings.setdefault("queue", {})["name"] = queue
    if spec.key is not None:
        settings["queue"]["key"] = spec.key.model_dump(mode="json", exclude_none=True, by_alias=True)
    if share := spec.intercept.model_dump(mode="json", include={"shadow", "percent"}, exclude_defaults=True):
        settings["intercept"] = share
    if spec.paused:
        settings.setdefault("egress", {})["paused"] = True
    if spec.routes:
        settings["routes"] = [_route(route) for route in spec.routes]
    return settings


def _route(route: Route) -> dict[str, Any]:
    rendered = route.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    for word in ("action", "delivery"):
        if word in rendered:
            rendered[word] = rendered[word].lower()
    return rendered


# --- variables -------------------------------------------------------------------------------------------


def _literal(value: Any) -> Any:
    """Protect `${...}`: the sidecar would put a variable there, such as the store's password."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, list):
        return [_literal(item) for item in value]
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    return value
