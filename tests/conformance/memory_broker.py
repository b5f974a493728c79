"""A broker inside the test's process: the reference for the others, and for tests of what uses one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from openhqm.brokers.base import Abilities, Delivery, Message, Rejected
from openhqm.errors import BrokerUnavailable
from openhqm.stores.base import Durability
from openhqm.stores.waiting import Bell, take_when_ready

MAX_MESSAGE_BYTES = 1024 * 1024


@dataclass
class Queue:
    """What is in the broker; outlives the objects that use it."""

    waiting: deque[tuple[int, Message]] = field(default_factory=deque)
    published: int = 0
    bell: Bell = field(default_factory=Bell)

    def put(self, message: Message) -> None:
        self.waiting.append((self.published, message))
        self.published += 1
        self.bell.ring()


class MemoryBroker:
    """See the module docstring.

    Args:
        fails: called before each operation with its name; raises to let it fail.
    """

    abilities = Abilities(
        Durability.NONE, ordered=True, tells_backlog=True, max_message_bytes=MAX_MESSAGE_BYTES
    )

    def __init__(self, queue: Queue, fails: Callable[[str], None] = lambda name: None) -> None:
        self._queue = queue
        self._fails = fails
        self._held: dict[int, Message] = {}
        self._is_open = False

    async def open(self) -> None:
        self._is_open = True

    async def close(self) -> None:
        """What was received and not confirmed goes back to where it was."""
        self._is_open = False
        for number in sorted(self._held, reverse=True):
            self._queue.waiting.appendleft((number, self._held.pop(number)))
        self._queue.bell.ring()

    async def publish(self, messages: Sequence[Message]) -> Sequence[Rejected | None]:
        self._check("publish")
        results: list[Rejected | None] = []
        for message in messages:
            if len(message.body) > MAX_MESSAGE_BYTES:
                results.append(Rejected(f"larger than {MAX_MESSAGE_BYTES} bytes"))
            else:
                self._queue.put(message)
                results.append(None)
        return results

    async def receive(self, limit: int, *, wait_seconds: float) -> Sequence[Delivery]:
        self._check("receive")

        async def attempt() -> Sequence[Delivery]:
            many = min(limit, len(self._queue.waiting))
            return [self._take() for _ in range(many)]

        return await take_when_ready(
            attempt, self._queue.bell, lambda: float("inf"), wait_seconds, lambda: self._is_open
        )

    def _take(self) -> Delivery:
        number, message = self._queue.waiting.popleft()
        self._held[number] = message
        return Delivery(message, str(number), number)

    async def hold(self, deliveries: Sequence[Delivery]) -> None:
        self._check("hold")

    async def confirm(self, deliveries: Sequence[Delivery]) -> None:
        self._check("confirm")
        await asyncio.sleep(0)
        for delivery in deliveries:
            self._held.pop(delivery.token, None)

    async def backlog(self) -> int | None:
        return len(self._queue.waiting)

    def _check(self, name: str) -> None:
        if not self._is_open:
            raise BrokerUnavailable("the broker is closed")
        self._fails(name)
