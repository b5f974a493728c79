"""A connection to Redis, against a server that says what the test tells it to."""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from openhqm.stores.redis_link import key_slot
from openhqm.stores.redis_wire import (
    Connection,
    Denied,
    MemoryFull,
    MovedAway,
    ScriptUnknown,
    ServerError,
)


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Connection, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection, and what its server reads from and writes to."""
    accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.put_nowait((reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
        reader, writer = await accepted.get()
        try:
            yield connection, reader, writer
        finally:
            await connection.close()
            writer.close()


async def test_commands_travel_at_once_and_replies_come_in_their_order() -> None:
    async with connected() as (connection, reader, writer):
        asked = [
            connection.ask(("ECHO", b"\r\n$", 7)),
            connection.ask(("GET", "none")),
            connection.ask(("TIME",)),
        ]

        sent = await reader.readuntil(b"TIME\r\n")
        for piece in (b"$3\r\na", b"\r\n\r\n$-1\r\n*2\r", b"\n:1\r\n$1\r\n2\r\n"):
            writer.write(piece)
            await writer.drain()

        assert sent.startswith(b"*3\r\n$4\r\nECHO\r\n$3\r\n\r\n$\r\n$1\r\n7\r\n*2\r\n")
        assert await asyncio.gather(*asked) == [b"a\r\n", None, [1, b"2"]]


async def test_a_reply_given_up_is_not_read_by_the_next() -> None:
    async with connected() as (connection, _, writer):
        first, second = connection.ask(("GET", "first")), connection.ask(("GET", "second"))
        first.cancel()

        writer.write(b"+one\r\n+two\r\n")

        assert await second == b"two"


async def test_an_end_is_told_to_all_who_wait_and_to_all_who_come() -> None:
    async with connected() as (connection, _, writer):
        asked = [connection.ask(("TIME",)) for _ in range(2)]

        writer.close()

        errors = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(error) for error in errors] == [ConnectionResetError] * 2
        with pytest.raises(ConnectionError):
            connection.ask(("TIME",))


@pytest.mark.parametrize("sent", [b"+nobody asked\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_a_server_that_talks_out_of_turn_is_left(sent: bytes) -> None:
    async with connected() as (connection, _, writer):
        writer.write(sent)

        async with asyncio.timeout(5):
            await connection.lost


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("ERR unknown command 'NONE'", ServerError),
        ("NOSCRIPT No matching script.", ScriptUnknown),
        ("OOM command not allowed when used memory > 'maxmemory'.", MemoryFull),
        ("MOVED 3999 127.0.0.1:6381", MovedAway),
        ("READONLY You can't write against a read only replica.", MovedAway),
        ("WRONGPASS invalid username-password pair", Denied),
        ("NOPERM no permissions", Denied),
    ],
)
async def test_an_error_reply_says_which_it_is_and_the_connection_goes_on(
    reply: str, kind: type[ServerError]
) -> None:
    async with connected() as (connection, _, writer):
        refused, next_ = connection.ask(("NONE",)), connection.ask(("TIME",))

        writer.write(f"-{reply}\r\n:1\r\n".encode())

        with pytest.raises(ServerError) as caught:
            await refused
        assert (type(caught.value), str(caught.value)) == (kind, reply)
        assert caught.value.code == reply.split()[0]
        assert await next_ == 1


async def test_a_listener_hears_everything_but_errors_which_end_the_connection() -> None:
    async with connected() as (connection, _, writer):
        heard: list[object] = []
        connection.listen(heard.append)
        connection.send(("SUBSCRIBE", "channel"))

        writer.write(b"*3\r\n$9\r\nsubscribe\r\n$7\r\nchannel\r\n:1\r\n-NOPERM no\r\n")

        async with asyncio.timeout(5):
            await connection.lost
        assert heard == [[b"subscribe", b"channel", 1]]


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        (b"openhqm:{shop.orders}:m:1", b"shop.orders"),
        (b"{a}{b}", b"a"),
        (b"foo{}{bar}", None),
        (b"foo{bar", None),
        (b"foo{{bar}}zap", b"{bar"),
    ],
)
def test_what_stands_in_the_first_braces_decides_the_slot(key: bytes, hashed: bytes | None) -> None:
    """Source: Redis cluster specification, "Hash tags"."""
    assert key_slot(key) == binascii.crc_hqx(key if hashed is None else hashed, 0) % 16384


def test_slots_are_those_of_the_specification() -> None:
    assert key_slot(b"123456789") == 0x31C3
