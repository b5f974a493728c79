"""The HTTP client against raw bytes: what it makes of answers, and that it sends everything once."""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

import h11
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.sidecar.raw_app import Peer, Told, always, connected, exchange_at_once, open_connection, running

from openhqm.errors import AppAnswerInvalid, AppConnectionLost, AppError, AppTimeout, AppUnreachable
from openhqm.http1 import Client, Framing, Response
from openhqm.http1_connection import HEAD_LIMIT_BYTES
from openhqm.http1_heads import LONGEST_HEAD_BYTES, MOST_HEADS, Head, KnownHeads

GET = b"GET / HTTP/1.1\r\nHost: app\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LINE = b"HTTP/1.1 200 OK\r\n"
CHUNKED = LINE + b"Transfer-Encoding: chunked\r\n\r\n"

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


@dataclass(frozen=True)
class Row:
    """What one raw answer must become.

    Args:
        raw: the app's bytes after one request.
        body: what the caller gets, or the error.
        status: of the answer.
        kept: the connection carries the next exchange as well.
        verified: a truncated body would have been noticed.
        closes: the app ends the connection behind its bytes.
        head: HEAD instead of GET.
    """

    raw: bytes
    body: bytes | type[AppError]
    status: int = 200
    kept: bool = True
    verified: bool = True
    closes: bool = False
    head: bool = False


INVALID = AppAnswerInvalid
LOST = AppConnectionLost

