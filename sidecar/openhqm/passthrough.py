"""The `pass` action: a request goes to the app as it comes, the answer comes back as it comes.

Ingress calls `Passthrough.handle` with the head to send; what it returns, the RequestHandler writes
to the client. Nothing is stored, repeated or buffered beyond a high-water mark in either direction;
every piece is written the moment it arrives, so that server-sent events and tokens are live.

    client ──request.content──> Client.stream ──> app         requests, sent by the client's task
    client <──StreamReply────── Response.read <── app         answers, read as fast as the client takes
    client ──_ToApp───────────> Response.write ─> app         after 101: raw bytes both ways
    client <──TunnelReply────── Response.read <── app

An answer that breaks off never looks whole: the client's connection ends without the last chunk,
short of its Content-Length, or with a reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import cast

from aiohttp import HttpVersion11
from aiohttp.http import WebSocketReader
from aiohttp.web import BaseRequest

from openhqm.body import next_chunk
from openhqm.errors import AppConnectionLost, AppError, AppUnreachable
from openhqm.headers import strip_hop_by_hop
from openhqm.holding import Holding
from openhqm.http1 import Client, Framing, Response
from openhqm.replies import Reply, StreamReply
from openhqm.settings import Settings

_CHUNKED_LINE = b"\r\nTransfer-Encoding: chunked\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
_LOOK_SECONDS = 0.25
"""How soon the app learns that a client has left while nothing was being written to it."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, 0 seconds: closing sends a reset."""

BeforeBody = Callable[[], Awaitable[None]]


class Passthrough:
    """Passes requests to the app and answers back.

    Args:
        client: to the app; may be shared with egress.
    """

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._holding = Holding(*client.address, settings.ingress)
        self.passed = 0
        """Requests that came to be passed, since the start."""
        self._asking = 0
        self._open: dict[Response, BaseRequest] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._one_ended = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Take over the hot settings: how long to wait for an answer, and for a body."""
        self._timeout_seconds = settings.egress.app_timeout_seconds
        self._body_timeout_seconds = settings.ingress.body_timeout_seconds
        self._holding.apply(settings.ingress)

    @property
    def held(self) -> int:
        """Requests that wait for an app which is not there yet."""
        return self._holding.held

    @property
    def passing(self) -> int:
        """Requests with the app now, tunnels included."""
        return self._asking + len(self._open)

    async def handle(
        self,
        request: BaseRequest,
        head: bytes,
        *,
        upgrade: bool = False,
        before_body: BeforeBody | None = None,
    ) -> Reply:
        """Send the request and return the answer, which may still be arriving.

        Args:
            head: request line and headers to send, framed by Content-Length as declared, or with
                `Transfer-Encoding: chunked`; without Connection and Upgrade.
            upgrade: ask the app for the protocol the client asked for.
            before_body: called once the app is connected and before a body is read: the place for
                100 Continue.

        Raises:
            AppError: there is no head of an answer; nothing was written to the client.
            AppStarting: the app took no connection within `ingress.hold_seconds`.
            BadRequest, BodyTimeout: the client's body is malformed or stopped coming.
        """
        self.passed += 1
        if upgrade:
            head = _asking_for_upgrade(head, request)
        body = self._outgoing(request, head, before_body)
        try:
            response = await self._send(head, body, upgrade)
        except AppUnreachable:
            if not self._holding.hold_seconds:
                raise
            try:
                response = await self._send_when_there(request, head, body, upgrade)
            except ConnectionError:
                return _unwritable()
        self._watch(request, response)
        try:
            await response.arrive()
            if response.complete:
                self._forget(response)
                return _whole_reply(request, response)
            if response.framing is Framing.UPGRADE:
                return self._tunnel(request, response)
            return self._streamed_reply(request, response)
        except BaseException as exc:
            self._forget(response)
            response.close()
            if isinstance(exc, ConnectionError) or (
                isinstance(exc, AppConnectionLost) and _has_left(request)
            ):
                return _unwritable()
            raise

    async def quiet(self, timeout_seconds: float) -> None:
        """Wait until what is open now has ended, at most *timeout_seconds*: tunnels have no end."""
        before = set(self._open)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while before & self._open.keys():
                    self._one_ended.clear()
                    await self._one_ended.wait()

    async def close(self, timeout_seconds: float) -> None:
        """Let what is open end by itself for *timeout_seconds*, then end it: tunnels have no end."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._holding.quiet()
                await self._quiet.wait()
        except TimeoutError:
            for response in list(self._open):
                response.close()
        await self._holding.close()

    # -- the request ---------------------------------------------------------------------------

    async def _send(self, head: bytes, body: bytes | AsyncIterator[bytes], upgrade: bool) -> Response:
        self._asking += 1
        try:
            return await self._client.stream(
                head, body, timeout_seconds=self._timeout_seconds, upgrade=upgrade
            )
        finally:
            self._asking -= 1

    async def _send_when_there(
        self, request: BaseRequest, head: bytes, body: bytes | AsyncIterator[bytes], upgrade: bool
    ) -> Response:
        """Hold the request, of which nothing was sent, until the app takes connections."""
        deadline = asyncio.get_running_loop().time() + self._holding.hold_seconds
        while True:
            await self._holding.wait(deadline, lambda: _has_left(request))
            try:
                return await self._send(head, body, upgrade)
            except AppUnreachable:
                continue  # the one that took our connection was not the one this request met

    def _outgoing(
        self, request: BaseRequest, head: bytes, before_body: BeforeBody | None
    ) -> bytes | AsyncIterator[bytes]:
        chunked = _CHUNKED_LINE in head
        if not request.content.is_eof():
            return self._pieces(request, before_body, chunked=chunked)
        body = request.content.read_nowait()  # it came with the head
        return _chunk(body) + _LAST_CHUNK if chunked else body

    async def _pieces(
        self, request: BaseRequest, before_body: BeforeBody | None, *, chunked: bool
    ) -> AsyncIterator[bytes]:
        if before_body is not None:
            await before_body()
        while piece := await next_chunk(request.content.readany, self._body_timeout_seconds):
            yield _chunk(piece) if chunked else piece
        if chunked:
            yield _LAST_CHUNK

    # -- the answer ----------------------------------------------------------------------------

    def _streamed_reply(self, request: BaseRequest, response: Response) -> StreamReply:
        length = _declared_length(response)
        framed = length is not None or request.version >= HttpVersion11
        return StreamReply(
            response.status,
            _client_head(response),
            self._arriving(request, response, framed=framed),
            length=length,
        )

    async def _arriving(
        self, request: BaseRequest, response: Response, *, framed: bool
    ) -> AsyncGenerator[bytes, None]:
        """Pieces of the answer; an answer that breaks off breaks the client's connection."""
        try:
            while piece := await response.read():
                yield piece
        except AppError as exc:
            if not framed:  # only a reset tells an HTTP/1.0 client that this was not the end
                _reset(request)
            raise ConnectionAbortedError("the app's answer broke off") from exc
        finally:
            self._forget(response)
            response.close()

    def _tunnel(self, request: BaseRequest, response: Response) -> Reply:
        # From here on the RequestHandler feeds the client's bytes to us, those it holds first.
        request.protocol.set_parser(cast(WebSocketReader, _ToApp(request, response)))
        return TunnelReply(response, lambda: self._forget(response))

    # -- who is still there --------------------------------------------------------------------

    def _watch(self, request: BaseRequest, response: Response) -> None:
        self._open[response] = request
        self._quiet.clear()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _forget(self, response: Response) -> None:
        self._open.pop(response, None)
        self._one_ended.set()
        if not self._open:
            self._quiet.set()

    def _look(self) -> None:
        """End exchanges whose client has left: aiohttp tells only those who read or write."""
        self._timer = None
        for response in [one for one, request in self._open.items() if _has_left(request)]:
            response.close()
            self._forget(response)  # its reply may never have been written
        if self._open:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)


