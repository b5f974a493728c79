"""The `pass` action over real sockets: what the app sees, what the client sees, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.sidecar.raw_app import Behaviour, Peer, RawApp, always, running

from openhqm import problems
from openhqm.body import send_continue
from openhqm.errors import OpenHQMError
from openhqm.headers import Forwarding, request_head
from openhqm.http1 import Client
from openhqm.intercept import build_server
from openhqm.passthrough import Passthrough
from openhqm.replies import Reply
from openhqm.settings import Settings

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

GET = b"GET / HTTP/1.1\r\nHost: app\r\n\r\n"
OLD_GET = b"GET / HTTP/1.0\r\nHost: app\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: app\r\n\r\n"
LINE = b"HTTP/1.1 200 OK\r\n"
CHUNKED = LINE + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass
class Caller:
    """A client of the proxy that speaks raw bytes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def rest(self) -> bytes:
        """Everything until the proxy ends the connection."""
        return await self.reader.read()


@dataclass
class Proxy:
    """The intercept server with nothing but the pass action behind it."""

    port: int
    passthrough: Passthrough
    callers: list[Caller] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def call(self, data: bytes = b"") -> Caller:
        caller = Caller(*await asyncio.open_connection("127.0.0.1", self.port, limit=2**20))
        self.callers.append(caller)
        await caller.send(data)
        return caller


@asynccontextmanager
async def proxying(app_url: str) -> AsyncIterator[Proxy]:
    """A proxy in front of *app_url*."""
    settings = Settings()
    client = Client(app_url, reuse_idle_seconds=60)
    passthrough = Passthrough(client, settings)
    server = build_server(_handler(passthrough), settings.ingress)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    proxy = Proxy(listener.sockets[0].getsockname()[1], passthrough)
    try:
        yield proxy
    finally:
        for caller in proxy.callers:
            caller.writer.close()
        listener.close()
        await passthrough.close(0.0)
        await server.shutdown(0.1)
        await client.close()


def _handler(passthrough: Passthrough):  # type: ignore[no-untyped-def]
    forwarding = Forwarding(enabled=False)

    async def handle(request: web.BaseRequest) -> Reply:
        length = request.headers.get("Content-Length")
        head = request_head(
            request.method.encode(),
            request.raw_path.encode("utf-8", "surrogateescape"),
            request.raw_headers,
            length=int(length) if length else None,
            chunked="Transfer-Encoding" in request.headers,
            peer="",
            forwarding=forwarding,
            consume_prefer=False,
        )

        async def before_body() -> None:
            await send_continue(request)

        expects = "Expect" in request.headers
        try:
            return await passthrough.handle(
                request,
                head,
                upgrade="Upgrade" in request.headers,
                before_body=before_body if expects else None,
            )
        except OpenHQMError as exc:
            return problems.reply(exc)

    return handle


@asynccontextmanager
async def passing(behaviour: Behaviour) -> AsyncIterator[tuple[RawApp, Proxy]]:
    """A raw app and a proxy in front of it."""
    async with running(behaviour) as app, proxying(app.url) as proxy:
        yield app, proxy


async def test_a_request_arrives_as_it_was_sent() -> None:
    """Odd paths, duplicates in mixed case and bytes above 0x7f reach the app unchanged."""
    request = (
        b"PATCH /a%2Fb/..%2f/./c/../d//e?q=&&x HTTP/1.1\r\nhOST: app\r\nX-Dup: caf\xe9\r\nx-dup: b\r\n"
        b"Content-Length: 3\r\nContent-Encoding: gzip\r\n\r\n\0\xff\n"
    )
    async with passing(always(LINE + b"Content-Length: 0\r\n\r\n", close=True)) as (app, proxy):
        caller = await proxy.call(request)
        await caller.reader.readuntil(b"\r\n\r\n")

    assert app.requests == [request]


