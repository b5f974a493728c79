"""What the server does below ingress: parse errors, crashes, the parser it insists on."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys

import pytest
from structlog.testing import capture_logs
from tests.sidecar.intercepted import get, intercepting, post

from openhqm.intercept import build_server
from openhqm.settings import IngressSettings
from openhqm.stores.base import Options


def test_without_the_c_parser_it_refuses_to_start():
    """The two parsers disagree on what is a request; what we accept must not depend on the install."""
    code = (
        "import asyncio\n"
        "from openhqm.intercept import build_server\n"
        "from openhqm.settings import IngressSettings\n"
        "async def main(): build_server(None, IngressSettings())\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "AIOHTTP_NO_EXTENSIONS": "1"}

    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)

    assert done.returncode == 1
    assert b"SettingsError: aiohttp runs without its C parser" in done.stderr


async def test_with_the_c_parser_it_starts():
    assert build_server(None, IngressSettings()).requests_count == 0


async def test_a_parse_error_is_not_quoted_with_the_clients_secrets():
    async with intercepting() as port:
        got = await port.send(get(b"/", b"Authorization: Bearer secret\x07"))

        assert got.status == 400
        assert b"secret" not in got.body


@pytest.mark.parametrize(
    ("step", "prefer"), [("accept", b"Prefer: wait=1"), ("admit", b"X: 1"), ("admitted", b"X: 1")]
)
async def test_what_escapes_ingress_is_a_500_of_ours_and_logged(monkeypatch, step, prefer):
    async with intercepting() as port:

        def crash(*_, **__):
            raise RuntimeError("a bug")

        monkeypatch.setattr(port.acceptor, step, crash)
        with capture_logs() as logs:
            got = await port.send(post(b"/a", b"", prefer))

        assert (got.status, got[b"openhqm-error"], got[b"connection"]) == (500, b"internal", b"close")
        assert b"a bug" not in got.body
        assert [entry["event"] for entry in logs] == ["request.crashed"]


@pytest.mark.parametrize("seconds", [0.05])
async def test_connections_that_send_nothing_are_closed(seconds):
    async with intercepting(ingress={"keepalive_seconds": seconds}) as port, port.connected() as connection:
        connection.write(b"POST / HTTP/1.1\r\nHost:")

        assert await connection.is_closed_by_server()


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error_of_ours():
    async with intercepting() as port:
        with capture_logs() as logs:
            async with port.connected() as connection:
                connection.write(get(b"/", b"Expect: 100-continue", b"Content-Length: 9", method=b"POST"))
                await connection.reader.readuntil(b"\r\n\r\n")
            while port.server.connections:
                await asyncio.sleep(0)

        assert logs == []
        assert await port.stored() == []


async def test_more_connections_than_admitted_are_told_so_and_closed():
    async with intercepting(ingress={"max_connections": 2}) as port:
        async with port.connected() as first, port.connected() as second:
            for connection in (first, second):
                connection.write(post(b"/a"))
                assert (await connection.answer()).status == 202
            with capture_logs() as logs:
                for _ in range(3):
                    async with port.connected() as third:
                        refused = await third.answer()
                        assert await third.is_closed_by_server()
        await until(lambda: not port.server.connections)
        again = await port.send(post(b"/b"))

    assert (refused.status, refused[b"openhqm-error"]) == (503, b"too-many-connections")
    assert (refused[b"connection"], refused[b"retry-after"] is not None) == (b"close", True)
    assert again.status == 202
    assert [entry["event"] for entry in logs] == ["connection.refused"]


async def until(holds):
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.001)


@pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])
async def test_a_client_that_stops_reading_its_answer_is_disconnected():
    async with intercepting(ingress={"body_timeout_seconds": 0.2}, options=ROOM) as port:
        path = await answered(port, LARGE)
        with await asked(port, get(path + b"/response")):
            await until(lambda: port.server.connections)
            await until(lambda: not port.server.connections)


async def test_a_client_that_reads_slowly_gets_all_of_its_answer():
    async with intercepting(ingress={"body_timeout_seconds": 0.1}, options=ROOM) as port:
        path = await answered(port, LARGE)
        got = b""
        with await asked(port, get(path + b"/response", b"Connection: close")) as client:
            while chunk := await asyncio.get_running_loop().sock_recv(client, 500_000):
                got += chunk
                await asyncio.sleep(0.01)

    assert got.endswith(b"\r\n\r\n" + LARGE)


LARGE = bytes(range(256)) * 64_000
ROOM = Options(max_bytes=2**30)


async def answered(port, body):
    """Path of a request whose answer has a large body."""
    got = await port.send(post(b"/a"))
    lease = await port.lease()
    writer = await port.store.blobs.write(lease.id, f"answer-{lease.epoch}")
    await writer.write(body)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    await port.finish(lease, head, await writer.commit())
    return got.path


async def asked(port, request):
    """A bare socket that sent *request*; nothing reads from it unasked."""
    client = socket.socket()
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", port.port))
    await loop.sock_sendall(client, request)
    return client