class TunnelReply(Reply):
    """101, then raw bytes from the app to the client until either side ends."""

    __slots__ = ("_ended", "_request", "_response")

    def __init__(self, response: Response, ended: Callable[[], None]) -> None:
        super().__init__(response.status, _head_lines(response, response.headers), keep_alive=False)
        self._response = response
        self._ended = ended
        self._request: BaseRequest | None = None

    async def prepare(self, request: BaseRequest) -> None:
        self._request = request
        await request.writer.write(self.head + b"\r\n")

    async def write_eof(self) -> None:
        assert self._request is not None
        writer = self._request.writer
        try:
            while data := await self._response.read():
                await writer.write(data)
                await writer.drain()
        except AppError as exc:
            raise ConnectionAbortedError("the tunnel to the app broke") from exc
        finally:
            self._ended()
            self._response.close()


class _ToApp:
    """Takes a tunnel's bytes from the client, as aiohttp's RequestHandler feeds its WebSocket reader."""

    def __init__(self, request: BaseRequest, response: Response) -> None:
        self._request = request
        self._response = response
        self._catching_up: asyncio.Task[None] | None = None

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._response.write(data)
        if self._response.writing_paused and self._catching_up is None:
            self._catching_up = asyncio.create_task(self._catch_up(), name="passthrough-catch-up")
        return False, b""

    def feed_eof(self) -> None:
        self._response.close()

    async def _catch_up(self) -> None:
        """Hold the client until the app has taken what it sent."""
        if (transport := self._request.transport) is not None:
            transport.pause_reading()
            await self._response.drain()
            if not transport.is_closing():
                transport.resume_reading()
        self._catching_up = None


def _asking_for_upgrade(head: bytes, request: BaseRequest) -> bytes:
    wanted = b", ".join(value for name, value in request.raw_headers if name.lower() == b"upgrade")
    return b"%bConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % (head[:-2], wanted)


def _whole_reply(request: BaseRequest, response: Response) -> Reply:
    """The answer came in one piece: it leaves in one piece, framed as the app did."""
    head, body = _client_head(response), response.take()
    keep_alive = request.content.is_eof()
    if response.framing in (Framing.CHUNKED, Framing.CLOSE):
        if request.version >= HttpVersion11:
            head += _CHUNKED_LINE[2:]
            body = _chunk(body) + _LAST_CHUNK
        else:
            keep_alive = False
    return Reply(response.status, head, body, keep_alive=keep_alive)


def _client_head(response: Response) -> bytes:
    headers = strip_hop_by_hop(response.headers)
    if response.status == 204:  # RFC 9110 section 8.6: no Content-Length here
        headers = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    return _head_lines(response, headers)


def _head_lines(response: Response, headers: list[tuple[bytes, bytes]]) -> bytes:
    lines = [b"HTTP/1.1 %d %b\r\n" % (response.status, response.reason)]
    lines += [b"%b: %b\r\n" % header for header in headers]
    return b"".join(lines)


def _declared_length(response: Response) -> int | None:
    if response.framing is not Framing.LENGTH:
        return None
    return next(int(value) for name, value in response.headers if name.lower() == b"content-length")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def _has_left(request: BaseRequest) -> bool:
    return request.transport is None or request.transport.is_closing()


def _unwritable() -> Reply:
    """For a client that has left: writing it fails, which ends the connection without a word."""
    return Reply(499, b"HTTP/1.1 499 Client Closed Request\r\nContent-Length: 0\r\n", keep_alive=False)


def _reset(request: BaseRequest) -> None:
    if (transport := request.transport) is not None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()
