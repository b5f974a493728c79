"""Large bodies in S3: a real server, the store contract's part about them, and a whole request."""

from __future__ import annotations

import asyncio
import re
import traceback
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import obstore
import pytest
from aiohttp import web
from tests.conformance.contract_blobs import BlobContract
from tests.conformance.store_case import StoreCase
from tests.services import S3Server, free_port
from tests.sidecar.intercepted import intercepting, post, replaying
from tests.sidecar.test_sqlite_store import SqliteCase

from openhqm.errors import SettingsError, StoreUnavailable
from openhqm.forwarder import Forwarder
from openhqm.http1 import Client
from openhqm.settings_docs import mask_url
from openhqm.stores import registry
from openhqm.stores.base import BlobRef, Options
from openhqm.stores.blobs import CHUNK_BYTES
from openhqm.stores.s3_blobs import PART_BYTES, S3Blobs

pytestmark = pytest.mark.external_service

ID = bytes(range(16))
BUCKET = "bodies"


@pytest.fixture
def url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix of its own; the credentials are in the environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4()}/x%20y?endpoint={s3_server.endpoint}&allow_http=true"


@pytest.fixture
def blobs(url: str) -> S3Blobs:
    return S3Blobs.from_url(url)


async def put(blobs: S3Blobs, data: bytes, step: int = 100_000, part: str = "request") -> BlobRef:
    writer = await blobs.write(ID, part)
    for start in range(0, len(data), step):
        await writer.write(data[start : start + step])
    return await writer.commit()


async def read(blobs: S3Blobs, ref: BlobRef) -> bytes:
    return b"".join([chunk async for chunk in blobs.read(ref)])


def patterned(size: int) -> bytes:
    """Bytes in which a part out of place shows: no part is a multiple of what repeats itself."""
    unit = b"".join(number.to_bytes(4, "big") for number in range(65_537))
    return (unit * (size // len(unit) + 1))[:size]


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, 4 * PART_BYTES + 5])
@pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])
async def test_bytes_come_back_exactly_in_chunks_of_bounded_size(blobs: S3Blobs, size: int) -> None:
    data = patterned(size)

    ref = await put(blobs, data)

    chunks = [chunk async for chunk in blobs.read(ref)]
    assert b"".join(chunks) == data
    assert (ref.name.startswith(f"{ID.hex()}.0-"), ref.size) == (True, size)
    assert max(map(len, chunks), default=0) <= CHUNK_BYTES


async def test_a_deleted_blob_is_gone_and_deleting_it_again_is_no_error(blobs: S3Blobs) -> None:
    gone, kept = await put(blobs, b"x"), await put(blobs, b"y", part="answer-1")

    await blobs.delete([gone])
    await blobs.delete([gone])
    await blobs.delete([])

    with pytest.raises(KeyError):
        await read(blobs, gone)
    assert await read(blobs, kept) == b"y"


@pytest.mark.parametrize("size", [1, 3 * PART_BYTES + 1])
async def test_an_aborted_blob_leaves_nothing(blobs: S3Blobs, s3_server: S3Server, size: int) -> None:
    id = uuid.uuid4().bytes
    writer = await blobs.write(id, "request")
    await writer.write(bytes(size))

    await writer.abort()

    assert await objects(blobs) == []
    assert not [name for name in s3_server.unfinished_uploads(BUCKET) if id.hex() in name]


async def test_an_upload_that_is_cancelled_while_it_is_under_way_is_aborted(
    blobs: S3Blobs, s3_server: S3Server
) -> None:
    id = uuid.uuid4().bytes
    writer = await blobs.write(id, "request")
    await writer.write(bytes(2 * PART_BYTES + 1))
    async with asyncio.timeout(10):
        while not [name for name in s3_server.unfinished_uploads(BUCKET) if id.hex() in name]:
            await asyncio.sleep(0.01)
    writing = asyncio.create_task(writer.write(bytes(8 * PART_BYTES)))
    await asyncio.sleep(0)

    writing.cancel()
    await asyncio.wait([writing])
    await writer.abort()

    assert not [name for name in s3_server.unfinished_uploads(BUCKET) if id.hex() in name]
    assert await objects(blobs) == []


