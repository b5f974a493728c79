"""The short way gives what the long way gives: same answers, same records, same order."""

from __future__ import annotations

import asyncio

import pytest
from tests.sidecar.intercepted import get, intercepting, post

from openhqm.express import ExpressConnection
from openhqm.ingress import Ingress
from openhqm.stores.base import Options

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


class Ways:
    """Counts which way requests take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.short = self.long = 0
        admit, handle = Ingress.admit, Ingress.handle

        def counted_admit(ingress, *args):
            admission = admit(ingress, *args)
            self.short += admission is not None
            return admission

        async def counted_handle(ingress, request):
            self.long += 1
            return await handle(ingress, request)

        monkeypatch.setattr(Ingress, "admit", counted_admit)
        monkeypatch.setattr(Ingress, "handle", counted_handle)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Ways:
    return Ways(monkeypatch)


async def test_ordinary_requests_take_the_short_way(ways: Ways):
    async with intercepting() as port, port.connected() as connection:
        for number in range(20):
            connection.write(post(b"/%d" % number, b"body"))
            assert (await connection.answer(b"POST")).status == 202

        assert (ways.short, ways.long) == (20, 0)
        assert len(await port.stored()) == 20


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(post(b"/a", b"x", b"Prefer: wait=1"), id="waits for the answer"),
        pytest.param(post(b"/a", b"x", b"Idempotency-Key: k"), id="idempotency key"),
        pytest.param(post(b"/a", b"x", b"OpenHQM-Callback: https://h/"), id="callback"),
        pytest.param(post(b"/a", b"x", b"OpenHQM-Priority: high"), id="bad control header"),
        pytest.param(post(b"/a", b"x", b"Expect: 100-continue"), id="expects 100"),
        pytest.param(post(b"/a", b"x", b"Connection: Upgrade\r\nUpgrade: h2c"), id="offers h2c"),
        pytest.param(post(b"/a", b"x" * 3000), id="large"),
        pytest.param(post(b"/.openhqm/v1/requests", b"x"), id="reserved"),
        pytest.param(b"POST /a HTTP/1.1\r\nHost: a/b\r\nContent-Length: 0\r\n\r\n", id="bad host"),
    ],
)
async def test_what_is_not_ordinary_takes_the_long_way(ways: Ways, request_bytes: bytes):
    async with intercepting(spill_bytes=2000) as port, port.connected() as connection:
        connection.write(request_bytes)
        await connection.answer(b"POST")

        assert (ways.short, ways.long) == (0, 1)


async def test_a_body_that_comes_later_takes_the_long_way(ways: Ways):
    async with intercepting() as port, port.connected() as connection:
        connection.write(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbo")
        await asyncio.sleep(0.02)
        connection.write(b"dy")

        assert (await connection.answer(b"POST")).status == 202
        assert (ways.short, ways.long) == (0, 1)
        assert [body for _, body in await port.stored()] == [b"body"]


class Gate:
    """Holds commits back until it is opened."""

    def __init__(self, store) -> None:
        self._accept = store.accept
        self.opened = asyncio.Event()
        store.accept = self

    async def __call__(self, records):
        await self.opened.wait()
        return await self._accept(records)


async def test_what_arrives_during_a_commit_is_answered_after_it_in_order(ways: Ways):
    async with intercepting() as port, port.connected() as connection:
        gate = Gate(port.store)
        connection.write(post(b"/first", b"1"))
        await asyncio.sleep(0.02)
        connection.write(post(b"/second", b"2") + post(b"/third", b"3")[:30])
        await asyncio.sleep(0.02)
        connection.write(post(b"/third", b"3")[30:])
        gate.opened.set()
        ids = [(await connection.answer(b"POST")).json["correlation_id"] for _ in range(3)]

        assert ids == sorted(ids)
        assert [body for _, body in await port.stored()] == [b"1", b"2", b"3"]
        assert ways.short >= 1


async def test_much_that_arrives_during_a_commit_is_not_read_into_memory():
    async with intercepting() as port, port.connected() as connection:
        gate = Gate(port.store)
        connection.write(post(b"/first", b"1"))
        await asyncio.sleep(0.02)
        connection.write(post(b"/second", b"x" * 200_000))
        await asyncio.sleep(0.05)
        gate.opened.set()

        assert [(await connection.answer(b"POST")).status for _ in range(2)] == [202, 202]
        assert [len(body) for _, body in await port.stored()] == [1, 200_000]


async def test_a_client_that_leaves_during_a_commit_has_its_request_stored():
    async with intercepting() as port:
        gate = Gate(port.store)
        async with port.connected() as connection:
            connection.write(post(b"/a", b"1"))
            await asyncio.sleep(0.02)
        gate.opened.set()
        while not (await port.store.counts()).accepted:
            await asyncio.sleep(0)

        assert [body for _, body in await port.stored()] == [b"1"]


@pytest.mark.parametrize("line", [b"Connection: close", b"Connection: keep-alive"])
async def test_the_connection_ends_when_the_client_says_so(line: bytes):
    async with intercepting() as port, port.connected() as connection:
        connection.write(post(b"/a", b"1", line))
        answer = await connection.answer(b"POST")

        assert answer.status == 202
        assert (answer[b"connection"] == b"close") == (line == b"Connection: close")
        if line == b"Connection: close":
            assert await connection.is_closed_by_server()


async def test_http_10_is_told_that_the_connection_stays():
    async with intercepting() as port, port.connected() as connection:
        connection.write(b"POST /a HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx")

        assert (await connection.answer(b"POST"))[b"connection"] == b"keep-alive"


async def test_a_full_backlog_is_the_same_503(ways: Ways):
    async with intercepting(options=Options(max_backlog=1)) as port, port.connected() as connection:
        answers = []
        for _ in range(2):
            connection.write(post(b"/a", b"1"))
            answers.append(await connection.answer(b"POST"))

        assert [answer.status for answer in answers] == [202, 503]
        assert answers[1][b"openhqm-error"] == b"backlog-full"
        assert answers[1][b"retry-after"] is not None
        assert ways.long == 0


async def test_an_idle_connection_is_closed_counted_from_its_last_answer():
    async with intercepting(ingress={"keepalive_seconds": 0.2}) as port, port.connected() as connection:
        for _ in range(4):
            await asyncio.sleep(0.1)
            connection.write(post(b"/a", b"1"))
            assert (await connection.answer(b"POST")).status == 202

        assert await connection.is_closed_by_server()


async def test_reads_and_writes_alternate_on_one_connection(ways: Ways):
    async with intercepting() as port, port.connected() as connection:
        connection.write(post(b"/a", b"1"))
        link = (await connection.answer(b"POST")).path
        connection.write(get(link))
        assert (await connection.answer(b"GET")).json["status"] == "queued"
        connection.write(post(b"/b", b"2"))
        assert (await connection.answer(b"POST")).status == 202

        assert (ways.short, ways.long) == (2, 1)


async def test_aiohttp_still_has_what_the_short_way_reaches_into():
    """Attributes of RequestHandler that are not public; a newer aiohttp may drop them."""
    slots = {name for base in ExpressConnection.__mro__ for name in getattr(base, "__slots__", ())}

    assert slots >= {
        "_close", "_force_close", "_handler_waiter", "_keepalive_timeout", "_messages",
        "_next_keepalive_close_time", "_parser", "_paused", "_request_in_progress", "_waiter",
    }  # fmt: skip
