"""Prints the settings: a table for people, a JSON schema for tools, the values in force for operators.

Everything comes from the model in `settings.py`; `docs/settings.md` is `markdown()`, and a test compares
them. Secrets are masked here and nowhere else, so that `openhqm settings` and the admin port agree.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr, create_model
from pydantic.fields import FieldInfo

from openhqm.settings import Area, GiB, KiB, MiB, RouteMatch, RouteSettings, Settings, is_structural

MASK = "***"

_URLS = frozenset({"url", "previous_url"})

_INTRODUCTION = """\
# Settings

<!-- Printed by `make settings-docs` from sidecar/openhqm/settings.py; edit there. -->

Sources, strongest first: flags of `openhqm serve`, environment variables, the YAML file given by `--config`,
the defaults below. `egress.lease_seconds` is `OPENHQM_EGRESS__LEASE_SECONDS` in the environment and

    egress:
      lease_seconds: 10

in the file, whose values may hold `${VAR}` and `${VAR:-default}` (`$${` is a plain `${`). Lists in the
environment are JSON, or words between commas. A variable or expanded value that is empty counts as not given.
Unknown names, wrong types and values that contradict each other stop the start with one line that names the
key. Durations are in seconds and ten years at most, sizes are in bytes. A changed file is taken over within
seconds, and SIGHUP reads all sources anew; what is marked `restart` waits for one, and the log names it.
`openhqm settings` shows the values in force, secrets masked.
"""


def markdown() -> str:
    """Return docs/settings.md: one table per area, in the order of the model."""
    parts = [_INTRODUCTION]
    top = [(name, name, field) for name, field, area in _areas() if area is None and name != "routes"]
    parts.append("\n## Top level\n\n" + _table(top))
    for name, field, area in _areas():
        if area is not None:
            parts.append(f"\n## {name}\n\n{_docstring(area)}\n\n" + _table(list(_rows(name, area))))
        elif name == "routes":
            parts.append(f"\n## routes\n\n{field.description}\n\n" + _table(_route_rows()))
    return "".join(parts)


def schema() -> dict[str, Any]:
    """Return the JSON schema of the settings file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()}


def environment() -> str:
    """Return every setting as a commented-out line of an env file."""
    lines: list[str] = []
    for name, field, area in _areas():
        for key, inner in area.model_fields.items() if area else {name: field}.items():
            variable = f"OPENHQM_{name}__{key}" if area else f"OPENHQM_{name}"
            default = _plain(inner.get_default(call_default_factory=True))
            value = "" if default is None else default if isinstance(default, str) else json.dumps(default)
            lines += [f"# {_one_line(inner.description)}", f"#{variable.upper()}={value}", ""]
    return "\n".join(lines)


def in_force(settings: Settings) -> dict[str, Any]:
    """Return the values of *settings* as plain data, secrets masked, store URLs without their passwords."""
    shown: dict[str, Any] = _masked(settings, "")
    return shown


def mask_url(url: str) -> str:
    """Return *url* without its password and without the values of its query.

    >>> mask_url("redis://app:secret@10.0.0.1:6379/0?password=x")
    'redis://app:***@10.0.0.1:6379/0?***'
    """
    parts = urlsplit(url)
    if parts.password is not None:
        user, host = parts.username or "", parts.netloc.rpartition("@")[2]
        url = url.replace(parts.netloc, f"{user}:{MASK}@{host}", 1)
    return f"{url.partition('?')[0]}?{MASK}" if parts.query else url


# --- values -----------------------------------------------------------------------------------------


def _masked(value: Any, name: str) -> Any:
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        return {field.alias or name: _masked(getattr(value, name), name) for name, field in fields}
    if isinstance(value, dict):
        return {key: _masked(item, key) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_masked(item, name) for item in value]
    if isinstance(value, SecretStr):
        return mask_url(value.get_secret_value()) if name in _URLS else MASK
    return value


def _plain(value: Any) -> Any:
    """A default as it would be written in the file."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_none=True, by_alias=True)
    return list(value) if isinstance(value, tuple) else value


# --- the table --------------------------------------------------------------------------------------


def _areas() -> Iterator[tuple[str, FieldInfo, type[Area] | None]]:
    for name, field in Settings.model_fields.items():
        yield name, field, _area_of(field)


def _area_of(field: FieldInfo) -> type[Area] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Area) else None


def _rows(name: str, area: type[Area]) -> Iterator[tuple[str, str, FieldInfo]]:
    for key, field in area.model_fields.items():
        shown = f"{name}.{field.alias or key}"
        if (inner := _area_of(field)) is not None:
            yield from _rows(shown, inner)
        else:
            yield shown, key, field


def _route_rows() -> list[tuple[str, str, FieldInfo]]:
    match = [(f"match.{key}", key, field) for key, field in RouteMatch.model_fields.items()]
    return match + [(key, key, field) for key, field in RouteSettings.model_fields.items() if key != "match"]


def _table(rows: list[tuple[str, str, FieldInfo]]) -> str:
    lines = ["| setting | values | default | change | meaning |", "| --- | --- | --- | --- | --- |"]
    for shown, key, field in rows:
        cells = (
            f"`{shown}`",
            "URL" if key in _URLS else _values(field),
            _default(key, field),
            "restart" if is_structural(field) else "hot",
            _one_line(field.description),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _values(field: FieldInfo) -> str:
    """What may be written, in words: "whole number, 1 or more", "one of a, b"."""
    annotation: Any = field.annotation
    holder = create_model("holder", value=(annotation, field))
    [shape] = holder.model_json_schema()["properties"].values()  # under its alias, if it has one
    return _words(shape)


def _words(shape: dict[str, Any]) -> str:
    if "anyOf" in shape:
        return next(_words(option) for option in shape["anyOf"] if option.get("type") != "null")
    if "enum" in shape:
        return ", ".join(f"`{value}`" for value in shape["enum"])
    if shape.get("type") == "array":
        items = shape["items"]
        return "list of conditions" if "$ref" in items else f"list of: {_words(items)}"
    if shape.get("format") == "password":
        return "secret"
    named = {
        "integer": "whole number",
        "number": "number",
        "boolean": "true, false",
        "string": "text",
        "object": "mapping",
    }
    words = named[shape["type"]]
    low, high = shape.get("minimum"), shape.get("maximum")
    if low is not None and high is not None:
        return f"{words}, {low:g} to {high:.0f}"
    if low is not None:
        return f"{words}, {low:g} or more"
    if "exclusiveMinimum" in shape:
        above = "1 or more" if shape["type"] == "integer" else "above 0"
        return f"{words}, {above}" + (f", to {high:.0f}" if high is not None else "")
    return words


def _default(key: str, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = _plain(field.get_default(call_default_factory=True))
    if value in (None, [], {}):
        return "none"
    if key.endswith("_bytes"):
        return f"{value} ({_size(value)})" if value >= KiB else str(value)
    if isinstance(value, float):
        return f"{value:g}" if value < 1e6 else f"{value:.0f}"
    return f"`{value}`" if isinstance(value, str) else json.dumps(value)


def _size(value: int) -> str:
    for unit, name in ((GiB, "GiB"), (MiB, "MiB"), (KiB, "KiB")):
        if value >= unit:
            return f"{value / unit:g} {name}"
    return f"{value} B"


def _docstring(area: type[Area]) -> str:
    return _one_line(area.__doc__)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
