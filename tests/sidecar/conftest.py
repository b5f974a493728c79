"""Which event loops the tests of the sidecar run on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, LoopFactory]:
    """Plain asyncio, and uvloop too where a module asks for both.

    A module asks with `pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])`.
    """
    factories: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
    if any("loop_factories" in mark.kwargs for mark in item.iter_markers("asyncio")):
        factories["uvloop"] = uvloop.new_event_loop
    return factories
