"""One envelope, one call to the app, one answer or one AppError.

Egress calls it for every lease and decides with `retry.py` what its outcome means; the calling is
done by `http1.py`. Bodies of any size pass: large ones come from and go to the store's blobs
piece by piece, and an answer over the limit is an error, never a shorter answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import NoReturn

from openhqm.envelope import Envelope
from openhqm.errors import AnswerTooLarge, EnvelopeCorrupt
from openhqm.headers import HOP_BY_HOP, strip_hop_by_hop
from openhqm.http1 import Client, Connection, Head, Headers, Response
from openhqm.settings import Settings
from openhqm.stores.base import Answer, BlobRef, Blobs, Body

Checkpoint = Callable[[str], None]
"""Told "sent-head", "sent-body", "got-head" and "got-body" as each has happened."""

_FAR_SECONDS = 10 * 365 * 86_400.0
_NOT_STORED = HOP_BY_HOP | {b"content-length"}


@dataclass(slots=True)  # one per request, and not frozen: that would treble what it costs
class Forwarded:
    """The app's answer to one attempt.

    Args:
        answer: head and body to store. The head is the status line and the end-to-end headers as
            the app sent them, without framing: who serves it frames the body anew. Only the answer
            to HEAD keeps its Content-Length, which says nothing about the stored, empty body.
        retry_after_seconds: what Retry-After asks for, None without a valid one.
        body_bytes: size of the answer's body.
        length_verified: False when only the end of the connection marked the end of the body.
    """

    status: int
    answer: Answer
    retry_after_seconds: float | None
    body_bytes: int
    length_verified: bool


class Call:
    """A request that was sent the short way: nobody waits for its answer, somebody is told."""

    __slots__ = ("_answer", "_epoch", "_forwarder", "_record_id", "_response", "_tell", "connection")

    def __init__(self, forwarder: Forwarder, tell: Callable[[], None], record_id: bytes, epoch: int) -> None:
        self._forwarder = forwarder
        self._tell = tell
        self._record_id = record_id
        self._epoch = epoch
        self._answer: Forwarded | None = None
        self._response: Response | None = None
        self.connection: Connection | None = None
        """Where it was sent."""

    def answered(self, head: Head, body: bytes) -> None:
        """Take an answer whose head is known; see `http1_connection.Listener`."""
        self._answer = Forwarded(head.status, Answer(head.stored, body), None, len(body), True)
        self._tell()

    def begun(self, response: Response) -> None:
        """Take any other answer, or the error in place of one."""
        self._response = response
        response.notify(self._tell)

    def outcome(self) -> Forwarded | None:
        """Return the answer; None: it is too long to be had without waiting, and `rest` brings it.

        Raises what `Forwarder.forward` raises.
        """
        response = self._response
        if response is None:
            return self._answer
        if response.error is not None:
            raise response.error
        return self._forwarder.whole(response)

    async def rest(self) -> Forwarded:
        """Wait for an answer whose beginning has come."""
        assert self._response is not None
        return await self._forwarder.collect(self._response, self._record_id, self._epoch)

    def cancel(self) -> None:
        """Stop: the app sees its connection end. Nothing happens when the answer is complete."""
        if self._response is not None:
            self._response.cancel()
        elif self.connection is not None:
            self.connection.withdraw(self)


class Forwarder:
    """Calls the app.

    Args:
        blobs: where large request bodies are and large answers go.
        checkpoint: for crash tests; it may end the process. With it, head and body are sent and
            received in separate steps.
    """

    def __init__(
        self, client: Client, blobs: Blobs, settings: Settings, *, checkpoint: Checkpoint | None = None
    ) -> None:
        self._client = client
        self._blobs = blobs
        self._checkpoint = checkpoint
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Take over the hot settings: timeout and sizes."""
        self._timeout_seconds = settings.egress.app_timeout_seconds
        self._spill_bytes = settings.store.spill_bytes
        self._max_bytes = settings.response.max_bytes
        self._inline_bytes = min(self._spill_bytes, self._max_bytes)

    async def forward(self, envelope: Envelope, body: Body, *, record_id: bytes, epoch: int) -> Forwarded:
        """Send the request once and bring the whole answer.

        Args:
            record_id, epoch: name the blob of a large answer; a later epoch gets another one.

        Raises:
            AppUnreachable: nothing was sent.
            AppTimeout, AppConnectionLost, AppAnswerInvalid: the outcome is not known.
            AnswerTooLarge: the app ran, its answer exceeds response.max_bytes.
            EnvelopeCorrupt: the stored body is missing or has another length than was accepted.
            StoreUnavailable: a blob could not be read or written; the app may have been called.
        """
        seconds = envelope.timeout_seconds
        timeout_seconds = self._timeout_seconds if seconds is None else seconds
        outgoing = body if isinstance(body, bytes) else self._stored(body)
        if self._checkpoint is None:
            response = await self._client.exchange(
                envelope.head, outgoing, timeout_seconds=timeout_seconds, gather_bytes=self._spill_bytes
            )
        else:
            response = await self._call_by_steps(envelope.head, outgoing, timeout_seconds, self._checkpoint)
        return self.whole(response) or await self.collect(response, record_id, epoch)

    def begin(
        self, envelope: Envelope, body: Body, tell: Callable[[], None], *, record_id: bytes, epoch: int
    ) -> Call | None:
        """Do what `forward` does without waiting; *tell* is called later, when there is an outcome.

        Returns: None when only `forward` can do it: the body is not at hand, no connection is open,
            or somebody watches the steps. Nothing was sent then.
        """
        if self._checkpoint is not None or not isinstance(body, bytes):
            return None
        call = Call(self, tell, record_id, epoch)
        seconds = envelope.timeout_seconds
        call.connection = self._client.begin(
            envelope.head,
            body,
            call,
            timeout_seconds=self._timeout_seconds if seconds is None else seconds,
            gather_bytes=self._inline_bytes,
        )
        return None if call.connection is None else call

    def whole(self, response: Response) -> Forwarded | None:
        """Return the answer if it is complete and not too long to be stored as it is."""
        body = response.whole(self._inline_bytes)
        return None if body is None else self._forwarded(response, body, len(body))

    async def collect(self, response: Response, record_id: bytes, epoch: int) -> Forwarded:
        """Wait for the rest of an answer; a large one goes to a blob."""
        body = await self._collect(response, record_id, epoch)
        return self._forwarded(response, body, body.size if isinstance(body, BlobRef) else len(body))

    def _forwarded(self, response: Response, body: Body, body_bytes: int) -> Forwarded:
        if self._checkpoint is not None:
            self._checkpoint("got-body")
        known = response.known
        if known is not None and known.stored:
            head, retry_after = known.stored, None
        else:
            head = stored_head(response)
            retry_after = retry_after_seconds(response.headers, time.time())
            if known is not None and retry_after is None:
                known.stored = head
        return Forwarded(
            response.status, Answer(head, body), retry_after, body_bytes, response.length_verified
        )

    async def _call_by_steps(
        self, head: bytes, body: bytes | AsyncIterator[bytes], timeout_seconds: float, checkpoint: Checkpoint
    ) -> Response:
        response = await self._client.exchange(
            head, _marked(body, checkpoint), timeout_seconds=timeout_seconds, gather_bytes=-1
        )
        checkpoint("got-head")
        return response

    async def _stored(self, ref: BlobRef) -> AsyncIterator[bytes]:
        """Read a request body, and never let the app take a part of it for the whole."""
        size = 0
        try:
            async for chunk in self._blobs.read(ref):
                size += len(chunk)
                yield chunk
        except KeyError as exc:
            raise EnvelopeCorrupt(f"the request body {ref.name} is gone") from exc
        if size != ref.size:
            raise EnvelopeCorrupt(f"the request body {ref.name} has {size} bytes instead of {ref.size}")

    async def _collect(self, response: Response, record_id: bytes, epoch: int) -> Body:
        pieces: list[bytes] = []
        size = 0
        while piece := await response.read():
            size += len(piece)
            pieces.append(piece)
            if size > self._max_bytes:
                self._refuse(response)
            if size > self._spill_bytes:
                return await self._spill(response, pieces, f"answer-{epoch}", record_id)
        return b"".join(pieces)

    async def _spill(self, response: Response, pieces: list[bytes], part: str, record_id: bytes) -> BlobRef:
        writer = await self._blobs.write(record_id, part)
        size = 0
        try:
            async for piece in _rest(pieces, response):
                size += len(piece)
                if size > self._max_bytes:
                    self._refuse(response)
                await writer.write(piece)
        except BaseException:
            response.close()
            await writer.abort()
            raise
        return await writer.commit()

    def _refuse(self, response: Response) -> NoReturn:
        response.close()
        raise AnswerTooLarge(f"the app's answer exceeds response.max_bytes ({self._max_bytes})")


