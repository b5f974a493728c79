"""Where settings come from: flags, the environment, a YAML file; and what is said when they do not fit.

`settings.py` gives its model and calls this; nothing here knows a setting by name. The file is read by
`settings_file.py`. The environment is read here: pydantic-settings, which could, costs every sidecar 1 MiB
and 60 ms of its start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from openhqm.errors import SettingsError
from openhqm.invalid import problems

_PREFIX = "OPENHQM_"


@dataclass(frozen=True, slots=True)
class Sources:
    """All sources of one load, strongest first: *flags*, *environ*, *config*."""

    model: type[BaseModel]
    config: Path | None
    flags: Mapping[str, Any]
    environ: Mapping[str, str]

    def merged(self) -> dict[str, Any]:
        """Return the values given, nested like the model, not yet checked against it.

        Raises:
            SettingsError: a source cannot be read, or a variable would have no effect.
        """
        _check_variables(self.model, self.environ)
        below = _read_file(self.config, self.environ) if self.config else {}
        return _merge(_merge(below, _read_environment(self.model, self.environ)), self.flags)

    def describe(self, error: ValidationError) -> str:
        """One line: the key, what is wrong, and the variable if the environment is to blame."""
        found = problems(error)
        path = [str(part) for part in found[0]["loc"]]
        key = ".".join(path)
        message = found[0]["msg"]
        if found[0]["type"] == "extra_forbidden":
            message = "unknown setting" + _suggestion(self.model, path)
        elif found[0]["type"] == "tuple_type":
            message = "must be a list"
        line = message if not key or message.startswith(f"{key}.") else f"{key}: {message}"
        variable = (_PREFIX + "__".join(path[:2])).upper()
        if self.environ.get(variable) and not _has(self.flags, path):
            line += f", from {variable}"
        return line if len(found) == 1 else f"{line} (and {len(found) - 1} more)"


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _has(flags: Mapping[str, Any], path: list[str]) -> bool:
    area = flags.get(path[0])
    return area is not None and (len(path) == 1 or (isinstance(area, dict) and path[1] in area))


def _area(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The model of one area; None for a plain setting or an unknown name."""
    field = model.model_fields.get(name)
    return _model_of(field) if field else None


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _suggestion(model: type[BaseModel], path: list[str]) -> str:
    """ ", did you mean ...?" when a setting of the same area is spelled much like it."""
    import difflib  # 150 KiB, for a mistake

    area = model if len(path) == 1 else _area(model, path[0])
    known = list(area.model_fields) if area and len(path) <= 2 else []
    close = difflib.get_close_matches(path[-1], known, n=1)
    return f", did you mean {'.'.join([*path[:-1], close[0]])}?" if close else ""


def _read_file(path: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    from openhqm.settings_file import read_file

    return read_file(path, environ)


# --- the environment --------------------------------------------------------------------------------


def _read_environment(model: type[BaseModel], environ: Mapping[str, str]) -> dict[str, Any]:
    """`OPENHQM_EGRESS__LEASE_SECONDS=10` -> {"egress": {"lease_seconds": "10"}}.

    Names in any case; empty variables count as not set. A variable of a single setting wins over one
    that gives a whole area as JSON, whose name sorts first.
    """
    found: dict[str, Any] = {}
    for variable in sorted(environ, key=str.lower):
        name, separator, setting = variable.lower().removeprefix(_PREFIX.lower()).partition("__")
        field, value = model.model_fields.get(name), environ[variable]
        if field is None or not value or not variable.upper().startswith(_PREFIX):
            continue
        area = _area(model, name)
        if not separator:
            found[name] = _decode(value, field)
        elif area is not None and isinstance(found.setdefault(name, {}), dict):
            found[name][setting] = _decode(value, area.model_fields.get(setting))
    return found


def _decode(value: str, field: FieldInfo | None) -> Any:
    """Read the lists and mappings: JSON, YAML, or words between commas. All else is the model's to read."""
    if field is None or not (get_origin(field.annotation) in (tuple, dict) or _model_of(field)):
        return value
    if not value.lstrip().startswith(("[", "{")):
        return [word.strip() for word in value.split(",")]
    from openhqm.settings_file import read_list

    return read_list(value)


def _check_variables(model: type[BaseModel], environ: Mapping[str, str]) -> None:
    """Refuse a variable that is meant for us and would have no effect.

    Names without a double underscore belong to others (`OPENHQM_PORT` is Kubernetes telling of a
    Service called openhqm), unless the double underscore is all that is missing.
    """
    lookalikes = {name.replace("__", "_"): name for name in _variables(model)}
    for name, value in environ.items():
        area, separator, rest = name.upper().removeprefix(_PREFIX).partition("__")
        if not name.upper().startswith(_PREFIX):
            continue
        if separator and _area(model, area.lower()) is None:
            key = f"{area}.{rest}".lower().replace("__", ".")
            raise SettingsError(f"{key}: unknown setting, from {name}")
        meant = lookalikes.get(name.upper())
        if meant and not value.startswith(("tcp://", "udp://", "sctp://")):
            raise SettingsError(f"{name}: two underscores follow the area: {meant}")


def _variables(model: type[BaseModel]) -> list[str]:
    """The variable of every setting inside an area."""
    return [
        f"{_PREFIX}{name}__{setting}".upper()
        for name in model.model_fields
        if (area := _area(model, name))
        for setting in area.model_fields
    ]
