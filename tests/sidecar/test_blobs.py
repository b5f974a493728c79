"""Blobs of embedded stores: exact bytes, durable names, nothing half written."""

import asyncio
import re
from pathlib import Path

import pytest
from tests.conformance.store_case import fresh_id, get_one, new, take

from openhqm.errors import StoreUnavailable
from openhqm.stores import registry
from openhqm.stores.base import BlobRef, Options, State
from openhqm.stores.blobs import CHUNK_BYTES, FileBlobs, MemoryBlobs, record_of

ID = bytes(range(16))
ODD = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture(params=["memory", "file"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> MemoryBlobs | FileBlobs:
    return MemoryBlobs() if request.param == "memory" else FileBlobs(tmp_path / "blobs")


async def put(blobs: MemoryBlobs | FileBlobs, part: str, *chunks: bytes) -> BlobRef:
    writer = await blobs.write(ID, part)
    for chunk in chunks:
        await writer.write(chunk)
    return await writer.commit()


@pytest.mark.parametrize("step", [1, 1000, CHUNK_BYTES, len(ODD)])
async def test_bytes_come_back_exactly_in_chunks_of_bounded_size(
    blobs: MemoryBlobs | FileBlobs, step: int
) -> None:
    data = ODD[:5000] if step == 1 else ODD

    ref = await put(blobs, "request", *(data[i : i + step] for i in range(0, len(data), step)))

    chunks = [chunk async for chunk in blobs.read(ref)]
    assert b"".join(chunks) == data
    assert ref.size == len(data)
    assert max(map(len, chunks)) <= CHUNK_BYTES


async def test_an_empty_blob_is_a_blob(blobs: MemoryBlobs | FileBlobs) -> None:
    ref = await put(blobs, "request")

    assert [chunk async for chunk in blobs.read(ref)] == []
    assert await blobs.names() == [ref.name]


@pytest.mark.parametrize("part", ["answer-1", "answer-2"], ids=["same epoch", "later epoch"])
async def test_answers_do_not_overwrite_each_other(blobs: MemoryBlobs | FileBlobs, part: str) -> None:
    first, second = await put(blobs, "answer-1", b"one"), await put(blobs, part, b"two")

    assert [chunk async for chunk in blobs.read(first)] == [b"one"]
    assert [chunk async for chunk in blobs.read(second)] == [b"two"]
    assert record_of(first.name) == record_of(second.name) == ID


async def test_a_deleted_blob_is_gone_and_deleting_it_again_is_no_error(
    blobs: MemoryBlobs | FileBlobs,
) -> None:
    ref = await put(blobs, "request", b"x")

    await blobs.delete([ref])
    await blobs.delete([ref])

    with pytest.raises(KeyError):
        [chunk async for chunk in blobs.read(ref)]


async def test_an_aborted_blob_leaves_nothing(blobs: MemoryBlobs | FileBlobs) -> None:
    writer = await blobs.write(ID, "request")
    await writer.write(ODD)

    await writer.abort()

    assert await blobs.names() == []


async def test_an_unfinished_file_is_listed_so_that_it_can_be_removed(tmp_path: Path) -> None:
    blobs = FileBlobs(tmp_path)
    writer = await blobs.write(ID, "request")
    await writer.write(ODD)

    names = await blobs.names()
    await blobs.delete([BlobRef(name, 0) for name in names])

    assert [re.sub(r"-[0-9a-f]{8}", "", name) for name in names] == [f"{ID.hex()}.0.partial"]
    assert list(tmp_path.iterdir()) == []
    await writer.abort()


@pytest.mark.parametrize("part", ["../x", "answer-", "answer-1/2", "", "Request"])
async def test_parts_that_are_not_ours_are_refused(blobs: MemoryBlobs | FileBlobs, part: str) -> None:
    with pytest.raises(ValueError, match="not a part"):
        await blobs.write(ID, part)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "zz.0-00000000", f"{ID.hex()}.0-00000000/.."])
async def test_names_that_are_not_ours_never_reach_the_file_system(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not the name"):
        await FileBlobs(tmp_path).delete([BlobRef(name, 1)])


async def test_a_folder_that_cannot_be_written_is_a_store_that_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    writer = await FileBlobs(tmp_path / "file" / "blobs").write(ID, "request")

    with pytest.raises(StoreUnavailable, match="cannot write blob"):
        await writer.commit()


@pytest.mark.parametrize("url", ["memory:", "sqlite:///{folder}/openhqm.db"])
async def test_a_lease_that_is_cancelled_while_blobs_are_deleted_comes_back(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = registry.create(url.format(folder=tmp_path), Options())
    await store.open()
    gone, waiting = fresh_id(), new()
    deleting = asyncio.Event()

    async def delete_for_ever(refs: object) -> None:
        deleting.set()
        await asyncio.Event().wait()

    body = await (await store.blobs.write(gone, "request")).commit()
    await store.accept([new(id=gone, body=body, max_age_seconds=1e-6), waiting])
    with monkeypatch.context() as patched:
        patched.setattr(store.blobs, "delete", delete_for_ever)
        leasing = asyncio.create_task(take(store))
        await deleting.wait()
        assert (await get_one(store, waiting.id)).state is State.RUNNING
        leasing.cancel()
        await asyncio.wait([leasing])

    async with asyncio.timeout(5):
        [lease] = await take(store, wait_seconds=5)
    assert (lease.id, lease.attempt, lease.claims) == (waiting.id, 1, 0)
    await store.close()
