"""An app made of raw bytes: it records what arrives and answers exactly what a test says.

Nothing here parses more HTTP than it must, so that what the tests compare is what was on the wire.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from openhqm.http1 import Client, Connection, Head, Response

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Peer:
    """The app's side of one connection."""

    def __init__(self, app: RawApp, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.app = app
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """Return the next request whole, by its Content-Length or last chunk; b"" when there is none."""
        try:
            data = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""
        if match := _LENGTH.search(data):
            data += await self.reader.readexactly(int(match[1]))
        elif b"\r\ntransfer-encoding: chunked\r\n" in data.lower():
            data += await self.reader.readuntil(b"0\r\n\r\n")
        self.app.requests.append(data)
        return data

    async def send(self, *parts: bytes) -> None:
        """Send each part on its own."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()

    def reset(self) -> None:
        """End the connection with a reset instead of an orderly end."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Behaviour = Callable[[Peer], Awaitable[None]]


class RawApp:
    """A listening app. `requests` holds what arrived, `connections` counts who came."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.url = ""
        self._behaviour = behaviour
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._run(Peer(self, reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, peer: Peer) -> None:
        try:
            await self._behaviour(peer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left; what it saw is what the test asks about
        finally:
            peer.writer.close()

    async def quiet(self) -> None:
        """Wait until every connection has been served."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def running(
    behaviour: Behaviour, *, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[RawApp]:
    """A RawApp on 127.0.0.1, on a free port unless one is given."""
    app = RawApp(behaviour)
    server = await asyncio.start_server(app.serve, "127.0.0.1", port, ssl=tls)
    app.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield app
    finally:
        server.close()
        await app.stop()
        await server.wait_closed()


@asynccontextmanager
async def connected(behaviour: Behaviour, **options: float) -> AsyncIterator[tuple[RawApp, Client]]:
    """A RawApp and a client for it."""
    async with running(behaviour) as app:
        client = Client(app.url, **options)  # type: ignore[arg-type]
        try:
            yield app, client
        finally:
            await client.close()


def always(*parts: bytes, close: bool = False) -> Behaviour:
    """Answer every request with these bytes, then end the connection if *close*."""

    async def behave(peer: Peer) -> None:
        while await peer.request():
            await peer.send(*parts)
            if close:
                return

    return behave


class Told:
    """Listens for one answer, however it is told."""

    def __init__(self) -> None:
        self.response: Response | None = None
        self.event = asyncio.Event()
        self.connection: Connection | None = None

    def answered(self, head: Head, body: bytes) -> None:
        assert self.response is None
        assert self.connection is not None
        self.response = Response(self.connection, is_head=False, upgrade=False, gather_bytes=0)
        self.response.fill(head, body)
        self.response.complete = True
        self.event.set()

    def begun(self, response: Response) -> None:
        assert self.response is None
        self.response = response
        response.notify(self.event.set)


async def exchange_at_once(client: Client, head: bytes, body: bytes, *, timeout_seconds: float) -> Response:
    """`Client.exchange` by way of `Client.begin`, on a connection opened for it.

    All heads known count as stored, so that no Response is made of an answer that needs none.
    """
    await open_connection(client)
    for known in client.heads._heads.values():
        known.stored = known.raw
    told = Told()
    told.connection = client.begin(head, body, told, timeout_seconds=timeout_seconds)
    assert told.connection is not None
    await told.event.wait()
    assert told.response is not None
    await told.response.wait()
    return told.response


async def open_connection(client: Client) -> None:
    """Give *client* a kept connection, if it has none."""
    if not client._idle:
        connection = await client._connect()
        connection.idle_since = connection.loop.time()
        client.keep(connection)
