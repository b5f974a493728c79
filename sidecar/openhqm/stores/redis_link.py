"""How commands reach Redis: finding the server, one connection, time limits, and errors.

Used by `redis.py` and its parts. All commands share a connection and do not wait for each other: the
server runs one at a time anyway, and what is asked in one turn of the event loop is one write and often
one read (`redis_wire.py`). Nothing is sent twice, because a command whose reply was lost may have been
executed.

The keys of a queue share one hash slot, so a cluster is the node that owns this slot, and Sentinel
the master it names: both are looked up when a connection is made.
"""

from __future__ import annotations

import asyncio
import binascii
import hashlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openhqm.errors import StoreUnavailable
from openhqm.stores.redis_url import Target
from openhqm.stores.redis_wire import (
    Argument,
    Connection,
    Denied,
    MemoryFull,
    MovedAway,
    ScriptUnknown,
    ServerError,
)

if TYPE_CHECKING:
    from ssl import SSLContext

Listener = Callable[[Any], None]

CONNECT_SECONDS = 2.0
CALL_SECONDS = 2.9
"""Limit of a whole call: waiting for its turn, connecting, the command and its reply."""

COMMANDS = 8
"""Most commands under way at once; each is a batch, so a few suffice."""

SLOTS = 16384
"""Hash slots of a cluster."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and the name the server knows it by."""

    source: bytes
    sha: str

    @classmethod
    def of(cls, source: bytes) -> Script:
        return cls(source, hashlib.sha1(source, usedforsecurity=False).hexdigest())


