"""Answers as exact bytes."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.web import Server

from openhqm import replies
from openhqm.errors import StoreUnavailable
from openhqm.replies import Reply, StreamReply

HEAD = b"HTTP/1.1 200 OK\r\nA: 1\r\n\r\n"


async def chunks(*parts: bytes, error: Exception | None = None, closed: list[bool] | None = None):
    try:
        for part in parts:
            yield part
        if error is not None:
            raise error
    finally:
        if closed is not None:
            closed.append(True)


async def exchange(make_reply, request: bytes = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") -> bytes:
    """Everything a client gets until the connection ends; the second request asks for that end."""

    async def handler(_request):
        return make_reply()

    server = Server(handler, access_log=None)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
    writer.write(request)
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
        listener.close()
        await server.shutdown(0.05)


CLOSING = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
CLOSING_HEAD = CLOSING.replace(b"GET", b"HEAD")


async def test_the_next_request_waits_until_the_client_has_read_its_answers():
    """Small answers to many requests in one go must not pile up in memory."""
    answers = 600
    protocols = []
    began_while_unread = []

    async def handler(request):
        protocols.append(request.protocol)
        began_while_unread.append(request.protocol.writing_paused)
        return replies.make(200, b"x" * 60_000)

    server = Server(handler, access_log=None)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
    writer.write(CLOSING.replace(b"Connection: close\r\n", b"") * (answers - 1) + CLOSING)
    writer.transport.pause_reading()
    async with asyncio.timeout(10):
        while not protocols or not protocols[0].writing_paused:
            await asyncio.sleep(0)
        for _ in range(100):  # turns of the loop in which the next request could begin
            await asyncio.sleep(0)
        writer.transport.resume_reading()
        got = await reader.read()

    assert got.count(b"HTTP/1.1 200 OK") == len(began_while_unread) == answers
    assert not any(began_while_unread)
    writer.close()
    await writer.wait_closed()
    listener.close()
    await server.shutdown(0.05)


async def test_head_and_body_leave_in_one_write():
    writes = []

    class Writer:
        async def write(self, data):
            writes.append(data)

    class Protocol:
        writing_paused = False

    class Request:
        method, version, keep_alive, writer, protocol = "GET", (1, 1), True, Writer(), Protocol()

    reply = replies.make(202, b"{}", fields=b"X: 1\r\n")
    await reply.prepare(Request())
    await reply.write_eof()

    (data,) = writes
    assert data.startswith(b"HTTP/1.1 202 Accepted\r\nDate: ")
    assert data.endswith(b"Content-Type: application/json\r\nContent-Length: 2\r\nX: 1\r\n\r\n{}")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (lambda: replies.stored(HEAD, b"abc"), b"A: 1\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"),
        (
            lambda: replies.stored_stream(HEAD, chunks(b"a", b"bc"), 3),
            b"A: 1\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
        ),
        (
            lambda: StreamReply(200, HEAD[:-2], chunks(b"a", b"bc")),
            b"A: 1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
        ),
        (
            lambda: Reply(200, HEAD[:-2] + b"Content-Length: 0\r\n", keep_alive=False),
            b"A: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        ),
    ],
)
async def test_answers_are_these_bytes_and_head_is_the_same_without_the_body(reply, expected):
    whole = await exchange(reply, CLOSING)
    head = await exchange(reply, CLOSING_HEAD)

    assert whole == b"HTTP/1.1 200 OK\r\n" + expected
    assert head == whole[: whole.index(b"\r\n\r\n") + 4]


async def test_http_1_0_gets_no_chunks_but_the_end_of_the_connection():
    got = await exchange(
        lambda: StreamReply(200, HEAD[:-2], chunks(b"a", b"bc")),
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    )

    assert got == b"HTTP/1.1 200 OK\r\nA: 1\r\nConnection: close\r\n\r\nabc"


@pytest.mark.parametrize(
    ("length", "error"),
    [
        (None, KeyError("gone")),
        (None, ConnectionResetError("lost")),
        (10, KeyError("gone")),
        (10, StoreUnavailable("away")),
        (10, ConnectionResetError("lost")),
        (10, None),
        (2, None),
    ],
)
async def test_an_answer_that_breaks_off_never_looks_whole(length, error):
    closed: list[bool] = []

    got = await exchange(
        lambda: StreamReply(200, HEAD[:-2], chunks(b"abc", error=error, closed=closed), length=length)
    )

    assert b"abc" in got
    assert not got.endswith(b"0\r\n\r\n")
    assert closed == [True]


async def test_a_client_that_leaves_ends_the_stream():
    closed: list[bool] = []
    endless = StreamReply(200, HEAD[:-2], chunks(*([b"x" * 65536] * 10_000), closed=closed))

    async def handler(_request):
        return endless

    server = Server(handler, access_log=None)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
    writer.write(CLOSING)
    await reader.read(1000)
    writer.close()
    async with asyncio.timeout(10):
        while not closed:
            await asyncio.sleep(0)
    listener.close()
    await server.shutdown(0.05)


async def test_the_first_chunk_is_read_before_a_head_is_written():
    assert [c async for c in await replies.opened(chunks(b"a", b"b"))] == [b"a", b"b"]
    assert [c async for c in await replies.opened(chunks())] == []
    with pytest.raises(KeyError):
        await replies.opened(chunks(error=KeyError("gone")))


@pytest.mark.parametrize(
    ("head", "to_head", "expected"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n", False, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"),
        (b"HTTP/1.1 204 \r\nA: 1\r\n\r\n", False, b"HTTP/1.1 204 \r\nA: 1\r\n"),
        (b"HTTP/1.1 304 \r\nContent-Length: 9\r\n\r\n", False, b"HTTP/1.1 304 \r\nContent-Length: 9\r\n"),
        (
            b"HTTP/1.1 200 \r\ncontent-length: 9\r\nA: 1\r\n\r\n",
            True,
            b"HTTP/1.1 200 \r\ncontent-length: 9\r\nA: 1\r\n",
        ),
        (
            b"HTTP/1.1 200 \r\ncontent-length: 9\r\nA: 1\r\n\r\n",
            False,
            b"HTTP/1.1 200 \r\nContent-Length: 2\r\nA: 1\r\n",
        ),
    ],
)
def test_a_stored_head_is_framed_for_the_body_we_hold(head, to_head, expected):
    assert replies.stored(head, b"ab", to_head=to_head).head == expected
