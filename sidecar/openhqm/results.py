"""The reserved prefix: state, answer, events and cancellation of accepted requests.

Reached from `ingress.py` before any route; reads through `waiters.py`. The handle is the authority:
wrong, missing and malformed ones are the same 404, a valid one whose record is gone is 410. Nothing
here may be cached.

    GET    <prefix>/v1/requests/{handle}            state            ?wait=N until final
    GET    <prefix>/v1/requests/{handle}/response   stored answer    ?wait=N; 202 while pending
    GET    <prefix>/v1/requests/{handle}/events     server-sent events until final
    DELETE <prefix>/v1/requests/{handle}            cancel

A final record without an answer is told as a problem by `response`: outcome-unknown 502, timeout and
expired 504, cancelled 409, poison 500 (`problems.kind_of_outcome`).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

import orjson
from aiohttp.web import BaseRequest

from openhqm import replies
from openhqm.acceptor import final_reply
from openhqm.cancellation import cancel
from openhqm.errors import AlreadyFinal, BadRequest, MethodNotAllowed, ResponseExpired, UnknownPath
from openhqm.estimates import DrainRate
from openhqm.handles import Handles, id_text
from openhqm.lifecycle import Lifecycle
from openhqm.replies import NO_STORE, Reply
from openhqm.settings import IngressSettings
from openhqm.stores.base import Record, State, Store
from openhqm.views import attempts, rfc3339
from openhqm.waiters import Waiters

EVENT_STREAM = b"text/event-stream"
KEEPALIVE_SECONDS = 15.0
"""An idle event stream says something this often: proxies drop silent connections after 30 to 60 s."""

_WAIT = re.compile(rb"(?:^|&)wait=([^&]*)")
_SECONDS = re.compile(rb"\d{1,6}(?:\.\d{1,3})?")
READ = ("GET", "HEAD")

Page = Callable[[BaseRequest, bytes], Awaitable[Reply]]
"""Serves one exact path under the prefix: gets the request and its raw query."""


class Results:
    """Serves the reserved prefix.

    Args:
        pages: exact paths below the prefix -> what serves them, for what is not about one handle
            (explicit submit at b"/v1/requests", the API's description).
    """

    def __init__(
        self,
        ingress: IngressSettings,
        store: Store,
        *,
        handles: Handles,
        waiters: Waiters,
        drain_rate: DrainRate,
        lifecycle: Lifecycle,
        pages: Mapping[bytes, Page] | None = None,
    ) -> None:
        self._prefix = ingress.reserved_prefix.encode()
        self.apply(ingress)
        self._store = store
        self._handles = handles
        self._waiters = waiters
        self._drain_rate = drain_rate
        self._lifecycle = lifecycle
        self._pages = dict(pages or {})

    def apply(self, ingress: IngressSettings) -> None:
        """Take over the hot settings: how long a poll may wait."""
        self._max_wait_seconds = ingress.max_wait_seconds

    async def handle(self, request: BaseRequest, target: bytes) -> Reply:
        """Answer one call below the prefix.

        Raises:
            UnknownPath, MethodNotAllowed, UnknownHandle, ResponseExpired, AlreadyFinal, BadRequest,
            StoreUnavailable.
        """
        path, _, query = target[len(self._prefix) :].partition(b"?")
        if (page := self._pages.get(path)) is not None:
            return await page(request, query)
        match path.split(b"/"):
            case [b"", b"v1", b"requests", handle]:
                allow(request, (*READ, "DELETE"))
                id = self._verify(handle)
                if request.method == "DELETE":
                    return await self._cancel(id)
                return await self._state(id, self._wait_seconds(query))
            case [b"", b"v1", b"requests", handle, b"response"]:
                allow(request, READ)
                return await self._response(
                    self._verify(handle), self._wait_seconds(query), to_head=request.method == "HEAD"
                )
            case [b"", b"v1", b"requests", handle, b"events"]:
                allow(request, READ)
                return await self._events(self._verify(handle))
        raise UnknownPath("there is nothing of ours at this path")

    def _verify(self, handle: bytes) -> bytes:
        return self._handles.verify(handle.decode("ascii", "replace"))

    def _wait_seconds(self, query: bytes) -> float:
        wait = _WAIT.search(query)
        if wait is None:
            return 0.0
        if _SECONDS.fullmatch(wait[1]) is None:
            raise BadRequest("wait must be a number of seconds")
        return min(float(wait[1]), self._max_wait_seconds)

    async def _state(self, id: bytes, wait_seconds: float) -> Reply:
        if wait_seconds > 0:
            await self._waiters.final(id, wait_seconds)
        return self._state_reply(held(await self._waiters.read(id)))

    async def _response(self, id: bytes, wait_seconds: float, *, to_head: bool) -> Reply:
        record = held(await self._waiters.final(id, wait_seconds))
        if not record.state.is_final:
            return self._state_reply(record, status=202)
        fields = b"OpenHQM-Correlation-Id: %b\r\n%b" % (id_text(id).encode(), NO_STORE)
        return await final_reply(record, self._store, to_head=to_head, fields=fields)

    async def _cancel(self, id: bytes) -> Reply:
        """Cancel: 200 once it is cancelled, 202 while the app is still asked to stop, 409 if final."""
        record = held(await cancel(self._store, self._lifecycle, id))
        if record.state is State.CANCELLED:
            return self._state_reply(record)
        if record.state.is_final:
            raise AlreadyFinal(f"the request is {record.state.value} already; its answer never changes")
        return self._state_reply(record, status=202)

    async def _events(self, id: bytes) -> Reply:
        changes = self._waiters.changes(id, idle_seconds=KEEPALIVE_SECONDS)
        first = held(await anext(changes, None))
        return replies.stream(
            200, self._event_stream(first, changes), content_type=EVENT_STREAM, fields=NO_STORE
        )

    async def _event_stream(
        self, first: Record, changes: AsyncGenerator[Record | None, None]
    ) -> AsyncGenerator[bytes, None]:
        """Frame changes as events named `state`; a comment when there is nothing to say."""
        try:
            yield _event(self._document(first))
            async for record in changes:
                yield b": still here\n\n" if record is None else _event(self._document(record))
        finally:
            await changes.aclose()

    def _state_reply(self, record: Record, *, status: int = 200) -> Reply:
        fields = NO_STORE
        if not record.state.is_final:
            fields += b"Retry-After: %d\r\n" % self._drain_rate.retry_after_seconds(record.position)
        return replies.make(status, orjson.dumps(self._document(record)) + b"\n", fields=fields)

    def _document(self, record: Record) -> dict[str, Any]:
        link = f"{self._prefix.decode()}/v1/requests/{self._handles.handle(record.id)}"
        return {
            "correlation_id": id_text(record.id),
            "status": record.state.value,
            "reason": record.reason or None,
            "attempts": record.attempts,
            "history": attempts(record),
            "may_have_run": record.may_have_run or record.attempts > 0 or record.state is State.RUNNING,
            "cancel_requested": record.cancel_requested,
            "priority": record.priority,
            "position": record.position,
            "eta_seconds": self._drain_rate.eta_seconds(record.position),
            "accepted_at": rfc3339(record.accepted_at),
            "ready_at": None if record.state.is_final else rfc3339(record.ready_at),
            "started_at": rfc3339(record.started_at),
            "finished_at": rfc3339(record.finished_at),
            "deadline": rfc3339(record.deadline),
            "expires_at": rfc3339(record.expires_at),
            "links": {"self": link, "response": f"{link}/response", "events": f"{link}/events"},
        }


def allow(request: BaseRequest, methods: tuple[str, ...]) -> None:
    """Refuse all methods but these.

    Raises: MethodNotAllowed.
    """
    if request.method not in methods:
        raise MethodNotAllowed(f"{request.method} is not allowed here", methods)


def held(record: Record | None) -> Record:
    """Return what a valid handle led to.

    Raises: ResponseExpired when that is nothing any more.
    """
    if record is None:
        raise ResponseExpired("the record of this request is no longer kept")
    return record


def _event(document: dict[str, Any]) -> bytes:
    return b"event: state\ndata: %b\n\n" % orjson.dumps(document)
