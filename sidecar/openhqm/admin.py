"""The admin port: dead letters, requests, pause and resume, settings in force, the dashboard.

For operators on the same host, by browser, CLI or `kubectl port-forward`; binds 127.0.0.1 unless told
otherwise. There is no login, so a web page the operator happens to visit must not get in: `guard`.
Every answer is JSON except the dashboard's files and a stored answer's body.

    GET    /admin/v1/stats                      as /stats on the health port
    GET    /admin/v1/settings                   values in force, secrets masked
    GET    /admin/v1/requests                   ?state= ?lane= ?limit= ?cursor=
    GET    /admin/v1/requests/{id}              id: correlation id or handle
    GET    /admin/v1/requests/{id}/response     the stored answer's body
    DELETE /admin/v1/requests/{id}              cancel
    GET    /admin/v1/dead-letters               ?lane= ?limit= ?cursor=
    GET    /admin/v1/dead-letters/{id}
    POST   /admin/v1/dead-letters/replay        {"ids": [...]} or {"all": true}, and "lane"
    POST   /admin/v1/dead-letters/purge         the same
    POST   /admin/v1/pause, /admin/v1/resume    {"lane": "requests"} or {}
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import orjson
from aiohttp import web

from openhqm.cancellation import cancel
from openhqm.errors import (
    BadRequest,
    MethodNotAllowed,
    OpenHQMError,
    Unavailable,
    UnknownHandle,
    UnknownPath,
)
from openhqm.handles import IdMint, id_text
from openhqm.health import json_response
from openhqm.lifecycle import Event, Happening, Lifecycle
from openhqm.problems import Kind, kind_of
from openhqm.settings import Settings
from openhqm.settings_docs import in_force
from openhqm.stats import Stats
from openhqm.stores.base import CURSOR_BYTES, Answer, Body, Lane, Record, Replay, State, Store, Want
from openhqm.views import answer_parts, details, parse_id, summary

ADMIN_HEADER = "OpenHQM-Admin"
"""Any value; a cross-origin page cannot send it without asking first, and is not permitted to."""

MAX_LIMIT = 1000
_PAGE = 500
_CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_CURSOR = re.compile(rf"[0-7][0-9a-f]{{{2 * CURSOR_BYTES - 1}}}")
_OTHER_SITE = Kind(403, "other-site", "Web pages of other sites may not call this")
_FILES = {"index.html": "text/html", "app.js": "text/javascript", "style.css": "text/css"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_admin_app(
    settings: Callable[[], Settings], store: Store, stats: Stats, lifecycle: Lifecycle, mint: IdMint
) -> web.Application:
    """Build the admin server's application.

    Args:
        settings: those in force; hot ones change while the process runs.
        mint: gives replays their ids.
    """
    admin = _Admin(settings, store, stats, lifecycle, mint)
    app = web.Application(middlewares=[errors_as_problems, guard(settings().admin.host)])
    app.add_routes(
        [
            web.get("/admin/v1/stats", admin.stats),
            web.get("/admin/v1/settings", admin.settings),
            web.get("/admin/v1/requests", admin.requests),
            web.get("/admin/v1/requests/{id}", admin.request),
            web.get("/admin/v1/requests/{id}/response", admin.response),
            web.delete("/admin/v1/requests/{id}", admin.cancel),
            web.get("/admin/v1/dead-letters", admin.dead_letters),
            web.get("/admin/v1/dead-letters/{id}", admin.dead_letter),
            web.post("/admin/v1/dead-letters/replay", admin.replay),
            web.post("/admin/v1/dead-letters/purge", admin.purge),
            web.post("/admin/v1/pause", admin.pause),
            web.post("/admin/v1/resume", admin.resume),
            web.get("/", _file("index.html")),
            *(web.get(f"/dashboard/{name}", _file(name)) for name in _FILES),
        ]
    )
    return app


# --- who may call -----------------------------------------------------------------------------------


def guard(admin_host: str) -> Any:
    """Return the middleware that keeps web pages out.

    A page reaches 127.0.0.1 in two ways: by a name that it re-points at us (then `Host` is that
    name: only addresses, localhost and *admin_host* are taken), or by a plain cross-origin request
    (then a change needs a header that pages cannot send unasked, and the `Origin` must be ours).
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not _names_us(request.host, admin_host):
            return _problem(_OTHER_SITE, "the Host header must be localhost or an address")
        if request.method in _CHANGING and not _is_deliberate(request):
            return _problem(
                _OTHER_SITE,
                f"changes need Content-Type: application/json or a header {ADMIN_HEADER}, "
                "and no Origin but this server's own",
            )
        return await handler(request)

    return check


