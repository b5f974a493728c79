"""Answers as exact bytes, in the shape aiohttp's RequestHandler asks for.

Ingress and results build them, the RequestHandler calls `prepare` and `write_eof` and reads
`keep_alive`. A small answer is one write to the transport: that, and doing without header maps, is
why these exist beside `aiohttp.web.Response`, which also adds and drops headers of its own.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from aiohttp import HttpVersion, HttpVersion11
from aiohttp.web import BaseRequest

from openhqm.errors import StoreUnavailable

JSON = b"application/json"
NO_STORE = b"Cache-Control: no-store\r\n"
_BODILESS = frozenset({204, 304})
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[^\r\n]*", re.IGNORECASE)
_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}


class Reply:
    """A whole answer.

    Args:
        status: for logs and metrics.
        head: status line and header lines, each ended by CRLF; neither Connection nor the empty
            line. Content-Length must be that of *body*.
        keep_alive: whether the connection may serve another request; after `prepare`, whether
            it will.
    """

    __slots__ = ("body", "head", "keep_alive", "status")

    def __init__(self, status: int, head: bytes, body: bytes = b"", *, keep_alive: bool = True) -> None:
        self.status = status
        self.head = head
        self.body = body
        self.keep_alive = keep_alive

    async def prepare(self, request: BaseRequest) -> None:
        """Write the head, and the body with it."""
        body = b"" if request.method == "HEAD" else self.body
        self.keep_alive = self.keep_alive and request.keep_alive
        await request.writer.write(self.wire(request.version, body))
        # The writer itself waits only within one large answer; many small ones, asked for in one go and
        # never read, would pile up in memory.
        if request.protocol.writing_paused:
            await request.writer.drain()

    def wire(self, version: HttpVersion, body: bytes) -> bytes:
        """Return all of the answer as it is sent, *body* in place of its own."""
        return b"%b%b\r\n%b" % (self.head, connection_line(version, self.keep_alive), body)

    async def write_eof(self) -> None:
        """Write what `prepare` left."""


class StreamReply(Reply):
    """An answer whose body comes in pieces, with backpressure.

    Args:
        chunks: closed at the end, also when the client leaves early. An error inside ends the
            connection, so that the client sees the answer is incomplete.
        length: of all chunks; None for a body whose end is not known.
    """

    __slots__ = ("_chunked", "_request", "chunks", "length")

    def __init__(
        self,
        status: int,
        head: bytes,
        chunks: AsyncGenerator[bytes, None],
        *,
        length: int | None = None,
        keep_alive: bool = True,
    ) -> None:
        super().__init__(status, head, keep_alive=keep_alive)
        self.chunks = chunks
        self.length = length
        self._chunked = False
        self._request: BaseRequest | None = None

    async def prepare(self, request: BaseRequest) -> None:
        self._request = request
        if self.length is None:
            self._chunked = request.version >= HttpVersion11
            # Without chunks (HTTP/1.0) only the end of the connection ends the body.
            self.keep_alive = self.keep_alive and self._chunked
        self.keep_alive = self.keep_alive and request.keep_alive
        framing = b"Transfer-Encoding: chunked\r\n" if self._chunked else b""
        line = connection_line(request.version, self.keep_alive)
        await request.writer.write(self.head + framing + line + b"\r\n")

    async def write_eof(self) -> None:
        assert self._request is not None
        try:
            if self._request.method != "HEAD":
                await self._write_chunks(self._request)
        finally:
            await self.chunks.aclose()

    async def _write_chunks(self, request: BaseRequest) -> None:
        writer = request.writer
        sent = 0
        try:
            async for chunk in self.chunks:
                sent += len(chunk)
                await writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._chunked else chunk)
                await writer.drain()
        except (KeyError, OSError, StoreUnavailable) as exc:
            raise ConnectionAbortedError("the body of an answer could not be read to its end") from exc
        if self._chunked:
            await writer.write(b"0\r\n\r\n")
        elif self.length is not None and sent != self.length:
            raise ConnectionAbortedError("the body of an answer is shorter or longer than was said")


def connection_line(version: HttpVersion, keep_alive: bool) -> bytes:
    """Return the Connection header line of an answer, b"" where the version implies it."""
    if not keep_alive:
        return b"Connection: close\r\n"
    # HTTP/1.0 closes unless told otherwise (RFC 9112 section 9.3).
    return b"" if version >= HttpVersion11 else b"Connection: keep-alive\r\n"


def make(
    status: int,
    body: bytes = b"",
    *,
    content_type: bytes = JSON,
    fields: bytes = b"",
    keep_alive: bool = True,
) -> Reply:
    """Return an answer of ours: status line, Date, type and length, then *fields* (lines with CRLF)."""
    head = b"%bDate: %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b" % (
        _STATUS_LINES[status],
        date(),
        content_type,
        len(body),
        fields,
    )
    return Reply(status, head, body, keep_alive=keep_alive)


def stream(
    status: int, chunks: AsyncGenerator[bytes, None], *, content_type: bytes, fields: bytes = b""
) -> StreamReply:
    """Return an answer of ours whose length is not known."""
    head = b"%bDate: %b\r\nContent-Type: %b\r\n%b" % (_STATUS_LINES[status], date(), content_type, fields)
    return StreamReply(status, head, chunks)


def stored(head: bytes, body: bytes, *, to_head: bool = False, fields: bytes = b"") -> Reply:
    """Return an app's stored answer: its own status, headers and bytes, then *fields*.

    Args:
        to_head: it answers a HEAD request, whose Content-Length speaks of a body that is not there.
    """
    status, lines = _replayed(head, len(body), to_head)
    return Reply(status, lines + fields, body)


def stored_stream(
    head: bytes,
    chunks: AsyncGenerator[bytes, None],
    length: int,
    *,
    to_head: bool = False,
    fields: bytes = b"",
) -> StreamReply:
    """As `stored`, for a body of *length* bytes kept as a blob."""
    status, lines = _replayed(head, length, to_head)
    return StreamReply(status, lines + fields, chunks, length=length)


async def opened(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Read the first of *chunks* now, so that a body that is gone is known before a head is written.

    Raises: what reading raises.
    """
    first = await anext(chunks, b"")

    async def joined() -> AsyncGenerator[bytes, None]:
        if first:
            yield first
        async for chunk in chunks:
            yield chunk

    return joined()


def _replayed(head: bytes, length: int, to_head: bool) -> tuple[int, bytes]:
    """Return status and header lines of a stored head, its framing true to the body we hold.

    A stored Content-Length belongs to the answer of a HEAD: true for a HEAD, false for a GET.
    """
    status = int(head[9:12])
    lines = b"HTTP/1.1" + head[8:-2]
    if status in _BODILESS:
        return status, lines
    framed = _CONTENT_LENGTH.search(lines)
    if framed is None:
        return status, lines + b"Content-Length: %d\r\n" % length
    if to_head:
        return status, lines
    return status, lines[: framed.start()] + b"\r\nContent-Length: %d" % length + lines[framed.end() :]


def date() -> bytes:
    """Return the value of a Date header, now."""
    return _date(int(time.time()))


@lru_cache(maxsize=2)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode("ascii")
