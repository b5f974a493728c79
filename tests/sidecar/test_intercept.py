"""What the server does below ingress: parse errors, crashes, the parser it insists on."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest
from structlog.testing import capture_logs
from tests.sidecar.intercepted import get, intercepting, post

from openhqm.intercept import build_server
from openhqm.settings import IngressSettings


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


async def test_what_escapes_ingress_is_a_500_of_ours_and_logged(monkeypatch):
    async with intercepting() as port:

        async def crash(*_):
            raise RuntimeError("a bug")

        monkeypatch.setattr(port.acceptor, "accept", crash)
        with capture_logs() as logs:
            got = await port.send(post(b"/a"))

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
