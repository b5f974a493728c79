"""A running intercept port for tests: the memory store behind it, a raw app beside it.

Requests are sent as raw bytes and answers are read as raw bytes; nothing between hides a difference.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson
from aiohttp.web import Server

from openhqm import openapi
from openhqm.acceptor import Acceptor
from openhqm.egress import Egress, Runner
from openhqm.estimates import DrainRate
from openhqm.express import ExpressConnection
from openhqm.handlers import BUILT_IN, Handler, Handlers
from openhqm.handles import Handles
from openhqm.http1 import Client
from openhqm.ingress import Ingress
from openhqm.intercept import build_server
from openhqm.lifecycle import Event, Lifecycle
from openhqm.original_api import OriginalApi
from openhqm.passthrough import Passthrough
from openhqm.results import Results
from openhqm.settings import Settings
from openhqm.stores.base import Answer, Finish, Lease, Options, State, Store, Want
from openhqm.stores.memory import MemoryStore
from openhqm.submit import PATH as SUBMIT_PAGE
from openhqm.submit import SubmitPage, Submitter
from openhqm.waiters import Waiters

READY = {"ready": True, "store": {"reachable": True}, "breaker": "closed"}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Intercept:
    """One intercept port and everything behind it."""

    settings: Settings
    store: Store
    waiters: Waiters
    ingress: Ingress
    acceptor: Acceptor
    handles: Handles
    port: int
    server: Server
    events: list[Event] = field(default_factory=list)
    submitter: Submitter | None = None
    passthrough: Passthrough | None = None

    async def connect(self) -> Connection:
        """Open a client connection."""
        return Connection(*await asyncio.open_connection("127.0.0.1", self.port, limit=2**24))

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Connection]:
        """A client connection that is closed at the end."""
        connection = await self.connect()
        try:
            yield connection
        finally:
            await connection.close()

    async def send(self, data: bytes, method: bytes = b"") -> Got:
        """Send raw bytes on a connection of their own, return the first final answer."""
        async with asyncio.timeout(10), self.connected() as connection:
            connection.write(data)
            return await connection.answer(method or data.partition(b" ")[0])

    async def stored(self) -> list[tuple[bytes, Any]]:
        """Return head and body of every stored request, oldest first."""
        page = await self.store.list(want=Want.REQUEST)
        requests = [record.request for record in page.records]
        return [(request[0].partition(b"\n")[2], request[1]) for request in requests if request]

    async def lease(self) -> Lease:
        """Take the next request, as egress would."""
        (lease,) = await self.store.lease(1, lease_seconds=30, wait_seconds=5)
        return lease

    async def finish(
        self, lease: Lease, head: bytes = b"HTTP/1.1 200 OK\r\n\r\n", body: Any = b"", **finish: Any
    ) -> None:
        """Settle a lease with an answer."""
        settlement = Finish(
            lease.id, lease.epoch, **({"state": State.DONE, "answer": Answer(head, body)} | finish)
        )
        assert await self.store.settle([settlement]) == [True]


class Connection:
    """A client connection that reads HTTP answers without interpreting them further."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self._writer = writer

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def answer(self, method: bytes = b"GET") -> Got:
        """Read one final answer; interim ones are kept in `Got.interim`."""
        interim = []
        head = await self.reader.readuntil(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 100"):
            interim.append(head)
            head = await self.reader.readuntil(b"\r\n\r\n")
        got = Got(head, interim=interim)
        if method == b"HEAD" or got.status in (204, 304):
            return got
        if got[b"transfer-encoding"] == b"chunked":
            while size := int((await self.reader.readuntil(b"\r\n")).strip(), 16):
                got.body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        elif (length := got[b"content-length"]) is not None:
            got.body = await self.reader.readexactly(int(length))
        else:
            got.body = await self.reader.read()
        return got

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):  # the other side may have been faster
            await self._writer.wait_closed()

    async def is_closed_by_server(self) -> bool:
        """Wait for the end of the connection; False when more bytes come instead."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True


@dataclass
class Got:
    """One answer."""

    head: bytes
    body: bytes = b""
    interim: list[bytes] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.head[9:12])

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def path(self) -> bytes:
        """Location, for the next request."""
        location = self[b"location"]
        assert location is not None
        return location

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        lines = self.head.removesuffix(b"\r\n\r\n").split(b"\r\n")[1:]
        return [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]

    def __getitem__(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key.lower() == name), None)


def get(path: bytes, *lines: bytes, method: bytes = b"GET") -> bytes:
    """Return a request without a body."""
    return b"\r\n".join([method + b" " + path + b" HTTP/1.1", b"Host: x", *lines]) + b"\r\n\r\n"


def post(path: bytes, body: bytes = b"", *lines: bytes, method: bytes = b"POST") -> bytes:
    """Return a request with a body and its Content-Length."""
    return get(path, b"Content-Length: %d" % len(body), *lines, method=method) + body


@asynccontextmanager
async def intercepting(
    app_url: str | None = "http://127.0.0.1:9",
    *,
    store: Store | None = None,
    encode_callback: Callable[[str, str], bytes] | None = None,
    options: Options | None = None,
    spill_bytes: int = 256 * 1024,
    handlers: Collection[str] = frozenset(BUILT_IN),
    readiness: Mapping[str, Any] = READY,
    **settings: Any,
) -> AsyncIterator[Intercept]:
    """An intercept port on 127.0.0.1; *settings* are areas of the settings model."""
    stored_in = {"url": "memory:", "require_durability": "none", "spill_bytes": spill_bytes}
    areas = {"store": stored_in, "app": {"url": app_url}, **settings}
    model = Settings.model_validate(areas)
    store = store or MemoryStore(options or Options())
    await store.open()
    events: list[Event] = []
    lifecycle = Lifecycle()
    lifecycle.listen(events.append)
    waiters = Waiters(store)
    waiters.open()
    drain_rate = DrainRate()
    handles = Handles([b"a key for handles in tests"])
    parts: dict[str, Any] = {
        "handles": handles,
        "waiters": waiters,
        "drain_rate": drain_rate,
        "lifecycle": lifecycle,
    }
    acceptor = Acceptor(model, store, encode_callback=encode_callback, **parts)
    pages = {openapi.PATH: openapi.DescriptionPage(model).handle}
    surfaces, single = {}, {}
    submitter = None
    if model.submit_api_enabled:
        submitter = Submitter(model, store, acceptor, handlers=handlers)
        original = OriginalApi(
            submitter,
            store,
            handles=handles,
            waiters=waiters,
            drain_rate=drain_rate,
            readiness=lambda: readiness,
            exposition=lambda: b"openhqm_requests_total 1\n",
        )
        pages[SUBMIT_PAGE] = SubmitPage(submitter, acceptor).handle
        surfaces, single = dict(original.surfaces), original.pages
    results = Results(model.ingress, store, pages=pages, **parts)
    client = Client(app_url) if app_url else None
    passthrough = Passthrough(client, model) if client else None
    ingress = Ingress(
        model,
        store,
        acceptor,
        lifecycle=lifecycle,
        passthrough=passthrough,
        surfaces={model.ingress.reserved_prefix.encode(): results.handle, **surfaces},
        pages=single,
    )
    server = build_server(ingress.handle, model.ingress, partial(ExpressConnection, ingress.admit))
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield Intercept(
            model,
            store,
            waiters,
            ingress,
            acceptor,
            handles,
            listener.sockets[0].getsockname()[1],
            server,
            events,
            submitter,
            passthrough,
        )
    finally:
        listener.close()
        await waiters.close()
        if passthrough is not None:
            await passthrough.close(0)
        await server.shutdown(0.05)
        if client is not None:
            await client.close()
        await store.close()


@asynccontextmanager
async def replaying(
    port: Intercept, handlers: Mapping[str, Handler] = BUILT_IN, **runners: Runner
) -> AsyncIterator[Egress]:
    """An egress loop behind *port*, with handlers and, for example, `app=Forwarder(...)`."""
    timeout_seconds, max_bytes = port.settings.egress.app_timeout_seconds, port.settings.response.max_bytes
    python = Handlers(handlers, port.store.blobs, timeout_seconds=timeout_seconds, max_answer_bytes=max_bytes)
    egress = Egress(port.store, port.settings, Lifecycle(), {"handler": python, **runners})
    running = asyncio.create_task(egress.run())
    try:
        yield egress
    finally:
        running.cancel()
        await asyncio.wait([running])
