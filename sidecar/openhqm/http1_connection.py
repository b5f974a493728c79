"""One HTTP/1.1 connection to the app: its transport, its parser, and the answer that arrives on it.

Used by `http1.py`, which owns the connections. The parser is llhttp (httptools); what llhttp lets
pass and must not is judged here, row by row in tests/sidecar/test_http1.py.
"""

from __future__ import annotations

import asyncio
import enum
import math
import re
import select
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Protocol, cast

import httptools

from openhqm.errors import AppAnswerInvalid, AppConnectionLost
from openhqm.http1_heads import Head, Headers, KnownHeads

HEAD_LIMIT_BYTES = 64 * 1024
"""Most bytes of an answer's head; also of interim answers, chunk extensions or trailers in a row."""
HEAD_LIMIT_LINES = 256
HIGH_WATER_BYTES = 256 * 1024
"""Unread answer bytes beyond which the connection is not read."""

_JOIN_BYTES = 64 * 1024
"""Bodies up to this are copied behind the head, so that both leave in one write."""
_INTERIM = frozenset({100, 102, 103})
_BODILESS = frozenset({204, 304})
_VERSION_PREFIX = b"HTTP/1."
_CONTROL_BYTE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class Framing(enum.Enum):
    """How the end of an answer is known."""

    NONE = "none"
    """There is no body: HEAD, 204, 304."""
    LENGTH = "length"
    """Content-Length."""
    CHUNKED = "chunked"
    """Transfer-Encoding: chunked."""
    CLOSE = "close"
    """The app closes the connection: a truncated body looks like a whole one."""
    UPGRADE = "upgrade"
    """101: no message but raw bytes in both directions."""