class Link:
    """Sends commands to the server that *target* names and *key* belongs to.

    All methods raise StoreUnavailable within `CALL_SECONDS` when the server cannot be reached, does
    not answer or refuses to write. A server that comes back is used again without further ado.
    """

    def __init__(self, target: Target, key: bytes) -> None:
        """Args: key: the prefix of our keys, with the hash tag; first key of every script."""
        self.target = target
        self._key = key
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._slots = asyncio.Semaphore(COMMANDS)
        self._closed = False

    async def command(self, *args: Argument) -> Any:
        """Run one command."""
        return await self._limited(self._exchange, args)

    async def run(self, script: Script, args: Sequence[Argument]) -> Any:
        """Run *script* on our keys; a server that does not know it any more learns it again."""
        return await self._limited(self._evaluate, script, args)

    async def ask(self, *args: Argument) -> Any:
        """Run a command the server may not know or allow; None when it refuses."""
        try:
            return await self.command(*args)
        except StoreUnavailable as exc:
            if isinstance(exc.__cause__, ServerError) and exc.__cause__.code in ("ERR", "NOPERM"):
                return None
            raise

    async def _limited(self, work: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Do *work* in the caller's own task, for a task per call would take as long as the call.

        A connection that owes a reply for so long is given up, and with it whatever else it owes.
        """
        if self._closed:
            raise StoreUnavailable("the store is closed")
        with mapped_errors(self.target):
            try:
                async with asyncio.timeout(CALL_SECONDS), self._slots:
                    return await work(*args)
            except TimeoutError:
                self._give_up()
                raise

    async def close(self) -> None:
        """Let what was asked end, then disconnect."""
        self._closed = True
        for _ in range(COMMANDS):
            await self._slots.acquire()
        for _ in range(COMMANDS):
            self._slots.release()
        if self._connection is not None:
            await self._connection.close()

    async def _evaluate(self, script: Script, args: Sequence[Argument]) -> Any:
        try:
            return await self._exchange((b"EVALSHA", script.sha, b"1", self._key, *args))
        except ScriptUnknown:
            return await self._exchange((b"EVAL", script.source, b"1", self._key, *args))

    async def _exchange(self, args: Sequence[Argument]) -> Any:
        connection = self._connection
        if connection is None or connection.lost.done():
            connection = await self._connect_once()
        try:
            return await connection.ask(args)
        except MovedAway:
            connection.abort()  # the next call looks for the server again
            raise

    async def _connect_once(self) -> Connection:
        """The connection, made anew by the first of those who miss it."""
        async with self._connecting:
            connection = self._connection
            if connection is None or connection.lost.done():
                self._connection = connection = await self.connect()
            return connection

    def _give_up(self) -> None:
        if self._connection is not None:
            self._connection.abort()

    async def connect(self, listener: Listener | None = None) -> Connection:
        """A new connection to the server that may be written to; the caller owns it."""
        if self.target.path:
            return await self._connect_to(None, listener=listener)
        if self.target.kind == "redis":
            return await self._connect_to(self.target.nodes[0], listener=listener)
        ask = self._master if self.target.kind == "sentinel" else self._owner
        return await self._connect_to(await self._first(ask), listener=listener)

    async def _first(self, ask: Callable[[tuple[str, int]], Awaitable[tuple[str, int]]]) -> tuple[str, int]:
        """Ask the nodes of the URL one after the other until one knows where the keys are."""
        failure: Exception | None = None
        for node in self.target.nodes:
            try:
                async with asyncio.timeout(CONNECT_SECONDS / len(self.target.nodes)):
                    return await ask(node)
            except (ServerError, OSError, TimeoutError) as exc:
                failure = exc
        assert failure is not None
        raise failure

    async def _master(self, sentinel: tuple[str, int]) -> tuple[str, int]:
        async with self._visit(sentinel, is_sentinel=True) as connection:
            address = await connection.ask(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.target.service))
        if address is None:
            raise ServerError(f"this Sentinel knows no master named {self.target.service}")
        return address[0].decode(), int(address[1])

    async def _owner(self, node: tuple[str, int]) -> tuple[str, int]:
        slot = key_slot(self._key)
        async with self._visit(node) as connection:
            ranges = await connection.ask(("CLUSTER", "SLOTS"))
        for first, last, master, *_ in ranges:
            if first <= slot <= last:
                return master[0].decode() or node[0], master[1]
        raise MovedAway(f"CLUSTERDOWN no node of the cluster owns slot {slot}")

    @asynccontextmanager
    async def _visit(self, node: tuple[str, int], is_sentinel: bool = False) -> AsyncIterator[Connection]:
        connection = await self._connect_to(node, is_sentinel=is_sentinel)
        try:
            yield connection
        finally:
            await connection.close()

    async def _connect_to(
        self, node: tuple[str, int] | None, *, is_sentinel: bool = False, listener: Listener | None = None
    ) -> Connection:
        """Connect to *node*, None for the socket of the URL, and be let in."""
        async with asyncio.timeout(CONNECT_SECONDS):
            connection = await self._open(node)
            try:
                # Sentinels are commonly open inside; the credentials of the URL are the master's.
                if not is_sentinel:
                    await self._introduce(connection)
            except BaseException:
                connection.abort()
                raise
        connection.listen(listener)
        return connection

    async def _open(self, node: tuple[str, int] | None) -> Connection:
        loop = asyncio.get_running_loop()
        if node is None:
            return (await loop.create_unix_connection(Connection, self.target.path))[1]
        context = None if self.target.tls is None else _tls_context(self.target.tls)
        transport, connection = await loop.create_connection(Connection, *node, ssl=context)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection

    async def _introduce(self, connection: Connection) -> None:
        target = self.target
        if target.username is not None or target.password is not None:
            name = () if target.username is None else (target.username,)
            try:
                await connection.ask(("AUTH", *name, target.password or ""))
            except ServerError as exc:
                raise Denied(str(exc)) from exc
        if target.db:
            await connection.ask(("SELECT", target.db))


def key_slot(key: bytes) -> int:
    """The hash slot of *key*; what stands in its first braces decides, if there is anything.

    Source: Redis cluster specification, "Key distribution model" and "Hash tags".
    """
    start = key.find(b"{")
    end = key.find(b"}", start + 1)
    tag = key[start + 1 : end] if -1 < start < end - 1 else key
    return binascii.crc_hqx(tag, 0) % SLOTS


def _tls_context(files: dict[str, str]) -> SSLContext:
    """Certificates are checked against the system's and *files*, and for the server's name."""
    import ssl

    context = ssl.create_default_context()
    if "ssl_ca_certs" in files:
        context.load_verify_locations(files["ssl_ca_certs"])
    if "ssl_certfile" in files:
        context.load_cert_chain(files["ssl_certfile"], files.get("ssl_keyfile"))
    return context


class mapped_errors:  # noqa: N801 - reads as a statement, like contextlib.suppress
    """Turn errors of server and network into ours at the edge; the cause stays attached."""

    __slots__ = ("_target",)

    def __init__(self, target: Target) -> None:
        self._target = target

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, MemoryFull):
            raise StoreUnavailable(f"{self._target} is out of memory") from error
        if isinstance(error, Denied):
            raise StoreUnavailable(f"{self._target} refuses the user name or password") from error
        if isinstance(error, MovedAway):
            raise StoreUnavailable(f"{self._target} is changing its master") from error
        if isinstance(error, ServerError):
            raise StoreUnavailable(f"{self._target} refuses: {error}") from error
        if isinstance(error, TimeoutError):
            raise StoreUnavailable(f"{self._target} does not answer") from error
        if isinstance(error, OSError):
            raise StoreUnavailable(f"{self._target} cannot be reached: {error}") from error
