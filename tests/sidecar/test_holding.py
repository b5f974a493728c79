"""Requests that pass straight through wait for an app that is not there yet, and lose nothing by it."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from tests.sidecar.intercepted import OK, get, intercepting, post
from tests.sidecar.raw_app import Peer, RawApp, always, running

from openhqm import holding
from openhqm.http1 import Client
from openhqm.settings import Settings

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "RETRY_SECONDS", 0.01)


def unused_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


async def held(port: Any, number: int = 1) -> None:
    """Wait until that many requests are held."""
    async with asyncio.timeout(5):
        while port.passthrough.held != number:
            await asyncio.sleep(0)


async def test_a_request_waits_for_the_app_and_is_sent_once():
    app_port = unused_port()
    async with intercepting(url(app_port), ingress={"hold_seconds": 30}) as port:
        asking = asyncio.create_task(port.send(get(b"/a")))
        await held(port)
        async with running(always(OK), port=app_port) as app:
            got = await asking

            assert (got.status, got.body) == (200, b"ok")
            assert [request.split(b"\r\n")[0] for request in app.requests] == [b"GET /a HTTP/1.1"]
        assert port.passthrough.held == 0


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(post(b"/a", b"body", method=b"OPTIONS"), id="whole"),
        pytest.param(
            get(b"/a", b"Transfer-Encoding: chunked", method=b"OPTIONS") + b"4\r\nbody\r\n0\r\n\r\n",
            id="chunked",
        ),
    ],
)
async def test_its_body_waits_with_it(request_bytes: bytes):
    app_port = unused_port()
    async with intercepting(url(app_port), ingress={"hold_seconds": 30}) as port:
        asking = asyncio.create_task(port.send(request_bytes))
        await held(port)
        async with running(always(OK), port=app_port) as app:
            assert (await asking).status == 200
            assert b"body" in app.requests[0].partition(b"\r\n\r\n")[2]


async def test_a_body_that_is_not_here_yet_is_asked_for_once_the_app_is_there():
    app_port = unused_port()
    async with intercepting(url(app_port), ingress={"hold_seconds": 30}) as port, port.connected() as client:
        client.write(get(b"/a", b"Content-Length: 4", b"Expect: 100-continue", method=b"OPTIONS"))
        await held(port)
        async with running(always(OK), port=app_port):
            assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            client.write(b"body")
            assert (await client.answer()).status == 200


async def test_what_passes_is_counted_from_the_first_byte_to_the_last():
    answering = asyncio.Event()

    async def slowly(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
        await answering.wait()
        await peer.send(b"k")

    async with running(slowly) as app, intercepting(app.url) as port:
        asking = asyncio.create_task(port.send(get(b"/a")))
        async with asyncio.timeout(10):
            while not app.requests:
                await asyncio.sleep(0)
        during = (port.passthrough.passed, port.passthrough.passing)
        answering.set()
        got = await asking

        assert got.body == b"ok"
        assert during == (1, 1)
        assert (port.passthrough.passed, port.passthrough.passing) == (1, 0)


async def test_all_who_wait_go_on_together():
    app_port = unused_port()
    async with intercepting(url(app_port), ingress={"hold_seconds": 30}) as port:
        asking = [asyncio.create_task(port.send(get(b"/%d" % number))) for number in range(50)]
        await held(port, 50)
        async with running(always(OK), port=app_port) as app:
            answers = await asyncio.gather(*asking)

            assert {got.status for got in answers} == {200}
            assert len(app.requests) == 50


async def test_an_app_that_does_not_come_in_time_is_a_503_with_retry_after():
    async with intercepting(url(unused_port()), ingress={"hold_seconds": 0.05}) as port:
        got = await port.send(get(b"/a"))

        assert (got.status, got[b"openhqm-error"], got[b"retry-after"]) == (503, b"app-starting", b"2")
        assert port.passthrough.held == 0


async def test_more_than_may_wait_are_refused_at_once():
    app_port = unused_port()
    async with intercepting(url(app_port), ingress={"hold_seconds": 30, "max_held": 2}) as port:
        asking = [asyncio.create_task(port.send(get(b"/%d" % number))) for number in range(2)]
        await held(port, 2)

        refused = await port.send(get(b"/c"))
        assert (refused.status, refused[b"retry-after"]) == (503, b"2")
        async with running(always(OK), port=app_port):
            assert {got.status for got in await asyncio.gather(*asking)} == {200}


async def test_without_hold_seconds_nothing_waits():
    async with intercepting(url(unused_port())) as port:
        assert (await port.send(get(b"/a"))).status == 502


async def test_the_time_to_hold_is_hot():
    app_port = unused_port()
    async with intercepting(url(app_port)) as port:
        port.passthrough.apply(Settings.model_validate({"ingress": {"hold_seconds": 30}}))
        asking = asyncio.create_task(port.send(get(b"/a")))
        await held(port)
        async with running(always(OK), port=app_port):
            assert (await asking).status == 200


async def test_an_app_that_is_there_and_fails_is_not_waited_for():
    async def gone(peer):
        await peer.request()
        peer.reset()

    async with running(gone) as app, intercepting(app.url, ingress={"hold_seconds": 30}) as port:
        assert (await port.send(get(b"/a"))).status == 502
        assert len(app.requests) == 1


async def test_a_client_that_leaves_gives_its_place_back():
    async with intercepting(url(unused_port()), ingress={"hold_seconds": 30}) as port:
        async with port.connected() as client:
            client.write(get(b"/a"))
            await held(port)
        await held(port, 0)


async def test_at_the_end_of_a_drain_nobody_is_held():
    async with intercepting(url(unused_port()), ingress={"hold_seconds": 30}) as port:
        asking = asyncio.create_task(port.send(get(b"/a")))
        await held(port)
        await port.passthrough.close(0.05)

        assert (await asking).status == 503
        assert (await port.send(get(b"/b"))).status == 503


async def test_a_drain_waits_for_those_who_are_held():
    app_port = unused_port()
    async with intercepting(url(app_port), ingress={"hold_seconds": 30}) as port:
        asking = asyncio.create_task(port.send(get(b"/a")))
        await held(port)
        closing = asyncio.create_task(port.passthrough.close(30))
        async with running(always(OK), port=app_port):
            assert (await asking).status == 200
            await closing


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_name_is_looked_up_for_every_connection(monkeypatch: pytest.MonkeyPatch):
    """A headless Service's name leads to other Pods from one moment to the next."""
    loop = asyncio.get_running_loop()
    looked_up: list[str] = []
    address = ["127.0.0.1"]

    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        looked_up.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address[0], port))]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    port = unused_port()
    client = Client(f"http://app.example:{port}", reuse_idle_seconds=0)
    first, second = RawApp(always(OK)), RawApp(always(OK))
    servers = [
        await asyncio.start_server(app.serve, sock=bound(host, port))
        for app, host in ((first, "127.0.0.1"), (second, "127.0.0.2"))
    ]
    try:
        for address[0] in ("127.0.0.1", "127.0.0.2"):
            await client.exchange(get(b"/"), b"", timeout_seconds=5)
    finally:
        await client.close()
        for server, app in zip(servers, (first, second), strict=True):
            server.close()
            await app.stop()

    assert looked_up == ["app.example"] * 2
    assert (len(first.requests), len(second.requests)) == (1, 1)


def bound(host: str, port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener
