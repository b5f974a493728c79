"""What pydantic refuses, in words. Pure."""

from __future__ import annotations

from pydantic import ValidationError


def first_problem(error: ValidationError) -> tuple[str, str]:
    """Return the place of the first problem, dots between its parts, empty for the whole, and what is wrong.

    The value is left out: it may be a secret.
    """
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return ".".join(map(str, first["loc"])), first["msg"]


def describe(error: ValidationError) -> str:
    """Return the first problem as `place: what is wrong`."""
    return ": ".join(filter(None, first_problem(error)))
