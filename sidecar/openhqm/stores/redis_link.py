"""How commands reach Redis: URLs, a small set of connections, time limits, and errors.

Used by `redis.py` alone. A connection carries one command at a time and is thrown away after
anything but a complete reply, so that a reply can never reach the wrong caller. Nothing is sent
twice: the library's retries are off, because a command whose reply was lost may have been executed.

The keys of a queue share one hash slot, so a cluster is the node that owns this slot, and Sentinel
the master it names: both are looked up when a connection is made.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from openhqm.errors import SettingsError, StoreUnavailable

Argument = bytes | str | int | float

CONNECT_SECONDS = 2.0
CALL_SECONDS = 2.9
"""Limit of a whole call: waiting for a free connection, connecting, the command and its reply."""

CONNECTIONS = 8
"""Most commands under way at once; each is a batch, so a few suffice."""

_DEFAULT_PORTS = {"redis": 6379, "sentinel": 26379, "cluster": 6379}
_MOVED = (MovedError, AskError, ClusterDownError, ReadOnlyError)
_DENIED = (AuthenticationError, NoPermissionError)
_QUERY = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed store URL.

    Args:
        kind: "redis", "sentinel" or "cluster".
        nodes: where to ask first, in order.
        service: the master's name, for Sentinel.
        tls: extra files for TLS by redis-py's names, None for plain connections.
    """

    kind: str
    nodes: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = None
    tls: dict[str, str] | None = None

    def __str__(self) -> str:
        """Where it is, without credentials."""
        where = self.path or ",".join(f"{host}:{port}" for host, port in self.nodes)
        return f"{self.kind} {where}" + (f" {self.service}" if self.service else "")


def parse_url(url: str) -> Target:
    """Read redis://, rediss://, unix://, redis+sentinel:// and redis+cluster:// URLs.

    A scheme that starts with "rediss" means TLS; the certificate's name is always checked.

    Raises:
        SettingsError: says what is wrong, without repeating credentials.
    """
    scheme, separator, _ = url.partition("://")
    base, _, kind = scheme.partition("+")
    kind = kind or "redis"
    if not separator or base not in ("redis", "rediss", "unix") or kind not in _DEFAULT_PORTS:
        raise SettingsError(f"store.url: {scheme or 'an empty'!s} scheme is not one of Redis")
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    query = dict(parse_qsl(parts.query))
    if unknown := sorted(set(query) - _QUERY):
        raise SettingsError(
            f"store.url: unknown parameter {unknown[0]}; known are {', '.join(sorted(_QUERY))}"
        )
    segments = [unquote(part) for part in parts.path.split("/") if part]
    service = ""
    if kind == "sentinel":
        if not segments:
            raise SettingsError("store.url: redis+sentinel:// needs the master's name as its path")
        service = segments.pop(0)
    is_unix = base == "unix"
    return Target(
        kind=kind,
        nodes=() if is_unix else _nodes(hosts, _DEFAULT_PORTS[kind]),
        path=unquote(parts.path) if is_unix else "",
        service=service,
        db=0 if is_unix else _database(segments, kind),
        username=unquote(username) or None,
        password=unquote(password) if at and password else None,
        tls=query if base == "rediss" else None,
    )


def _nodes(hosts: str, default_port: int) -> tuple[tuple[str, int], ...]:
    nodes = []
    for host in hosts.split(","):
        try:
            parts = urlsplit(f"//{host}")
            nodes.append((parts.hostname or "127.0.0.1", parts.port or default_port))
        except ValueError as exc:
            raise SettingsError(f"store.url: not a host and port: {host}") from exc
    return tuple(nodes)


