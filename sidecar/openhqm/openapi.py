"""Describes every call of ours on the intercept port, as OpenAPI 3.1.

The text is `openapi.yaml`; here it gets the version, the reserved prefix in force, and loses what is
switched off. A page of `Results`, at `<prefix>/v1/openapi.json`.
"""

from __future__ import annotations

from functools import cached_property
from importlib import resources
from typing import Any

import orjson
from aiohttp.web import BaseRequest

from openhqm import __version__, replies
from openhqm.replies import NO_STORE, Reply
from openhqm.results import READ, allow
from openhqm.settings import Settings

PATH = b"/v1/openapi.json"
DEFAULT_PREFIX = "/.openhqm"
SWITCHED = frozenset({"submit", "original"})
"""Tags of what is served only with the submit API."""


def document(settings: Settings) -> dict[str, Any]:
    """Return the description of what a process with these settings serves."""
    import yaml  # 1 MiB, for a page that few ask for

    # libyaml where PyYAML was built with it: ten times as fast, and the event loop waits meanwhile.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = _source().replace(DEFAULT_PREFIX + "/", settings.ingress.reserved_prefix + "/")
    found: dict[str, Any] = yaml.load(text, Loader=loader)  # noqa: S506, both are safe loaders
    found["info"]["version"] = __version__
    if not settings.submit_api_enabled:
        found["paths"] = {path: item for path, item in found["paths"].items() if not _is_switched(item)}
        found["tags"] = [tag for tag in found["tags"] if tag["name"] not in SWITCHED]
    return found


def _source() -> str:
    return resources.files("openhqm").joinpath("openapi.yaml").read_text(encoding="utf-8")


def _is_switched(item: dict[str, Any]) -> bool:
    operations = [part for part in item.values() if isinstance(part, dict)]
    return any(SWITCHED.intersection(operation["tags"]) for operation in operations)


class DescriptionPage:
    """Serves the document."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def _body(self) -> bytes:
        return orjson.dumps(document(self._settings))

    async def handle(self, request: BaseRequest, query: bytes) -> Reply:
        """Answer with the document; it is made when it is first asked for."""
        allow(request, READ)
        return replies.make(200, self._body, fields=NO_STORE)
