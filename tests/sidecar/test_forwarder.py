"""One envelope becomes one call and one answer: exact, whole, within its limits, or an error."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sidecar.raw_app import Behaviour, Peer, RawApp, always, connected, open_connection, running

from openhqm.envelope import Envelope
from openhqm.errors import AnswerTooLarge, AppConnectionLost, AppTimeout, EnvelopeCorrupt
from openhqm.forwarder import Checkpoint, Forwarded, Forwarder, retry_after_seconds
from openhqm.settings import Settings
from openhqm.stores.base import Answer, BlobRef, Blobs, Body
from openhqm.stores.blobs import FileBlobs, MemoryBlobs

ID = bytes(range(16))
HEAD = (
    b"POST /a%2Fb/./c?q=&&x HTTP/1.1\r\nHost: app\r\nX-Dup: caf\xe9\r\nx-dup: b\r\nContent-Length: 4\r\n\r\n"
)
ENVELOPE = Envelope(head=HEAD)
LINE = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(params=["memory", "file"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return MemoryBlobs() if request.param == "memory" else FileBlobs(tmp_path)


class AtOnce(Forwarder):
    """Goes the short way where there is one."""

    async def forward(self, envelope: Envelope, body: Body, *, record_id: bytes, epoch: int) -> Forwarded:
        await open_connection(self._client)
        told = asyncio.Event()
        call = self.begin(envelope, body, told.set, record_id=record_id, epoch=epoch)
        if call is None:
            return await super().forward(envelope, body, record_id=record_id, epoch=epoch)
        await told.wait()
        return call.outcome() or await call.rest()


@pytest.fixture(autouse=True, params=[Forwarder, AtOnce])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test holds for both ways."""
    monkeypatch.setattr(sys.modules[__name__], "Way", request.param)


Way = Forwarder


@asynccontextmanager
async def forwarding(
    behaviour: Behaviour,
    blobs: Blobs | None = None,
    *,
    spill_bytes: int = 1000,
    max_bytes: int = 1_000_000,
    checkpoint: Checkpoint | None = None,
) -> AsyncIterator[tuple[RawApp, Forwarder]]:
    """An app and a forwarder to it."""
    settings = Settings.model_validate(
        {"store": {"spill_bytes": spill_bytes}, "response": {"max_bytes": max_bytes}}
    )
    async with connected(behaviour) as (app, client):
        yield app, Way(client, blobs or MemoryBlobs(), settings, checkpoint=checkpoint)


async def stored(blobs: Blobs, data: bytes) -> BlobRef:
    writer = await blobs.write(ID, "request")
    await writer.write(data)
    return await writer.commit()


async def contents(blobs: Blobs, ref: BlobRef) -> bytes:
    return b"".join([chunk async for chunk in blobs.read(ref)])


def with_length(body: bytes) -> bytes:
    return LINE + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def test_the_request_arrives_byte_for_byte() -> None:
    """What the app receives is the stored head and the stored body, nothing added or changed."""
    async with forwarding(always(with_length(b"ok"))) as (app, forwarder):
        await forwarder.forward(ENVELOPE, b"\0\xff\r\n", record_id=ID, epoch=1)

    assert app.requests == [HEAD + b"\0\xff\r\n"]


async def test_the_answer_is_stored_as_the_app_sent_it() -> None:
    """Reason, case, order, duplicates and bytes above 0x7f stay; hop-by-hop headers and framing go."""
    raw = (
        b"HTTP/1.1 201 Cr\xe9\xe9\r\nX-Dup: caf\xe9\r\nConnection: X-Hop, keep-alive\r\nx-hop: 1\r\n"
        b"x-dup:b\r\nSet-Cookie: a=1\r\nKeep-Alive: timeout=5\r\ncontent-length: 2\r\n"
        b"Set-Cookie: b=2\r\n\r\nok"
    )
    async with forwarding(always(raw)) as (_, forwarder):
        forwarded = await forwarder.forward(ENVELOPE, b"body", record_id=ID, epoch=1)

    assert forwarded.status == 201
    assert forwarded.answer == Answer(
        head=b"HTTP/1.1 201 Cr\xe9\xe9\r\nX-Dup: caf\xe9\r\nx-dup: b\r\n"
        b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\n",
        body=b"ok",
    )
    assert (forwarded.body_bytes, forwarded.length_verified) == (2, True)
    assert forwarded.retry_after_seconds is None


async def test_the_answer_to_head_keeps_its_length() -> None:
    """Content-Length of a HEAD answer describes the resource, not the stored empty body."""
    head = b"HEAD / HTTP/1.1\r\nHost: app\r\n\r\n"
    async with forwarding(always(LINE + b"Content-Length: 77\r\n\r\n")) as (_, forwarder):
        forwarded = await forwarder.forward(Envelope(head=head), b"", record_id=ID, epoch=1)

    assert forwarded.answer == Answer(head=LINE + b"Content-Length: 77\r\n\r\n", body=b"")


