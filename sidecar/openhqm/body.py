"""Reading a request body under limits, into bytes or into a blob.

Ingress calls `check_size` before anything else is done with a request, `read_body` once it is
admitted. Nothing here buffers more than `store.spill_bytes` and what the parser holds.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp.web import BaseRequest, RequestPayloadError

from openhqm.errors import BadRequest, BodyTimeout, BodyTooLarge
from openhqm.settings import Settings
from openhqm.stores.base import Abilities, Blobs, BlobWriter, Body

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

MIN_BYTES_PER_SECOND = 240
"""A body that stays slower is given up: a few such would keep connections and memory for weeks.

Source: the default of Kestrel, MinRequestBodyDataRate. A modem of 1984 sent as much.
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a body may be.

    Args:
        max_bytes: more is refused.
        inline_bytes: more goes into a blob.
        timeout_seconds: longest time without a byte, and how far a slow body may fall behind.
    """

    max_bytes: int
    inline_bytes: int
    timeout_seconds: float

    @classmethod
    def from_settings(cls, settings: Settings, abilities: Abilities) -> Limits:
        return cls(
            max_bytes=settings.ingress.max_body_bytes,
            # Never above the limit: a body that came with its head is judged by this alone.
            inline_bytes=min(
                settings.store.spill_bytes, abilities.max_inline_bytes, settings.ingress.max_body_bytes
            ),
            timeout_seconds=settings.ingress.body_timeout_seconds,
        )


@dataclass(slots=True)  # one per request, and not frozen: that would treble what it costs
class Received:
    """A body that was read to its end; *fingerprint* is its SHA-256, b"" if not asked for."""

    body: Body
    size: int
    fingerprint: bytes = b""


def check_size(declared: int | None, limits: Limits) -> None:
    """Refuse a declared length that is too large, before a byte of the body is read.

    Raises:
        BodyTooLarge: says the limit.
    """
    if declared is not None and declared > limits.max_bytes:
        raise _too_large(limits)


async def read_body(
    request: BaseRequest,
    blobs: Blobs,
    record_id: bytes,
    limits: Limits,
    *,
    declared: int | None,
    hashed: bool,
) -> Received:
    """Read the body to its end.

    Args:
        declared: Content-Length, None for a chunked body.
        hashed: whether the fingerprint is wanted.

    Raises:
        BodyTooLarge: a chunked body grew over the limit.
        BodyTimeout: it came too slowly, see `Patience`.
        BadRequest: the body is malformed.
        ConnectionError: the client left.
        StoreUnavailable: the blob cannot be written.
    """
    content = request.content
    if content.is_eof() and content.total_bytes <= limits.inline_bytes:
        # The usual case: the body came with the head, there is nothing to wait for.
        body = content.read_nowait()
        return Received(body, len(body), hashlib.sha256(body).digest() if hashed else b"")
    sink = _Sink(
        blobs, record_id, limits, spill=declared is not None and declared > limits.inline_bytes, hashed=hashed
    )
    patience = Patience(limits.timeout_seconds)
    try:
        while chunk := await patience.next_chunk(content.readany):
            await sink.write(chunk)
        return await sink.finish()
    except BaseException:
        await sink.abort()
        raise


async def keep_body(body: bytes, blobs: Blobs, record_id: bytes, limits: Limits, *, hashed: bool) -> Received:
    """Return a body that is in memory as it is to be stored: as it is, or as a blob when it is large.

    Raises:
        BodyTooLarge: it exceeds the limit.
        StoreUnavailable: the blob cannot be written.
    """
    sink = _Sink(blobs, record_id, limits, spill=len(body) > limits.inline_bytes, hashed=hashed)
    try:
        await sink.write(body)
        return await sink.finish()
    except BaseException:
        await sink.abort()
        raise


async def send_continue(request: BaseRequest) -> None:
    """Tell a client that waits with its body to go on (RFC 9110 section 10.1.1)."""
    if not request.content.is_eof():
        await request.writer.write(CONTINUE)


class Patience:
    """How long the rest of a body is waited for.

    It begins with *timeout_seconds*, waiting uses it up, and every MIN_BYTES_PER_SECOND that come give
    a second back, up to *timeout_seconds* again. So a client may pause for that long, but not always
    be slow. Only waiting counts: a client does not pay for a slow disk of ours.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._left_seconds = timeout_seconds

    async def next_chunk(self, read: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return what came, b"" at the end; raises as the function of this name."""
        clock = asyncio.get_running_loop().time
        asked_at = clock()
        try:
            chunk = await next_chunk(read, self._left_seconds)
        except BodyTimeout:
            raise BodyTimeout(
                f"the body came slower than {MIN_BYTES_PER_SECOND} bytes/s for {self._timeout_seconds:g} s"
            ) from None
        left_seconds = self._left_seconds - (clock() - asked_at) + len(chunk) / MIN_BYTES_PER_SECOND
        self._left_seconds = min(left_seconds, self._timeout_seconds)
        return chunk


async def next_chunk(read: Callable[[], Awaitable[bytes]], timeout_seconds: float) -> bytes:
    """Return what came of a body, b"" at its end.

    Args:
        read: a method of the request's content.

    Raises:
        BodyTimeout: nothing came for *timeout_seconds*.
        BadRequest: the body is malformed.
        ConnectionError: the client left.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            return await read()
    except TimeoutError:
        raise BodyTimeout(f"no byte of the body came for {timeout_seconds:g} s") from None
    except RequestPayloadError as exc:
        raise BadRequest("the body's framing is malformed") from exc


class _Sink:
    """Takes chunks; turns from a list into a blob when they outgrow it."""

    def __init__(self, blobs: Blobs, record_id: bytes, limits: Limits, *, spill: bool, hashed: bool) -> None:
        self._blobs = blobs
        self._record_id = record_id
        self._limits = limits
        self._inline_bytes = -1 if spill else limits.inline_bytes
        self._hash = hashlib.sha256() if hashed else None
        self._chunks: list[bytes] = []
        self._blob: BlobWriter | None = None
        self._size = 0

    async def write(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > self._limits.max_bytes:
            raise _too_large(self._limits)
        if self._hash is not None:
            self._hash.update(chunk)
        if self._blob is not None:
            await self._blob.write(chunk)
            return
        self._chunks.append(chunk)
        if self._size > self._inline_bytes:
            self._blob = await self._blobs.write(self._record_id, "request")
            for held in self._chunks:
                await self._blob.write(held)
            self._chunks.clear()

    async def finish(self) -> Received:
        fingerprint = self._hash.digest() if self._hash is not None else b""
        if self._blob is None:
            return Received(b"".join(self._chunks), self._size, fingerprint)
        body = await self._blob.commit()
        self._blob = None
        return Received(body, self._size, fingerprint)

    async def abort(self) -> None:
        if self._blob is not None:
            await self._blob.abort()


def _too_large(limits: Limits) -> BodyTooLarge:
    return BodyTooLarge(f"the body exceeds {limits.max_bytes} bytes")
