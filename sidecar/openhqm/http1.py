"""A lean HTTP/1.1 client for one app: bytes out as given, bytes back as received, each sent once.

Used by `forwarder.py` (replay) and `passthrough.py`. It exists because general clients help too much:
they re-send on a dropped connection, rewrite paths, fold header names, drop bytes above 0x7f, follow
redirects and decompress. This one

- writes a ready-made request and never writes it a second time;
- says which errors mean "nothing was sent" (AppUnreachable) and which do not (all other AppErrors);
- hands over status line and headers exactly as they came, and refuses answers whose framing is in
  doubt rather than guess (RFC 9112 section 6.3, and stricter where a guess could mix up answers).

One exchange needs one future, no task and no timer: one tick per client watches all deadlines.

    Client ── open connections, the idle ones among them (stack), tick
      └── Connection (http1_connection.py)   Protocol and parser callbacks, one exchange at a time
            └── Response   what the caller holds; outlives the connection's part in it
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from functools import partial
from itertools import islice
from urllib.parse import urlsplit

from openhqm.errors import AppConnectionLost, AppTimeout, AppUnreachable
from openhqm.http1_connection import HIGH_WATER_BYTES, Connection, Framing, Listener, Response, look
from openhqm.http1_heads import Head, Headers, KnownHeads

__all__ = ["Client", "Connection", "Framing", "Head", "Headers", "Response"]

_TICK_SECONDS = 0.1
"""How exactly deadlines are kept."""

_LOOK_AT = 16
"""Idle connections looked at together: those that are used next, by a batch of requests."""

_FRESH_SECONDS = 0.0005
"""How long a look counts. An app that ends connections does it in any moment, also behind the look."""


class Client:
    """Exchanges with one app.

    Args:
        url: http://host[:port]; paths come with the requests.
        connect_timeout_seconds: to establish a connection.
        reuse_idle_seconds: a connection idle for this long is not used again; 0 opens one for
            every exchange.
        max_idle: connections kept idle at once; older ones are closed.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_seconds: float = 5.0,
        reuse_idle_seconds: float = 1.0,
        max_idle: int = 64,
    ) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or 80
        self._connect_timeout_seconds = connect_timeout_seconds
        self._reuse_idle_seconds = reuse_idle_seconds
        self._max_idle = max_idle
        self.heads = KnownHeads()
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()
        """All of them. The tick asks which are busy, so that an exchange need not say so."""
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the app; a name is looked up anew for every connection."""
        return self._host, self._port

    async def exchange(
        self,
        head: bytes,
        body: bytes | AsyncIterator[bytes],
        *,
        timeout_seconds: float,
        gather_bytes: int = HIGH_WATER_BYTES,
    ) -> Response:
        """Send one request, once, and return the answer.

        Args:
            head: request line and headers up to the empty line, with the framing of *body*.
            body: what follows the head, as it goes on the wire.
            timeout_seconds: until the answer has been read to its end.
            gather_bytes: the answer comes back when it is whole or has more body bytes than this;
                then `Response.read` brings the rest.

        Raises:
            AppUnreachable: not one byte was sent.
            AppTimeout, AppConnectionLost, AppAnswerInvalid: the app may have seen the request.
        """
        connection = self._take() or await self._connect()
        response = Response(
            connection, is_head=head.startswith(b"HEAD "), upgrade=False, gather_bytes=gather_bytes
        )
        self._begin(connection, response, timeout_seconds)
        if isinstance(body, bytes):
            connection.send(head, body)
        else:
            connection.send_stream(head, body, _nothing)
        await response.wait()
        return response

    def begin(
        self,
        head: bytes,
        body: bytes,
        listener: Listener,
        *,
        timeout_seconds: float,
        gather_bytes: int = HIGH_WATER_BYTES,
    ) -> Connection | None:
        """Like `exchange`, without waiting: *listener* is told, and not before this has returned.

        Returns: what to `Connection.withdraw` it from; None when no kept connection can be used, and
            nothing was sent.
        """
        connection = self._take()
        if connection is not None:
            connection.ask(head, body, listener, timeout_seconds, gather_bytes)
            if self._timer is None:
                self._watch()
        return connection

    async def stream(
        self,
        head: bytes,
        body: bytes | AsyncIterator[bytes],
        *,
        timeout_seconds: float,
        upgrade: bool = False,
    ) -> Response:
        """Send one request, once; `Response.arrive` waits for the head of the answer.

        The head leaves at once and the body as it comes, also while the answer already arrives.

        Args:
            timeout_seconds: from the last byte sent to the head of the answer; the rest of the
                answer may take any time.
            upgrade: 101 is an answer: `Response.read` and `write` then carry raw bytes.

        Otherwise like `exchange`.
        """
        connection = self._take() or await self._connect()
        response = Response(connection, is_head=head.startswith(b"HEAD "), upgrade=upgrade, gather_bytes=-1)
        if isinstance(body, bytes):
            self._begin(connection, response, timeout_seconds)
            connection.send(head, body)
        else:
            self._begin(connection, response, math.inf)
            connection.send_head(head)
            connection.send_stream(
                b"", body, partial(self._expect_head, connection, response, timeout_seconds)
            )
        return response

    async def close(self) -> None:
        """Close all connections; exchanges under way end with AppConnectionLost."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in list(self._open):
            connection.fail(AppConnectionLost("the client was closed"))
        await asyncio.sleep(0)  # let the transports close their sockets

    def _take(self) -> Connection | None:
        """The connection used last, if it can be used again."""
        while self._idle:
            connection = self._idle.pop()
            if connection.fresh_until > time.monotonic():  # often enough to spare the rest, 0.4 us
                connection.fresh_until = 0.0
                return connection
            idle_seconds = connection.loop.time() - connection.idle_since
            if idle_seconds < self._reuse_idle_seconds and self._is_fresh(connection):
                return connection
            connection.abort()
        return None

    def _is_fresh(self, connection: Connection) -> bool:
        """Whether nothing has happened on *connection* while it was idle."""
        now = time.monotonic()
        if connection.fresh_until < now:
            look([connection, *islice(reversed(self._idle), _LOOK_AT - 1)], now + _FRESH_SECONDS)
        is_fresh = connection.fresh_until > now
        connection.fresh_until = 0.0
        return is_fresh

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_seconds):
                _, connection = await loop.create_connection(lambda: Connection(self), self._host, self._port)
        except OSError as exc:
            raise AppUnreachable(f"cannot connect to {self._host}:{self._port}: {exc or 'timeout'}") from exc
        if self._closed or not self._is_fresh(connection):
            connection.abort()
            raise AppUnreachable(f"{self._host}:{self._port} took the connection and dropped it")
        self._open.add(connection)
        return connection

    def _begin(self, connection: Connection, response: Response, timeout_seconds: float) -> None:
        connection.begin(response, timeout_seconds)
        if self._timer is None:
            self._watch()

    def _expect_head(self, connection: Connection, response: Response, timeout_seconds: float) -> None:
        if not response.head_complete:
            connection.set_timeout(response, timeout_seconds)

    # -- for Connection -----------------------------------------------------------------------

    def keep(self, connection: Connection) -> None:
        """Take back a connection whose exchange is over."""
        if self._reuse_idle_seconds <= 0 or self._closed:
            connection.abort()
            return
        self._idle.append(connection)
        if len(self._idle) > self._max_idle:
            self._idle.popleft().abort()

    def forget(self, connection: Connection) -> None:
        """Drop a connection that has ended."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    # -- the tick ------------------------------------------------------------------------------

    def _watch(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        """End what is over its deadline, close what has been idle too long."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        for connection in [one for one in self._open if one.deadline <= now and one.is_busy]:
            connection.fail(AppTimeout("the app did not answer in time"))
        while self._idle and self._idle[0].idle_since <= now - self._reuse_idle_seconds:
            self._idle[0].abort()
        if self._open:
            self._watch()


def _nothing() -> None:
    """The deadline of an exchange does not move when its body has been sent."""
