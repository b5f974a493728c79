"""Large bodies as objects in an S3 bucket, for any store: `blobs.url = s3://bucket/prefix`.

Endpoint, region and credentials come from where every S3 client looks (AWS_* variables, a web
identity, the instance's role); the URL's query may name the first two, never a secret:

    s3://bodies/orders?endpoint=http://10.0.0.5:8333&allow_http=true&region=eu-west-1

Several stores may share a bucket and a prefix, because names begin with the record's id. That is why
nothing is ever swept here: a process cannot know which objects belong to others. An upload that is
not committed is aborted; what a killed process leaves behind, an unfinished upload or an object whose
record was never accepted, is removed by a lifecycle rule of the bucket (docs/operations.md).

Source: Amazon S3 API, multipart uploads: parts of at least 5 MiB, at most 10 000 of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import S3Store

from openhqm.errors import SettingsError, StoreUnavailable
from openhqm.stores.base import BlobRef
from openhqm.stores.blobs import CHUNK_BYTES, blob_name

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

PART_BYTES = 5 * 1024 * 1024
"""A body up to this size is sent in one request, a larger one in parts of it."""
CONCURRENT_PARTS = 2
"""Of one body, on their way at once; two more are in memory."""

CONNECT_SECONDS = 1.0
REQUEST_SECONDS = 30.0
"""For one part, or one answer to a read."""
RETRIES: RetryConfig = {"max_retries": 2, "retry_timeout": timedelta(seconds=2)}
DELETE_SECONDS = 3.0

log = structlog.get_logger(__name__)
_QUERY = ("endpoint", "region", "allow_http", "virtual_hosted_style")
_BOOLEANS = {"true": True, "false": False}


class S3Blobs:
    """Objects under *store*'s prefix; see `Blobs`."""

    def __init__(self, store: S3Store) -> None:
        self._store = store

    @classmethod
    def from_url(cls, url: str) -> S3Blobs:
        """`s3://bucket/prefix?endpoint=...&region=...&allow_http=true&virtual_hosted_style=true`.

        Raises:
            SettingsError: it is something else, or the environment's AWS settings are of no use.
        """
        parts = urlsplit(url)
        if not parts.netloc or "@" in parts.netloc or parts.fragment:
            raise SettingsError("blobs.url: write s3://bucket/prefix; credentials come by AWS_* variables")
        options = _options(parts.query)
        allow_http = _flag(options, "allow_http")
        if options.get("endpoint", "").startswith("http://") and not allow_http:
            raise SettingsError("blobs.url: the endpoint is plain http; say so with allow_http=true")
        client: ClientConfig = {
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "timeout": timedelta(seconds=REQUEST_SECONDS),
        }
        if allow_http is not None:
            client["allow_http"] = allow_http
        config: S3Config = {}
        if "endpoint" in options:
            config["endpoint"] = options["endpoint"]
        if "region" in options:
            config["region"] = options["region"]
        if (virtual_hosted := _flag(options, "virtual_hosted_style")) is not None:
            config["virtual_hosted_style_request"] = virtual_hosted
        prefix = unquote(parts.path).strip("/") or None
        try:
            store = S3Store(
                parts.netloc, prefix=prefix, config=config, client_options=client, retry_config=RETRIES
            )
        except (BaseError, ValueError) as exc:
            raise SettingsError(f"blobs.url: {_first_line(exc)}") from exc
        return cls(store)

    async def write(self, record_id: bytes, part: str) -> _Writer:
        return _Writer(self, self._store, blob_name(record_id, part))

    async def read(self, ref: BlobRef) -> AsyncIterator[bytes]:
        """Raises StoreUnavailable where it cannot be known whether the blob is gone."""
        with _errors_mapped(f"cannot read blob {ref.name}"):
            try:
                found = await obstore.get_async(self._store, ref.name)
            except FileNotFoundError as exc:
                if "NoSuchBucket" in str(exc):
                    raise
                raise KeyError(ref.name) from exc
            async for piece in found.stream(min_chunk_size=CHUNK_BYTES):
                whole = memoryview(piece)
                for start in range(0, len(whole), CHUNK_BYTES):
                    yield bytes(whole[start : start + CHUNK_BYTES])

    async def delete(self, refs: Sequence[BlobRef]) -> None:
        """Raises StoreUnavailable when that fails or takes long: settlements wait for it."""
        if refs:
            with _errors_mapped(f"cannot delete {len(refs)} blobs"):
                async with asyncio.timeout(DELETE_SECONDS):
                    await obstore.delete_async(self._store, [ref.name for ref in refs])