ANSWERS = {
    # Content-Length
    "length": Row(OK, b"ok"),
    "length zero": Row(LINE + b"Content-Length: 0\r\n\r\n", b""),
    "length with zeros in front": Row(LINE + b"Content-Length: 002\r\n\r\nok", b"ok"),
    "length, spaces around": Row(LINE + b"Content-Length: \t2 \r\n\r\nok", b"ok"),
    "length, odd case": Row(LINE + b"cOnTeNt-LeNgTh:2\r\n\r\nok", b"ok"),
    "length too short for the bytes": Row(LINE + b"Content-Length: 2\r\n\r\nokay", b"ok", kept=False),
    "length, then line ends": Row(OK + b"\r\n", b"ok", kept=False),
    "length zero, then line ends": Row(LINE + b"Content-Length: 0\r\n\r\n\r\n", b"", kept=False),
    "length, then a second answer": Row(OK + OK, b"ok", kept=False),
    "length, then garbage": Row(OK + b"\0\xff", b"ok", kept=False),
    "length truncated": Row(LINE + b"Content-Length: 5\r\n\r\nok", LOST, closes=True),
    "length twice, equal": Row(LINE + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "length twice, different": Row(LINE + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok", INVALID),
    "length a list": Row(LINE + b"Content-Length: 2, 2\r\n\r\nok", INVALID),
    "length signed": Row(LINE + b"Content-Length: +2\r\n\r\nok", INVALID),
    "length negative": Row(LINE + b"Content-Length: -2\r\n\r\nok", INVALID),
    "length hexadecimal": Row(LINE + b"Content-Length: 0x2\r\n\r\nok", INVALID),
    "length empty": Row(LINE + b"Content-Length:\r\n\r\nok", INVALID),
    "length beyond 64 bits": Row(LINE + b"Content-Length: 99999999999999999999\r\n\r\nok", INVALID),
    "length with a space before the colon": Row(LINE + b"Content-Length : 2\r\n\r\nok", INVALID),
    "length and chunked": Row(
        LINE + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", INVALID
    ),
    "chunked and length": Row(
        LINE + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n", INVALID
    ),
    # chunked
    "chunked": Row(CHUNKED + b"2\r\nok\r\n0\r\n\r\n", b"ok"),
    "chunked, empty": Row(CHUNKED + b"0\r\n\r\n", b""),
    "chunked, several": Row(CHUNKED + b"1\r\no\r\n01\r\nk\r\n000\r\n\r\n", b"ok"),
    "chunked, upper case": Row(LINE + b"Transfer-Encoding: Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", b"ok"),
    "chunk extensions": Row(CHUNKED + b'2;a=b;c="d;"\r\nok\r\n0\r\n\r\n', b"ok"),
    "trailers are dropped": Row(CHUNKED + b"2\r\nok\r\n0\r\nX-Trailer: 1\r\n\r\n", b"ok"),
    "trailer repeats Content-Length": Row(CHUNKED + b"2\r\nok\r\n0\r\nX-A: 1\r\nX-B: 2\r\n\r\n", b"ok"),
    "chunked, then line ends": Row(CHUNKED + b"2\r\nok\r\n0\r\n\r\n\r\n", b"ok", kept=False),
    "chunked truncated in a chunk": Row(CHUNKED + b"5\r\nok", LOST, closes=True),
    "chunked truncated between chunks": Row(CHUNKED + b"2\r\nok\r\n", LOST, closes=True),
    "chunked without the last line": Row(CHUNKED + b"2\r\nok\r\n0\r\n", LOST, closes=True),
    "chunk size not a number": Row(CHUNKED + b"zz\r\nok\r\n0\r\n\r\n", INVALID),
    "chunk size with 0x": Row(CHUNKED + b"0x2\r\nok\r\n0\r\n\r\n", INVALID),
    "chunk size too large": Row(CHUNKED + b"fffffffffffffffff\r\nok", INVALID),
    "chunk size and a space": Row(CHUNKED + b"2 \r\nok\r\n0\r\n\r\n", INVALID),
    "chunk longer than its size": Row(CHUNKED + b"2\r\nokay\r\n0\r\n\r\n", INVALID),
    "chunk lines end with LF": Row(CHUNKED + b"2\nok\n0\n\n", INVALID),
    "chunk extensions without end": Row(CHUNKED + b"2;" + b"x" * (HEAD_LIMIT_BYTES + 1), INVALID),
    "trailers without end": Row(
        CHUNKED + b"2\r\nok\r\n0\r\n", LOST, closes=True
    ),  # the endless ones are in a test of their own
    "coding besides chunked": Row(
        LINE + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", INVALID
    ),
    "chunked not last": Row(LINE + b"Transfer-Encoding: chunked, gzip\r\n\r\nok", INVALID, closes=True),
    "chunked twice": Row(
        LINE + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        INVALID,
    ),
    "coding unknown": Row(LINE + b"Transfer-Encoding: xchunked\r\n\r\nok", INVALID, closes=True),
    "coding identity": Row(LINE + b"Transfer-Encoding: identity\r\n\r\nok", INVALID, closes=True),
    "chunked in HTTP/1.0": Row(
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", INVALID
    ),
    # ended by the connection
    "until close": Row(LINE + b"\r\nok", b"ok", kept=False, verified=False, closes=True),
    "until close, empty": Row(LINE + b"\r\n", b"", kept=False, verified=False, closes=True),
    "HTTP/1.0 until close": Row(b"HTTP/1.0 200 OK\r\n\r\nok", b"ok", kept=False, verified=False, closes=True),
    "HTTP/1.0 with length": Row(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok", kept=False),
    "HTTP/1.0 keep-alive": Row(
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", b"ok"
    ),
    "Connection: close": Row(
        LINE + b"Connection: x, Close\r\nContent-Length: 2\r\n\r\nok", b"ok", kept=False
    ),
    # no body
    "HEAD with length": Row(LINE + b"Content-Length: 2\r\n\r\n", b"", head=True),
    "HEAD, chunked": Row(CHUNKED, b"", head=True),
    "HEAD with a body": Row(OK, b"", head=True, kept=False),
    "HEAD, zero length, with a body": Row(LINE + b"Content-Length: 0\r\n\r\nok", b"", head=True, kept=False),
    "204": Row(b"HTTP/1.1 204 No Content\r\n\r\n", b"", status=204),
    "204 with length": Row(b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n", b"", status=204),
    "204 with a body": Row(b"HTTP/1.1 204 No Content\r\n\r\nok", b"", status=204, kept=False),
    "304 with length": Row(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b"", status=304),
    "205 with length zero": Row(b"HTTP/1.1 205 Reset\r\nContent-Length: 0\r\n\r\n", b"", status=205),
    # interim answers
    "100 first": Row(b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok"),
    "102 and 103 first": Row(
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK, b"ok"
    ),
    "100 with a length of its own": Row(b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n" + OK, b"ok"),
    "100 and no more": Row(b"HTTP/1.1 100 Continue\r\n\r\n", LOST, closes=True),
    "100 before HEAD's answer": Row(
        b"HTTP/1.1 100 Continue\r\n\r\n" + LINE + b"Content-Length: 2\r\n\r\n", b"", head=True
    ),
    "interim answers without end": Row(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2000, INVALID),
    "101 unasked": Row(
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", INVALID
    ),
    "101 without Upgrade": Row(b"HTTP/1.1 101 Switching\r\n\r\n", INVALID),
    "Upgrade offered with 200": Row(
        LINE + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nok", b"ok"
    ),
    # status lines
    "no reason": Row(b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", b"ok"),
    "status 599": Row(b"HTTP/1.1 599 Odd\r\nContent-Length: 2\r\n\r\nok", b"ok", status=599),
    "status 600": Row(b"HTTP/1.1 600 Odd\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "status 999": Row(b"HTTP/1.1 999 Odd\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "status 199": Row(b"HTTP/1.1 199 Odd\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "status 000": Row(b"HTTP/1.1 000 Odd\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "status of two digits": Row(b"HTTP/1.1 20 Odd\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "status of four digits": Row(b"HTTP/1.1 2000 Odd\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "HTTP/0.9": Row(b"HTTP/0.9 200 OK\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "HTTP/2.0": Row(b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "HTTP/1.2": Row(b"HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "RTSP": Row(b"RTSP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "lower case": Row(b"http/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "line ends in front": Row(b"\r\n" + OK, INVALID),
    "NUL in the reason": Row(b"HTTP/1.1 200 O\0K\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "NUL in the reason of a 100": Row(b"HTTP/1.1 100 C\0\r\n\r\n" + OK, INVALID),
    "bare CR in the reason": Row(b"HTTP/1.1 200 O\rK\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "a request instead": Row(b"GET / HTTP/1.1\r\n\r\n", INVALID),
    "TLS instead": Row(b"\x15\x03\x01\x00\x02\x02\x16", INVALID),
    "HTTP/2 instead": Row(b"\0\0\x12\x04\0\0\0\0\0", INVALID),
    "only the start": Row(b"HTT", LOST, closes=True),
    "nothing": Row(b"", LOST, closes=True),
    # header lines
    "LF ends every line": Row(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", INVALID),
    "LF ends one line": Row(LINE + b"A: b\nContent-Length: 2\r\n\r\nok", INVALID),
    "LF ends the head": Row(LINE + b"Content-Length: 2\r\n\nok", INVALID),
    "bare CR in a value": Row(LINE + b"A: b\rc\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "folded line": Row(LINE + b"A: b\r\n c\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "folded first line": Row(LINE + b" A: b\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "NUL in a value": Row(LINE + b"A: b\0c\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "control byte in a value": Row(LINE + b"A: b\x01c\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "NUL in a name": Row(LINE + b"A\0: b\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "byte above 0x7f in a name": Row(LINE + b"A\xe9: b\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "space before the colon": Row(LINE + b"A : b\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "no colon": Row(LINE + b"A\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "no name": Row(LINE + b": b\r\nContent-Length: 2\r\n\r\nok", INVALID),
    "256 lines": Row(LINE + b"A: b\r\n" * 255 + b"Content-Length: 2\r\n\r\nok", b"ok"),
    "257 lines": Row(LINE + b"A: b\r\n" * 256 + b"Content-Length: 2\r\n\r\nok", INVALID),
    "head without end": Row(LINE + b"A: " + b"b" * HEAD_LIMIT_BYTES, INVALID),
    "large head": Row(LINE + b"A: " + b"b" * 60_000 + b"\r\nContent-Length: 2\r\n\r\nok", b"ok"),
}


Exchange = Callable[..., Awaitable[Response]]

CASES = {
    **{f"{name}, whole": (row, [row.raw]) for name, row in ANSWERS.items()},
    **{
        f"{name}, byte by byte": (row, [row.raw[i : i + 1] for i in range(len(row.raw))])
        for name, row in ANSWERS.items()
        if len(row.raw) < 500
    },
}


@pytest.mark.parametrize("exchange", [Client.exchange, exchange_at_once], ids=["waiting", "at once"])
@pytest.mark.parametrize(("row", "parts"), CASES.values(), ids=CASES.keys())
async def test_an_answer_is_taken_exactly_or_refused(
    exchange: Exchange, row: Row, parts: list[bytes]
) -> None:
    """Each raw answer, in one piece and byte by byte, becomes the same answer or the same error."""
    request = GET.replace(b"GET", b"HEAD") if row.head else GET
    async with connected(always(*parts, close=row.closes), reuse_idle_seconds=60) as (app, client):
        if isinstance(row.body, type):
            with pytest.raises(row.body):
                await exchange(client, request, b"", timeout_seconds=5)
            assert len(app.requests) == 1
            return

        response = await exchange(client, request, b"", timeout_seconds=5)

        assert (response.status, await response.read()) == (row.status, row.body)
        assert response.complete
        assert response.length_verified is row.verified
        if len(parts) == 1:  # in slices, what follows the answer may come after the next request
            again = await exchange(client, request, b"", timeout_seconds=5)
            assert app.connections == (1 if row.kept else 2)
            # The head of the second may be known from the first: that must make no difference.
            assert _told_by(again) == _told_by(response)
            assert (again.complete, again.take()) == (True, row.body)


def _told_by(response: Response) -> tuple[object, ...]:
    return response.status, response.reason, response.headers, response.version, response.framing


PARTS = {
    "whole": [OK],
    "in slices": [OK[:9], OK[9:-2], OK[-2:]],
    "body apart": [OK[:-2], OK[-2:]],
    "one byte short": [OK[:-1], OK[-1:]],
}


@pytest.mark.parametrize("exchange", [Client.exchange, exchange_at_once], ids=["waiting", "at once"])
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())
async def test_an_answer_with_a_known_head_may_come_in_any_pieces(
    parts: list[bytes], exchange: Exchange
) -> None:
    """A head known from an earlier answer is used for whole answers only."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        while await peer.request():
            for part in parts:
                await peer.send(part)
                await asyncio.sleep(0.001)

    async with connected(behave, reuse_idle_seconds=60) as (app, client):
        for _ in range(3):
            response = await exchange(client, GET, b"", timeout_seconds=5)
            assert (response.headers, response.take()) == ([(b"Content-Length", b"2")], b"ok")
            assert (response.known is not None) is (parts == [OK] and len(app.requests) > 1)
        assert app.connections == 1


@pytest.mark.parametrize("exchange", [Client.exchange, exchange_at_once], ids=["waiting", "at once"])
@pytest.mark.parametrize("surplus", [OK, b"x", b"\r\n"])
async def test_bytes_behind_an_answer_with_a_known_head_end_its_connection(
    surplus: bytes, exchange: Exchange
) -> None:
    """What follows the body is nobody's answer, known head or not."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        while await peer.request():
            await peer.send(OK + surplus)

    async with connected(behave, reuse_idle_seconds=60) as (app, client):
        for _ in range(3):
            response = await exchange(client, GET, b"", timeout_seconds=5)
            assert response.take() == b"ok"
        assert app.connections == 2


async def test_known_heads_are_bounded() -> None:
    """An app that never writes the same head twice, or very long ones, fills no memory."""
    heads = KnownHeads()
    for number in range(MOST_HEADS * 3):
        heads.keep(Head(b"HTTP/1.1 200 OK\r\nX: %d\r\n\r\n" % number, 200, b"OK", [], "1.1", 0))
    heads.keep(
        Head(b"HTTP/1.1 200 OK\r\nX: %b\r\n\r\n" % (b"x" * LONGEST_HEAD_BYTES), 200, b"", [], "1.1", 0)
    )

    assert len(heads._heads) <= MOST_HEADS
    assert all(len(raw) <= LONGEST_HEAD_BYTES for raw in heads._heads)


async def test_names_and_values_arrive_as_the_app_sent_them() -> None:
    """Case, order, duplicates, empty values and bytes above 0x7f survive; so does the reason."""
    head = (
        b"HTTP/1.1 200 Tr\xe8s  bien \r\nX-Dup: a\r\nx-dup: b\r\nCaf: \xe9\xff\x80\r\nEmpty:\r\nX-Dup: c\r\n"
    )
    async with connected(always(head + b"Content-Length: 0\r\n\r\n")) as (_, client):
        response = await client.exchange(GET, b"", timeout_seconds=5)

    assert response.reason == b"Tr\xe8s  bien "
    assert response.version == "1.1"
    assert response.headers == [
        (b"X-Dup", b"a"),
        (b"x-dup", b"b"),
        (b"Caf", b"\xe9\xff\x80"),
        (b"Empty", b""),
        (b"X-Dup", b"c"),
        (b"Content-Length", b"0"),
    ]


async def test_a_request_arrives_byte_for_byte() -> None:
    """Odd paths, header bytes above 0x7f and mixed-case duplicates are nobody's business but the app's."""
    request = (
        b"PoST /a%2Fb/..%2f/./c/../d//e?q=&&x=\xff HTTP/1.1\r\nhOST: app\r\nX-Dup: caf\xe9\r\nx-dup: b\r\n"
        b"Cookie: a=1\r\nCookie: b=2\r\nContent-Length: 3\r\nContent-Encoding: gzip\r\n\r\n\0\xff\n"
    )
    head, _, body = request.partition(b"\r\n\r\n")
    async with connected(always(OK)) as (app, client):
        for _ in range(2):
            await client.exchange(head + b"\r\n\r\n", body, timeout_seconds=5)

    assert app.requests == [request, request]
    assert app.connections == 1


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"DELETE", b"POST"])
async def test_a_dropped_kept_connection_never_sends_twice(method: bytes) -> None:
    """The app takes a request from a kept connection and drops it: one call, and the error says so.

    General clients send again here: the app would have seen two.
    """
    calls = {b"/first": 0, b"/second": 0}

    async def answer_once(peer: Peer) -> None:
        while request := await peer.request():
            path = request.split(b" ")[1]
            calls[path] += 1
            if path == b"/second":
                return
            await peer.send(OK)

    trials = 200
    lost = 0
    async with connected(answer_once, reuse_idle_seconds=60) as (_, client):
        for _ in range(trials):
            await client.exchange(_request(method, b"/first"), b"body", timeout_seconds=5)
            with pytest.raises(AppConnectionLost):
                await client.exchange(_request(method, b"/second"), b"body", timeout_seconds=5)
            lost += 1

    assert calls == {b"/first": trials, b"/second": trials}
    assert lost == trials


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"DELETE", b"POST"])
async def test_a_connection_closed_as_the_request_arrives_is_no_reason_to_send_twice(method: bytes) -> None:
    """The keep-alive race itself: the app closes behind its answer while the next request is on its way.

    Whichever side wins, no request reaches the app twice, and each that did not bring an answer is
    reported as lost.
    """
    seen: dict[bytes, int] = {}

    async def close_behind_answers(peer: Peer) -> None:
        request = await peer.request()
        if request:
            _count(seen, request)
            await peer.send(OK)
            peer.writer.close()  # without saying so in a header

    outcomes = {"answered": 0, "lost": 0}
    async with connected(close_behind_answers, reuse_idle_seconds=60) as (_, client):
        for number in range(300):
            try:
                await client.exchange(_request(method, b"/%d" % number), b"body", timeout_seconds=5)
                outcomes["answered"] += 1
            except AppConnectionLost:
                outcomes["lost"] += 1

    assert outcomes["answered"] + outcomes["lost"] == 300
    assert set(seen.values()) == {1}
    assert len(seen) >= outcomes["answered"]


def _request(method: bytes, path: bytes) -> bytes:
    return method + b" " + path + b" HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\n"


def _count(seen: dict[bytes, int], request: bytes) -> None:
    path = request.split(b" ")[1]
    seen[path] = seen.get(path, 0) + 1


async def test_a_kept_connection_that_ended_is_replaced_before_writing() -> None:
    """An end that arrived while idle costs nothing: the next exchange uses a fresh connection."""

    async def answer_one(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)

    async with connected(answer_one, reuse_idle_seconds=60) as (app, client):
        for _ in range(20):
            await client.exchange(POST, b"body", timeout_seconds=5)
            await app.quiet()  # the app has closed; our event loop has not looked yet

    assert len(app.requests) == app.connections == 20


async def test_an_unasked_answer_on_an_idle_connection_reaches_nobody() -> None:
    """Bytes sent while no request was open must not become the next caller's answer."""
    strayed = asyncio.Event()

    async def answer_too_much(peer: Peer) -> None:
        while await peer.request():
            await peer.send(OK)
            if peer.app.connections == 1:
                await peer.send(LINE + b"Content-Length: 5\r\n\r\nstray")
                strayed.set()

    async with connected(answer_too_much, reuse_idle_seconds=60) as (app, client):
        await client.exchange(GET, b"", timeout_seconds=5)
        await strayed.wait()
        response = await client.exchange(GET, b"", timeout_seconds=5)

    assert response.take() == b"ok"
    assert app.connections == 2


@pytest.mark.parametrize(("reuse_idle_seconds", "connections"), [(0.0, 3), (60.0, 1)])
async def test_connections_are_kept_only_when_asked(reuse_idle_seconds: float, connections: int) -> None:
    """0 opens a fresh connection for every exchange."""
    async with connected(always(OK), reuse_idle_seconds=reuse_idle_seconds) as (app, client):
        for _ in range(3):
            await client.exchange(GET, b"", timeout_seconds=5)

        assert app.connections == connections


async def test_an_idle_connection_is_closed_when_its_time_is_up() -> None:
    """The app sees the end of a connection idle for longer than reuse_idle_seconds."""
    async with connected(always(OK), reuse_idle_seconds=0.02) as (app, client):
        await client.exchange(GET, b"", timeout_seconds=5)

        await asyncio.wait_for(app.quiet(), 5)


async def test_a_refused_connection_sent_nothing() -> None:
    """Nobody listens: AppUnreachable, which says that the app saw nothing."""
    async with running(always(OK)) as app:
        url = app.url
    client = Client(url)

    with pytest.raises(AppUnreachable) as caught:
        await client.exchange(POST, b"body", timeout_seconds=5)

    assert not caught.value.sent


async def test_an_unknown_host_is_unreachable() -> None:
    """A name that does not resolve is AppUnreachable too."""
    with pytest.raises(AppUnreachable):
        await Client("http://app.invalid:80").exchange(POST, b"body", timeout_seconds=5)


async def test_a_connection_that_is_not_established_in_time_sent_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A connect that hangs ends as AppUnreachable after connect_timeout_seconds."""
    loop = asyncio.get_running_loop()

    async def hang(*_: object, **__: object) -> None:
        await loop.create_future()

    client = Client("http://127.0.0.1:9", connect_timeout_seconds=0.01)
    if not isinstance(loop, uvloop.Loop):  # uvloop's methods cannot be replaced
        monkeypatch.setattr(loop, "create_connection", hang)

    with pytest.raises(AppUnreachable):
        await client.exchange(POST, b"body", timeout_seconds=5)


async def test_a_silent_app_times_out_as_sent() -> None:
    """No answer in time is AppTimeout: the app may have seen the request, and its connection ends."""

    async def stay_silent(peer: Peer) -> None:
        await peer.request()
        assert await peer.reader.read() == b""

    async with connected(stay_silent) as (app, client):
        with pytest.raises(AppTimeout) as caught:
            await client.exchange(POST, b"body", timeout_seconds=0.02)

        assert caught.value.sent
        await asyncio.wait_for(app.quiet(), 5)


async def test_an_answer_that_trickles_times_out_too() -> None:
    """The timeout of `exchange` covers the answer to its end, however busy the connection looks."""

    async def trickle(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        while True:
            await peer.send(b"1\r\nx\r\n")
            await asyncio.sleep(0.005)

    async with connected(trickle) as (_, client):
        with pytest.raises(AppTimeout):
            await client.exchange(GET, b"", timeout_seconds=0.05)


async def test_a_reset_is_a_lost_connection() -> None:
    """A reset within an answer that only the connection's end would end is not its end."""

    async def reset(peer: Peer) -> None:
        await peer.request()
        await peer.send(LINE + b"\r\npart")
        await peer.reader.read(1)
        peer.reset()

    async with connected(reset) as (_, client):
        response = await client.stream(GET, b"", timeout_seconds=5)
        await response.arrive()
        assert await response.read() == b"part"
        response._connection._transport.write(b"x")  # now the app resets

        with pytest.raises(AppConnectionLost):
            await response.read()


async def test_cancelling_the_caller_ends_the_connection() -> None:
    """A caller that goes away takes its connection along; the next exchange gets its own answer."""
    arrived = asyncio.Event()

    async def answer_the_second(peer: Peer) -> None:
        await peer.request()
        if peer.app.connections == 1:
            arrived.set()
            assert await peer.reader.read() == b""
        else:
            await peer.send(OK)

    async with connected(answer_the_second, reuse_idle_seconds=60) as (app, client):
        call = asyncio.create_task(client.exchange(POST, b"body", timeout_seconds=5))
        await arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

        response = await client.exchange(GET, b"", timeout_seconds=5)

        assert response.take() == b"ok"
        assert app.connections == 2


async def test_an_answer_given_up_is_not_told() -> None:
    """Who gives up a request sent at once hears no more of it, and its connection ends."""
    arrived = asyncio.Event()

    async def stay_silent(peer: Peer) -> None:
        await peer.request()
        arrived.set()
        assert await peer.reader.read() == b""

    async with connected(stay_silent) as (app, client):
        told = Told()
        assert client.begin(POST, b"body", told, timeout_seconds=5) is None  # no connection is open
        await open_connection(client)
        connection = client.begin(POST, b"body", told, timeout_seconds=5)
        assert connection is not None
        await arrived.wait()

        connection.withdraw(Told())  # another's exchange is over: nothing happens
        assert connection.is_busy
        connection.withdraw(told)

        await asyncio.wait_for(app.quiet(), 5)
        assert told.response is None
        assert app.connections == 1


async def test_closing_the_client_ends_what_is_under_way() -> None:
    """`close` fails open exchanges as lost, not as never sent."""
    arrived = asyncio.Event()

    async def stay_silent(peer: Peer) -> None:
        await peer.request()
        arrived.set()
        await peer.reader.read()

    async with connected(stay_silent) as (_, client):
        call = asyncio.create_task(client.exchange(POST, b"body", timeout_seconds=5))
        await arrived.wait()
        await client.close()

        with pytest.raises(AppConnectionLost):
            await call


async def test_a_streamed_request_body_arrives_whole() -> None:
    """A body that comes in pieces goes out as it comes; the connection is kept afterwards."""
    size = 3_000_000

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"z" * 100_000

    head = b"PUT / HTTP/1.1\r\nHost: app\r\nContent-Length: %d\r\n\r\n" % size
    async with connected(always(OK), reuse_idle_seconds=60) as (app, client):
        for _ in range(2):
            await client.exchange(head, pieces(), timeout_seconds=5)

    assert app.requests == [head + b"z" * size] * 2
    assert app.connections == 1


async def test_a_failing_body_source_is_the_callers_error() -> None:
    """An error while reading the body comes back as it is; the app never sees a whole request."""
    received = bytearray()

    async def read_all(peer: Peer) -> None:
        received.extend(await peer.reader.read())
        while data := await peer.reader.read():
            received.extend(data)

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise KeyError("the blob is gone")

    head = b"PUT / HTTP/1.1\r\nHost: app\r\nContent-Length: 8\r\n\r\n"
    async with connected(read_all) as (app, client):
        with pytest.raises(KeyError):
            await client.exchange(head, broken(), timeout_seconds=5)
        await app.quiet()

    assert bytes(received) in (head + b"half", head, b"")


async def test_an_early_answer_stops_the_body_and_the_connection() -> None:
    """An app that answers before it has read everything is believed; its connection is not used again."""
    pulled = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal pulled
        while True:
            pulled += 1
            yield b"z" * 100_000

    async def refuse_early(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        while await peer.reader.read(1_000_000):
            pass

    head = b"PUT / HTTP/1.1\r\nHost: app\r\nContent-Length: 900000000000\r\n\r\n"
    async with connected(refuse_early, reuse_idle_seconds=60) as (app, client):
        response = await client.exchange(head, endless(), timeout_seconds=5)
        assert (response.status, response.take()) == (413, b"no")
        at_answer = pulled
        await app.quiet()

    assert pulled <= at_answer + 1


async def test_a_large_answer_waits_for_its_reader() -> None:
    """The app is held back while nobody reads: memory does not grow with the answer."""
    size = 40_000_000
    sent = 0

    async def send_much(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(LINE + b"Content-Length: %d\r\n\r\n" % size)
        for _ in range(size // 100_000):
            await peer.send(b"z" * 100_000)
            sent += 100_000

    async with connected(send_much) as (_, client):
        response = await client.exchange(GET, b"", timeout_seconds=30, gather_bytes=1000)
        for _ in range(200):
            await asyncio.sleep(0)
        assert sent < size / 2
        received = 0
        while piece := await response.read():
            received += len(piece)

    assert received == size


async def test_stream_hands_over_the_head_before_the_body() -> None:
    """`stream` returns with the head; each piece is there before the app sends the next."""
    turn = asyncio.Event()

    async def tell_in_turn(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        for number in range(3):
            await turn.wait()
            turn.clear()
            await peer.send(b"1\r\n%d\r\n" % number)
        await peer.send(b"0\r\n\r\n")

    async with connected(tell_in_turn) as (_, client):
        response = await client.stream(GET, b"", timeout_seconds=5)
        await response.arrive()
        assert response.framing is Framing.CHUNKED
        for number in range(3):
            turn.set()
            assert await response.read() == b"%d" % number
        assert await response.read() == b""


async def test_stream_has_no_deadline_once_the_head_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """timeout_seconds of `stream` ends with the head, however long the rest takes."""
    monkeypatch.setattr("openhqm.http1._TICK_SECONDS", 0.005)

    async def pause(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        await asyncio.sleep(0.06)
        await peer.send(b"2\r\nok\r\n0\r\n\r\n")

    async with connected(pause) as (_, client):
        response = await client.stream(GET, b"", timeout_seconds=0.03)
        await response.arrive()

        assert await response.read() == b"ok"


async def test_an_upgrade_carries_raw_bytes_both_ways() -> None:
    """After a 101 that was asked for, bytes pass as they are, those in the head's packet included."""

    async def echo(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\0")
        while data := await peer.reader.read(100):
            await peer.send(data)

    async with connected(echo) as (_, client):
        response = await client.stream(GET, b"", timeout_seconds=5, upgrade=True)
        await response.arrive()
        assert response.status == 101
        assert await response.read() == b"\x81\0"
        response.write(b"GET \xff")
        assert await response.read() == b"GET \xff"
        response.close()


async def test_trailers_without_end_are_refused() -> None:
    """The parser would keep a trailer line for ever; we do not."""

    async def never_end(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"2\r\nok\r\n0\r\nX: ")
        while True:
            await peer.send(b"x" * 10_000)

    async with connected(never_end) as (_, client):
        with pytest.raises(AppAnswerInvalid):
            await client.exchange(GET, b"", timeout_seconds=5)


def mutated(draw: st.DrawFn) -> bytes:
    """An answer from the table with up to three small changes."""
    raw = bytearray(draw(st.sampled_from(FUZZED)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(raw)))
        gone = draw(st.integers(0, 3))
        raw[at : at + gone] = draw(st.sampled_from(SNIPPETS))
    return bytes(raw)


FUZZED = [row.raw for row in ANSWERS.values() if 0 < len(row.raw) < 300 and not row.head]
SNIPPETS = [
    *[bytes([byte]) for byte in b"\r\n\t\0 :,;0129aZ\x7f\xff"],
    b"",
    b"\r\n",
    b"\r\n\r\n",
    b"\r\nContent-Length: 1\r\n",
    b"\r\nTransfer-Encoding: chunked\r\n",
    b"chunked, ",
]


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Without what h11 writes anew, and without the trailing blanks that it removes."""
    framing = (b"content-length", b"transfer-encoding")
    return [(bytes(n), bytes(v).rstrip(b" \t")) for n, v in headers if n.lower() not in framing]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.composite(mutated)())
async def test_what_is_accepted_means_the_same_to_another_parser(raw: bytes) -> None:
    """Whatever the app sends: an answer we take, h11 reads as the same status, headers and body."""
    async with connected(always(raw, close=True)) as (_, client):
        try:
            response = await client.exchange(GET, b"", timeout_seconds=5)
            body = await response.read()
        except (AppAnswerInvalid, AppConnectionLost):
            return

    oracle = h11.Connection(h11.CLIENT)
    oracle.send(h11.Request(method="GET", target="/", headers=[("Host", "app")]))
    oracle.send(h11.EndOfMessage())
    oracle.receive_data(re.sub(rb"\r\n\r\n[\r\n]+HTTP/", b"\r\n\r\nHTTP/", raw))  # behind a 100: harmless
    oracle.receive_data(b"")
    while isinstance(head := oracle.next_event(), h11.InformationalResponse):
        pass
    assert isinstance(head, h11.Response)
    assert (head.status_code, head.reason) == (response.status, response.reason)
    assert _end_to_end(head.headers.raw_items()) == _end_to_end(response.headers)
    expected = bytearray()
    while isinstance(event := oracle.next_event(), h11.Data):
        expected += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert body == bytes(expected)


@pytest.fixture(autouse=True, scope="module")
def _leaves_nothing_behind() -> Iterator[None]:
    """No task exception or unclosed transport is left for the garbage collector to report."""
    yield
    gc.collect()
