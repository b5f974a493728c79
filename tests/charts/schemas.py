"""Kubernetes' own schemas of its objects, from the package kubernetes-validate, read once.

Its own `validate` reads three megabytes for each object.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
from referencing import Registry, Resource

_FOLDER = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
LATEST = ".".join(kubernetes_validate.latest_version().split(".")[:2])


def check(obj: dict[str, Any], version: str) -> None:
    """Compare with the schema of Kubernetes *version*, such as 1.34; unknown fields are refused.

    Raises:
        jsonschema.ValidationError: it does not fit.
    """
    _validator(version, obj["apiVersion"], obj["kind"]).validate(obj)


@functools.cache
def _validator(version: str, api_version: str, kind: str) -> jsonschema.Draft202012Validator:
    group, _, number = api_version.rpartition("/")
    name = "-".join(part for part in (kind.lower(), group.partition(".")[0], number) if part)
    resource = _read(version, name)
    registry = resource @ (_read(version, "_definitions") @ Registry())
    return jsonschema.Draft202012Validator(resource.contents, registry=registry)


@functools.cache
def _read(version: str, name: str) -> Resource[Any]:
    [folder] = _FOLDER.glob(f"v{version}.*-local-strict")
    return Resource.from_contents(json.loads((folder / f"{name}.json").read_text()))