async def test_an_upload_whose_commit_is_cancelled_leaves_nothing(blobs: S3Blobs) -> None:
    writer = await blobs.write(ID, "request")
    await writer.write(bytes(2 * PART_BYTES + 1))
    committing = asyncio.create_task(writer.commit())
    await asyncio.sleep(0)

    committing.cancel()
    await asyncio.wait([committing])
    await writer.abort()

    assert await objects(blobs) == []


async def objects(blobs: S3Blobs) -> list[str]:
    pages = [page async for page in obstore.list(blobs._store)]
    return [str(item["path"]) for page in pages for item in page]


@pytest.mark.parametrize("size", [1, 3 * PART_BYTES])
async def test_a_server_that_is_away_is_a_store_that_is_unavailable(url: str, size: int) -> None:
    blobs = S3Blobs.from_url(re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{free_port()}", url))
    ref = BlobRef(f"{ID.hex()}.0-00000000", size)

    async with asyncio.timeout(10):
        with pytest.raises(StoreUnavailable, match="cannot write blob"):
            await put(blobs, bytes(size))
        with pytest.raises(StoreUnavailable, match="cannot read blob"):
            await read(blobs, ref)
        with pytest.raises(StoreUnavailable, match="cannot delete"):
            await blobs.delete([ref])


async def test_wrong_credentials_are_told_and_not_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-canary")

    with pytest.raises(StoreUnavailable, match="privileges") as caught:
        await put(S3Blobs.from_url(url), b"x")

    told = "".join(traceback.format_exception(caught.value)) + repr(S3Blobs.from_url(url)._store)
    assert "another-canary" not in told


def test_the_query_of_the_url_is_masked_where_settings_are_shown() -> None:
    assert mask_url("s3://bodies/x?endpoint=http://k:secret@h") == "s3://bodies/x?***"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("s3:bucket", "write s3://bucket/prefix"),
        ("s3:///prefix", "write s3://bucket/prefix"),
        ("s3://key:secret@bucket/", "credentials come by AWS_"),
        ("s3://bucket/?secret_access_key=x", "not secret_access_key"),
        ("s3://bucket/?endpoint=http://127.0.0.1:1", "allow_http=true"),
        ("s3://bucket/?allow_http=maybe", "allow_http is true or false"),
    ],
)
def test_a_wrong_url_says_what_to_write(wrong: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        registry.create("memory:", Options(), wrong)
    assert "secret@" not in str(caught.value)


class TestSqliteWithBodiesInS3(BlobContract):
    @pytest.fixture
    async def case(self, tmp_path: Path, url: str) -> AsyncIterator[StoreCase]:
        case = SqliteCase(tmp_path / "openhqm.db", blobs=S3Blobs.from_url(url))
        yield case
        await case.close()


async def test_a_large_request_and_its_large_answer_go_through_s3(
    tmp_path: Path, url: str, aiohttp_server
) -> None:
    data = patterned(1024 * 1024)
    seen: list[bytes] = []

    async def echo(request: web.Request) -> web.Response:
        seen.append(await request.read())
        return web.Response(body=seen[-1][::-1])

    app = web.Application(client_max_size=2 * len(data))
    app.router.add_post("/", echo)
    app_url = str((await aiohttp_server(app)).make_url("")).rstrip("/")
    store = registry.create(f"sqlite:///{tmp_path}/openhqm.db", Options(), url)
    client = Client(app_url)
    async with intercepting(app_url, store=store, spill_bytes=64 * 1024) as port:
        async with replaying(port, app=Forwarder(client, store.blobs, port.settings)):
            got = await port.send(post(b"/", data, b"Prefer: wait=20"))
        names = await objects(S3Blobs.from_url(url))
    await client.close()

    assert (got.status, got.body, seen) == (200, data[::-1], [data])
    assert [".a-1-" in name for name in names] == [True]
