"""The intercept server: aiohttp's low-level server, taught what it does not do for a proxy.

Below `ingress.py`, which only sees whole request heads. Here: how connections are made, what a parse
error looks like to the client (our 400, connection closed, nothing stored), that a body which turns
out malformed is told to whoever reads it, that nothing is misread behind an ignored upgrade, and that
neither too many clients nor those that do not read their answers take everything.

Only the C parser is served. The pure Python one accepts unknown methods, folds lower-case ones and
takes raw bytes in paths; what a sidecar accepts must not depend on how it was installed.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

import structlog
from aiohttp import hdrs, http_parser
from aiohttp.http_exceptions import BadStatusLine, InvalidHeader, InvalidURLError, LineTooLong
from aiohttp.web import BaseRequest, RequestHandler, RequestPayloadError, Server, StreamResponse

from openhqm import problems
from openhqm.errors import (
    BadRequest,
    HeadersTooLarge,
    RequestRejected,
    SettingsError,
    TargetTooLong,
    TooManyConnections,
)
from openhqm.replies import Reply
from openhqm.settings import IngressSettings

MAX_TARGET_BYTES = 16 * 1024
MAX_FIELD_BYTES = MAX_TARGET_BYTES + 1
"""For a header's name, and for its value. One more, because aiohttp tells of a part that is too long
only which limit it exceeded, and clients are to know which part it was."""

_PHRASES = {
    "Received HTTPS traffic on an HTTP port": "this port speaks HTTP, not HTTPS",
    "Pause on PRI/Upgrade": "HTTP/2 is not served here, only HTTP/1.1",
    "Invalid header field char": "the name of a header field has a character that names cannot have",
    "Invalid header token": "the name of a header field has a character that names cannot have",
    "Invalid header value char": "the value of a header field has a character that values cannot have",
    "Unexpected space after start line": "a blank must not begin a header field",
    "Unexpected whitespace after header value": "a blank must not begin a header field",
}
"""What the parser says -> what the client is told, where the one does not explain itself."""

LINGER_SECONDS = 5.0
"""How long the rest of a body we refused is read and thrown away, so that the client sees the answer."""

Handler = Callable[[BaseRequest], Awaitable[Reply]]
log = structlog.get_logger("openhqm.intercept")


def build_server(
    handler: Handler, ingress: IngressSettings, connect: Callable[..., RequestHandler] | None = None
) -> Server:
    """Return the protocol factory of the intercept port, for `loop.create_server`.

    Args:
        connect: makes the protocol of one client; `InterceptConnection` if not given.

    Raises:
        SettingsError: aiohttp was installed without its C parser.
    """
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise SettingsError(
            "aiohttp runs without its C parser (AIOHTTP_NO_EXTENSIONS, or a build without extensions), "
            "which accepts requests this proxy must refuse; install the aiohttp wheel"
        )
    return InterceptServer(
        # RequestHandler asks an answer for prepare, write_eof and keep_alive, and Reply has them.
        cast(Callable[[BaseRequest], Awaitable[StreamResponse]], handler),
        connect or InterceptConnection,
        auto_decompress=False,
        access_log=None,
        keepalive_timeout=ingress.keepalive_seconds,
        lingering_time=LINGER_SECONDS,
        max_connections=ingress.max_connections,
        stall_seconds=ingress.body_timeout_seconds,
        max_line_size=MAX_TARGET_BYTES,
        max_field_size=MAX_FIELD_BYTES,
    )


class InterceptServer(Server):
    """Makes a protocol for each client."""

    def __init__(
        self,
        handler: Callable[[BaseRequest], Awaitable[StreamResponse]],
        connect: Callable[..., RequestHandler],
        **connection_options: Any,
    ) -> None:
        super().__init__(handler)
        self._connect = connect
        self._connection_options = connection_options
        self._refused = 0
        self._told_at = float("-inf")

    def __call__(self) -> RequestHandler:
        return self._connect(self, loop=self._loop, **self._connection_options)

    def count_refused(self, limit: int) -> None:
        """Say that a connection was refused; once a second, not for each of a flood."""
        self._refused += 1
        now = self._loop.time()
        if now - self._told_at >= 1:
            log.warning("connection.refused", max_connections=limit, refused=self._refused)
            self._told_at, self._refused = now, 0


class InterceptConnection(RequestHandler):
    """One client connection.

    Args:
        max_connections: with more than that this one is turned away.
        stall_seconds: how long a client may read nothing of an answer that waits for it.
    """

    __slots__ = ("_body_left", "_is_in_doubt", "_max_connections", "_stall_seconds", "_stall_timer")

    def __init__(self, *args: Any, max_connections: int, stall_seconds: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._max_connections = max_connections
        self._stall_seconds = stall_seconds
        self._stall_timer: asyncio.TimerHandle | None = None
        self._body_left = 0
        """Bytes still to come of a body whose request offered an upgrade that is ignored."""
        self._is_in_doubt = False
        """Whether bytes may have been lost: nothing may be read after the request that is served."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self._manager is not None
        if len(self._manager._connections) > self._max_connections:
            self._turn_away(cast(asyncio.Transport, transport))

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _turn_away(self, transport: asyncio.Transport) -> None:
        cast(InterceptServer, self._manager).count_refused(self._max_connections)
        error = TooManyConnections("as many clients are connected as are admitted (ingress.max_connections)")
        refusal = problems.reply(error, keep_alive=False)
        transport.write(refusal.head + b"Connection: close\r\n\r\n" + refusal.body)
        self.force_close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._stop_watching()
        super().resume_writing()

    def _watch_reader(self) -> None:
        """Look after a while whether the client has read anything of what waits for it."""
        unread = _unread_bytes(self.transport)
        self._stall_timer = self._loop.call_later(self._stall_seconds, self._check_reader, unread)

    def _check_reader(self, unread_before: int) -> None:
        self._stall_timer = None
        if self.transport is None:
            return
        if _unread_bytes(self.transport) < unread_before:
            self._watch_reader()
            return
        log.info("client.stalled", unread_bytes=unread_before)
        self.transport.abort()

    def _stop_watching(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> StreamResponse:
        """Answer for aiohttp: 400, 414 or 431 for what it cannot take, 500 for what ingress let escape.

        Raises:
            ConnectionError: there is nobody to answer; aiohttp ends the connection without a word.
        """
        if isinstance(exc, ConnectionError):
            raise exc
        if status != 400:
            log.error("request.crashed", exc_info=exc)
            if request.writer.output_size > 0:
                raise ConnectionError("the answer has begun, it can only be cut off") from exc
            return cast(StreamResponse, problems.problem(problems.INTERNAL, "see the log", keep_alive=False))
        return cast(StreamResponse, problems.reply(_refusal(exc, message or ""), keep_alive=False))

    def data_received(self, data: bytes) -> None:
        was_idle = self._current_request is None and not self._messages
        super().data_received(data)
        if self._body_left:
            self._follow_body(len(data))
        elif self._messages:
            self._fail_cut_body()
            self._check_upgrade(data, was_idle)

    def finish_response(
        self, request: BaseRequest, resp: StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[StreamResponse, bool]]:
        if self._is_in_doubt:
            cast(Reply, resp).keep_alive = False
        return super().finish_response(request, resp, start_time)

    def resume_reading(self, resume_parser: bool = True) -> None:
        # Asked after every read; unless reading was paused, that would parse nothing at some cost.
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def _fail_cut_body(self) -> None:
        """Tell the reader of a body that broke off in a parse error.

        The C parser drops such a body without a word and queues the error behind its request, which
        would wait until the body's timeout.
        """
        message, _ = self._messages[-1]
        if not hasattr(message, "exc"):
            return  # a request, not an error
        if len(self._messages) > 1:
            content = self._messages[-2][1]
        elif self._current_request is not None:
            content = self._current_request.content
        else:
            return
        if not content.is_eof():
            content.set_exception(RequestPayloadError("the body's framing is malformed"))

    def _check_upgrade(self, data: bytes, was_idle: bool) -> None:
        """See whether anything followed, in the same packet, a request that offers an upgrade.

        The C parser stops at the end of such a request and, for a protocol it does not know, drops
        what is left of the packet without a word; the packet after it would then be read from the
        middle of a request. Where it cannot be shown that nothing was dropped the connection ends
        with the answer: clients send on that again elsewhere (RFC 9112 section 9.3.2).
        """
        message: Any = self._messages[-1][0]  # or an error, which has no such attribute
        if self._upgraded or not getattr(message, "upgrade", False):
            return
        head_ends_at = data.find(b"\r\n\r\n") + 4
        # A line end at the beginning may be the second half of one that ended the head.
        is_whole = was_idle and len(self._messages) == 1 and head_ends_at > 3 and data[0] not in b"\r\n"
        left = head_ends_at + int(message.headers.get(hdrs.CONTENT_LENGTH, 0)) - len(data)
        if is_whole and left >= 0 and not message.chunked:
            self._body_left = left
        else:
            self._is_in_doubt = True

    def _follow_body(self, size: int) -> None:
        """Count *size* bytes that came; more than the body's are lost, as in `_check_upgrade`."""
        self._body_left -= size
        if self._body_left < 0:
            self._body_left = 0
            self._is_in_doubt = True
            self.close()


def _refusal(exc: BaseException | None, message: str) -> RequestRejected:
    """Say what the parser could not take, in our words where its own quote the request or explain nothing."""
    if isinstance(exc, LineTooLong):
        if exc.args[1] == MAX_TARGET_BYTES:
            return TargetTooLong(f"the request target exceeds {MAX_TARGET_BYTES} bytes")
        return HeadersTooLarge(f"the name or value of a header field exceeds {MAX_FIELD_BYTES} bytes")
    # The first line of a parser's message is a fixed phrase; what follows quotes the request.
    phrase = message.partition("\n")[0].rstrip(":")
    if phrase == "Too many headers received":
        return HeadersTooLarge("there are too many header fields")
    if phrase in _PHRASES:
        return BadRequest(_PHRASES[phrase])
    if isinstance(exc, InvalidURLError):
        return BadRequest("the request target must be a path, percent-encoded, from the first /")
    if isinstance(exc, BadStatusLine):
        return BadRequest(
            "the request line must be a method, a path and HTTP/1.1, with one space between them"
        )
    if isinstance(exc, InvalidHeader):
        return BadRequest("a header field is malformed")
    return BadRequest(phrase or "the request is not HTTP/1.1")


def _unread_bytes(transport: asyncio.Transport | None) -> int:
    """What was written and the client has not acknowledged: our buffer, and the kernel's where it tells."""
    if transport is None:
        return 0
    unread = transport.get_write_buffer_size()
    connection = transport.get_extra_info("socket")
    try:
        told = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:  # not every kernel tells
        return unread
    return unread + int(struct.unpack("i", told)[0])
