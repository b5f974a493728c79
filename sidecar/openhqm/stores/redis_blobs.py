"""Large bodies as lists of chunks in Redis.

A blob is written under an expiry and kept for good by the transition that commits the record naming
it, so what is never named removes itself. The scripts delete a blob with its record.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from openhqm.stores.base import BlobRef
from openhqm.stores.blobs import CHUNK_BYTES, blob_name
from openhqm.stores.redis_link import Link, Script

UNNAMED_SECONDS = 3600
"""How long a blob lives without a record; longer than any request or answer takes."""


class RedisBlobs:
    """Blobs under *prefix*; see `Blobs`.

    Args:
        append: adds chunks, refused when the server is out of memory.
        append_always: the same for answers, which a full server must still be able to store.
    """

    def __init__(self, link: Link, prefix: bytes, append: Script, append_always: Script, argv: bytes) -> None:
        self._link = link
        self._prefix = prefix
        self._append = append
        self._append_always = append_always
        self._argv = argv

    async def write(self, record_id: bytes, part: str) -> _Writer:
        name = blob_name(record_id, part)
        return _Writer(self, name, self._append if part == "request" else self._append_always)

    async def read(self, ref: BlobRef) -> AsyncIterator[bytes]:
        key, index, left = self._key(ref.name), 0, ref.size
        while left > 0:
            chunk = await self._link.command("LINDEX", key, index)
            if chunk is None:
                raise KeyError(ref.name)
            yield chunk
            index, left = index + 1, left - len(chunk)

    async def delete(self, refs: Sequence[BlobRef]) -> None:
        if refs:
            await self._link.command("UNLINK", *(self._key(ref.name) for ref in refs))

    async def append(self, script: Script, name: str, chunk: bytes) -> None:
        await self._link.run(script, (self._argv, name, UNNAMED_SECONDS, chunk))

    def _key(self, name: str) -> bytes:
        return b"%bblob:%b" % (self._prefix, name.encode())


class _Writer:
    def __init__(self, blobs: RedisBlobs, name: str, script: Script) -> None:
        self._blobs = blobs
        self._name = name
        self._script = script
        self._waiting = bytearray()
        self._size = 0

    async def write(self, chunk: bytes) -> None:
        self._waiting += chunk
        self._size += len(chunk)
        while len(self._waiting) >= CHUNK_BYTES:
            await self._flush()

    async def commit(self) -> BlobRef:
        if self._waiting or not self._size:
            await self._flush()
        return BlobRef(self._name, self._size)

    async def abort(self) -> None:
        self._waiting.clear()
        await self._blobs.delete([BlobRef(self._name, self._size)])

    async def _flush(self) -> None:
        # A chunk whose reply was lost may be stored: the error ends this blob, it is never resumed.
        chunk = bytes(self._waiting[:CHUNK_BYTES])
        del self._waiting[:CHUNK_BYTES]
        await self._blobs.append(self._script, self._name, chunk)