ANSWERS = {
    "length": (
        GET,
        b"HTTP/1.1 203 Tr\xe8s bien\r\nX-Dup: \xe9\r\nContent-Length: 2\r\nx-dup:b\r\n\r\nok",
        b"HTTP/1.1 203 Tr\xe8s bien\r\nX-Dup: \xe9\r\nContent-Length: 2\r\nx-dup: b\r\n\r\nok",
    ),
    "hop-by-hop headers go": (
        GET,
        LINE + b"Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=1\r\nContent-Length: 2\r\n\r\nok",
        LINE + b"Content-Length: 2\r\n\r\nok",
    ),
    "chunked": (
        GET,
        CHUNKED + b"1\r\no\r\n1\r\nk\r\n0\r\nX-Trailer: 1\r\n\r\n",
        CHUNKED + b"2\r\nok\r\n0\r\n\r\n",
    ),
    "chunked, empty": (GET, CHUNKED + b"0\r\n\r\n", CHUNKED + b"0\r\n\r\n"),
    "204 loses its length": (
        GET,
        b"HTTP/1.1 204 No\r\nContent-Length: 0\r\nA: b\r\n\r\n",
        b"HTTP/1.1 204 No\r\nA: b\r\n\r\n",
    ),
    "304 keeps its length": (
        GET,
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
    ),
    "HEAD keeps its length": (
        HEAD,
        LINE + b"Content-Length: 9\r\n\r\n",
        LINE + b"Content-Length: 9\r\n\r\n",
    ),
    "HEAD, chunked": (HEAD, CHUNKED, LINE + b"\r\n"),
    "100 and 103 are not for the client": (
        GET,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: a\r\n\r\n"
        + LINE
        + b"Content-Length: 2\r\n\r\nok",
        LINE + b"Content-Length: 2\r\n\r\nok",
    ),
    "no reason": (
        GET,
        b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n",
    ),
}


@pytest.mark.parametrize(("request_bytes", "answer", "seen"), ANSWERS.values(), ids=ANSWERS.keys())
async def test_an_answer_arrives_as_it_was_sent(request_bytes: bytes, answer: bytes, seen: bytes) -> None:
    """Status, reason and headers stay; framing is kept in kind; the connections serve the next request."""
    async with passing(always(answer)) as (app, proxy):
        caller = await proxy.call()
        for _ in range(2):
            await caller.send(request_bytes)
            assert await caller.reader.readexactly(len(seen)) == seen

        assert app.connections == 1
        caller.writer.write_eof()
        assert await caller.rest() == b""


@pytest.mark.parametrize("parts", [1, 2], ids=["at once", "in parts"])
@pytest.mark.parametrize(
    ("request_bytes", "answer", "closes", "seen"),
    [
        (GET, [LINE + b"\r\n", b"ok"], True, CHUNKED + b"2\r\nok\r\n0\r\n\r\n"),
        (OLD_GET, [LINE + b"\r\n", b"ok"], True, LINE + b"Connection: close\r\n\r\nok"),
        (OLD_GET, [CHUNKED, b"2\r\nok\r\n0\r\n\r\n"], False, LINE + b"Connection: close\r\n\r\nok"),
        (
            OLD_GET,
            [LINE + b"Content-Length: 2\r\n\r\n", b"ok"],
            False,
            LINE + b"Content-Length: 2\r\nConnection: close\r\n\r\nok",
        ),
        (
            GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
            [LINE + b"Content-Length: 2\r\n\r\n", b"ok"],
            False,
            LINE + b"Content-Length: 2\r\nConnection: close\r\n\r\nok",
        ),
    ],
    ids=["until close", "until close to 1.0", "chunked to 1.0", "length to 1.0", "close asked for"],
)
async def test_framing_fits_the_client(
    request_bytes: bytes, answer: list[bytes], closes: bool, seen: bytes, parts: int
) -> None:
    """What one side cannot frame as the other did ends in the way the client understands."""
    sent = [b"".join(answer)] if parts == 1 else answer
    async with passing(always(*sent, close=closes)) as (_, proxy):
        caller = await proxy.call(request_bytes)
        received = await caller.reader.readexactly(len(seen))
        caller.writer.write_eof()

        assert received + await caller.rest() == seen


