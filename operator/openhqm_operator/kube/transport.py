"""HTTP to the API server: one call or one watch, with credentials, bounded in time, its errors named.

`client.py` says what to call; `login.py` where and as whom; `errors.py` is what may come back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

import aiohttp
import orjson
import structlog

import openhqm
from openhqm_operator.kube.errors import KubeError, Unauthorized, Unavailable, WatchSilent, error_of
from openhqm_operator.kube.login import Login
from openhqm_operator.kube.resources import Object

JSON = "application/json"

log = structlog.get_logger()


@dataclass(frozen=True)
class Timeouts:
    """How long we wait for the API server, in seconds.

    Attributes:
        connect: for TCP and TLS.
        call: for a whole call, from the connection to the last byte.
        watch_silence: between two things a watch sends; bookmarks come each 60 s, up to 2 s early or late,
            as long as there is anything new to tell of.
        watch: how long the server is asked to keep a watch open; twice as long at most, by chance, so that
            watches do not all end together.
    """

    connect: float = 5.0
    call: float = 15.0
    watch_silence: float = 70.0
    watch: float = 300.0


class WatchEvent(NamedTuple):
    """*type* is ADDED, MODIFIED, DELETED, or BOOKMARK: an object with nothing but a resourceVersion."""

    type: str
    object: Object


class Transport:
    """One connection pool to one API server, as one user."""

    def __init__(self, login: Login, timeouts: Timeouts) -> None:
        self._login = login
        self._timeouts = timeouts
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            # Watches hold a connection each; what else runs at once is bounded by the work queue.
            connector=aiohttp.TCPConnector(limit=0),
            headers={"User-Agent": f"openhqm-operator/{openhqm.__version__}", "Accept": JSON},
            # Credentials are ours to give, for this server alone.
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = JSON,
    ) -> Object:
        """Make one call, and a second one if the token was refused.

        Raises:
            KubeError: whatever came instead of an answer of 2xx.
        """
        try:
            return await self._call_once(method, path, query, body, content_type)
        except Unauthorized:
            # Nothing was done; a token that ran out is replaced in its file long before.
            return await self._call_once(method, path, query, body, content_type)

    async def _call_once(
        self, method: str, path: str, query: Mapping[str, str] | None, body: bytes | None, content_type: str
    ) -> Object:
        headers = {} if body is None else {"Content-Type": content_type}
        what = f"{method} {path}"
        try:
            async with (
                asyncio.timeout(self._timeouts.call),
                await self._open(method, path, query, headers, body) as response,
            ):
                text = await response.read()
        except _NO_ANSWER as exc:
            raise _unavailable(what, exc) from exc
        if response.status >= 300:
            raise self._refusal(response, text, what)
        answer = _parse(text)
        if "metadata" not in answer and "kind" not in answer:
            raise Unavailable(
                f"{what}: answered by something that is not an API server", status=response.status
            )
        for warning in response.headers.getall("Warning", ()):
            log.info("kube.warned", call=what, warning=warning)
        return answer

    @asynccontextmanager
    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[AsyncIterator[WatchEvent]]:
        """Open a watch and give its events; the connection ends with it.

        Raises:
            KubeError: when opening it, and when reading from it.
        """
        what = f"WATCH {path}"
        try:
            async with asyncio.timeout(self._timeouts.call):
                response = await self._open("GET", path, query, {}, None)
                if response.status >= 300:
                    async with response:
                        raise self._refusal(response, await response.read(), what)
        except _NO_ANSWER as exc:
            raise _unavailable(what, exc) from exc
        try:
            yield self._events(response.content, what)
        finally:
            _abandon(response)

    async def _events(self, content: aiohttp.StreamReader, what: str) -> AsyncIterator[WatchEvent]:
        rest = b""
        while True:
            try:
                async with asyncio.timeout(self._timeouts.watch_silence):
                    chunk = await content.readany()
            except TimeoutError as exc:
                raise WatchSilent(f"{what}: silent for {self._timeouts.watch_silence:g} s") from exc
            except _NO_ANSWER as exc:
                raise _unavailable(what, exc) from exc
            if not chunk:
                return  # A line that was cut off comes again: the caller has not seen its version.
            *lines, rest = (rest + chunk).split(b"\n")
            for event in _events_of(lines, what):
                yield event

    async def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        headers: dict[str, str],
        body: bytes | None,
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("use the client as `async with Kube(...) as kube`")
        authorization = await self._login.authorization()
        if authorization is not None:
            headers["Authorization"] = authorization
        return await self._session.request(
            method,
            self._login.server + path,
            params=query,
            data=body,
            headers=headers,
            ssl=self._login.tls,
            server_hostname=self._login.server_name,
            proxy=self._login.proxy,
            # The whole is bounded by our callers: a watch lives for minutes.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._timeouts.connect),
            allow_redirects=False,
        )

    def _refusal(self, response: aiohttp.ClientResponse, text: bytes, what: str) -> KubeError:
        if response.status == 401:
            self._login.refused()
        return error_of(response.status, _parse(text), what, _retry_after(response))


_NO_ANSWER = (aiohttp.ClientError, TimeoutError, OSError)


def _abandon(response: aiohttp.ClientResponse) -> None:
    """End a connection at once; closing TLS politely waits up to 30 s for the other side."""
    connection = response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()
    response.close()


def _unavailable(what: str, exc: BaseException) -> Unavailable:
    # aiohttp's own text has the address of a TLS context in it.
    why = exc.strerror if isinstance(exc, aiohttp.ClientConnectorError) else str(exc)
    return Unavailable(f"{what}: no answer: {why or type(exc).__name__}", reason=type(exc).__name__)


def _parse(text: bytes) -> Object:
    """A JSON object; whatever else a server or a proxy before it says becomes a message."""
    try:
        answer = orjson.loads(text)
    except orjson.JSONDecodeError:
        answer = None
    return answer if isinstance(answer, dict) else {"message": text[:200].decode(errors="replace")}


def _retry_after(response: aiohttp.ClientResponse) -> float:
    """Seconds; the API server never sends a date."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdigit() else 0.0


def _events_of(lines: Sequence[bytes], what: str) -> Iterable[WatchEvent]:
    for line in lines:
        event = _parse(line)
        kind, found = event.get("type"), event.get("object")
        if kind == "ERROR" or not isinstance(kind, str) or not isinstance(found, dict):
            answer = found if isinstance(found, dict) else event
            raise error_of(int(answer.get("code") or 500), answer, what)
        yield WatchEvent(kind, found)
