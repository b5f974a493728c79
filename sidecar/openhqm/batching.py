"""Many small calls in one event-loop tick become one batch for the Store, and none waits for ever.

Sits between ingress or egress and a Store method that takes a sequence. While one batch is under
way the next one gathers, so a slow commit makes larger batches instead of a longer line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from openhqm.errors import StoreUnavailable

Item = TypeVar("Item")
Result = TypeVar("Result")


class Coalescer(Generic[Item, Result]):
    """Await one item's result; the batch goes out with everything asked in the same tick.

    Args:
        call: takes a batch, returns one result per item in order. An error fails the whole batch.
        limit: most items in one batch.
        in_flight: batches under way at once. One makes the largest batches, but also a convoy: all
            callers wait for the same reply, then all ask again at once; two keep both sides busy.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        limit: int = 512,
        in_flight: int = 1,
    ) -> None:
        self._call = call
        self._limit = limit
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._free = in_flight
        self._tasks: set[asyncio.Task[None]] = set()
        """Only kept from being collected; `_free` says how many more may run."""
        self._is_starting = False

    def __call__(self, item: Item) -> asyncio.Future[Result]:
        """Queue *item*. Cancelling the future gives up the result, never the commit."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, future))
        if self._free and not self._is_starting:
            self._is_starting = True
            self._free -= 1
            task = loop.create_task(self._run(), name="coalescer")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return future

    async def _run(self) -> None:
        self._is_starting = False
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._limit], self._waiting[self._limit :]
                await self._send(batch)
        finally:
            # Here and not in a callback: whoever asks in the same tick must find it free.
            self._free += 1

    async def _send(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._call([item for item, _ in batch])
        except BaseException as exc:
            for _, future in batch:
                if not future.done():
                    future.set_exception(exc)
            if not isinstance(exc, Exception):
                raise
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)


class Punctual(Generic[Item, Result]):
    """Calls a Store method and waits for it only so long: a commit to a dying disk may never return.

    The call itself is not stopped, for a commit cannot be taken back. While one hangs the next ones
    are refused at once, so that what they hold does not pile up behind it.

    Args:
        call: takes a batch, returns one result per item in order.
        seconds: the longest wait.
    """

    def __init__(self, call: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]], seconds: float) -> None:
        self._call = call
        self._seconds = seconds
        self._hanging: asyncio.Future[Sequence[Result]] | None = None

    async def __call__(self, items: Sequence[Item]) -> Sequence[Result]:
        """Raises StoreUnavailable when it took too long; nobody knows then what became of it."""
        if self._hanging is not None:
            raise StoreUnavailable("the store has not finished an earlier call")
        calling = asyncio.ensure_future(self._call(items))
        await asyncio.wait([calling], timeout=self._seconds)
        if calling.done():
            return calling.result()
        self._hanging = calling
        calling.add_done_callback(self._forget)
        raise StoreUnavailable(f"the store did not finish within {self._seconds:g} s")

    def _forget(self, calling: asyncio.Future[Sequence[Result]]) -> None:
        self._hanging = None
        if not calling.cancelled():
            calling.exception()  # whoever asked has been told that the outcome is not known