def _database(segments: Sequence[str], kind: str) -> int:
    if not segments:
        return 0
    if len(segments) > 1 or not segments[0].isdigit():
        raise SettingsError(f"store.url: the database is a number, not {'/'.join(segments)!r}")
    if kind == "cluster" and segments[0] != "0":
        raise SettingsError("store.url: a cluster has database 0 only")
    return int(segments[0])


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
        self._idle: list[AbstractConnection] = []
        self._slots = asyncio.Semaphore(CONNECTIONS)
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
            if isinstance(exc.__cause__, ResponseError):
                return None
            raise

    async def _limited(self, work: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Do *work* in the caller's own task, for a task per call would take as long as the call.

        A cancelled caller's connection is given up, with the reply nobody reads.
        """
        if self._closed:
            raise StoreUnavailable("the store is closed")
        with mapped_errors(self.target):
            async with asyncio.timeout(CALL_SECONDS), self._slots:
                return await work(*args)

    async def close(self) -> None:
        """Let what was asked end, then disconnect."""
        self._closed = True
        for _ in range(CONNECTIONS):
            await self._slots.acquire()
        for _ in range(CONNECTIONS):
            self._slots.release()
        await self._forget_idle()

    async def _evaluate(self, script: Script, args: Sequence[Argument]) -> Any:
        try:
            return await self._exchange((b"EVALSHA", script.sha, b"1", self._key, *args))
        except NoScriptError:
            return await self._exchange((b"EVAL", script.source, b"1", self._key, *args))

    async def _exchange(self, args: Sequence[Argument]) -> Any:
        connection = await self._take()
        try:
            await connection.send_packed_command(encode_command(args), check_health=False)
            reply = await connection.read_response()
        except BaseException as exc:
            if isinstance(exc, ResponseError) and not isinstance(exc, _MOVED):
                self._idle.append(connection)
            else:
                await connection.disconnect(nowait=True)
                await self._forget_idle()
            raise
        self._idle.append(connection)
        return reply

    async def _take(self) -> AbstractConnection:
        while self._idle:
            connection = self._idle.pop()
            # What the server closed, or has bytes nobody asked for, is of no use.
            if connection.is_connected and not await connection.can_read():
                return connection
            await connection.disconnect(nowait=True)
        return await self.connect()

    async def _forget_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.disconnect(nowait=True)

    async def connect(self) -> AbstractConnection:
        """A new connection to the server that may be written to; the caller owns it."""
        if self.target.path:
            return await _connected(UnixDomainSocketConnection(path=self.target.path, **self._arguments()))
        if self.target.kind == "redis":
            return await self._connect_to(self.target.nodes[0])
        ask = self._master if self.target.kind == "sentinel" else self._owner
        return await self._connect_to(await self._first(ask))

    async def _first(self, ask: Callable[[tuple[str, int]], Awaitable[tuple[str, int]]]) -> tuple[str, int]:
        """Ask the nodes of the URL one after the other until one knows where the keys are."""
        failure: Exception | None = None
        for node in self.target.nodes:
            try:
                async with asyncio.timeout(CONNECT_SECONDS / len(self.target.nodes)):
                    return await ask(node)
            except (RedisError, OSError, TimeoutError) as exc:
                failure = exc
        assert failure is not None
        raise failure

    async def _master(self, sentinel: tuple[str, int]) -> tuple[str, int]:
        async with self._visit(sentinel, is_sentinel=True) as connection:
            await connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.target.service)
            address = await connection.read_response()
        if address is None:
            raise ResponseError(f"this Sentinel knows no master named {self.target.service}")
        return address[0].decode(), int(address[1])

    async def _owner(self, node: tuple[str, int]) -> tuple[str, int]:
        slot = key_slot(self._key)
        async with self._visit(node) as connection:
            await connection.send_command("CLUSTER", "SLOTS")
            ranges = await connection.read_response()
        for first, last, master, *_ in ranges:
            if first <= slot <= last:
                return master[0].decode() or node[0], master[1]
        raise ClusterDownError(f"no node of the cluster owns slot {slot}")

    @asynccontextmanager
    async def _visit(
        self, node: tuple[str, int], is_sentinel: bool = False
    ) -> AsyncIterator[AbstractConnection]:
        connection = await self._connect_to(node, is_sentinel)
        try:
            yield connection
        finally:
            await connection.disconnect(nowait=True)

    async def _connect_to(self, node: tuple[str, int], is_sentinel: bool = False) -> AbstractConnection:
        arguments = self._arguments(is_sentinel) | {"host": node[0], "port": node[1]}
        kind: type[Connection] = Connection
        if self.target.tls is not None:
            kind, arguments = SSLConnection, arguments | self.target.tls | {"ssl_check_hostname": True}
        return await _connected(kind(**arguments))

    def _arguments(self, is_sentinel: bool = False) -> dict[str, Any]:
        return {
            "db": 0 if is_sentinel else self.target.db,
            # Sentinels are commonly open inside; the credentials of the URL are the master's.
            "username": None if is_sentinel else self.target.username,
            "password": None if is_sentinel else self.target.password,
            # One limit around the whole call instead, which costs no task per write.
            "socket_timeout": None,
            "socket_connect_timeout": CONNECT_SECONDS,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            "driver_info": None,
            "socket_keepalive": True,
        }


_LENGTHS = [b"\r\n$%d\r\n" % length for length in range(1024)]
"""What stands before an argument of so many bytes, and ends the one before it."""


def encode_command(args: Sequence[Argument]) -> bytes:
    """A command as Redis reads it: an array of strings, each with its length.

    The library's own encoder takes six times as long per argument, and a batch has hundreds.
    """
    parts = [b"*%d" % len(args)]
    add = parts.append
    for arg in args:
        if type(arg) is not bytes:
            arg = str(arg).encode()
        length = len(arg)
        add(_LENGTHS[length] if length < 1024 else b"\r\n$%d\r\n" % length)
        add(arg)
    add(b"\r\n")
    return b"".join(parts)


async def _connected(connection: AbstractConnection) -> AbstractConnection:
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return connection


class mapped_errors:  # noqa: N801 - reads as a statement, like contextlib.suppress
    """Turn errors of the library into ours at the edge; the cause stays attached."""

    __slots__ = ("_target",)

    def __init__(self, target: Target) -> None:
        self._target = target

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, OutOfMemoryError):
            raise StoreUnavailable(f"{self._target} is out of memory") from error
        if isinstance(error, _DENIED):
            raise StoreUnavailable(f"{self._target} refuses the user name or password") from error
        if isinstance(error, _MOVED):
            raise StoreUnavailable(f"{self._target} is changing its master") from error
        if isinstance(error, (TimeoutError, RedisTimeoutError)):
            raise StoreUnavailable(f"{self._target} does not answer") from error
        if isinstance(error, ResponseError):
            raise StoreUnavailable(f"{self._target} refuses: {error}") from error
        if isinstance(error, (RedisError, OSError)):
            raise StoreUnavailable(f"{self._target} cannot be reached: {error}") from error
