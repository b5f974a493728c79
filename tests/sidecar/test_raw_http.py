"""Raw requests, one row per rule of RFC 9110 and RFC 9112, each to a route that queues and one that passes.

A row is taken or refused, the same way by both. Taken: what is stored, and what the app saw, is exactly
the request that is written down here. Refused: the status is as written, it is a problem of ours, nothing
was stored and the app saw nothing; where the framing cannot be trusted, the connection is closed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from tests.sidecar.intercepted import OK, Connection, Intercept, get, intercepting
from tests.sidecar.raw_app import RawApp, always, running

# The loop that serves in production; `test_ingress.py` runs on both.
on_uvloop = pytest.mark.asyncio(loop_factories=["uvloop"])

POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB"
LONG = b"a" * 20_000


@dataclass(frozen=True)
class Taken:
    """The head and body that are stored and that the app gets; *framing* where the two differ."""

    head: bytes
    body: bytes = b""
    passed_head: bytes | None = None


@dataclass(frozen=True)
class Refused:
    """The status; whether the connection ends."""

    status: int
    closes: bool = True


def same(raw: bytes) -> Taken:
    """Taken as it is."""
    head, _, body = raw.partition(b"\r\n\r\n")
    return Taken(head + b"\r\n\r\n", body)


def line(text: bytes) -> tuple[bytes, Taken]:
    """A request line that is taken as it is."""
    raw = text + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    return raw, same(raw)


def field(text: bytes) -> tuple[bytes, Taken]:
    """A header that travels as it is."""
    raw = b"GET / HTTP/1.1\r\nHost: x\r\n" + text + b"\r\n\r\n"
    return raw, same(raw)


def dropped(text: bytes) -> tuple[bytes, Taken]:
    """Headers that do not travel."""
    raw = b"GET / HTTP/1.1\r\nHost: x\r\n" + text + b"\r\n\r\n"
    return raw, Taken(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")


def bad_line(text: bytes, status: int = 400) -> tuple[bytes, Refused]:
    return text + b"\r\nHost: x\r\n\r\n", Refused(status)


def bad_field(text: bytes, status: int = 400, *, closes: bool = True) -> tuple[bytes, Refused]:
    return b"GET / HTTP/1.1\r\nHost: x\r\n" + text + b"\r\n\r\n", Refused(status, closes)


def chunked(body: bytes, decoded: bytes) -> tuple[bytes, Taken]:
    return POST + b"Transfer-Encoding: chunked\r\n\r\n" + body, Taken(
        POST + b"Content-Length: %d\r\n\r\n" % len(decoded),
        decoded,
        POST + b"Transfer-Encoding: chunked\r\n\r\n",
    )


def bad_body(body: bytes, *fields: bytes, status: int = 400) -> tuple[bytes, Refused]:
    head = fields or (b"Transfer-Encoding: chunked",)
    return POST + b"\r\n".join(head) + b"\r\n\r\n" + body, Refused(status)


REQUEST_LINES = {
    "root": line(b"GET /"),
    "query": line(b"GET /a?b=c&d"),
    "empty query": line(b"GET /?"),
    "dots are kept": line(b"GET /a/./b/../c"),
    "slashes are kept": line(b"GET //a///b"),
    "encoding is kept": line(b"GET /%2e%2E/%2f%zz%"),
    "brackets and bars are kept": line(b'GET /a[0]={x|y}^`\\"<>'),
    "second question mark": line(b"GET /?a?b"),
    "scheme inside a path": line(b"GET /http://other/"),
    "at sign inside a path": line(b"GET /@other/"),
    "semicolon and params": line(b"GET /a;b=c/d"),
    "longest target": line(b"GET /" + b"a" * 16_000),
    "DELETE without a body": line(b"DELETE /a"),
    "HEAD": line(b"HEAD /a"),
    "OPTIONS for a path": line(b"OPTIONS /a"),
    "TRACE": line(b"TRACE /a"),
    "PROPFIND": line(b"PROPFIND /a"),
    "QUERY": line(b"QUERY /a"),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\nHost: x\r\n\r\n", same(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")),
    "empty lines before": (
        b"\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        same(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    ),
    "unknown method": bad_line(b"FOO / HTTP/1.1"),
    "lower case method": bad_line(b"get / HTTP/1.1"),
    "method with a colon": bad_line(b"GE:T / HTTP/1.1"),
    "no method": bad_line(b" / HTTP/1.1"),
    "space before the method": bad_line(b" GET / HTTP/1.1"),
    "no target": bad_line(b"GET HTTP/1.1"),
    "two spaces become one": (
        b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
        same(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    ),
    "tab instead of space": bad_line(b"GET\t/ HTTP/1.1"),
    "space in the target": bad_line(b"GET /a b HTTP/1.1"),
    "raw UTF-8 in the target": bad_line(b"GET /\xc3\xa4 HTTP/1.1"),
    "byte over 0x7f in the target": bad_line(b"GET /\xff HTTP/1.1"),
    "NUL in the target": bad_line(b"GET /\x00 HTTP/1.1"),
    "escape in the target": bad_line(b"GET /\x1b HTTP/1.1"),
    "DEL in the target": bad_line(b"GET /\x7f HTTP/1.1"),
    "bare CR in the target": bad_line(b"GET /\rX HTTP/1.1"),
    "fragment": bad_line(b"GET /a#b HTTP/1.1"),
    "target without a slash": bad_line(b"GET a HTTP/1.1"),
    "query without a path": bad_line(b"GET ?a HTTP/1.1"),
    "absolute form": bad_line(b"GET http://x/a HTTP/1.1"),
    "absolute form of another host": bad_line(b"GET http://other/a HTTP/1.1"),
    "absolute form of another scheme": bad_line(b"GET ftp://x/a HTTP/1.1"),
    "authority form": bad_line(b"GET x:80 HTTP/1.1"),
    "asterisk": bad_line(b"OPTIONS * HTTP/1.1", 501),
    "asterisk of GET": bad_line(b"GET * HTTP/1.1"),
    "CONNECT": bad_line(b"CONNECT x:80 HTTP/1.1", 501),
    "CONNECT to a path": bad_line(b"CONNECT /a HTTP/1.1", 501),
    "too long a target": bad_line(b"GET /" + LONG + b" HTTP/1.1", 414),
    "no version": bad_line(b"GET /", 501),
    "HTTP/0.9": bad_line(b"GET / HTTP/0.9", 501),
    "HTTP/1.2": bad_line(b"GET / HTTP/1.2"),
    "HTTP/2.0": bad_line(b"GET / HTTP/2.0", 501),
    "HTTP/3.0": bad_line(b"GET / HTTP/3.0"),
    "HTTP/1": bad_line(b"GET / HTTP/1"),
    "HTTP/01.1": bad_line(b"GET / HTTP/01.1"),
    "HTTP/1.10": bad_line(b"GET / HTTP/1.10"),
    "lower case http": bad_line(b"GET / http/1.1"),
    "another protocol": bad_line(b"GET / ICE/1.1"),
    "a method and a version, no target": bad_line(b"POST /HTTP/1.1", 501),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Refused(400)),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50, Refused(400)),
    "no HTTP at all": (b"hello there\r\n\r\n", Refused(400)),
    "bare LF after the line": (b"GET / HTTP/1.1\nHost: x\r\n\r\n", Refused(400)),
}

HOSTS = {
    "host": field(b"A: 1"),
    "host with a port": (raw := b"GET / HTTP/1.1\r\nHost: x.example:8080\r\n\r\n", same(raw)),
    "host with an empty port": (raw := b"GET / HTTP/1.1\r\nHost: x:\r\n\r\n", same(raw)),
    "IPv4": (raw := b"GET / HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n", same(raw)),
    "IPv6": (raw := b"GET / HTTP/1.1\r\nHost: [::1]:1\r\n\r\n", same(raw)),
    "host with an underscore": (raw := b"GET / HTTP/1.1\r\nHost: a_b\r\n\r\n", same(raw)),
    "lower case name": (raw := b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", same(raw)),
    "HTTP/1.0 without": (b"GET / HTTP/1.0\r\n\r\n", Taken(b"GET / HTTP/1.1\r\nHost: {app}\r\n\r\n")),
    "none": (b"GET / HTTP/1.1\r\nA: 1\r\n\r\n", Refused(400)),
    "empty": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", Refused(400)),
    "two": (b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", Refused(400)),
    "two of different case": (b"GET / HTTP/1.1\r\nHost: x\r\nhOST: y\r\n\r\n", Refused(400)),
    "list": (b"GET / HTTP/1.1\r\nHost: x, y\r\n\r\n", Refused(400)),
    "user": (b"GET / HTTP/1.1\r\nHost: u@x\r\n\r\n", Refused(400)),
    "path": (b"GET / HTTP/1.1\r\nHost: x/a\r\n\r\n", Refused(400)),
    "path and user": (b"GET / HTTP/1.1\r\nHost: a/b@c\r\n\r\n", Refused(400)),
    "query of a host": (b"GET / HTTP/1.1\r\nHost: x?a\r\n\r\n", Refused(400)),
    "fragment of a host": (b"GET / HTTP/1.1\r\nHost: x#a\r\n\r\n", Refused(400)),
    "space in a host": (b"GET / HTTP/1.1\r\nHost: x y\r\n\r\n", Refused(400)),
    "port that is no number": (b"GET / HTTP/1.1\r\nHost: x:y\r\n\r\n", Refused(400)),
    "port out of range": (b"GET / HTTP/1.1\r\nHost: x:123456\r\n\r\n", Refused(400)),
    "raw UTF-8 host": (b"GET / HTTP/1.1\r\nHost: \xc3\xa4\r\n\r\n", Refused(400)),
    "broken IPv6": (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", Refused(400)),
    "backslash": (b"GET / HTTP/1.1\r\nHost: x\\y\r\n\r\n", Refused(400)),
}

LENGTHS = {
    "length": (raw := POST + b"Content-Length: 3\r\n\r\nabc", same(raw)),
    "length 0": (raw := POST + b"Content-Length: 0\r\n\r\n", same(raw)),
    "no length": (raw := POST + b"\r\n", same(raw)),
    "length of a GET": (raw := b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", same(raw)),
    "length with zeros is canonical": (
        POST + b"Content-Length: 003\r\n\r\nabc",
        same(POST + b"Content-Length: 3\r\n\r\nabc"),
    ),
    "length with spaces around is canonical": (
        POST + b"Content-Length:   3  \r\n\r\nabc",
        same(POST + b"Content-Length: 3\r\n\r\nabc"),
    ),
    "length keeps its place and case": (
        raw := b"POST / HTTP/1.1\r\nA: 1\r\ncontent-LENGTH: 3\r\nHost: x\r\n\r\nabc",
        same(raw),
    ),
    "NUL and line ends in a body": (raw := POST + b"Content-Length: 6\r\n\r\n\x00\r\n\r\n\xff", same(raw)),
    "a request inside a body": (
        raw := POST + b"Content-Length: 27\r\n\r\nGET / HTTP/1.1\r\nHost: y\r\n\r\n",
        same(raw),
    ),
    "compressed body stays compressed": (
        raw := POST + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
        same(raw),
    ),
    "length with an underscore does not count": (
        POST + b"Content_Length: 9\r\nContent-Length: 3\r\n\r\nabc",
        same(POST + b"Content-Length: 3\r\n\r\nabc"),
    ),
    "two equal lengths": bad_body(b"abc", b"Content-Length: 3", b"Content-Length: 3"),
    "two lengths": bad_body(b"abc", b"Content-Length: 3", b"Content-Length: 0"),
    "list of lengths": bad_body(b"abc", b"Content-Length: 3, 3"),
    "plus sign": bad_body(b"abc", b"Content-Length: +3"),
    "minus sign": bad_body(b"abc", b"Content-Length: -3"),
    "hexadecimal": bad_body(b"abc", b"Content-Length: 0x3"),
    "underscore in the number": bad_body(b"abc", b"Content-Length: 1_0"),
    "fraction": bad_body(b"abc", b"Content-Length: 3.0"),
    "empty length": bad_body(b"abc", b"Content-Length:"),
    "space inside the number": bad_body(b"abc", b"Content-Length: 1 2"),
    "word": bad_body(b"abc", b"Content-Length: three"),
    "non-ASCII digit": bad_body(b"abc", b"Content-Length: \xd9\xa3"),
    "overflowing length": bad_body(b"abc", b"Content-Length: 18446744073709551619"),
    "space before the colon of a length": bad_body(b"abc", b"Content-Length : 3"),
    "length and chunks": bad_body(b"0\r\n\r\n", b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "chunks and length": bad_body(b"0\r\n\r\n", b"Transfer-Encoding: chunked", b"Content-Length: 5"),
}

CHUNKS = {
    "chunks": chunked(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
    "no chunks": chunked(b"0\r\n\r\n", b""),
    "hexadecimal size": chunked(b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    "size with zeros": chunked(b"0003\r\nabc\r\n000\r\n\r\n", b"abc"),
    "extension is dropped": chunked(b"3;a=b;c\r\nabc\r\n0;d\r\n\r\n", b"abc"),
    "quoted extension is dropped": chunked(b'3;a="b"\r\nabc\r\n0\r\n\r\n', b"abc"),
    "trailer is dropped": chunked(b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n", b"abc"),
    "line ends inside a chunk": chunked(b"5\r\n\r\n3\r\n\r\n0\r\n\r\n", b"\r\n3\r\n"),
    "case of the coding": (
        POST + b"transfer-ENCODING: ChunkeD\r\n\r\n0\r\n\r\n",
        Taken(POST + b"Content-Length: 0\r\n\r\n", b"", POST + b"Transfer-Encoding: chunked\r\n\r\n"),
    ),
    "trailer announced": (
        POST + b"Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 1\r\n\r\n",
        Taken(POST + b"Content-Length: 0\r\n\r\n", b"", POST + b"Transfer-Encoding: chunked\r\n\r\n"),
    ),
    "size that is no number": bad_body(b"z\r\nabc\r\n0\r\n\r\n"),
    "no size": bad_body(b"\r\nabc\r\n0\r\n\r\n"),
    "negative size": bad_body(b"-1\r\nabc\r\n0\r\n\r\n"),
    "size with 0x": bad_body(b"0x3\r\nabc\r\n0\r\n\r\n"),
    "size with an underscore": bad_body(b"1_0\r\nabc\r\n0\r\n\r\n"),
    "space before the size": bad_body(b" 3\r\nabc\r\n0\r\n\r\n"),
    "space after the size": bad_body(b"3 \r\nabc\r\n0\r\n\r\n"),
    "overflowing size": bad_body(b"10000000000000003\r\nabc\r\n0\r\n\r\n"),
    "chunk longer than said": bad_body(b"2\r\nabc\r\n0\r\n\r\n"),
    "chunk shorter than said": bad_body(b"4\r\nabc\r\n0\r\n\r\n"),
    "bare LF after the size": bad_body(b"3\nabc\r\n0\r\n\r\n"),
    "bare LF after the data": bad_body(b"3\r\nabc\n0\r\n\r\n"),
    "bare CR after the size": bad_body(b"3\rabc\r\n0\r\n\r\n"),
    "LF in an extension": bad_body(b"3;a\nb\r\nabc\r\n0\r\n\r\n"),
    "malformed trailer": bad_body(b"0\r\nX Sum: 1\r\n\r\n"),
    "unknown coding": bad_body(b"0\r\n\r\n", b"Transfer-Encoding: xchunked"),
    "identity": bad_body(b"0\r\n\r\n", b"Transfer-Encoding: identity"),
    "empty coding": bad_body(b"0\r\n\r\n", b"Transfer-Encoding:"),
    "compressed chunks": bad_body(b"0\r\n\r\n", b"Transfer-Encoding: gzip, chunked", status=501),
    "chunks inside another coding": bad_body(b"0\r\n\r\n", b"Transfer-Encoding: chunked, gzip"),
    "chunks then identity": bad_body(b"0\r\n\r\n", b"Transfer-Encoding: chunked, identity"),
    "chunked twice": bad_body(b"0\r\n\r\n", b"Transfer-Encoding: chunked, chunked"),
    "two codings": bad_body(b"0\r\n\r\n", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "quoted coding": bad_body(b"0\r\n\r\n", b'Transfer-Encoding: "chunked"'),
    "vertical tab before the coding": bad_body(b"0\r\n\r\n", b"Transfer-Encoding: \x0bchunked"),
    "space before the colon of a coding": bad_body(b"0\r\n\r\n", b"Transfer-Encoding : chunked"),
    "coding with a parameter": bad_body(b"0\r\n\r\n", b"Transfer-Encoding: chunked;a=b"),
    "chunks in HTTP/1.0": (
        b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
}

FIELDS = {
    "empty value": field(b"A: "),
    "obs-text": field(b"A: caf\xe9 \xff"),
    "UTF-8": field(b"A: \xc3\xa4"),
    "tab inside a value": field(b"A: 1\t2"),
    "colons and quotes": field(b'A: b:c "d" \\'),
    "every token character": field(b"!#$%&'*+-.^`|~1a: 1"),
    "duplicates in order": field(b"A: 1\r\nB: 2\r\na: 3\r\nA: 1"),
    "cookies are not joined": field(b"Cookie: a=1\r\nCookie: b=2"),
    "range and conditions": field(b'Range: bytes=0-1\r\nIf-None-Match: "a", *'),
    "authorization": field(b"Authorization: Bearer x"),
    "space around a value": (
        b"GET / HTTP/1.1\r\nHost: x\r\nA:\t 1 \t\r\n\r\n",
        same(b"GET / HTTP/1.1\r\nHost: x\r\nA: 1\r\n\r\n"),
    ),
    "100 headers": field(b"\r\n".join(b"A%d: %d" % (n, n) for n in range(100))),
    "longest value": field(b"A: " + b"v" * 16_000),
    "space before the colon": bad_field(b"A : 1"),
    "space in a name": bad_field(b"A B: 1"),
    "space before a name": bad_field(b" A: 1"),
    "no colon": bad_field(b"A"),
    "no name": bad_field(b": 1"),
    "folded": bad_field(b"A: 1\r\n 2"),
    "folded with a tab": bad_field(b"A: 1\r\n\t2"),
    "folded first line": (b"GET / HTTP/1.1\r\n Host: x\r\n\r\n", Refused(400)),
    "NUL in a value": bad_field(b"A: 1\x002"),
    "bell in a value": bad_field(b"A: \x07"),
    "DEL in a value": bad_field(b"A: \x7f"),
    "bare CR in a value": bad_field(b"A: 1\r2"),
    "bare LF in a value": bad_field(b"A: 1\nB: 2"),
    "NUL in a name": bad_field(b"A\x00: 1"),
    "byte over 0x7f in a name": bad_field(b"\xe4: 1"),
    "parenthesis in a name": bad_field(b"A(b): 1"),
    "too many headers": bad_field(b"\r\n".join(b"A%d: 1" % n for n in range(200)), 431),
    "too long a value": bad_field(b"A: " + LONG, 431),
    "too long a name": bad_field(LONG + b": 1", 431),
    "no empty line": (b"GET / HTTP/1.1\r\nHost: x\r\n\n", Refused(400)),
}

CONNECTIONS = {
    "Connection": dropped(b"Connection: keep-alive"),
    "Connection lists a header": dropped(b"Connection: X-Private\r\nX-Private: 1"),
    "Keep-Alive": dropped(b"Keep-Alive: timeout=5"),
    "Proxy-Connection": dropped(b"Proxy-Connection: keep-alive"),
    "Proxy-Authorization": dropped(b"Proxy-Authorization: Basic eA=="),
    "TE": dropped(b"TE: trailers, deflate;q=0.5"),
    "Trailer": dropped(b"Trailer: X-Sum"),
    "Upgrade without Connection": dropped(b"Upgrade: h2c"),
    "Upgrade-Insecure-Requests stays": field(b"Upgrade-Insecure-Requests: 1"),
    "name with an underscore": dropped(b"X_Forwarded_For: 1.2.3.4"),
    "control headers of ours": dropped(b"OpenHQM-Priority: 1"),
    "Connection cannot name Host": (
        b"GET / HTTP/1.1\r\nConnection: Host\r\nHost: x\r\n\r\n",
        same(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    ),
    "Connection cannot name Authorization": (
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: authorization\r\nAuthorization: a\r\n\r\n",
        same(b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: a\r\n\r\n"),
    ),
    "Connection cannot name X-Forwarded-For": (
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close, x-forwarded-for\r\nX-Forwarded-For: a\r\n\r\n",
        same(b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: a\r\n\r\n"),
    ),
    "Connection cannot name Content-Length": (
        POST + b"Connection: content-length\r\nContent-Length: 1\r\n\r\nx",
        same(POST + b"Content-Length: 1\r\n\r\nx"),
    ),
    "Expect 100-continue": (
        POST + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
        same(POST + b"Content-Length: 1\r\n\r\nx"),
    ),
    "Expect something else": bad_field(b"Expect: 200-ok", 417, closes=False),
    "h2c is ignored": dropped(H2C),
    "h2c of another case is ignored": dropped(b"connection: upgrade\r\nupgrade: H2C"),
    "h2c with a body is ignored": (
        POST + H2C + b"\r\nContent-Length: 3\r\n\r\nabc",
        same(POST + b"Content-Length: 3\r\n\r\nabc"),
    ),
    "h2c with chunks is ignored": (
        POST + H2C + b"\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
        Taken(
            POST + b"Content-Length: 3\r\n\r\n",
            b"abc",
            POST + b"Transfer-Encoding: chunked\r\n\r\n",
        ),
    ),
    "h2c over TLS is another upgrade": bad_field(b"Connection: Upgrade\r\nUpgrade: h2", 501),
    "another upgrade": bad_field(b"Connection: Upgrade\r\nUpgrade: TLS/1.0", 501),
    "two upgrades": bad_field(b"Connection: Upgrade\r\nUpgrade: websocket, h2c", 501),
    "POST to websocket": (
        POST + b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
        Refused(501),
    ),
    "HTTP/1.0 to websocket": (
        b"GET / HTTP/1.0\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        Refused(501),
    ),
}

AREAS = {
    "line": REQUEST_LINES,
    "host": HOSTS,
    "length": LENGTHS,
    "chunks": CHUNKS,
    "field": FIELDS,
    "connection": CONNECTIONS,
}
ROWS = [
    pytest.param(raw, expected, id=f"{area}: {name}")
    for area, rows in AREAS.items()
    for name, (raw, expected) in rows.items()
]


def test_the_table_has_at_least_a_hundred_rows():
    assert len(ROWS) >= 100


@on_uvloop
@pytest.mark.parametrize("action", ["queue", "pass"])
@pytest.mark.parametrize(("raw", "expected"), ROWS)
async def test_a_request_is_taken_exactly_or_refused_whole(
    raw: bytes, expected: Taken | Refused, action: str
):
    async with running(always(OK)) as app, intercept(app, action) as port, port.connected() as connection:
        connection.write(raw)
        if isinstance(expected, Taken):
            await assert_taken(port, app, connection, raw, expected, queued=action == "queue")
        else:
            await assert_refused(port, app, connection, expected)


def intercept(app: RawApp, action: str):
    return intercepting(app.url, routes=[{"action": action}], ingress={"forwarded_headers": False})


async def assert_taken(
    port: Intercept, app: RawApp, connection: Connection, raw: bytes, expected: Taken, *, queued: bool
) -> None:
    got = await connection.answer(raw.split()[0])
    authority = app.url.removeprefix("http://").encode()
    head = expected.head.replace(b"{app}", authority)
    if queued:
        assert got.status == 202
        assert await port.stored() == [(head, expected.body)]
        assert app.requests == []
    else:
        assert got.status == 200
        (request,) = app.requests
        seen, _, body = request.partition(b"\r\n\r\n")
        if b"Transfer-Encoding: chunked" in seen:
            body = unchunked(body)
        assert (seen + b"\r\n\r\n", body) == (expected.passed_head or head, expected.body)
        assert await port.stored() == []


async def assert_refused(port: Intercept, app: RawApp, connection: Connection, expected: Refused) -> None:
    got = await connection.answer()
    assert got.status == expected.status, got.body
    assert got[b"content-type"] == b"application/problem+json"
    assert got[b"openhqm-error"] is not None
    assert got.json["status"] == expected.status
    assert is_plain(got.json["detail"])
    if expected.closes:
        assert got[b"connection"] == b"close"
        assert await connection.is_closed_by_server()
    assert await port.stored() == []
    assert app.requests == []


def is_plain(detail: str) -> bool:
    """Whether it is one short line without what the client sent, Python's notation, or the parser's terms."""
    return len(detail) < 100 and not re.search(r"\n|b'|bytearray|aaa|Pause|PRI|url|token|char\b", detail)


async def until_read(port: Intercept) -> None:
    """Let the server read what was written: a round trip of its own, on the same loop, takes longer."""
    await port.send(get(b"/.openhqm/v1/openapi.json"))


def unchunked(data: bytes) -> bytes:
    body = b""
    while match := re.match(rb"([0-9a-f]+)\r\n", data):
        size = int(match[1], 16)
        body += data[match.end() : match.end() + size]
        data = data[match.end() + size + 2 :]
    assert data == b""
    return body


@on_uvloop
@pytest.mark.parametrize("action", ["queue", "pass"])
class TestSequences:
    """What comes behind a request on the same connection."""

    async def test_pipelined_requests_are_told_apart(self, action):
        first = POST + b"Content-Length: 3\r\n\r\nabc"
        second = POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n"
        async with running(always(OK)) as app, intercept(app, action) as port, port.connected() as connection:
            connection.write(first + second + get(b"/third"))
            answers = [await connection.answer() for _ in range(3)]

            assert {answer.status for answer in answers} == {202 if action == "queue" else 200}
            if action == "queue":
                assert [body for _, body in await port.stored()] == [b"abc", b"de", b""]
            else:
                assert len(app.requests) == 3

    @pytest.mark.parametrize("body", [b"", b"abc"])
    @pytest.mark.parametrize("cut", ["nowhere", "before the body", "in the body"])
    async def test_a_connection_goes_on_after_an_upgrade_that_was_ignored(self, action, body, cut):
        """As Java's HttpClient uses it: an offer with every request, the body in a packet of its own."""
        head = POST + H2C + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
        at = {"nowhere": len(head + body), "before the body": len(head), "in the body": len(head) + 1}[cut]
        async with running(always(OK)) as app, intercept(app, action) as port, port.connected() as connection:
            for _ in range(3):
                connection.write((head + body)[:at])
                if (head + body)[at:]:
                    await until_read(port)
                    connection.write((head + body)[at:])
                answer = await connection.answer()
                assert (answer.status in (200, 202), answer[b"connection"]) == (True, None)

            if action == "queue":
                assert [stored for _, stored in await port.stored()] == [body] * 3
            else:
                assert [request.partition(b"\r\n\r\n")[2] for request in app.requests] == [body] * 3

    @pytest.mark.parametrize("framing", [b"", b"\r\nContent-Length: 3", b"\r\nTransfer-Encoding: chunked"])
    @pytest.mark.parametrize("cut", [0, 7, 30])
    async def test_what_is_pipelined_behind_an_ignored_upgrade_is_never_misread(self, action, framing, cut):
        """The parser loses the rest of the packet: what follows must not be taken for a request."""
        body = {b"": b"", b"\r\nContent-Length: 3": b"abc"}.get(framing, b"3\r\nabc\r\n0\r\n\r\n")
        behind = get(b"/2", b"X: GET /smuggled HTTP/1.1") + get(b"/3")
        async with running(always(OK)) as app, intercept(app, action) as port, port.connected() as connection:
            connection.write(POST + H2C + framing + b"\r\n\r\n" + body + behind[:cut])
            await until_read(port)
            connection.write(behind[cut:])
            answer = await connection.answer()

            assert answer.status in (200, 202)
            lost = cut or b"chunked" in framing
            if lost:
                assert await connection.is_closed_by_server()
            else:
                assert [(await connection.answer()).status for _ in range(2)] == [answer.status] * 2
            taken = [
                request.split()[1] for request in app.requests + [head for head, _ in await port.stored()]
            ]
            assert taken == ([b"/"] if lost else [b"/", b"/2", b"/3"])

    async def test_a_malformed_request_behind_a_good_one_ends_the_connection(self, action):
        async with running(always(OK)) as app, intercept(app, action) as port, port.connected() as connection:
            connection.write(get(b"/good"))
            good = await connection.answer()
            connection.write(b"GET /evil HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n" + get(b"/never"))
            bad = await connection.answer()

            assert (good.status in (200, 202), bad.status) == (True, 400)
            assert await connection.is_closed_by_server()
            assert len(app.requests) + len(await port.stored()) == 1

    async def test_a_malformed_request_in_one_packet_with_a_good_one_takes_it_along(self, action):
        """Neither runs: the one answer, 400, can only be understood as the first request's."""
        async with running(always(OK)) as app, intercept(app, action) as port, port.connected() as connection:
            connection.write(get(b"/good") + b"GET /evil HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n")

            assert (await connection.answer()).status == 400
            assert await connection.is_closed_by_server()
            assert len(app.requests) + len(await port.stored()) == 0

    async def test_bytes_behind_a_refused_head_are_never_a_request(self, action):
        """The body of a refused request looks like a request: it must stay a body (0.CL desync)."""
        smuggled = get(b"/smuggled")
        length = b"Content-Length: %d\r\n\r\n" % len(smuggled)
        async with running(always(OK)) as app, intercept(app, action) as port, port.connected() as connection:
            connection.write(b"POST http://x/ HTTP/1.1\r\nHost: x\r\n" + length + smuggled)

            assert (await connection.answer()).status == 400
            assert await connection.is_closed_by_server()
            assert len(app.requests) + len(await port.stored()) == 0

    async def test_what_follows_connection_close_is_ignored(self, action):
        async with running(always(OK)) as app, intercept(app, action) as port, port.connected() as connection:
            connection.write(get(b"/", b"Connection: close"))

            assert (await connection.answer())[b"connection"] == b"close"
            assert await connection.is_closed_by_server()

    @pytest.mark.parametrize(
        "raw",
        [
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabc",
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Le",
            b"",
        ],
    )
    async def test_a_request_cut_off_is_never_taken_for_whole(self, action, raw):
        async with running(always(OK)) as app, intercept(app, action) as port:
            async with port.connected() as connection:
                connection.write(raw)
            await port.send(get(b"/after"))

            taken = [
                request.split()[1] for request in app.requests + [head for head, _ in await port.stored()]
            ]
            assert taken == [b"/after"]
