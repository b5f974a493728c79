"""One call of gRPC's health protocol, without a gRPC library: enough of HTTP/2 for a question and an answer.

    us      preface, SETTINGS, HEADERS (stream 1), DATA: HealthCheckRequest, end of stream
    server  SETTINGS, HEADERS, DATA: HealthCheckResponse, HEADERS with grpc-status

The answer is in DATA alone: a server that fails the call sends none. So no header has to be decoded.
Source: RFC 9113; RFC 7541 section 6.2.2; grpc.health.v1.
"""

from __future__ import annotations

import asyncio
import struct

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7
_ACK = _END_STREAM = 0x1
_END_HEADERS, _PADDED = 0x4, 0x8
_STREAM = 1
_MOST_FRAMES = 32
_MOST_BYTES = 16_384
"""Of one frame: the default, which we do not raise. Source: RFC 9113 section 6.5.2."""

_SERVING = b"\x08\x01"
"""HealthCheckResponse: field 1, a varint: SERVING."""


async def is_serving(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, authority: str, service: str
) -> bool:
    """Ask on a fresh connection whether *service* is serving.

    Args:
        authority: host and port, as the server is addressed.
        service: empty: the server as a whole.

    Raises:
        EOFError, OSError: the connection ended.
        ValueError: what came is not HTTP/2, or the question is too long.
    """
    writer.write(_PREFACE + _frame(_SETTINGS, 0, 0, b""))
    writer.write(_frame(_HEADERS, _END_HEADERS, _STREAM, _header_block(authority)))
    writer.write(_frame(_DATA, _END_STREAM, _STREAM, _message(service)))
    answer = b""
    for _ in range(_MOST_FRAMES):
        kind, flags, stream, payload = await _read_frame(reader)
        if kind == _SETTINGS and not flags & _ACK:
            writer.write(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            writer.write(_frame(_PING, _ACK, 0, payload))
        elif kind == _DATA and stream == _STREAM:
            answer += _unpadded(flags, payload)
        if kind in (_RST_STREAM, _GOAWAY) or (stream == _STREAM and flags & _END_STREAM):
            break
    return _is_serving(answer)


def _is_serving(answer: bytes) -> bool:
    """Judge a length-prefixed message: one byte says whether it is compressed, four how long it is."""
    return answer[:1] == b"\0" and answer[5:] == _SERVING


def _message(service: str) -> bytes:
    name = service.encode()
    if len(name) > 127:
        raise ValueError("the service's name is too long")
    request = b"\x0a" + bytes([len(name)]) + name if name else b""
    return struct.pack(">BI", 0, len(request)) + request


def _header_block(authority: str) -> bytes:
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/grpc.health.v1.Health/Check",
        ":authority": authority,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in headers.items())


def _text(value: str) -> bytes:
    """A string of HPACK, plain and shorter than 127 bytes."""
    if len(value) >= 127:
        raise ValueError("a header is too long")
    return bytes([len(value)]) + value.encode()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


async def _read_frame(reader: asyncio.StreamReader) -> tuple[int, int, int, bytes]:
    head = await reader.readexactly(9)
    kind, flags, stream = struct.unpack(">BBI", head[3:])
    size = int.from_bytes(head[:3], "big")
    if size > _MOST_BYTES:
        raise ValueError("no HTTP/2")
    return kind, flags, stream & 0x7FFFFFFF, await reader.readexactly(size)


def _unpadded(flags: int, payload: bytes) -> bytes:
    return payload[1 : len(payload) - payload[0]] if flags & _PADDED else payload
