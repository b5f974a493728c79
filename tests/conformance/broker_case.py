"""What a broker's test file supplies to the broker contract, and what its cases share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any, Protocol

from openhqm.brokers.base import Broker, Delivery, Message

PATIENCE_SECONDS = 20.0
"""For what a broker does in its own time: deliver again, notice that it was restarted."""


class BrokerCase(Protocol):
    """One queue on one real server.

    `open` gives an opened broker on that queue; the case closes what the test left open.
    """

    redelivers_within_seconds: float
    """After this long, what a closed or silent receiver had not confirmed comes again."""
    has_server: bool
    """Whether `stop` and `start` mean anything."""

    async def open(self, *, publishes: bool = True, receives: bool = True) -> Broker: ...

    async def stop(self) -> None:
        """Kill the server (-9)."""
        ...

    async def start(self) -> None:
        """Start it again, with its data."""
        ...

    async def forget_queue(self) -> None:
        """Delete the queue behind the broker's back."""
        ...


def message(body: bytes = b"body", **changes: Any) -> Message:
    return Message(**{"body": body, "id": os.urandom(8).hex(), **changes})


def numbered(many: int, **changes: Any) -> list[Message]:
    return [message(b"%d" % number, **changes) for number in range(many)]


async def receive(broker: Broker, many: int, within_seconds: float = PATIENCE_SECONDS) -> list[Delivery]:
    """Receive until there are *many*, however the broker portions them; fewer when time is up."""
    found: list[Delivery] = []
    loop = asyncio.get_running_loop()
    until = loop.time() + within_seconds
    while len(found) < many and (left := until - loop.time()) > 0:
        found += await broker.receive(many - len(found), wait_seconds=min(left, 1.0))
    return found


async def none_left(broker: Broker, within_seconds: float = 0.3) -> bool:
    return not await receive(broker, 1, within_seconds)


def bodies(deliveries: Sequence[Delivery]) -> list[bytes]:
    return [delivery.message.body for delivery in deliveries]
