"""The health probe against a real app."""

from __future__ import annotations

import pytest
from tests.sidecar.raw_app import always, connected

from openhqm.http1 import Client
from openhqm.probe import AppProbe


@pytest.mark.parametrize(
    ("answer", "healthy"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", False),
        (b"garbage\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 200_000, True),
    ],
)
async def test_answer_says_whether_the_app_is_healthy(answer, healthy):
    async with connected(always(answer)) as (app, client):
        assert await AppProbe(client, app.url, "/healthz")() is healthy

    host = app.url.removeprefix("http://").encode()
    assert app.requests == [b"GET /healthz HTTP/1.1\r\nHost: %b\r\n\r\n" % host]


async def test_app_that_cannot_be_reached_is_not_healthy(unused_tcp_port):
    url = f"http://127.0.0.1:{unused_tcp_port}"
    client = Client(url)

    assert not await AppProbe(client, url, "/healthz")()

    await client.close()
