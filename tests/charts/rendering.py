"""The chart as Helm renders it, by Helm's own code, without a cluster or a helm binary."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

CHART = Path(__file__).resolve().parents[2] / "charts" / "openhqm"
RELEASE = "openhqm"
NAMESPACE = "openhqm"
VARIANTS = {
    **{path.stem.removesuffix("-values"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))},
    "ha": CHART / "values-ha.yaml",
}
"""Values that cover the chart between them, by name."""

Object = dict[str, Any]


@functools.cache
def chart() -> Chart:
    return Chart.load(CHART)


def values_of(variant: str) -> Object:
    return yaml.safe_load(VARIANTS[variant].read_text())


@functools.cache
def rendered(variant: str) -> list[Object]:
    """`render` with the values of *variant*, once; not to be changed."""
    return render(values_of(variant))


def render(values: Object | None = None, *, namespace: str = NAMESPACE, name: str = RELEASE) -> list[Object]:
    """All objects, hooks too, in no order that matters."""
    files = chart().render(values or {}, name=name, namespace=namespace)
    return [obj for path, text in sorted(files.items()) if path.endswith(".yaml") for obj in _parse(text)]


def notes(values: Object | None = None) -> str:
    files = chart().render(values or {}, name=RELEASE, namespace=NAMESPACE)
    return next(text for path, text in files.items() if path.endswith("NOTES.txt"))


def _parse(text: str) -> Iterator[Object]:
    # Helm's YAML refuses a key given twice; PyYAML would keep the last.
    return (obj for obj in yaml.load_all(text, _Strict) if obj)


class _Strict(yaml.CSafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"given twice: {twice}", node.start_mark)
        return super().construct_mapping(node, deep)


def find(objects: Iterable[Object], kind: str, name: str, namespace: str | None = None) -> Object:
    """The one object of that kind and name."""
    [found] = [
        obj
        for obj in objects
        if (obj["kind"], obj["metadata"]["name"]) == (kind, name)
        and namespace in (None, obj["metadata"].get("namespace"))
    ]
    return found


def of_kind(objects: Iterable[Object], kind: str) -> list[Object]:
    return [obj for obj in objects if obj["kind"] == kind]


def pod_specs(objects: Iterable[Object]) -> Iterator[tuple[str, Object]]:
    """The Pods that come of the objects: what they are of, and their spec."""
    for obj in objects:
        where = f"{obj['kind']} {obj['metadata']['name']}"
        if obj["kind"] == "Pod":
            yield where, obj["spec"]
        elif obj["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield where, obj["spec"]["template"]["spec"]


def without_secrets(objects: Iterable[Object]) -> list[Object]:
    """The same, with what is random left out."""
    result = []
    for obj in objects:
        obj = copy.deepcopy(obj)
        if obj["kind"] == "Secret":
            obj.pop("data", None)
        if obj["kind"] == "APIService":
            obj["spec"].pop("caBundle", None)
        result.append(obj)
    return result
