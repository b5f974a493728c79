"""One connection to a Redis server: commands out, replies back in their order, errors told apart.

Used by `redis_link.py`, which knows where to connect. RESP 2 is read by hiredis. Commands
do not wait for each other's replies, so those of one turn of the event loop travel together, and so do
their replies. Nothing is sent twice: what a lost connection left unanswered ends in an error.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import hiredis

Argument = bytes | str | int | float

_INCOMPLETE = object()


class ServerError(Exception):
    """The reply is an error; its first word says which."""

    @property
    def code(self) -> str:
        return str(self).partition(" ")[0]


class Denied(ServerError):
    """The server wants other credentials, or forbids the command to these."""


class MovedAway(ServerError):
    """Another server has the keys now, or may be written to in place of this one."""


class MemoryFull(ServerError):
    """The server takes nothing new."""


class ScriptUnknown(ServerError):
    """The server has not seen the script, or forgot it."""


_KINDS: dict[str, type[ServerError]] = {
    "ASK": MovedAway,
    "CLUSTERDOWN": MovedAway,
    "MASTERDOWN": MovedAway,
    "MOVED": MovedAway,
    "NOAUTH": Denied,
    "NOPERM": Denied,
    "NOSCRIPT": ScriptUnknown,
    "OOM": MemoryFull,
    "READONLY": MovedAway,
    "WRONGPASS": Denied,
}


def _error(text: str) -> ServerError:
    return _KINDS.get(text.partition(" ")[0], ServerError)(text)


_LENGTHS = [b"\r\n$%d\r\n" % length for length in range(1024)]
"""What stands before an argument of so many bytes, and ends the one before it."""


def encode_command(args: Sequence[Argument]) -> bytes:
    """A command as Redis reads it: an array of strings, each with its length.

    Joined once, for a batch has hundreds of arguments: hiredis's packer takes a fifth longer.
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


class Connection(asyncio.Protocol):
    """A connection, once asyncio has made it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        """Done when the connection has ended, for whatever reason."""
        self._listener: Callable[[Any], None] | None = None
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._reader = hiredis.Reader(replyError=_error, notEnoughData=_INCOMPLETE)
        self._transport: asyncio.Transport | None = None

    def listen(self, listener: Callable[[Any], None] | None) -> None:
        """From now on *listener* takes all replies, on a connection that subscribes."""
        self._listener = listener

    def ask(self, args: Sequence[Argument]) -> asyncio.Future[Any]:
        """Send a command; the future brings its reply, and cancelling it gives up the reply alone.

        Raises:
            ConnectionError: the connection has ended; also by the future, when the command may have been
                executed.
            ServerError: by the future: the reply is an error.
        """
        self.send(args)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append(future)
        return future

    def send(self, args: Sequence[Argument]) -> None:
        """Send a command whose reply goes to the listener. Raises ConnectionError."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the connection has ended")
        self._transport.write(encode_command(args))

    def abort(self) -> None:
        """End it now; replies that have not come are lost."""
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """End it and wait until nothing is left of it."""
        self.abort()
        await asyncio.wait([self.lost])

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports only look like it

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not _INCOMPLETE:
                self._take(reply)
        except (hiredis.ProtocolError, LookupError):  # not RESP, or a reply nobody asked for
            self.abort()

    def _take(self, reply: Any) -> None:
        if self._listener is None:
            future = self._waiting.popleft()
            if future.done():
                return
            if isinstance(reply, ServerError):
                future.set_exception(reply)
            else:
                future.set_result(reply)
        elif isinstance(reply, ServerError):
            self.abort()
        else:
            self._listener(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        why = str(exc or "") or "the connection was closed"
        for future in self._waiting:
            if not future.done():
                future.set_exception(ConnectionResetError(why))
        self._waiting.clear()
        self.lost.set_result(None)