def _names_us(host: str, admin_host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name not in ("localhost", admin_host.lower()):
            ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_deliberate(request: web.Request) -> bool:
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != request.host:
        return False
    return request.content_type == "application/json" or ADMIN_HEADER in request.headers


@web.middleware
async def errors_as_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors with the same problem documents as the intercept port."""
    try:
        return await handler(request)
    except OpenHQMError as exc:
        response = _problem(kind_of(exc), str(exc))
        if isinstance(exc, Unavailable):
            response.headers["Retry-After"] = str(math.ceil(exc.retry_after_seconds))
        return response
    except web.HTTPNotFound:
        return _problem(kind_of(UnknownPath()), f"there is nothing at {request.path}")
    except web.HTTPMethodNotAllowed as exc:
        response = _problem(kind_of(MethodNotAllowed("")), f"{exc.method} is not allowed here")
        response.headers["Allow"] = ", ".join(sorted(exc.allowed_methods))
        return response


def _problem(kind: Kind, detail: str) -> web.Response:
    response = json_response(
        {
            "type": f"urn:openhqm:problem:{kind.slug}",
            "title": kind.title,
            "status": kind.status,
            "detail": detail,
        },
        status=kind.status,
        content_type="application/problem+json",
    )
    response.headers["OpenHQM-Error"] = kind.slug
    return response


# --- what they get ----------------------------------------------------------------------------------


class _Admin:
    def __init__(
        self,
        settings: Callable[[], Settings],
        store: Store,
        stats: Stats,
        lifecycle: Lifecycle,
        mint: IdMint,
    ) -> None:
        self._settings = settings
        self._store = store
        self._stats = stats
        self._lifecycle = lifecycle
        self._mint = mint

    async def stats(self, _: web.Request) -> web.Response:
        return json_response(await self._stats.read())

    async def settings(self, _: web.Request) -> web.Response:
        return json_response(in_force(self._settings()))

    async def requests(self, request: web.Request) -> web.Response:
        return await self._page(request, _states(request))

    async def dead_letters(self, request: web.Request) -> web.Response:
        return await self._page(request, [State.FAILED])

    async def _page(self, request: web.Request, states: Sequence[State]) -> web.Response:
        page = await self._store.list(
            states=states,
            lane=_lane(request.query.get("lane", Lane.REQUESTS)),
            cursor=_cursor(request),
            limit=_limit(request),
            want=Want.REQUEST,
        )
        return json_response(
            {"records": [summary(record) for record in page.records], "cursor": page.cursor.hex()}
        )

    async def request(self, request: web.Request) -> web.Response:
        return json_response(details(await self._record(request)))

    async def dead_letter(self, request: web.Request) -> web.Response:
        record = await self._record(request)
        if record.state is not State.FAILED:
            raise UnknownHandle(f"not a dead letter: it is {record.state}")
        return json_response(details(record))

    async def _record(self, request: web.Request) -> Record:
        wanted = parse_id(request.match_info["id"])
        [record] = await self._store.get([wanted], Want.ANSWER | Want.REQUEST)
        if record is None:
            raise UnknownHandle("no such request")
        return record

    async def response(self, request: web.Request) -> web.StreamResponse:
        record = await self._record(request)
        if record.answer is None:
            raise UnknownHandle(f"no answer is held: the request is {record.state}")
        return await self._send_answer(request, record.answer)

    async def _send_answer(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        """Send the body as a download: the app's HTML must not run in the dashboard's origin."""
        status, _ = answer_parts(answer)
        response = web.StreamResponse(
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Disposition": "attachment",
                "X-Content-Type-Options": "nosniff",
                "OpenHQM-Answer-Status": str(status),
            }
        )
        await response.prepare(request)
        async for chunk in self._chunks(answer.body):
            await response.write(chunk)
        await response.write_eof()
        return response

    async def _chunks(self, body: Body) -> AsyncIterator[bytes]:
        if isinstance(body, bytes):
            yield body
        else:
            async for chunk in self._store.blobs.read(body):
                yield chunk

    async def cancel(self, request: web.Request) -> web.Response:
        id = parse_id(request.match_info["id"])
        record = await cancel(self._store, self._lifecycle, id, reason="operator")
        if record is None:
            raise UnknownHandle("no such request")
        return json_response(details(record))

    async def replay(self, request: web.Request) -> web.Response:
        replayed: list[dict[str, str]] = []
        refused: list[str] = []
        async for ids in self._chosen(request, replayed=False):
            settings = self._settings()
            outbound = settings.broker.url is not None and settings.mode != "egress"
            age = settings.queue.max_age_seconds
            replays = [Replay(id, self._mint(), age, outbound) for id in ids]
            for replay, done in zip(replays, await self._store.replay(replays), strict=True):
                if done:
                    replayed.append({"id": id_text(replay.id), "new_id": id_text(replay.new_id)})
                    self._lifecycle.emit(Event(Happening.REPLAYED, id=replay.id))
                else:
                    refused.append(id_text(replay.id))
        return json_response({"replayed": replayed, "refused": refused})

    async def purge(self, request: web.Request) -> web.Response:
        purged = 0
        async for ids in self._chosen(request, replayed=True):
            held = await self._store.get(ids)
            purged += await self._store.purge(
                [record.id for record in held if record and record.state is State.FAILED]
            )
        return json_response({"purged": purged})

    async def _chosen(self, request: web.Request, *, replayed: bool) -> AsyncIterator[Sequence[bytes]]:
        """The dead letters a call names, in batches; "all" means those *replayed* too, or not."""
        body = await _json_object(request)
        ids, everything = body.get("ids"), body.get("all")
        if everything is True and ids is None:
            async for records in self._all_dead_letters(_lane(body.get("lane", Lane.REQUESTS))):
                yield [record.id for record in records if replayed or record.replayed_as is None]
        elif isinstance(ids, list) and ids and everything is None and all(isinstance(i, str) for i in ids):
            for start in range(0, len(ids), _PAGE):
                yield [parse_id(id) for id in ids[start : start + _PAGE]]
        else:
            raise BadRequest('say {"ids": ["...", ...]} or {"all": true}')

    async def _all_dead_letters(self, lane: Lane) -> AsyncIterator[Sequence[Record]]:
        cursor = b""
        while True:
            page = await self._store.list(states=[State.FAILED], lane=lane, cursor=cursor, limit=_PAGE)
            yield page.records
            cursor = page.cursor
            if not cursor:
                return

    async def pause(self, request: web.Request) -> web.Response:
        return await self._set_paused(request, True)

    async def resume(self, request: web.Request) -> web.Response:
        return await self._set_paused(request, False)

    async def _set_paused(self, request: web.Request, paused: bool) -> web.Response:
        lane = _lane((await _json_object(request)).get("lane", Lane.REQUESTS))
        await self._store.pause(paused, lane)
        return json_response({"lane": lane, "paused": paused})


# --- reading requests -------------------------------------------------------------------------------


async def _json_object(request: web.Request) -> dict[str, Any]:
    raw = await request.read()
    try:
        body = orjson.loads(raw) if raw else {}
    except orjson.JSONDecodeError as exc:
        raise BadRequest(f"the body is not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return body


def _lane(text: Any) -> Lane:
    try:
        return Lane(text)
    except ValueError as exc:
        raise BadRequest(f"lane must be one of {', '.join(Lane)}") from exc


def _states(request: web.Request) -> list[State]:
    words = ",".join(request.query.getall("state", [])).split(",")
    try:
        return [State(word) for word in words if word]
    except ValueError as exc:
        raise BadRequest(f"state must be one of {', '.join(State)}") from exc


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", "50")
    if not text.isdecimal() or not 1 <= int(text) <= MAX_LIMIT:
        raise BadRequest(f"limit must be 1 to {MAX_LIMIT}")
    return int(text)


def _cursor(request: web.Request) -> bytes:
    text = request.query.get("cursor", "")
    if text and not _CURSOR.fullmatch(text):
        raise BadRequest("cursor must be the one an earlier page gave")
    return bytes.fromhex(text)


# --- the dashboard ----------------------------------------------------------------------------------


def _file(name: str) -> Handler:
    async def send(_: web.Request) -> web.Response:
        return web.Response(
            body=resources.files("openhqm").joinpath("dashboard", name).read_bytes(),
            content_type=_FILES[name],
            charset="utf-8",
            headers={
                "Cache-Control": "no-cache",
                "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'",
                "X-Content-Type-Options": "nosniff",
            },
        )

    return send
