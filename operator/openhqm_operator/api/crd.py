"""Writes the CustomResourceDefinition from `spec.py`: what is parsed is what the API server admits.

    python -m openhqm_operator.api.crd     print it; committed as crds/asyncproxies.yaml

Pydantic's JSON schema says more and less than a structural schema may: references are inlined, `null` and
titles go, everything without a bound gets one (CEL's cost is estimated from the bounds).
"""

from __future__ import annotations

import sys
from typing import Any

import yaml

from openhqm_operator.api.spec import GROUP, KIND, PLURAL, VERSION, Spec
from openhqm_operator.api.status import Status

_KEPT = (
    "type",
    "description",
    "default",
    "enum",
    "format",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "required",
    "properties",
    "items",
    "additionalProperties",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
)
"""What a structural schema may hold, in the order it is written in."""

_COLUMNS = (
    ("Target", "string", ".spec.targetRef.name", 0, "The workload."),
    ("Kind", "string", ".spec.targetRef.kind", 1, "Its kind."),
    ("Intercept", "string", ".status.intercept", 1, "How traffic reaches the sidecar."),
    ("Scaling", "string", ".spec.scaling.mode", 0, "Who changes the replicas."),
    ("Pods", "string", ".status.pods.summary", 0, "Injected Pods of all."),
    ("Ready", "string", ".status.conditions[?(@.type=='Ready')].status", 0, "Whether all is as asked for."),
    ("Reason", "string", ".status.conditions[?(@.type=='Ready')].reason", 0, "Why, or why not."),
    ("Message", "string", ".status.conditions[?(@.type=='Ready')].message", 1, "What to do."),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Since when."),
)


def build_crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition of AsyncProxy."""
    columns = [
        {"name": name, "type": kind, "jsonPath": path, "description": about}
        | ({"priority": 1} if low else {})
        for name, kind, path, low, about in _COLUMNS
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["axp"],
                "categories": ["openhqm"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": _root()},
                }
            ],
        },
    }


def _root() -> dict[str, Any]:
    return {
        "type": "object",
        "description": "AsyncProxy puts a durable queue in front of a workload: its sidecar stores each "
        "request, replays it at the pace the app can stand, and keeps the answer for the caller.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(Spec.model_json_schema(by_alias=True)),
            "status": structural(Status.model_json_schema(by_alias=True)),
        },
    }


def structural(schema: dict[str, Any]) -> dict[str, Any]:
    """Return *schema*, as pydantic writes it, as a structural one."""
    return _Converter(schema.get("$defs", {})).convert(schema)


class _Converter:
    def __init__(self, definitions: dict[str, Any]) -> None:
        self._definitions = definitions

    def convert(self, schema: dict[str, Any]) -> dict[str, Any]:
        merged = self._resolve(schema)
        if merged.get("x-kubernetes-int-or-string"):
            merged = {key: value for key, value in merged.items() if key != "type"}
        if "properties" in merged:
            merged["properties"] = {name: self.convert(part) for name, part in merged["properties"].items()}
            merged.pop("additionalProperties", None)  # a structural schema prunes or refuses by itself
        if isinstance(merged.get("items"), dict):
            merged["items"] = self.convert(merged["items"])
        if merged.get("type") == "integer":
            merged.setdefault("format", "int64")
        if "default" in merged:
            merged["default"] = _without_nulls(merged["default"])
        if merged.get("default", 0) is None:
            del merged["default"]
        return {key: merged[key] for key in _KEPT if key in merged}

    def _resolve(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Put what a reference points to, or the only choice besides null, in its place."""
        own = {key: value for key, value in schema.items() if key not in ("$ref", "anyOf", "allOf")}
        if "$ref" in schema:
            return self._resolve(self._definitions[schema["$ref"].rpartition("/")[2]]) | own
        choices = [choice for choice in schema.get("anyOf", ()) if choice.get("type") != "null"]
        if choices and not own.get("x-kubernetes-int-or-string"):
            [choice] = choices
            return self._resolve(choice) | own
        return own


def _without_nulls(value: Any) -> Any:
    """A part's default is written whole: the API server checks it against the rules as it stands."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return value


def render() -> str:
    """Return the definition as YAML, as it is committed."""
    head = "# Written by `make crd` from operator/openhqm_operator/api/spec.py. Do not edit.\n"
    return head + yaml.safe_dump(build_crd(), sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    sys.stdout.write(render())
