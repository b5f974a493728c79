"""The committed definition is the generated one, and keeps the rules the API server does not check."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from openhqm.settings import Settings
from openhqm_operator.api.crd import build_crd, render
from openhqm_operator.api.settings import SettingsPart
from openhqm_operator.api.spec import Spec

ROOT = Path(__file__).parents[3]


def walk(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from walk(part, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")


SCHEMA = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
PARTS = [
    (path, part)
    for path, part in walk(SCHEMA)
    if path.startswith((".spec", ".status")) and path != ".status.conditions[].lastTransitionTime"
]


def parts(kind: str) -> list[Any]:
    return [pytest.param(part, id=path) for path, part in PARTS if part.get("type") == kind]


def test_the_committed_definition_is_the_generated_one() -> None:
    assert (ROOT / "crds" / "asyncproxies.yaml").read_text() == render(), "run `make crd`"


def test_the_definition_is_yaml_of_one_document() -> None:
    assert yaml.safe_load(render()) == build_crd()


@pytest.mark.parametrize(
    "part", [pytest.param(part, id=path) for path, part in PARTS if not path.endswith("[]")]
)
def test_everything_is_explained(part: dict[str, Any]) -> None:
    assert part["description"].endswith(".")


@pytest.mark.parametrize("part", parts("integer"))
def test_every_number_is_bounded(part: dict[str, Any]) -> None:
    assert {"minimum", "maximum"} <= part.keys()


@pytest.mark.parametrize("part", parts("string"))
def test_every_text_is_bounded(part: dict[str, Any]) -> None:
    assert "maxLength" in part or "enum" in part or part.get("format") == "date-time"


@pytest.mark.parametrize("part", parts("array"))
def test_every_list_says_how_it_merges_and_how_long_it_may_be(part: dict[str, Any]) -> None:
    assert {"x-kubernetes-list-type", "maxItems"} <= part.keys()


def test_nothing_says_null_or_refers_elsewhere() -> None:
    text = render()

    assert not [word for word in ("$ref", "anyOf", "null", "title:", "preserve-unknown") if word in text]


@pytest.mark.parametrize("area", sorted(SettingsPart.model_fields))
def test_an_area_left_empty_means_the_sidecars_own_defaults(area: str) -> None:
    """So an area written with one setting changes that one and no other."""
    spec = Spec.model_validate(
        {"targetRef": {"kind": "Deployment", "name": "app"}, "settings": {_camel(area): {}}}
    )
    given = getattr(spec.settings, area).model_dump()
    own = getattr(Settings(), area).model_dump()

    assert given == {name: own[name] for name in given}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)