async def test_each_event_reaches_the_client_before_the_next_is_sent() -> None:
    """Server-sent events are live: the app sends one only after the client has the one before."""
    received = asyncio.Event()

    async def events(peer: Peer) -> None:
        await peer.request()
        await peer.send(LINE + b"Content-Type: text/event-stream\r\n\r\n")
        for number in range(5):
            received.clear()
            await peer.send(b"data: %d\n\n" % number)
            await received.wait()

    async with passing(events) as (_, proxy):
        caller = await proxy.call(GET)
        await caller.reader.readuntil(b"\r\n\r\n")
        for number in range(5):
            assert await caller.reader.readexactly(14) == b"9\r\ndata: %d\n\n\r\n" % number
            received.set()
        assert await caller.reader.readexactly(5) == b"0\r\n\r\n"


async def test_both_directions_stream_at_once() -> None:
    """An app that answers while it reads gets each piece, and its answer comes back, in turn."""

    async def echo(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(CHUNKED)
        while (chunk := await peer.reader.readuntil(b"\r\n")) != b"0\r\n":
            await peer.send(chunk + await peer.reader.readuntil(b"\r\n"))
        await peer.send(b"0\r\n\r\n")

    async with passing(echo) as (_, proxy):
        caller = await proxy.call(b"POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert await caller.reader.readexactly(len(CHUNKED)) == CHUNKED
        for word in (b"one", b"two", b"six"):
            await caller.send(b"3\r\n" + word + b"\r\n")
            assert await caller.reader.readexactly(8) == b"3\r\n" + word + b"\r\n"
        await caller.send(b"0\r\n\r\n")
        assert await caller.reader.readexactly(5) == b"0\r\n\r\n"


async def test_a_chunked_body_that_came_with_its_head_is_chunked_to_the_app() -> None:
    """Framing is kept in kind towards the app too."""
    head = b"POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with passing(always(LINE + b"Content-Length: 0\r\n\r\n")) as (app, proxy):
        caller = await proxy.call(head + b"1\r\na\r\n1;x=y\r\nb\r\n0\r\nT: 1\r\n\r\n")
        await caller.reader.readuntil(b"\r\n\r\n")

    assert app.requests == [head + b"2\r\nab\r\n0\r\n\r\n"]


async def test_a_slow_client_holds_the_app_back() -> None:
    """An app that sends much is read only as fast as the client reads."""
    sent = 0
    size = 60_000_000

    async def pour(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(LINE + b"Content-Length: %d\r\n\r\n" % size)
        while sent < size:
            await peer.send(b"z" * 100_000)
            sent += 100_000

    async with passing(pour) as (_, proxy):
        caller = await proxy.call(GET)
        await caller.reader.readuntil(b"\r\n\r\n")
        before = -1
        while sent != before:  # until nothing moves any more
            before = sent
            await asyncio.sleep(0.05)
        assert sent < size / 2
        received = 0
        while received < size:
            received += len(await caller.reader.read(1_000_000))


async def test_a_slow_app_holds_the_client_back() -> None:
    """A client that sends much is read only as fast as the app reads."""
    size = 60_000_000
    go_on = asyncio.Event()

    async def read_late(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await go_on.wait()
        left = size
        while left:
            left -= len(await peer.reader.read(1_000_000))
        await peer.send(LINE + b"Content-Length: 2\r\n\r\nok")

    async with passing(read_late) as (_, proxy):
        caller = await proxy.call(b"PUT / HTTP/1.1\r\nHost: app\r\nContent-Length: %d\r\n\r\n" % size)
        sent = 0

        async def pour() -> None:
            nonlocal sent
            while sent < size:
                await caller.send(b"z" * 100_000)
                sent += 100_000

        pouring = asyncio.create_task(pour())
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.05)
        assert sent < size / 2
        go_on.set()
        await pouring
        assert (await caller.reader.readuntil(b"ok")).startswith(LINE)


@pytest.mark.parametrize("begun", [False, True], ids=["before the answer", "within the answer"])
async def test_a_client_that_leaves_ends_the_apps_connection(begun: bool) -> None:
    """The app need not work on for nobody: it sees its connection end."""
    arrived, ended = asyncio.Event(), asyncio.Event()

    async def wait_for_the_end(peer: Peer) -> None:
        await peer.request()
        if begun:
            await peer.send(CHUNKED)
        arrived.set()
        try:
            assert await peer.reader.read() == b""
        finally:
            ended.set()

    async with passing(wait_for_the_end) as (_, proxy):
        caller = await proxy.call(GET)
        await arrived.wait()
        if begun:
            await caller.reader.readuntil(b"\r\n\r\n")
        caller.writer.close()

        await asyncio.wait_for(ended.wait(), 5)


async def test_an_answer_that_nobody_waits_for_is_let_go() -> None:
    """A head that comes after the client has left is not held open: nothing is left to wait for."""
    arrived, left = asyncio.Event(), asyncio.Event()

    async def answer_late(peer: Peer) -> None:
        await peer.request()
        arrived.set()
        await left.wait()
        await peer.send(CHUNKED)
        await peer.reader.read()

    async with passing(answer_late) as (app, proxy):
        caller = await proxy.call(GET)
        await arrived.wait()
        caller.writer.close()
        await caller.writer.wait_closed()
        left.set()

        await asyncio.wait_for(app.quiet(), 5)
        await asyncio.wait_for(proxy.passthrough.close(60), 5)


async def test_a_client_that_leaves_within_its_body_is_never_whole_for_the_app() -> None:
    """The app gets what was sent and then the end of its connection, short of Content-Length."""
    received = bytearray()
    begun = asyncio.Event()

    async def read_all(peer: Peer) -> None:
        while data := await peer.reader.read(1000):
            received.extend(data)
            begun.set()

    head = b"PUT / HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\n"
    async with passing(read_all) as (app, proxy):
        caller = await proxy.call(head + b"half")
        await begun.wait()
        caller.writer.close()
        await asyncio.wait_for(app.quiet(), 5)

    assert (head + b"half").startswith(received)
    assert app.connections == 1


@pytest.mark.parametrize(
    ("answer", "slug"),
    [(b"", b"app-connection-lost"), (b"HTTP/1.1 2", b"app-connection-lost"), (b"\0", b"app-answer-invalid")],
)
async def test_no_head_is_a_problem_of_ours(answer: bytes, slug: bytes) -> None:
    """An app that dies or babbles before its head: 502, which says that it is ours."""
    async with passing(always(answer, close=True)) as (_, proxy):
        caller = await proxy.call(GET)
        head = await caller.reader.readuntil(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert b"\r\nOpenHQM-Error: " + slug + b"\r\n" in head


async def test_an_app_that_is_not_there_is_a_problem_of_ours() -> None:
    """Connection refused: 502, and the client is not asked for its body."""
    async with running(always(b"")) as app:
        url = app.url
    async with proxying(url) as proxy:
        caller = await proxy.call(
            b"PUT / HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
        )
        head = await caller.reader.readuntil(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert b"\r\nOpenHQM-Error: app-unreachable\r\n" in head


@pytest.mark.parametrize(
    ("request_bytes", "answer", "seen"),
    [
        (GET, LINE + b"Content-Length: 9\r\n\r\npart", LINE + b"Content-Length: 9\r\n\r\npart"),
        (GET, CHUNKED + b"9\r\npart", CHUNKED + b"4\r\npart\r\n"),
        (GET, CHUNKED + b"4\r\npart\r\n", CHUNKED + b"4\r\npart\r\n"),
        (GET, CHUNKED + b"4\r\npart\r\nzz\r\n", CHUNKED + b"4\r\npart\r\n"),
    ],
    ids=["length", "within a chunk", "between chunks", "bad chunk"],
)
async def test_a_broken_answer_never_looks_whole(request_bytes: bytes, answer: bytes, seen: bytes) -> None:
    """The client gets what there was, then the end of its connection, and no last chunk."""
    step = asyncio.Event()

    async def break_off(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer[: answer.index(b"part") + 4])
        await step.wait()
        await peer.send(answer[answer.index(b"part") + 4 :])

    async with passing(break_off) as (_, proxy):
        caller = await proxy.call(request_bytes)
        received = await caller.reader.readuntil(b"part")
        step.set()
        received += await caller.rest()

    assert received == seen


async def test_a_broken_answer_resets_a_client_that_cannot_tell() -> None:
    """To HTTP/1.0 only a reset says that this was not the end."""
    step = asyncio.Event()

    async def break_off(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"9\r\npart")
        await step.wait()

    async with passing(break_off) as (_, proxy):
        caller = await proxy.call(OLD_GET)
        await caller.reader.readuntil(b"part")
        step.set()
        with pytest.raises(ConnectionResetError):
            await caller.rest()


async def test_continue_is_sent_once_the_app_is_connected() -> None:
    """A client that waits with its body is told to go on, then its body is passed."""
    head = b"PUT / HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n"
    async with passing(always(LINE + b"Content-Length: 2\r\n\r\nok")) as (app, proxy):
        caller = await proxy.call(head + b"Expect: 100-continue\r\n\r\n")
        assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await caller.send(b"body")
        assert (await caller.reader.readuntil(b"ok")).startswith(LINE)

    assert app.requests == [head + b"\r\nbody"]


async def test_a_refusal_before_the_body_is_read_reaches_the_client() -> None:
    """An app that answers early is heard, however much the client still has to send."""

    async def refuse(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await peer.reader.read()

    async with passing(refuse) as (_, proxy):
        caller = await proxy.call(b"PUT / HTTP/1.1\r\nHost: app\r\nContent-Length: 9000000\r\n\r\nbegun")
        answer = await caller.reader.readuntil(b"no")

    assert answer == b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"


async def test_a_malformed_body_is_never_whole_for_the_app() -> None:
    """A client whose chunks break off in garbage gets 400; the app gets no last chunk."""
    received = bytearray()

    async def read_all(peer: Peer) -> None:
        while data := await peer.reader.read(1000):
            received.extend(data)

    async with passing(read_all) as (app, proxy):
        caller = await proxy.call(
            b"POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
        )
        await caller.send(b"zz\r\n")
        head = await caller.reader.readuntil(b"\r\n\r\n")
        await app.quiet()

    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"0\r\n\r\n" not in received


# -- WebSocket -----------------------------------------------------------------------------------


@asynccontextmanager
async def websocket_proxy(closed: asyncio.Future[int | None]) -> AsyncIterator[Proxy]:
    """A proxy in front of an aiohttp application that echoes, and tells the client's close code."""

    async def echo(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(protocols=("chat",), max_msg_size=0)
        await ws.prepare(request)
        await ws.send_str("hello")
        async for message in ws:
            await ws.send_bytes(message.data)
        closed.set_result(ws.close_code)
        return ws

    application = web.Application()
    application.router.add_get("/ws", echo)
    async with TestServer(application) as server, proxying(f"http://127.0.0.1:{server.port}") as proxy:
        yield proxy


async def test_a_websocket_works_as_if_nobody_were_in_between() -> None:
    """Handshake with subprotocol, messages of all sizes both ways, and an orderly close."""
    closed: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
    async with websocket_proxy(closed) as proxy, aiohttp.ClientSession() as session:
        async with session.ws_connect(f"{proxy.url}/ws", protocols=("chat",), max_msg_size=0) as ws:
            assert ws.protocol == "chat"
            assert await ws.receive_str() == "hello"
            for size in (0, 1, 125, 126, 65_536, 5_000_000):
                await ws.send_bytes(b"z" * size)
                assert await ws.receive_bytes() == b"z" * size
            await ws.close(code=4000)

        assert await closed == 4000


UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Odd: \xe9\r\n\r\n"
)


async def test_an_upgrade_is_a_raw_tunnel() -> None:
    """The 101 arrives as sent, and bytes that either side sent early are not lost."""

    async def upgrade(peer: Peer) -> None:
        peer.app.requests.append(await peer.reader.readuntil(b"\r\n\r\n"))
        await peer.send(SWITCHING + b"\x81\0early")
        peer.app.requests.append(await peer.reader.readexactly(9))
        await peer.send(b"late")

    async with passing(upgrade) as (app, proxy):
        caller = await proxy.call(UPGRADE + b"GET \xff")
        received = await caller.reader.readuntil(b"early")
        await caller.send(b"more")
        received += await caller.rest()

    assert received == SWITCHING + b"\x81\0earlylate"
    assert sorted(app.requests[0].split(b"\r\n")) == sorted(UPGRADE.split(b"\r\n"))
    assert app.requests[1] == b"GET \xffmore"


async def test_a_refused_upgrade_is_an_ordinary_answer() -> None:
    """The app says 403: the client hears it, and its connection serves the next request."""
    answer = b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno"
    async with passing(always(answer)) as (_, proxy):
        caller = await proxy.call(UPGRADE)
        assert await caller.reader.readexactly(len(answer)) == answer
        await caller.send(GET)
        assert await caller.reader.readexactly(len(answer)) == answer


async def test_a_tunnels_end_is_passed_on_both_ways() -> None:
    """A client that leaves a tunnel ends the app's connection, with all it had sent delivered."""
    received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def upgrade(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(SWITCHING)
        received.set_result(await peer.reader.read())

    async with passing(upgrade) as (_, proxy):
        caller = await proxy.call(UPGRADE)
        await caller.reader.readuntil(b"\r\n\r\n")
        caller.writer.write(b"z" * 3_000_000)
        caller.writer.close()

        assert len(await asyncio.wait_for(received, 5)) == 3_000_000


async def test_a_slow_tunnel_holds_the_client_back() -> None:
    """An app that does not read its tunnel stops the client; later everything arrives."""
    size = 60_000_000
    go_on = asyncio.Event()

    async def upgrade(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(SWITCHING)
        await go_on.wait()
        left = size
        while left:
            left -= len(await peer.reader.read(1_000_000))
        await peer.send(b"all")

    async with passing(upgrade) as (_, proxy):
        caller = await proxy.call(UPGRADE)
        await caller.reader.readuntil(b"\r\n\r\n")
        sent = 0

        async def pour() -> None:
            nonlocal sent
            while sent < size:
                await caller.send(b"z" * 100_000)
                sent += 100_000

        pouring = asyncio.create_task(pour())
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.05)
        assert sent < size / 2
        go_on.set()
        await pouring
        assert await caller.reader.readexactly(3) == b"all"


async def test_closing_ends_what_would_not_end_by_itself() -> None:
    """At drain, tunnels and endless answers get their time and then end."""

    async def endless(peer: Peer) -> None:
        request = await peer.request()
        await peer.send(SWITCHING if b"Upgrade" in request else CHUNKED)
        await peer.reader.read()

    async with passing(endless) as (app, proxy):
        tunnel, stream = await proxy.call(UPGRADE), await proxy.call(GET)
        await tunnel.reader.readuntil(b"\r\n\r\n")
        await stream.reader.readuntil(b"\r\n\r\n")

        await proxy.passthrough.close(0.01)

        assert await asyncio.wait_for(tunnel.rest(), 5) == b""
        assert await asyncio.wait_for(stream.rest(), 5) == b""
        await asyncio.wait_for(app.quiet(), 5)


# --- waiting for what is open ---------------------------------------------------------------------------


async def test_waiting_for_quiet_is_for_what_is_open_now() -> None:
    """Requests keep coming while an app is about to be ended; waiting for those would have no end."""
    go_on = asyncio.Event()

    async def slow(peer: Peer) -> None:
        first = await peer.request()
        if b"/first" in first:
            await go_on.wait()
            await peer.send(LINE + b"Content-Length: 0\r\n\r\n")
        else:
            await asyncio.Event().wait()

    async with passing(slow) as (app, proxy):
        first = await proxy.call(b"GET /first HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n")
        while not app.requests:
            await asyncio.sleep(0)
        quiet = asyncio.create_task(proxy.passthrough.quiet(30))
        await proxy.call(b"GET /later HTTP/1.1\r\nHost: app\r\n\r\n")
        while len(app.requests) < 2:
            await asyncio.sleep(0)
        assert not quiet.done()
        go_on.set()

        await asyncio.wait_for(quiet, 5)
        await first.rest()


async def test_waiting_for_quiet_does_not_wait_for_tunnels_to_end() -> None:
    async def upgrade(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(SWITCHING)
        await asyncio.Event().wait()

    async with passing(upgrade) as (_, proxy):
        caller = await proxy.call(UPGRADE)
        await caller.reader.readuntil(b"\r\n\r\n")

        await asyncio.wait_for(proxy.passthrough.quiet(0.05), 5)


async def test_nothing_open_is_quiet() -> None:
    async with passing(always()) as (_, proxy):
        await asyncio.wait_for(proxy.passthrough.quiet(30), 1)