class _Aborted(Exception):
    """Ends an upload from within its source; obstore then aborts it at the server too."""


class _Writer:
    """Gathers a part; sends one that stays alone as it is, several as a multipart upload."""

    def __init__(self, blobs: S3Blobs, store: S3Store, name: str) -> None:
        self._blobs = blobs
        self._store = store
        self._name = name
        self._waiting = bytearray()
        self._size = 0
        self._parts: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._is_aborted = False
        self._upload: asyncio.Task[object] | None = None

    async def write(self, chunk: bytes) -> None:
        self._waiting += chunk
        self._size += len(chunk)
        while len(self._waiting) > PART_BYTES:
            part = bytes(self._waiting[:PART_BYTES])
            del self._waiting[:PART_BYTES]
            await self._hand_over(part)

    async def commit(self) -> BlobRef:
        rest = bytes(self._waiting)
        self._waiting.clear()
        if self._upload is None:
            self._upload = self._begin(rest)
        else:
            await self._hand_over(rest)
            await self._hand_over(None)
        with _errors_mapped(f"cannot write blob {self._name}"):
            # Not stopped half-way: `abort` must know whether there is an object to delete.
            await asyncio.shield(self._upload)
        return BlobRef(self._name, self._size)

    async def abort(self) -> None:
        self._waiting.clear()
        if self._upload is None:
            return
        self._is_aborted = True
        while not self._parts.empty():
            self._parts.get_nowait()
        self._parts.put_nowait(None)
        await asyncio.wait([self._upload])
        if self._upload.cancelled() or self._upload.exception() is not None:
            return
        try:
            await self._blobs.delete([BlobRef(self._name, self._size)])
        except StoreUnavailable as exc:
            log.warning("blob.left_behind", error=str(exc))

    async def _hand_over(self, part: bytes | None) -> None:
        """Give *part* to the upload, None at the end, once it has taken the one before.

        Raises:
            StoreUnavailable: the upload failed meanwhile.
        """
        if self._upload is None:
            self._upload = self._begin(self._taken_parts())
        putting = asyncio.ensure_future(self._parts.put(part))
        try:
            await asyncio.wait((putting, self._upload), return_when=asyncio.FIRST_COMPLETED)
        finally:
            putting.cancel()
        if self._upload.done():
            with _errors_mapped(f"cannot write blob {self._name}"):
                self._upload.result()

    def _begin(self, source: bytes | AsyncIterator[bytes]) -> asyncio.Task[object]:
        sending = obstore.put_async(
            self._store, self._name, source, chunk_size=PART_BYTES, max_concurrency=CONCURRENT_PARTS
        )
        return asyncio.ensure_future(sending)

    async def _taken_parts(self) -> AsyncIterator[bytes]:
        while (part := await self._parts.get()) is not None:
            yield part
        if self._is_aborted:
            raise _Aborted


@contextmanager
def _errors_mapped(what: str) -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError, TimeoutError) as exc:
        raise StoreUnavailable(f"{what}: {_first_line(exc)}") from exc


def _first_line(error: BaseException) -> str:
    """What obstore says, less the dump of its own state that follows."""
    return str(error).partition("\n")[0][:300] or type(error).__name__


def _options(query: str) -> Mapping[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := options.keys() - set(_QUERY):
        raise SettingsError(f"blobs.url: s3 knows {', '.join(_QUERY)}, not {', '.join(sorted(unknown))}")
    return options


def _flag(options: Mapping[str, str], name: str) -> bool | None:
    """True, false, or None where the environment decides."""
    if name not in options:
        return None
    try:
        return _BOOLEANS[options[name].lower()]
    except KeyError:
        raise SettingsError(f"blobs.url: {name} is true or false") from None
