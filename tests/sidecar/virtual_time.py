"""An event loop whose clock jumps to the next timer when nothing else is to be done.

Hours of leases and backoff pass in milliseconds and in a fixed order. Only for code without threads and
sockets: what happens outside the loop would not be waited for.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

START = 1000.0
LATEST = START + 86_400.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time is what `time` says it is."""

    def __init__(self) -> None:
        self.now = START
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.now


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("the test waits for something that will never happen")
        self._loop.now += timeout
        if self._loop.now > LATEST:
            raise AssertionError("the test waits for something that does not happen in a day")
        return super().select(0)


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run *main* to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