async def _rest(pieces: list[bytes], response: Response) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    while piece := await response.read():
        yield piece


async def _marked(body: bytes | AsyncIterator[bytes], checkpoint: Checkpoint) -> AsyncIterator[bytes]:
    """Send head and body apart, each surely handed to the kernel before its checkpoint."""
    yield b""  # the head leaves with the first piece
    await asyncio.sleep(0)  # uvloop writes at the end of a turn
    checkpoint("sent-head")
    if isinstance(body, bytes):
        yield body
    else:
        async for chunk in body:
            yield chunk
    await asyncio.sleep(0)
    checkpoint("sent-body")


def stored_head(response: Response) -> bytes:
    """Return the head to store: the app's own bytes, less what belongs to one connection."""
    pairs = strip_hop_by_hop(response.headers, HOP_BY_HOP if response.is_head else _NOT_STORED)
    lines = [b"%b: %b" % pair for pair in pairs]
    return b"\r\n".join([b"HTTP/1.1 %d %b" % (response.status, response.reason), *lines, b"\r\n"])


def retry_after_seconds(headers: Headers, now: float) -> float | None:
    """Return the seconds the first valid Retry-After asks for, never negative; None without one.

    Source: RFC 9110 section 10.2.3: seconds, or an HTTP date.
    """
    for name, value in headers:
        if len(name) == 11 and name.lower() == b"retry-after":
            text = value.strip().decode("latin-1")
            seconds = float(text) if text.isascii() and text.isdigit() else _until(text, now)
            if seconds is not None:
                return min(max(seconds, 0.0), _FAR_SECONDS)
    return None


def _until(text: str, now: float) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() - now
    except (ValueError, OverflowError):
        return None
