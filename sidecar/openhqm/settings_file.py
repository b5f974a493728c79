"""The settings file: YAML, and `${VAR}` in its values expanded after parsing, so that a value never
becomes YAML. Loaded only where there is a file: YAML costs 1 MiB that others need not hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import yaml
from pydantic import ValidationError

from openhqm.errors import SettingsError
from openhqm.invalid import describe

_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice instead of forgetting the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is given twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


def read_list(text: str) -> Any:
    """Return a list or mapping written in one variable; *text* itself when it is not YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # the model refuses it with the full key, which is not known here


def read_file(path: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings file's content, variables expanded.

    Raises:
        SettingsError: it cannot be read, is not YAML, or names a variable that is not set.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as exc:
        raise SettingsError(f"{path}: {exc.strerror}") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path}: not YAML: {' '.join(str(exc).split())}") from exc
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SettingsError(f"{path}: must be a mapping of areas")
    expanded: dict[str, Any] = _expand(data, path, environ)
    return expanded


class FileSettings(Protocol):
    """A model of a settings file."""

    @classmethod
    def model_validate(cls, obj: Any, /) -> Self: ...


Settings = TypeVar("Settings", bound=FileSettings)


def load_file(model: type[Settings], path: Path, environ: Mapping[str, str]) -> Settings:
    """Read the settings of a process that has no other source.

    Raises:
        SettingsError: one line that names the file, the key and what is wrong with it.
    """
    try:
        return model.model_validate(read_file(path, environ))
    except ValidationError as exc:
        raise SettingsError(f"{path}: {describe(exc)}") from exc


def _expand(node: Any, path: Path, environ: Mapping[str, str]) -> Any:
    """Replace `${VAR}` in string values, after parsing: a value can never become YAML.

    `$${` stands for a plain `${`. What expands to nothing counts as not given.
    """

    def value_of(match: re.Match[str]) -> str:
        if match[1] is None:
            return "${"
        value = environ.get(match[1]) or match[2]
        if value is None:
            raise SettingsError(f"{path}: the environment variable {match[1]} is not set and has no default")
        return value

    if isinstance(node, str):
        return _VARIABLE.sub(value_of, node)
    if isinstance(node, list):
        items = [(item, _expand(item, path, environ)) for item in node]
        return [new for old, new in items if new != "" or old == ""]
    if isinstance(node, dict):
        entries = [(key, old, _expand(old, path, environ)) for key, old in node.items()]
        return {key: new for key, old, new in entries if new != "" or old == ""}
    return node
