"""A small API server in this process, for what a real one does not do when asked: slow, silent, cut off.

Lists and watches of any one resource, from memory, with resource versions; other calls answer what the test
put into `answers`. Faults are methods. Whether requests are *right* is for tests/cluster to say.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.resources import Key
from openhqm_operator.kube.transport import Timeouts

QUICK = Timeouts(connect=1.0, call=2.0, watch_silence=2.0, watch=300.0)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class Answer:
    """What the next call gets."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class FakeLogin:
    """Counts refusals; the token's number grows with each."""

    server_name = None
    proxy = None

    def __init__(self, server: str) -> None:
        self.server = server
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.refusals = 0

    async def authorization(self) -> str:
        return f"Bearer token-{self.refusals}"

    def refused(self) -> None:
        self.refusals += 1


class FakeApi:
    """See the module.

    Attributes:
        requests: what came, in order.
        answers: what the next calls other than watches get; then lists answer from memory, others 404.
        page: objects in a page of a list that has a limit; None: all.
        is_silent: open watches are not told of what happens; those opened later are.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answers: deque[Answer] = deque()
        self.page: int | None = None
        self.is_silent = False
        self._objects: dict[Key, dict[str, Any]] = {}
        self._history: list[tuple[int, bytes]] = []
        self._version = 100
        self._oldest = 0
        self._open: dict[asyncio.Queue[bytes | None], int] = {}
        self._opened = asyncio.Condition()
        self._port = 0
        self._runner: web.AppRunner | None = None

    @property
    def server(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def client(self, timeouts: Timeouts = QUICK, **rest: Any) -> Kube:
        return Kube(FakeLogin(self.server), timeouts=timeouts, **rest)

    async def start(self) -> None:
        """Listen; after `stop` on the same port again."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.05)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        assert site._server is not None
        self._port = site._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections and end those there are."""
        assert self._runner is not None
        self._end_watches()
        await self._runner.cleanup()

    # -- what happens in it

    def put(self, name: str, **content: Any) -> None:
        """Make or change an object in namespace `shop`."""
        key = Key("shop", name)
        kind = "MODIFIED" if key in self._objects else "ADDED"
        self._version += 1
        metadata = {"namespace": "shop", "name": name, "resourceVersion": str(self._version)}
        self._objects[key] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, **content}
        self._tell(kind, self._objects[key])

    def remove(self, name: str) -> None:
        gone = self._objects.pop(Key("shop", name))
        self._version += 1
        metadata = {**gone["metadata"], "resourceVersion": str(self._version)}
        self._tell("DELETED", {**gone, "metadata": metadata})

    def bookmark(self) -> None:
        """Tell all watches how far they are."""
        self._version += 10
        metadata = {"resourceVersion": str(self._version)}
        self._send(_line("BOOKMARK", {"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata}))

    def forget_history(self) -> None:
        """No watch can continue from before now; those there are are told so."""
        self._version += 1
        self._oldest = self._version
        self._send(_line("ERROR", _status(410, "Expired", "too old resource version")))
        self._end_watches()

    def send_half_a_line_and_reset(self) -> None:
        self._send(b'{"type":"MODIFIED","object":{"metadata":{"na')
        for watch in self._open:
            watch.put_nowait(_RESET)

    def end_watches(self) -> None:
        """As the server does after timeoutSeconds."""
        self._end_watches()

    async def wait_for_watches(self, count: int) -> None:
        """Until that many watches were asked for, all told."""
        async with asyncio.timeout(5), self._opened:
            await self._opened.wait_for(lambda: len(self.asked("watch")) >= count)

    def asked(self, what: str) -> list[Request]:
        """Requests so far: `watch` or `list`."""
        return [r for r in self.requests if r.method == "GET" and ("watch" in r.query) == (what == "watch")]

    # -- below

    def _tell(self, kind: str, obj: dict[str, Any]) -> None:
        line = _line(kind, obj)
        self._history.append((self._version, line))
        self._send(line, self._version)

    def _send(self, line: bytes, version: float = float("inf")) -> None:
        for watch, since in self._open.items():
            if version > since and not self.is_silent:
                watch.put_nowait(line)

    def _end_watches(self) -> None:
        for watch in self._open:
            watch.put_nowait(None)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        text = await request.read()
        seen = Request(
            request.method,
            request.path,
            dict(request.query),
            dict(request.headers),
            json.loads(text) if text else None,
        )
        self.requests.append(seen)
        async with self._opened:
            self._opened.notify_all()
        if self.answers:
            answer = self.answers.popleft()
            if answer.body is HANGS:
                await asyncio.sleep(3600)
            return _respond(answer)
        if "watch" in seen.query:
            return await self._watch(request, int(seen.query["resourceVersion"]))
        if request.method == "GET":
            return self._list(seen)
        return _respond(Answer(_status(404, "NotFound", "not found"), 404))

    def _list(self, request: Request) -> web.Response:
        start = int(request.query.get("continue", "0"))
        objects = sorted(self._objects.values(), key=lambda obj: obj["metadata"]["name"])
        end = len(objects) if self.page is None or "limit" not in request.query else start + self.page
        metadata = {"resourceVersion": str(self._version)}
        if end < len(objects):
            metadata["continue"] = str(end)
        bare = [
            {k: v for k, v in obj.items() if k not in ("kind", "apiVersion")} for obj in objects[start:end]
        ]
        return _respond(Answer({"kind": "ConfigMapList", "metadata": metadata, "items": bare}))

    async def _watch(self, request: web.Request, since: int) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        if since < self._oldest:
            await response.write(_line("ERROR", _status(410, "Expired", "too old resource version")))
            return response
        lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        for version, line in self._history:
            if version > since:
                lines.put_nowait(line)
        self._open[lines] = since
        try:
            while (line := await lines.get()) is not None:
                if line is _RESET:
                    assert request.transport is not None
                    request.transport.abort()
                    break
                await response.write(line)
        finally:
            del self._open[lines]
        return response


HANGS = object()
"""As the body of an answer: there is none."""

_RESET = b"reset"


def status(code: int, reason: str, message: str, **details: Any) -> Answer:
    """An answer that is a metav1.Status."""
    return Answer(_status(code, reason, message, **details), code)


def _status(code: int, reason: str, message: str, **details: Any) -> dict[str, Any]:
    found = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}
    return {**found, "details": details} if details else found


def _respond(answer: Answer) -> web.Response:
    if isinstance(answer.body, bytes):
        return web.Response(body=answer.body, status=answer.status, headers=answer.headers)
    return web.json_response(answer.body, status=answer.status, headers=answer.headers)


def _line(kind: str, obj: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode() + b"\n"
