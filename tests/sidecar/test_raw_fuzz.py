"""Mutated requests: whatever is taken must be, by an independent parser, exactly one request.

The oracle is h11, stricter than most apps: a head we stored that h11 reads differently, or a body that
does not fit its framing, would be a smuggled request. Nothing may crash the server either.
"""

from __future__ import annotations

import asyncio
import random

import h11
import pytest
from structlog.testing import capture_logs
from tests.sidecar.intercepted import intercepting
from tests.sidecar.test_raw_http import ROWS

SEEDS = [row.values[0] for row in ROWS if len(row.values[0]) < 2000]
PIECES = [b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b"0", b"chunked", b"\xff", b"HTTP/1.1", b"/"]
ROUNDS = 40
PER_ROUND = 50


class Wire(asyncio.Transport):
    """A client connection without a network: what the server writes is kept."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 1)})
        self.written = b""
        self.closed = False

    def write(self, data) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def mutated(source: random.Random) -> bytes:
    data = bytearray(source.choice(SEEDS))
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(data) + 1)
        match source.randrange(5):
            case 0:
                data[at:at] = source.choice(PIECES)
            case 1:
                del data[at : at + source.randint(1, 4)]
            case 2:
                data[at : at + 1] = bytes([source.randrange(256)])
            case 3:
                data[at:at] = data[at : at + source.randint(1, 30)]
            case 4:
                data += source.choice(SEEDS)
    return bytes(data)


@pytest.mark.parametrize("seed", range(ROUNDS))
async def test_what_is_taken_is_exactly_one_request_whoever_reads_it(seed):
    source = random.Random(seed)
    async with intercepting(routes=[{"action": "queue"}]) as port:
        with capture_logs() as logs:
            wires = [await feed(port, mutated(source)) for _ in range(PER_ROUND)]

        assert [entry for entry in logs if entry["event"] == "request.crashed"] == []
        assert not any(b" 500 Internal" in wire.written for wire in wires)
        for head, body in await port.stored():
            assert_one_request(head, body)


async def feed(port, data: bytes) -> Wire:
    wire = Wire()
    connection = port.server()
    connection.connection_made(wire)
    connection.data_received(data)
    for _ in range(30):
        await asyncio.sleep(0)
    connection.connection_lost(None)
    for _ in range(5):
        await asyncio.sleep(0)
    return wire


def assert_one_request(head: bytes, body: bytes) -> None:
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(head + body)
    request = parser.next_event()
    assert isinstance(request, h11.Request)
    line = request.method + b" " + request.target + b" HTTP/1.1\r\n"
    assert head.startswith(line)
    assert len(request.headers) == head.count(b"\r\n") - 2
    read = b""
    while isinstance(event := parser.next_event(), h11.Data):
        read += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert read == body
    assert parser.trailing_data == (b"", False)
