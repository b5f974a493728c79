"""Sixty requests and sixty answers of every shape HTTP/1.1 allows and apps rely on.

A request shape is (name, method, target, header lines, body, chunked); `{n}` in a target becomes the
tag that tells the app's recorder which shape it is. An answer shape is (name, raw bytes, closes).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RequestShape:
    name: str
    method: bytes = b"POST"
    target: bytes = b"/r"
    headers: bytes = b""
    body: bytes = b""
    chunks: tuple[bytes, ...] = ()
    length: bool = True

    def raw(self, tag: bytes, extra: bytes = b"") -> bytes:
        """The request as it goes on the wire, with *tag* as its first header."""
        head = (
            self.method
            + b" "
            + self.target
            + b" HTTP/1.1\r\nHost: shop.example:8080\r\nX-Tag: "
            + tag
            + b"\r\n"
        )
        head += self.headers + extra
        if self.chunks:
            body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in self.chunks) + b"0\r\n\r\n"
            return head + b"Transfer-Encoding: chunked\r\n\r\n" + body
        if self.length:
            head += b"Content-Length: %d\r\n" % len(self.body)
        return head + b"\r\n" + self.body


@dataclass(frozen=True)
class AnswerShape:
    name: str
    raw: bytes
    closes: bool = False
    method: bytes = b"POST"


def _targets() -> list[RequestShape]:
    targets = [
        b"/",
        b"//double//slashes",
        b"/a%2Fb/..%2f/./c/../d//e?q=&&x",
        b"/trailing/",
        b"/dots/../up/./here",
        b"/query?",
        b"/query?a=1&a=2&b",
        b"/query?plus=a+b%20c&eq=a=b",
        b"/%E2%82%AC/%C3%A9?%E2%82%AC=%C3%A9",
        b"/%ff%fe%00",
        b"/semi;colon;v=1/x;y",
        b"/lower%2fUPPER%2Fcase%c3%A9",
        b"/reserved!$&'()*+,;=:@/?!$'()*+,;:@/?",
        b"/tilde~under_score-dash.dot",
        b"/pipe%7Cbracket%5B0%5D?filter%5Bname%5D=x",
        b"/?",
        b"/??",
        b"/a?b#c".replace(b"#", b"%23"),
        b"/" + b"long/" * 400,
        b"/q?" + b"&".join(b"k%d=%d" % (i, i) for i in range(300)),
    ]
    return [
        RequestShape(f"target {target[:40].decode('latin-1')}", target=target, body=b"b")
        for target in targets
    ]


def _headers() -> list[RequestShape]:
    lines = {
        "duplicates, same case": b"X-Dup: a\r\nX-Dup: b\r\n",
        "duplicates, mixed case": b"X-Dup: a\r\nx-dup: b\r\nX-DUP: c\r\n",
        "odd casing kept": b"x-LOWER-Upper: v\r\nCONTENT-type: text/plain\r\n",
        "empty value": b"X-Empty:\r\nX-Blank: \r\n",
        "latin-1 bytes": b"X-Name: caf\xe9\r\n",
        "utf-8 bytes": b"X-Name: caf\xc3\xa9 \xe2\x82\xac\r\n",
        "inner spaces and tabs": b"X-Spaces: a  b\tc\r\n",
        "cookies in several lines": b"Cookie: a=1\r\nCookie: b=2; c=3\r\n",
        "authorization": b"Authorization: Basic dTpw\r\n",
        "range and conditions": b'Range: bytes=0-9\r\nIf-Match: "x"\r\nIf-None-Match: W/"y"\r\n',
        "encoding headers": b"Accept-Encoding: gzip;q=0.5, br\r\nAccept: */*;q=0.1\r\n",
        "content type with parameters": b'Content-Type: multipart/form-data; boundary="a b"\r\n',
        "no content type": b"",
        "date-like values": b"If-Modified-Since: Sat, 29 Oct 1994 19:43:31 GMT\r\n",
        "commas and quotes": b'X-List: "a,b", c\r\nX-List: d\r\n',
        "connection names a header": b"Connection: X-Hop, close\r\nX-Hop: 1\r\nX-Stays: 2\r\n",
        "hop by hop": b"Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n",
        "te trailers": b"TE: trailers\r\nConnection: TE\r\n",
        "idempotency key": b"Idempotency-Key: transparency-1\r\n",
        "other preference kept out": b"Prefer: respond-async\r\n",
        "a hundred headers": b"".join(b"X-H%d: %d\r\n" % (i, i) for i in range(100)),
        "long value": b"X-Long: " + b"v" * 4000 + b"\r\n",
        "traceparent": b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n",
        "origin and referer": b"Origin: https://a.example\r\nReferer: https://a.example/x?y\r\n",
    }
    return [RequestShape(f"headers {name}", headers=value, body=b"b") for name, value in lines.items()]


def _bodies() -> list[RequestShape]:
    return [
        RequestShape("body empty with length", body=b""),
        RequestShape("body every byte", body=bytes(range(256))),
        RequestShape("body looks like HTTP", body=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        RequestShape("body CRLF only", body=b"\r\n\r\n"),
        RequestShape(
            "body gzip stays gzip", headers=b"Content-Encoding: gzip\r\n", body=b"\x1f\x8b\x08garbage"
        ),
        RequestShape("body 64 KiB", body=bytes(range(256)) * 256),
        RequestShape("body 300 KiB, beyond inline", body=bytes(range(256)) * 1200),
        RequestShape("body 2 MiB", body=b"0123456789abcdef" * 131072),
        RequestShape("chunked one", chunks=(b"hello",)),
        RequestShape("chunked many", chunks=tuple(b"%d" % i for i in range(200))),
        RequestShape("chunked large", chunks=(b"x" * 200_000, b"y" * 200_000)),
        RequestShape("put", method=b"PUT", body=b"put"),
        RequestShape("patch", method=b"PATCH", body=b"patch"),
        RequestShape("delete without body", method=b"DELETE", length=False),
        RequestShape("delete with body", method=b"DELETE", body=b"reason"),
        RequestShape("post without length", length=False),
    ]


REQUESTS = _targets() + _headers() + _bodies()


def _answer(status: bytes, headers: bytes = b"", body: bytes = b"ok") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\n" + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


def _statuses() -> list[AnswerShape]:
    lines = [
        b"200 OK", b"201 Created", b"202 Accepted", b"203 Non-Authoritative Information",
        b"206 Partial Content", b"207 Multi-Status", b"226 IM Used", b"299 Odd", b"300 Multiple Choices",
        b"301 Moved Permanently", b"302 Found", b"303 See Other", b"307 Temporary Redirect",
        b"308 Permanent Redirect", b"400 Bad Request", b"401 Unauthorized", b"402 Payment Required",
        b"403 Forbidden", b"404 Not Found", b"409 Conflict", b"410 Gone", b"418 I'm a teapot",
        b"422 Unprocessable Content", b"451 Unavailable For Legal Reasons", b"499 Odd", b"500 Server Error",
        b"501 Not Implemented", b"505 HTTP Version Not Supported", b"507 Insufficient Storage", b"599 Odd",
        b"200 Reason of our own, with (punctuation)", b"200 ",
    ]  # fmt: skip
    return [AnswerShape(f"status {line.decode()}", _answer(line)) for line in lines]


def _answer_headers() -> list[AnswerShape]:
    lines = {
        "two cookies": b"Set-Cookie: a=1; Path=/\r\nSet-Cookie: b=2; HttpOnly\r\n",
        "mixed case duplicates": b"X-Dup: a\r\nx-dup: b\r\n",
        "latin-1 bytes": b"X-Name: caf\xe9\r\n",
        "utf-8 bytes": b"X-Name: \xe2\x82\xac\r\n",
        "empty values": b"X-Empty:\r\nX-Blank: \r\n",
        "location relative": b"Location: ../elsewhere?x=1\r\n",
        "etag and caching": b'ETag: W/"a"\r\nCache-Control: private, max-age=5\r\nAge: 3\r\nExpires: 0\r\n',
        "date and server of the app": b"Date: Sat, 29 Oct 1994 19:43:31 GMT\r\nServer: Legacy/1.0\r\n",
        "challenge": b'WWW-Authenticate: Basic realm="a, b", charset="UTF-8"\r\n',
        "hop by hop": b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n",
        "encoded body stays encoded": b"Content-Encoding: gzip\r\nVary: Accept-Encoding\r\n",
        "content type odd": b"content-TYPE: Application/JSON;charset=UTF-8\r\n",
        "link headers": b'Link: </a>; rel="next"\r\nLink: </b>; rel="prev"\r\n',
        "retry-after on success": b"Retry-After: 120\r\n",
        "eighty headers": b"".join(b"X-H%d: %d\r\n" % (i, i) for i in range(80)),
        "long value": b"X-Long: " + b"v" * 6000 + b"\r\n",
    }
    return [AnswerShape(f"headers {name}", _answer(b"200 OK", value)) for name, value in lines.items()]


def _answer_bodies() -> list[AnswerShape]:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return [
        AnswerShape("body empty", _answer(b"200 OK", body=b"")),
        AnswerShape("body every byte", _answer(b"200 OK", body=bytes(range(256)))),
        AnswerShape("body looks like HTTP", _answer(b"200 OK", body=b"HTTP/1.1 500 No\r\n\r\n")),
        AnswerShape("body 300 KiB, beyond inline", _answer(b"200 OK", body=bytes(range(256)) * 1200)),
        AnswerShape("body 2 MiB", _answer(b"200 OK", body=b"0123456789abcdef" * 131072)),
        AnswerShape("chunked", chunked + b"2\r\nok\r\n3\r\n!!!\r\n0\r\n\r\n"),
        AnswerShape("chunked with extensions", chunked + b"2;a=b\r\nok\r\n0\r\n\r\n"),
        AnswerShape("chunked with trailers", chunked + b"2\r\nok\r\n0\r\nX-Trailer: 1\r\n\r\n"),
        AnswerShape("chunked empty", chunked + b"0\r\n\r\n"),
        AnswerShape(
            "until close", b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it", closes=True
        ),
        AnswerShape("HTTP/1.0 until close", b"HTTP/1.0 200 OK\r\n\r\nall of it", closes=True),
        AnswerShape("204", b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n"),
        AnswerShape("304", b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n'),
        AnswerShape("103 before 200", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + _answer(b"200 OK")),
        AnswerShape("100 before 200", b"HTTP/1.1 100 Continue\r\n\r\n" + _answer(b"200 OK")),
    ]


ANSWERS = _statuses() + _answer_headers() + _answer_bodies()
