"""What every part of the AsyncProxy resource has in common: camelCase names, strictness, rules in CEL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema

LARGEST = 2**53
"""The largest whole number every JSON parser keeps exactly."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule across fields, in CEL: the API server refuses what breaks it, with *message*."""

    expression: str
    message: str


class Part(BaseModel):
    """A part of the resource: camelCase outside, strict about unknown fields."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)
    rules: ClassVar[tuple[Rule, ...]] = ()

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core_schema))
        if cls.rules:
            schema["x-kubernetes-validations"] = [
                {"rule": rule.expression, "message": rule.message} for rule in cls.rules
            ]
        return schema
