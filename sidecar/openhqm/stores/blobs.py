"""Large bodies beside the records of embedded stores: in memory, or as files in a folder.

Ingress and forwarder write them, a Store's record names them, the Store deletes them with it. A
blob is durable before the record that names it is committed; what no record names is an orphan,
found by `names` and removed when the store opens.

Names are `<record id in hex>.0-<random>` for a request and `<record id in hex>.a-<epoch>-<random>` for an
answer. The random digits keep writers of the same part apart: a message that comes twice, or the answers of
two consumers that are not ours, must not write over, or be deleted as, what a record has.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from io import FileIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

import structlog

from openhqm.errors import SettingsError, StoreUnavailable
from openhqm.stores.base import BlobRef, Blobs, Body

CHUNK_BYTES = 256 * 1024
"""Largest piece read, and least piece handed to a thread for writing."""

_log = structlog.get_logger(__name__)
_PART = re.compile(r"request|answer-(\d+)")
_NAME = re.compile(r"[0-9a-f]{2,64}\.(0|a-\d+)-[0-9a-f]{8}")
_PARTIAL = ".partial"


def blob_name(record_id: bytes, part: str) -> str:
    """Return a new name for *part* ("request" or "answer-<epoch>") of a record. Raises ValueError."""
    match = _PART.fullmatch(part)
    if match is None:
        raise ValueError(f"not a part of a record: {part!r}")
    kind = "0" if match[1] is None else f"a-{match[1]}"
    return f"{record_id.hex()}.{kind}-{secrets.token_hex(4)}"


def record_of(name: str) -> bytes:
    """Return the id of the record that the blob *name* belongs to."""
    return bytes.fromhex(name.partition(".")[0])


class MemoryBlobs:
    """Blobs that end with the process."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    @classmethod
    def from_url(cls, url: str) -> MemoryBlobs:
        """`memory:`"""
        return cls()

    async def write(self, record_id: bytes, part: str) -> _MemoryWriter:
        return _MemoryWriter(self._blobs, blob_name(record_id, part))

    async def read(self, ref: BlobRef) -> AsyncIterator[bytes]:
        data = memoryview(self._blobs[ref.name])
        for start in range(0, len(data), CHUNK_BYTES):
            yield bytes(data[start : start + CHUNK_BYTES])

    async def delete(self, refs: Sequence[BlobRef]) -> None:
        for ref in refs:
            self._blobs.pop(ref.name, None)

    async def names(self) -> Sequence[str]:
        return sorted(self._blobs)


class _MemoryWriter:
    def __init__(self, blobs: dict[str, bytes], name: str) -> None:
        self._blobs = blobs
        self._name = name
        self._chunks: list[bytes] = []

    async def write(self, chunk: bytes) -> None:
        self._chunks.append(chunk)

    async def commit(self) -> BlobRef:
        data = b"".join(self._chunks)
        self._blobs[self._name] = data
        return BlobRef(self._name, len(data))

    async def abort(self) -> None:
        self._chunks.clear()


class FileBlobs:
    """One file per blob in *folder*, which is made when the first one is written.

    File work runs in threads, at least `CHUNK_BYTES` at a time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def from_url(cls, url: str) -> FileBlobs:
        """`file:///absolute/folder`. Raises SettingsError for anything else."""
        parts = urlsplit(url)
        if parts.netloc or not parts.path.startswith("/") or parts.query:
            raise SettingsError("blobs.url: write file:///absolute/folder")
        return cls(Path(unquote(parts.path)))

    async def write(self, record_id: bytes, part: str) -> _FileWriter:
        """Raises StoreUnavailable, as do the writer's methods, when the file cannot be written."""
        return _FileWriter(self._folder / blob_name(record_id, part))

    async def read(self, ref: BlobRef) -> AsyncIterator[bytes]:
        try:
            file = await asyncio.to_thread(open, self._path(ref.name), "rb", 0)
        except FileNotFoundError as exc:
            raise KeyError(ref.name) from exc
        with file:
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield chunk

    async def delete(self, refs: Sequence[BlobRef]) -> None:
        """Raises OSError when a file that exists cannot be removed."""
        if refs:
            await asyncio.to_thread(_unlink, [self._path(ref.name) for ref in refs])

    async def names(self) -> Sequence[str]:
        """Names of all blobs, whether a record names them or not, and of unfinished files.

        `delete` takes them all.
        """
        return await asyncio.to_thread(self._listed)

    def _listed(self) -> list[str]:
        try:
            found = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        return sorted(name for name in found if _NAME.fullmatch(name.removesuffix(_PARTIAL)))

    def _path(self, name: str) -> Path:
        if _NAME.fullmatch(name.removesuffix(_PARTIAL)) is None:
            raise ValueError(f"not the name of a blob: {name!r}")
        return self._folder / name


class _FileWriter:
    """Writes `<name>.partial` and renames it when all is on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(path.name + _PARTIAL)
        self._file: FileIO | None = None
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._size = 0

    async def write(self, chunk: bytes) -> None:
        self._waiting.append(chunk)
        self._waiting_bytes += len(chunk)
        self._size += len(chunk)
        if self._waiting_bytes >= CHUNK_BYTES:
            await self._in_thread(self._flush)

    async def commit(self) -> BlobRef:
        await self._in_thread(self._finish)
        return BlobRef(self._path.name, self._size)

    async def abort(self) -> None:
        self._waiting.clear()
        await self._in_thread(self._discard)

    async def _in_thread(self, work: Callable[[], object]) -> None:
        try:
            await asyncio.to_thread(work)
        except OSError as exc:
            raise StoreUnavailable(f"cannot write blob {self._path.name}: {exc.strerror}") from exc

    def _flush(self) -> FileIO:
        if self._file is None:
            make_folder(self._path.parent)
            self._file = FileIO(self._partial, "wb")
        rest = memoryview(b"".join(self._waiting))
        self._waiting, self._waiting_bytes = [], 0
        while rest:
            rest = rest[self._file.write(rest) :]
        return self._file

    def _finish(self) -> None:
        with self._flush() as file:
            os.fsync(file.fileno())
        os.replace(self._partial, self._path)
        fsync_folder(self._path.parent)

    def _discard(self) -> None:
        if self._file is not None:
            _unlink([self._partial])
            self._file.close()


class Garbage:
    """Blobs whose records are gone, until they are deleted."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._refs: list[BlobRef] = []

    def add(self, *bodies: Body | None) -> None:
        """Bodies that are not blobs are passed over."""
        self._refs += [body for body in bodies if isinstance(body, BlobRef)]

    async def collect(self) -> None:
        """Delete what was added. What cannot be deleted now is tried again the next time.

        The records are committed already, so a failure here must not look like one of theirs.
        """
        refs, self._refs = self._refs, []
        if not refs:
            return
        try:
            await self._blobs.delete(refs)
        except asyncio.CancelledError:
            self._refs += refs
            raise
        except (OSError, StoreUnavailable) as exc:
            self._refs += refs
            _log.warning("blob.delete_failed", blobs=len(refs), error=str(exc))


def make_folder(folder: Path) -> None:
    """Make *folder* and those above it, private to us, so that they survive a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        fsync_folder(folder.parent)


def fsync_folder(folder: Path) -> None:
    """Make names added to or removed from *folder* survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
