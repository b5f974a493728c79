"""The intercept server: aiohttp's low-level server, taught what it does not do for a proxy.

Below `ingress.py`, which only sees whole request heads. Here: how connections are made, what a parse
error looks like to the client (our 400, connection closed, nothing stored), and that a body which
turns out malformed is told to whoever reads it.

Only the C parser is served. The pure Python one accepts unknown methods, folds lower-case ones and
takes raw bytes in paths; what a sidecar accepts must not depend on how it was installed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import structlog
from aiohttp import http_parser
from aiohttp.web import BaseRequest, RequestHandler, RequestPayloadError, Server, StreamResponse

from openhqm import problems
from openhqm.errors import BadRequest, SettingsError
from openhqm.replies import Reply
from openhqm.settings import IngressSettings

MAX_HEAD_LINE_BYTES = 16 * 1024
LINGER_SECONDS = 5.0
"""How long the rest of a body we refused is read and thrown away, so that the client sees the answer."""

Handler = Callable[[BaseRequest], Awaitable[Reply]]
log = structlog.get_logger("openhqm.intercept")


def build_server(handler: Handler, ingress: IngressSettings) -> Server:
    """Return the protocol factory of the intercept port, for `loop.create_server`.

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
        auto_decompress=False,
        access_log=None,
        keepalive_timeout=ingress.keepalive_seconds,
        lingering_time=LINGER_SECONDS,
        max_line_size=MAX_HEAD_LINE_BYTES,
        max_field_size=MAX_HEAD_LINE_BYTES,
    )


class InterceptServer(Server):
    """Makes an `InterceptConnection` for each client."""

    def __init__(
        self, handler: Callable[[BaseRequest], Awaitable[StreamResponse]], **connection_options: Any
    ) -> None:
        super().__init__(handler)
        self._connection_options = connection_options

    def __call__(self) -> RequestHandler:
        return InterceptConnection(self, loop=self._loop, **self._connection_options)


class InterceptConnection(RequestHandler):
    """One client connection."""

    __slots__ = ()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> StreamResponse:
        """Answer for aiohttp: 400 for what it cannot parse, 500 for what ingress let escape.

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
        # Its first line says what is wrong; what follows quotes the request, secrets included.
        detail = (message or "").partition("\n")[0].rstrip(":") or "the request is not HTTP/1.1"
        return cast(StreamResponse, problems.reply(BadRequest(detail), keep_alive=False))

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages:
            self._fail_cut_body()

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
