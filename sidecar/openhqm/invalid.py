"""What pydantic refuses, in words. Pure."""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_core import ErrorDetails


def problems(error: ValidationError) -> list[ErrorDetails]:
    """Return all problems, in the words of whoever refused, without the values: one may be a secret."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    for problem in found:
        problem["msg"] = problem["msg"].removeprefix("Value error, ")
    return found


def first_problem(error: ValidationError) -> tuple[str, str]:
    """Return the place of the first problem, with dots, empty for the whole; and what is wrong there."""
    first = problems(error)[0]
    return ".".join(map(str, first["loc"])), first["msg"]


def describe(error: ValidationError) -> str:
    """Return the first problem as `place: what is wrong`."""
    return ": ".join(filter(None, first_problem(error)))