async def test_an_answer_ended_by_its_connection_is_marked() -> None:
    """Nobody can know whether such an answer is whole; it says so."""
    async with forwarding(always(LINE + b"\r\nperhaps", close=True)) as (_, forwarder):
        forwarded = await forwarder.forward(ENVELOPE, b"body", record_id=ID, epoch=1)

    assert forwarded.answer.body == b"perhaps"
    assert not forwarded.length_verified


@pytest.mark.parametrize(
    ("size", "spilled"), [(0, False), (999, False), (1000, False), (1001, True), (900_000, True)]
)
async def test_large_answers_become_blobs(blobs: Blobs, size: int, spilled: bool) -> None:
    """Up to spill_bytes an answer stays in the record, beyond it goes to a blob of its epoch."""
    body = bytes(range(256)) * (size // 256 + 1)
    async with forwarding(always(with_length(body[:size])), blobs) as (_, forwarder):
        forwarded = await forwarder.forward(ENVELOPE, b"body", record_id=ID, epoch=7)

    kept = forwarded.answer.body
    assert isinstance(kept, BlobRef) is spilled
    assert forwarded.body_bytes == size
    if isinstance(kept, BlobRef):
        assert kept.size == size
        assert await contents(blobs, kept) == body[:size]
    else:
        assert kept == body[:size]


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("spill_bytes", [1000, 100_000])
async def test_an_answer_over_the_limit_is_an_error_and_leaves_nothing(
    blobs: MemoryBlobs | FileBlobs, framing: str, spill_bytes: int
) -> None:
    """One byte too many fails the attempt whatever the framing; no shortened blob stays behind."""
    body = b"z" * 50_001
    raw = {
        "length": with_length(body),
        "chunked": LINE + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
        "close": LINE + b"\r\n" + body,
    }[framing]
    options = {"spill_bytes": spill_bytes, "max_bytes": 50_000}
    async with forwarding(always(raw, close=True), blobs, **options) as (app, forwarder):
        with pytest.raises(AnswerTooLarge):
            await forwarder.forward(ENVELOPE, b"body", record_id=ID, epoch=1)

        await asyncio.wait_for(app.quiet(), 5)
    assert await blobs.names() == []


async def test_an_endless_answer_is_cut_off_at_the_limit() -> None:
    """The app is not read beyond the limit: its connection ends."""

    async def babble(peer: Peer) -> None:
        await peer.request()
        await peer.send(LINE + b"\r\n")
        while True:
            await peer.send(b"z" * 100_000)

    async with forwarding(babble) as (app, forwarder):
        with pytest.raises(AnswerTooLarge):
            await forwarder.forward(ENVELOPE, b"body", record_id=ID, epoch=1)

        await asyncio.wait_for(app.quiet(), 5)


async def test_an_answer_lost_midway_leaves_no_blob(blobs: MemoryBlobs | FileBlobs) -> None:
    """A large answer whose connection ends early is an error, and its blob is aborted."""
    raw = LINE + b"Content-Length: 90000\r\n\r\n" + b"z" * 80_000
    async with forwarding(always(raw, close=True), blobs) as (_, forwarder):
        with pytest.raises(AppConnectionLost):
            await forwarder.forward(ENVELOPE, b"body", record_id=ID, epoch=1)

    assert await blobs.names() == []


async def test_a_large_request_is_streamed_from_its_blob(blobs: Blobs) -> None:
    """A request body kept as a blob arrives whole."""
    data = bytes(range(256)) * 4000
    ref = await stored(blobs, data)
    head = b"PUT / HTTP/1.1\r\nHost: app\r\nContent-Length: %d\r\n\r\n" % len(data)
    async with forwarding(always(with_length(b"ok")), blobs) as (app, forwarder):
        await forwarder.forward(Envelope(head=head), ref, record_id=ID, epoch=1)

    assert app.requests == [head + data]


async def test_each_epoch_writes_a_blob_of_its_own(blobs: Blobs) -> None:
    """A zombie's late answer cannot overwrite the one of a newer lease."""
    async with forwarding(always(with_length(b"z" * 2000)), blobs) as (_, forwarder):
        old = await forwarder.forward(ENVELOPE, b"body", record_id=ID, epoch=1)
        new = await forwarder.forward(ENVELOPE, b"body", record_id=ID, epoch=2)

    assert isinstance(old.answer.body, BlobRef)
    assert isinstance(new.answer.body, BlobRef)
    assert old.answer.body.name != new.answer.body.name


async def test_a_missing_request_body_is_never_sent(blobs: Blobs) -> None:
    """A blob that is gone makes the record corrupt; the app sees no part of the request."""
    ref = await stored(blobs, b"body")
    await blobs.delete([ref])
    async with forwarding(always(with_length(b"ok")), blobs) as (app, forwarder):
        with pytest.raises(EnvelopeCorrupt):
            await forwarder.forward(ENVELOPE, ref, record_id=ID, epoch=1)
        await app.quiet()

    assert app.requests == []


async def test_a_request_body_of_another_length_is_corrupt(blobs: Blobs) -> None:
    """A blob shorter than accepted is not sent as if it were whole."""
    ref = await stored(blobs, b"body")
    head = b"PUT / HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\n"
    async with forwarding(always(with_length(b"ok")), blobs) as (app, forwarder):
        with pytest.raises(EnvelopeCorrupt):
            await forwarder.forward(Envelope(head=head), BlobRef(ref.name, 5), record_id=ID, epoch=1)
        await app.quiet()

    assert app.requests == []


async def test_the_envelopes_timeout_wins() -> None:
    """A timeout stored with the request replaces egress.app_timeout_seconds."""

    async def stay_silent(peer: Peer) -> None:
        await peer.request()
        await peer.reader.read()

    envelope = Envelope(head=HEAD, timeout_seconds=0.02)
    async with forwarding(stay_silent) as (_, forwarder):
        with pytest.raises(AppTimeout):
            await forwarder.forward(envelope, b"body", record_id=ID, epoch=1)


@pytest.mark.parametrize("large", [False, True], ids=["bytes", "blob"])
async def test_each_checkpoint_is_told_when_it_has_happened(blobs: Blobs, large: bool) -> None:
    """Checkpoints come in order; at "got-head" the answer's body is still to come."""
    seen: list[str] = []
    told: dict[str, asyncio.Event] = {
        name: asyncio.Event() for name in ("sent-head", "sent-body", "got-head", "got-body")
    }

    def checkpoint(name: str) -> None:
        seen.append(name)
        told[name].set()

    async def answer_in_steps(peer: Peer) -> None:
        await peer.request()
        await told["sent-body"].wait()
        await peer.send(LINE + b"Content-Length: 2\r\n\r\n")
        await told["got-head"].wait()
        assert seen == ["sent-head", "sent-body", "got-head"]
        await peer.send(b"ok")

    body = await stored(blobs, b"body") if large else b"body"
    async with forwarding(answer_in_steps, blobs, checkpoint=checkpoint) as (app, forwarder):
        forwarded = await forwarder.forward(ENVELOPE, body, record_id=ID, epoch=1)

    assert seen == ["sent-head", "sent-body", "got-head", "got-body"]
    assert forwarded.answer.body == b"ok"
    assert app.requests == [HEAD + b"body"]


DIE_AT = """
import os, signal, sys, uvloop
from openhqm.envelope import Envelope
from openhqm.forwarder import Forwarder
from openhqm.http1 import Client
from openhqm.settings import Settings
from openhqm.stores.blobs import MemoryBlobs

url, step, head = sys.argv[1], sys.argv[2], sys.argv[3].encode("latin-1")

def die(name):
    if name == step:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    forwarder = Forwarder(Client(url), MemoryBlobs(), Settings(), checkpoint=die)
    await forwarder.forward(Envelope(head=head), b"body", record_id=bytes(16), epoch=1)

uvloop.run(main())
"""


@pytest.mark.crash
@pytest.mark.parametrize(
    ("step", "arrived"),
    [("sent-head", HEAD), ("sent-body", HEAD + b"body"), ("got-head", HEAD + b"body")],
    ids=["sent-head", "sent-body", "got-head"],
)
async def test_a_process_killed_at_a_checkpoint_had_done_just_that(step: str, arrived: bytes) -> None:
    """kill -9 at a step: the app received what the step's name says, no more and no less."""
    received = bytearray()

    async def read_all(peer: Peer) -> None:
        while data := await peer.reader.read(1000):
            received.extend(data)
            if received.endswith(b"body"):
                await peer.send(LINE + b"Content-Length: 2\r\n\r\n")

    async with running(read_all) as app:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", DIE_AT, app.url, step, HEAD.decode("latin-1")
        )
        assert await process.wait() == -signal.SIGKILL
        await app.quiet()

    assert bytes(received) == arrived


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0", 0.0),
        (b"120", 120.0),
        (b" 7 ", 7.0),
        (b"9" * 400, 315_360_000.0),
        (b"Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        (b"Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        (b"Thu, 01 Jan 2026 00:01:40 GMT", 100.0),
        (b"Thursday, 01-Jan-26 00:01:40 GMT", 100.0),
        (b"-5", None),
        (b"1.5", None),
        (b"soon", None),
        (b"", None),
        (b"\xb2", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: bytes, seconds: float | None) -> None:
    """Both forms of RFC 9110 count, the past is now, nonsense is nothing."""
    midnight = 1_767_225_600.0  # 2026-01-01 00:00:00 UTC

    assert retry_after_seconds([(b"retry-AFTER", value)], midnight) == seconds


@given(st.binary(max_size=40))
def test_retry_after_never_raises(value: bytes) -> None:
    """Whatever the app says there, it is seconds or nothing."""
    seconds = retry_after_seconds([(b"Retry-After", value)], 1_767_225_600.0)

    assert seconds is None or seconds >= 0.0


async def test_retry_after_of_an_answer_is_read() -> None:
    """The answer brings its Retry-After along for the retry decision."""
    raw = b"HTTP/1.1 503 Busy\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\n"
    async with forwarding(always(raw)) as (_, forwarder):
        forwarded = await forwarder.forward(ENVELOPE, b"body", record_id=ID, epoch=1)

    assert (forwarded.status, forwarded.retry_after_seconds) == (503, 3.0)