class Response:
    """The app's answer: the head complete, the body whole or still arriving.

    Attributes:
        status: 200 to 599, or 101 where an upgrade was asked for.
        reason: the rest of the status line, perhaps empty.
        headers: names and values as received: case, order, duplicates; hop-by-hop ones included.
        version: "1.1" or "1.0".
        framing: how the end of the body is known.
        complete: nothing more will arrive; what `read` and `take` still hold is all.
        known: the head as it is known from earlier answers, None where it is not.
    """

    __slots__ = (
        "_buffered",
        "_connection",
        "_error",
        "_notify",
        "_pieces",
        "_threshold",
        "complete",
        "framing",
        "head_complete",
        "headers",
        "is_head",
        "known",
        "reason",
        "status",
        "upgrade",
        "version",
    )

    def __init__(self, connection: Connection, *, is_head: bool, upgrade: bool, gather_bytes: int) -> None:
        self.status = 0
        self.reason = b""
        self.headers: Headers = []
        self.version = "1.1"
        self.framing = Framing.CLOSE
        self.is_head = is_head
        self.upgrade = upgrade
        self.head_complete = False
        self.complete = False
        self.known: Head | None = None
        self._connection = connection
        self._pieces: list[bytes] = []
        self._buffered = 0
        self._threshold = gather_bytes
        self._notify: Callable[[], None] | None = None
        """Called once, when there is enough or an error."""
        self._error: BaseException | None = None

    @property
    def length_verified(self) -> bool:
        """Whether a truncated body would have been noticed."""
        return self.framing is not Framing.CLOSE

    async def read(self) -> bytes:
        """Return what has arrived of the body, waiting for at least one byte; b"" at its end.

        Raises:
            AppConnectionLost, AppAnswerInvalid, AppTimeout: the body will not be complete.
        """
        if not self._pieces and not self.complete:
            self._threshold = 0
            self._connection.resume_reading(self)
            await self.wait()
        return self.take()

    def take(self) -> bytes:
        """Return what has arrived of the body without waiting."""
        if not self._pieces:
            return b""
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces = []
        self._buffered = 0
        return data

    def whole(self, limit_bytes: int) -> bytes | None:
        """Return the body if it is complete and has at most *limit_bytes*; None leaves it to `read`."""
        return self.take() if self.complete and self._buffered <= limit_bytes else None

    async def arrive(self) -> None:
        """Wait for the head after `Client.stream`; what follows may take as long as it likes.

        Raises:
            AppTimeout, AppConnectionLost, AppAnswerInvalid: there is no answer.
        """
        await self.wait()
        self._connection.set_timeout(self, math.inf)

    def close(self) -> None:
        """Give up an answer that is not complete: the app sees its connection end."""
        self._connection.abandon(self)

    def write(self, data: bytes) -> None:
        """Send raw bytes after an upgrade; nothing happens once the app has gone."""
        self._connection.send_raw(self, data)

    @property
    def writing_paused(self) -> bool:
        """Whether the app is slower than `write`."""
        return self._connection.writing_paused

    async def drain(self) -> None:
        """Wait until the app has caught up with `write`."""
        await self._connection.drain()

    async def wait(self) -> None:
        """Wait until there is more to take than was asked for. Cancellation ends the connection."""
        if self._error is not None:
            raise self._error
        if self._is_enough():
            return
        waiter: asyncio.Future[None] = self._connection.loop.create_future()
        self._notify = partial(self._release, waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._notify = None

    def _release(self, waiter: asyncio.Future[None]) -> None:
        if waiter.done():
            return
        if self._error is not None:
            waiter.set_exception(self._error)
        else:
            waiter.set_result(None)

    def notify(self, listener: Callable[[], None]) -> None:
        """Call *listener* once when `wait` would return or raise, which must not be so yet."""
        self._notify = listener

    @property
    def error(self) -> BaseException | None:
        """What `wait` would raise."""
        return self._error

    def cancel(self) -> None:
        """Give up an answer nobody waits for any more; the listener is not told."""
        self._notify = None
        self.close()

    def fill(self, head: Head, body: bytes) -> None:
        """Take a whole answer whose head is known."""
        self.known = head
        self.status, self.reason, self.version = head.status, head.reason, head.version
        self.headers = head.headers
        self.framing = Framing.LENGTH
        self.head_complete = True
        if body:
            self._add(body)

    def _add(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._buffered += len(piece)

    def _is_enough(self) -> bool:
        return self.complete or (self.head_complete and self._buffered > self._threshold)

    def _wake(self) -> bool:
        """Tell the listener, if there is one and enough has come. Returns whether to keep reading."""
        if self._notify is not None and self._is_enough():
            self._tell()
        return self._notify is not None or self._buffered <= HIGH_WATER_BYTES

    def _finish(self) -> None:
        self.complete = True
        self._tell()

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._tell()

    def _tell(self) -> None:
        notify, self._notify = self._notify, None
        if notify is not None:
            notify()


class Listener(Protocol):
    """Who is told of an answer instead of waiting for it."""

    def answered(self, head: Head, body: bytes) -> None:
        """The answer came whole behind a head whose `stored` is known: no Response is made of it."""
        ...

    def begun(self, response: Response) -> None:
        """Any other answer, or error, comes as *response* does; here is the time to `notify`."""
        ...


class Owner(Protocol):
    """Who keeps connections between exchanges, and the heads of the answers that came on them."""

    heads: KnownHeads

    def keep(self, connection: Connection) -> None:
        """Take back a connection whose exchange is over and that can carry another."""
        ...

    def forget(self, connection: Connection) -> None:
        """Drop a connection that has ended."""
        ...


class Connection(asyncio.Protocol):
    """One connection to the app and the parser of its answers."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.loop = asyncio.get_running_loop()  # looked up once: each time costs a system call, 0.2 us
        self._transport: asyncio.Transport
        self._descriptor = -1
        self._parser = httptools.HttpResponseParser(self)
        self._response: Response | None = None
        self._listener: Listener | None = None
        """Who asked, until there is a Response."""
        self._gather_bytes = 0
        self._sender: asyncio.Task[None] | None = None
        self._drain_waiter: asyncio.Future[None] | None = None
        self.writing_paused = False
        self._reading_paused = False
        self._closed = False
        self._heads = owner.heads
        self.deadline = math.inf
        self.idle_since = 0.0
        self.fresh_until = 0.0
        """Until when what `look` saw of it counts, on `time.monotonic`; for whoever keeps it."""
        self._reset()

    def _reset(self) -> None:
        """Forget the last exchange."""
        self._start = b""  # bytes of a status line too short to be judged
        self._begun = False
        self._interim = False
        self._message_complete = False
        self._keep_alive = False
        self._surplus = False
        self._sent = False
        self._last_piece = b""
        self._framing_bytes = 0
        self._invalid = ""

    # -- for Client and Response ---------------------------------------------------------------

    def ask(
        self, head: bytes, body: bytes, listener: Listener, timeout_seconds: float, gather_bytes: int
    ) -> None:
        """Write a whole request; a Response is made only if its answer needs one."""
        self._listener = listener
        self._gather_bytes = gather_bytes
        self.deadline = self.loop.time() + timeout_seconds
        if head.startswith(b"HEAD "):
            self._respond(listener, is_head=True)
        self.send(head, body)

    def _respond(self, listener: Listener, *, is_head: bool = False) -> Response:
        """Make what takes the parts of an answer, or the error in place of one."""
        self._listener = None
        self._reset()
        self._sent = True
        self._response = response = Response(
            self, is_head=is_head, upgrade=False, gather_bytes=self._gather_bytes
        )
        listener.begun(response)
        return response

    def withdraw(self, listener: Listener) -> None:
        """End the exchange of *listener*, who is told no more; nothing happens when it is over."""
        if self._listener is listener:
            self._listener = None
            self.abort()

    def begin(self, response: Response, timeout_seconds: float) -> None:
        self._reset()
        self._response = response
        self.deadline = self.loop.time() + timeout_seconds

    def send(self, head: bytes, body: bytes) -> None:
        """Write a whole request."""
        self._sent = True
        if len(body) <= _JOIN_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    def send_stream(self, head: bytes, body: AsyncIterator[bytes], sent: Callable[[], None]) -> None:
        """Write head and body as the body comes, in a task that ends with the exchange.

        The head leaves with the first piece: a source that fails at once has sent nothing.
        """
        self._sender = asyncio.create_task(self._send_body(head, body, sent), name="http1-body")
        self._sender.add_done_callback(self._body_ended)

    async def _send_body(self, head: bytes, body: AsyncIterator[bytes], sent: Callable[[], None]) -> None:
        async for chunk in body:
            if self._closed:
                return
            self._transport.write(head + chunk if head else chunk)
            head = b""
            if self.writing_paused:
                await self.drain()
        if head:
            self._transport.write(head)
        self._sent = True
        sent()

    def _body_ended(self, sender: asyncio.Task[None]) -> None:
        if not sender.cancelled() and (error := sender.exception()) and self._sender is sender:
            self.fail(error)  # the source of the body failed, not the app

    def send_head(self, head: bytes) -> None:
        """Write the head of a request whose body will come by `send_stream`."""
        self._transport.write(head)

    def send_raw(self, response: Response, data: bytes) -> None:
        if self._response is response and not self._closed:
            self._transport.write(data)

    def set_timeout(self, response: Response, seconds: float) -> None:
        if self._response is response:
            self.deadline = self.loop.time() + seconds

    @property
    def is_busy(self) -> bool:
        """Whether an exchange is under way."""
        return self._listener is not None or self._response is not None

    def abandon(self, response: Response) -> None:
        if self._response is response:
            self._detach()
            response._fail(AppConnectionLost("the answer was given up"))
            if response.framing is Framing.UPGRADE:
                self._close()  # what was written before still goes out
            else:
                self.abort()

    def fail(self, error: BaseException) -> None:
        """End the exchange with *error*, and the connection with it."""
        if (response := self._detach()) is not None:
            response._fail(error)
        self.abort()

    def abort(self) -> None:
        self._closed = True
        self._owner.forget(self)
        self._transport.abort()

    async def drain(self) -> None:
        if self.writing_paused and not self._closed:
            if self._drain_waiter is None:
                self._drain_waiter = self.loop.create_future()
            await asyncio.shield(self._drain_waiter)

    def resume_reading(self, response: Response) -> None:
        if self._reading_paused and self._response is response:
            self._reading_paused = False
            self._transport.resume_reading()

    def _detach(self) -> Response | None:
        """Part from the current exchange, and stop sending its body."""
        if self._listener is not None:
            self._respond(self._listener)
        response, self._response = self._response, None
        if self._sender is not None:
            self._sender.cancel()
            self._sender = None
        return response

    # -- asyncio.Protocol ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports only look like it
        self._descriptor = transport.get_extra_info("socket").fileno()

    def data_received(self, data: bytes) -> None:
        listener = self._listener
        if listener is not None:
            head = self._heads.find(data)
            if (
                head is not None
                and head.stored
                and head.body_bytes <= self._gather_bytes
                and not self._transport.get_write_buffer_size()
            ):
                self._listener = None
                self.idle_since = self.loop.time()
                self._owner.keep(self)
                listener.answered(head, data[len(head.raw) :])
                return
            self._respond(listener)
        response = self._response
        if response is None:
            self.abort()  # an answer nobody asked for must not become the next one's
            return
        if response.framing is Framing.UPGRADE:
            response._add(data)
        else:
            if not self._begun and (
                self._take_whole(data, response) or not (data := self._admit_start(data))
            ):
                return
            self._parse(data, response)
            if self._response is None:
                return
        if not response._wake() and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        """The transport closes itself now; until `connection_lost` nobody may take it."""
        if not self.is_busy:
            self._closed = True
            self._owner.forget(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._owner.forget(self)
        self._release_writers()
        if (response := self._detach()) is None:
            return
        ends_so = response.head_complete and response.framing in (Framing.CLOSE, Framing.UPGRADE)
        if ends_so and exc is None:
            response._finish()
        else:
            where = "within its answer" if response.head_complete else "before its answer"
            response._fail(AppConnectionLost(f"the app ended the connection {where}"))

    def pause_writing(self) -> None:
        self.writing_paused = True

    def resume_writing(self) -> None:
        self._release_writers()

    def _release_writers(self) -> None:
        self.writing_paused = False
        waiter, self._drain_waiter = self._drain_waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # -- parsing -------------------------------------------------------------------------------

    def _take_whole(self, data: bytes, response: Response) -> bool:
        """End the exchange at once if *data* is a whole answer with a known head; otherwise parse it."""
        if self._start or response.is_head or not self._sent:
            return False
        head = self._heads.find(data)
        if head is None:
            return False
        response.fill(head, data[len(head.raw) :])
        self._keep_alive = True
        self._last_piece = data
        self._end(data)
        return True

    def _admit_start(self, data: bytes) -> bytes:
        """Return the bytes to parse, b"" while there are too few or when they are refused.

        llhttp would take RTSP/1.0, ICE/1.0 and line ends in front.
        """
        data = self._start + data
        if data.startswith(_VERSION_PREFIX):
            self._begun = True
            return data
        if _VERSION_PREFIX.startswith(data):
            self._start = data
        else:
            self._refuse("it does not begin with HTTP/1")
        return b""

    def _parse(self, data: bytes, response: Response) -> None:
        before = response._buffered
        is_first = not self._framing_bytes and not response.head_complete
        self._framing_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            self._message_complete = False  # llhttp calls the head of a 101 a message
            if tail := data[exc.args[0] :]:
                response._add(tail)
        except httptools.HttpParserError as exc:
            if self._message_complete:
                self._surplus = True
            else:
                self._invalid = self._invalid or str(exc)
        if self._invalid:
            self._refuse(self._invalid)
        elif self._message_complete:
            if is_first and response.framing is Framing.LENGTH:
                self._learn(data, response)
            self._end(data)
        else:
            self._limit_framing(had_body=response._buffered > before)

    def _learn(self, data: bytes, response: Response) -> None:
        """Know the head of *data*, an answer that came in one piece, if it stands alone before its body."""
        raw = data[: data.find(b"\r\n\r\n") + 4]
        if self._keep_alive and not self._surplus and len(raw) + response._buffered == len(data):
            self._heads.keep(
                Head(
                    raw,
                    response.status,
                    response.reason,
                    response.headers,
                    response.version,
                    response._buffered,
                )
            )

    def _limit_framing(self, *, had_body: bool) -> None:
        """Bound heads, chunk extensions and trailers, which the parser takes at any length."""
        if had_body:
            self._framing_bytes = 0
        elif self._framing_bytes > HEAD_LIMIT_BYTES:
            self._refuse("its head, chunk extensions or trailers are too large")

    def _refuse(self, why: str) -> None:
        self.fail(AppAnswerInvalid(f"the app's answer is not valid HTTP: {why}"))

    def _end(self, data: bytes) -> None:
        """The answer is whole. Keep the connection only if it can carry another exchange in step."""
        response = self._detach()
        assert response is not None
        if not self._sent or self._transport.get_write_buffer_size():
            self.abort()  # the app did not want the rest of the request
        elif self._keep_alive and not self._surplus and self._ends_with_message(data, response):
            self._keep(response)
        else:
            self._close()
        response._finish()

    def _keep(self, response: Response) -> None:
        if response.is_head:  # the parser waits for the body that Content-Length spoke of
            self._parser = httptools.HttpResponseParser(self)
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        self.idle_since = self.loop.time()
        self._owner.keep(self)

    def _close(self) -> None:
        self._closed = True
        self._owner.forget(self)
        self._transport.close()

    def _ends_with_message(self, data: bytes, response: Response) -> bool:
        """Whether *data* ends where the message does: llhttp passes over line ends in between.

        A wrong no only costs a fresh connection.
        """
        if response.framing is Framing.LENGTH and self._last_piece:
            return data.endswith(self._last_piece)
        return data.endswith(b"\r\n\r\n") and not data.endswith(b"\r\n\r\n\r\n")

    # -- parser callbacks (httptools) ----------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._message_complete:
            self._surplus = True

    def on_status(self, reason: bytes) -> None:
        if self._response is not None and not self._message_complete:
            self._response.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        response = self._response
        if response is not None and not response.head_complete:  # otherwise a trailer: dropped
            response.headers.append((name, value))

    def on_headers_complete(self) -> None:
        response = self._response
        if response is None or response.head_complete:
            return
        if _CONTROL_BYTE.search(response.reason):
            self._invalid = "there are control bytes in its status line"
            return
        status = self._parser.get_status_code()
        if status in _INTERIM:
            self._interim = True
            return
        response.status = status
        response.version = self._parser.get_http_version()
        self._invalid = self._judge_head(response)
        response.head_complete = not self._invalid
        if response.framing is Framing.NONE and response.is_head:
            self._keep_alive = self._parser.should_keep_alive()
            self._message_complete = True

    def on_body(self, piece: bytes) -> None:
        if self._message_complete or self._response is None:
            self._surplus = True
        else:
            self._last_piece = piece
            self._response._add(piece)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
            if self._response is not None:
                self._response.headers = []
                self._response.reason = b""
        elif not self._message_complete:
            self._keep_alive = self._parser.should_keep_alive()
            self._message_complete = True

    def _judge_head(self, response: Response) -> str:
        """Set how the answer ends; returns what is wrong with it, "" if nothing."""
        status = response.status
        if len(response.headers) > HEAD_LIMIT_LINES:
            return f"it has more than {HEAD_LIMIT_LINES} header lines"
        if self._framing_bytes > HEAD_LIMIT_BYTES and _head_bytes(response) > HEAD_LIMIT_BYTES:
            return "its head is too large"
        if status == 101:
            response.framing = Framing.UPGRADE
            return "" if response.upgrade and self._parser.should_upgrade() else "an upgrade nobody asked for"
        if not 200 <= status <= 599:
            return f"its status is {status}"
        framing, problem = framing_of(response.headers, response.version)
        response.framing = Framing.NONE if response.is_head or status in _BODILESS else framing
        return problem


def _head_bytes(response: Response) -> int:
    return len(response.reason) + sum([len(name) + len(value) + 4 for name, value in response.headers])


def framing_of(headers: Headers, version: str) -> tuple[Framing, str]:
    """How a message with these headers ends, and what is wrong with that, "" if nothing.

    The parser has refused Content-Length twice, beside Transfer-Encoding, or not a number. It reads
    any coding but a last `chunked` as until-close, and would hand over a still coded body.
    Source: RFC 9112 sections 6.1 and 6.3.
    """
    framing = Framing.CLOSE
    for name, value in headers:
        if len(name) == 14 and name.lower() == b"content-length":
            framing = Framing.LENGTH
        elif len(name) == 17 and name.lower() == b"transfer-encoding":
            if framing is not Framing.CLOSE or value.strip(b" \t").lower() != b"chunked":
                return framing, "its Transfer-Encoding is not chunked alone"
            if version != "1.1":
                return framing, "an HTTP/1.0 answer has a Transfer-Encoding"
            framing = Framing.CHUNKED
    return framing, ""


def look(connections: Sequence[Connection], fresh_until: float) -> None:
    """Set `fresh_until` of those idle connections on which nothing has happened: no EOF, reset, stray byte.

    The kernel is asked, for the event loop may not have seen it yet; about all of them with one call,
    for alone each takes 2 us.
    """
    poller = select.poll()
    usable = {
        connection._descriptor: connection
        for connection in connections
        if not connection._closed and not connection._transport.is_closing()
    }
    for descriptor in usable:
        poller.register(descriptor, select.POLLIN)
    for descriptor, _ in poller.poll(0):
        del usable[descriptor]
    for connection in usable.values():
        connection.fresh_until = fresh_until
