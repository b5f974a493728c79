"""What happens to a request on the intercept port, as a list of steps.

    validate -> ours? (reserved prefix, submit API) -> route -> queue | pass | reject | shadow

Before it: `intercept.py` (connections, parse errors). It hands on to `results.py` and the submit API
(surfaces), to `passthrough.py`, and to `acceptor.py`, which stores. Nothing malformed is stored or
forwarded; every refusal is a problem document, and closes the connection where the rest of what was
sent on it cannot be trusted or was not read.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol

from aiohttp import HttpVersion, HttpVersion10, HttpVersion11, StreamReader, hdrs
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web import BaseRequest
from multidict import MultiMapping

from openhqm import problems
from openhqm.acceptor import Acceptor, Outcome
from openhqm.body import Limits, check_size, read_body, send_continue
from openhqm.control import NO_CONTROL, Control, idempotency_scope, read_control
from openhqm.envelope import Envelope
from openhqm.errors import (
    BadRequest,
    Draining,
    ExpectationFailed,
    Forbidden,
    NotSupported,
    OpenHQMError,
    RequestRejected,
    UnknownPath,
)
from openhqm.headers import Forwarding, Pair, request_head
from openhqm.lifecycle import Event, Happening, Lifecycle
from openhqm.ordering import OrderingKey
from openhqm.passthrough import Passthrough
from openhqm.replies import Reply
from openhqm.routes import Action, Decision, Routes
from openhqm.settings import Settings
from openhqm.share import Share
from openhqm.stores.base import Body, Store

_TARGET = re.compile(rb'/[!"$-~]*')
"""Origin form in printable ASCII. A fragment never belongs in a request target (RFC 9112 section 3.2)."""
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(?::[0-9]{0,5})?", re.ASCII)
_UPGRADES = frozenset({"websocket"})
_IGNORED_UPGRADES = frozenset({"h2c"})
"""Offers that a server may ignore (RFC 9110 section 7.8), made with requests that want to be served:
Java's HttpClient sends `Upgrade: h2c` on plain HTTP unless told otherwise."""

Surface = Callable[[BaseRequest, bytes], Awaitable[Reply]]
"""Serves paths of ours: gets the request and its raw target."""


@dataclass(slots=True)  # one per request, and not frozen: that would treble what it costs
class Inbound:
    """A request whose head is valid.

    Args:
        declared: Content-Length; None without one.
        framed: whether a body was announced, by Content-Length or chunks.
        upgrade: asks for another protocol, one we can pass on.
    """

    method: bytes
    target: bytes
    pairs: Sequence[Pair]
    peer: str
    declared: int | None
    framed: bool
    upgrade: bool


class Admission(NamedTuple):
    """A request on the short way: what is being committed, and what to answer once it is."""

    outcome: asyncio.Future[Outcome]
    reply: Callable[[asyncio.Future[Outcome]], Reply]


class Ingress:
    """Handles every request of the intercept port.

    Args:
        passthrough: None where there is no app; then nothing is routed, only surfaces are served.
        surfaces: path prefix -> what serves it; a prefix covers itself and what follows it after a
            slash or a question mark. They come before all routes and are never forwarded.
        pages: the same for single paths, whatever is below them.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        acceptor: Acceptor,
        *,
        lifecycle: Lifecycle,
        passthrough: Passthrough | None,
        surfaces: Mapping[bytes, Surface],
        pages: Mapping[bytes, Surface] | None = None,
    ) -> None:
        self._store = store
        self._acceptor = acceptor
        self._lifecycle = lifecycle
        self._passthrough = passthrough
        self._surfaces = tuple(surfaces.items())
        self._pages = dict(pages or {})
        self._accepting = True
        self._closing = False
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Take over the hot settings: routes, limits and what is said about clients."""
        ingress = settings.ingress
        self._routes = Routes(settings.routes, settings.intercept)
        self._share = Share.from_settings(settings.intercept)
        self._ordering = OrderingKey.from_settings(settings.queue.key)
        self._forwarding = Forwarding.from_settings(ingress, settings.app.url)
        self._identity_header = ingress.identity_header.lower().encode()
        self._limits = Limits.from_settings(settings, self._store.abilities)

    def begin_drain(self) -> None:
        """Close connections after their next answer, so that clients move elsewhere."""
        self._closing = True

    def stop_accepting(self) -> None:
        """Refuse to queue anything from now on (503); everything else goes on."""
        self._accepting = False

    async def handle(self, request: BaseRequest) -> Reply:
        """Return the answer to one request. Never raises an error of ours."""
        try:
            reply = await self._steps(request)
        except OpenHQMError as exc:
            reply = self._refuse(exc, is_read=request.content.is_eof())
        if self._closing:
            reply.keep_alive = False
        return reply

    def admit(self, message: RawRequestMessage, content: StreamReader, peer: str) -> Admission | None:
        """Begin to queue an ordinary request without a task of its own; None: `handle` must see it.

        Ordinary means: valid, whole, small, for the queue, with no wish that takes more than a 202. The
        functions that decide are those of `_queue`; what they refuse is refused by `handle`, once more.
        """
        if self._closing or not self._accepting or self._passthrough is None:
            return None
        if not content.is_eof() or content.total_bytes > self._limits.inline_bytes:
            return None
        try:
            inbound = validate(message, message.path, peer)
            decision = self._routes.decide(
                inbound.method, inbound.target, inbound.pairs, upgrade=inbound.upgrade
            )
            control = read_control(inbound.pairs)
        except RequestRejected:
            return None
        if (
            decision.action is not Action.QUEUE
            or not _leaves_at_once(control, decision)
            or hdrs.EXPECT in message.headers
            or self._surface(inbound.target) is not None
        ):
            return None
        if self._share is not None:
            # Only those it takes are decided here, for `handle` decides about all that it gets.
            key = self._key_in_head(inbound, control)
            if not self._share.would_take(control, key):
                return None
            self._share.takes(control, key)
        body = content.read_nowait()
        if self._ordering is not None:
            control = self._ordered(inbound, control, body)
        id = self._acceptor.new_id()
        envelope = self._envelope(inbound, decision, len(body))
        return Admission(
            self._acceptor.admit(id, envelope, body, control, decision),
            partial(self._admitted, id, len(body), control),
        )

    def _admitted(self, id: bytes, body_bytes: int, control: Control, done: asyncio.Future[Outcome]) -> Reply:
        """Return the answer to what `admit` began."""
        try:
            return self._acceptor.admitted(id, body_bytes, done.result(), control)
        except OpenHQMError as exc:
            return self._refuse(exc, is_read=True)

    async def _steps(self, request: BaseRequest) -> Reply:
        inbound = validate(request, request.raw_path, request.remote or "")
        if (surface := self._surface(inbound.target)) is not None:
            return await surface(request, inbound.target)
        if self._passthrough is None:
            raise UnknownPath("no app is configured here (app.url); requests come by the submit API")
        decision = self._routes.decide(inbound.method, inbound.target, inbound.pairs, upgrade=inbound.upgrade)
        if decision.action is Action.QUEUE and not self._is_left_out(inbound):
            return await self._queue(request, inbound, decision)
        if decision.action is Action.REJECT:
            raise Forbidden("a route rejects this request")
        if decision.action is Action.SHADOW:
            self._lifecycle.emit(Event(Happening.SHADOWED))
        return await self._pass(request, inbound, self._passthrough)

    def _is_left_out(self, inbound: Inbound) -> bool:
        """Whether the share that is queued leaves this request to pass."""
        if self._share is None:
            return False
        control = read_control(inbound.pairs)
        if self._share.takes(control, self._key_in_head(inbound, control)):
            return False
        self._lifecycle.emit(Event(Happening.LEFT_OUT))
        return True

    def _key_in_head(self, inbound: Inbound, control: Control) -> bytes | None:
        """What orders a request, as far as that is known before its body."""
        if control.key is not None or self._ordering is None:
            return control.key
        return self._ordering.in_head(inbound.target, inbound.pairs)

    def _ordered(self, inbound: Inbound, control: Control, body: Body) -> Control:
        """Give a request whose client names no key the one of `queue.key`."""
        if control.key is not None or self._ordering is None:
            return control
        key = self._ordering.in_request(inbound.target, inbound.pairs, body)
        return control if key is None else replace(control, key=key)

    def _surface(self, target: bytes) -> Surface | None:
        for prefix, surface in self._surfaces:
            if target.startswith(prefix) and target[len(prefix) : len(prefix) + 1] in (b"", b"/", b"?"):
                return surface
        return self._pages.get(target.partition(b"?")[0]) if self._pages else None

    async def _pass(self, request: BaseRequest, inbound: Inbound, passthrough: Passthrough) -> Reply:
        head = request_head(
            inbound.method,
            inbound.target,
            inbound.pairs,
            length=inbound.declared,
            chunked=inbound.framed and inbound.declared is None,
            peer=inbound.peer,
            forwarding=self._forwarding,
            consume_prefer=False,
        )
        awaits = expects_continue(request)
        return await passthrough.handle(
            request,
            head,
            upgrade=inbound.upgrade,
            before_body=partial(send_continue, request) if awaits else None,
        )

    async def _queue(self, request: BaseRequest, inbound: Inbound, decision: Decision) -> Reply:
        """Admit, read, store, answer; in this order, so that what is refused is refused unread."""
        if not self._accepting:
            raise Draining("this process is about to exit; the next try meets another one")
        check_size(inbound.declared, self._limits)
        control = read_control(inbound.pairs)
        id = self._acceptor.new_id()
        callback = self._acceptor.callback(id, control)
        awaits = expects_continue(request)
        if awaits or self._is_large(request, inbound):
            await self._acceptor.check_room(inbound.declared or 0)
        if awaits:
            await send_continue(request)
        scope = self._idempotency_scope(inbound, control)
        received = await read_body(
            request,
            self._store.blobs,
            id,
            self._limits,
            declared=inbound.declared,
            hashed=scope is not None,
        )
        control = self._ordered(inbound, control, received.body)
        envelope = self._envelope(inbound, decision, received.size)
        in_force = await self._acceptor.accept(
            id, envelope, received, control, decision, scope=scope, callback=callback
        )
        return await self._acceptor.answer(
            in_force, control, decision, existing=in_force != id, to_head=inbound.method == b"HEAD"
        )

    def _is_large(self, request: BaseRequest, inbound: Inbound) -> bool:
        """Whether reading the body before it is judged would be a waste: still on its way, and not small."""
        small = inbound.declared is not None and inbound.declared <= self._limits.inline_bytes
        return not small and not request.content.is_eof()

    def _envelope(self, inbound: Inbound, decision: Decision, size: int) -> Envelope:
        head = request_head(
            inbound.method,
            inbound.target,
            inbound.pairs,
            length=size if inbound.framed else None,
            peer=inbound.peer,
            forwarding=self._forwarding,
        )
        return Envelope(
            head,
            timeout_seconds=decision.timeout_seconds,
            max_attempts=decision.max_attempts,
            repeat=decision.repeat,
            peer=inbound.peer,
        )

    def _idempotency_scope(self, inbound: Inbound, control: Control) -> bytes | None:
        if control.idempotency_key is None:
            return None
        identity = b"\n".join(v for n, v in inbound.pairs if n.lower() == self._identity_header)
        return idempotency_scope(identity, inbound.method, inbound.target, control.idempotency_key)

    def _refuse(self, error: OpenHQMError, *, is_read: bool) -> Reply:
        kind = problems.kind_of(error)
        self._lifecycle.emit(Event(Happening.REFUSED, status=kind.status, reason=kind.slug))
        # An unread body would have to be read to its end before the connection is good for more.
        usable = is_read and not isinstance(error, _DISTRUST)
        return problems.reply(error, keep_alive=usable)


def _leaves_at_once(control: Control, decision: Decision) -> bool:
    """Whether a 202 is all there is to wait for."""
    if control is NO_CONTROL:
        return not decision.wait_seconds
    waits = control.wait_seconds if control.wait_seconds is not None else decision.wait_seconds
    is_asynchronous = control.respond_async and control.wait_seconds is None
    return (not waits or is_asynchronous) and control.idempotency_key is None and control.callback is None


class Malformed(BadRequest):
    """The head breaks the rules of HTTP: nothing more is read from this connection."""


_DISTRUST = (Malformed, NotSupported, Draining)


class Head(Protocol):
    """A parsed request head: aiohttp's request, or the message it is made from."""

    @property
    def method(self) -> str: ...

    @property
    def version(self) -> HttpVersion: ...

    @property
    def headers(self) -> MultiMapping[str]: ...

    @property
    def raw_headers(self) -> Sequence[Pair]: ...


def validate(head: Head, raw_path: str, peer: str) -> Inbound:
    """Check what the parser lets through and a proxy must not.

    Args:
        raw_path: the request target as it was sent.
        peer: the client's address.

    Raises:
        Malformed: 400; the framing, target or Host is ambiguous or invalid.
        NotSupported: 501; a part of HTTP that we refuse rather than corrupt.
    """
    headers = head.headers
    version = head.version
    method = head.method.encode("ascii", "replace")
    target = raw_path.encode("utf-8", "surrogateescape")
    if version != HttpVersion11 and version != HttpVersion10:
        raise NotSupported("only HTTP/1.1 and HTTP/1.0 are served")
    if _TARGET.fullmatch(target) is None or method == b"CONNECT":
        raise _bad_target(method, target)
    _check_host(headers.get(hdrs.HOST), required=version == HttpVersion11)
    coding = headers.get(hdrs.TRANSFER_ENCODING)
    if coding is not None:
        _check_coding(coding, old=version == HttpVersion10)
    length = headers.get(hdrs.CONTENT_LENGTH)
    if coding is not None and length is not None:
        raise Malformed("Transfer-Encoding and Content-Length exclude each other")
    upgrade = headers.get(hdrs.UPGRADE)
    return Inbound(
        method,
        target,
        head.raw_headers,
        peer,
        None if length is None else int(length),
        coding is not None or length is not None,
        upgrade is not None and _wants_upgrade(upgrade, head),
    )


def expects_continue(request: BaseRequest) -> bool:
    """Whether the client waits for 100 Continue before it sends its body.

    Raises:
        ExpectationFailed: it expects something else.
    """
    expectation = request.headers.get(hdrs.EXPECT)
    if expectation is None or request.version == HttpVersion10:
        return False  # HTTP/1.0 knows no 100 (RFC 9110 section 10.1.1)
    if expectation.lower() != "100-continue":
        raise ExpectationFailed("Expect: only 100-continue can be met")
    return True


def _bad_target(method: bytes, target: bytes) -> Malformed | NotSupported:
    if method == b"CONNECT":
        return NotSupported("CONNECT: this is no forward proxy")
    if target == b"*":
        return NotSupported("OPTIONS *: ask for a path")
    if not target.startswith(b"/"):
        return Malformed("the request target must be a path, not a whole URL")
    return Malformed("the request target has bytes that a URL cannot have; percent-encode them")


def _check_host(host: str | None, *, required: bool) -> None:
    if host is None and not required:
        return
    if host is None or _HOST.fullmatch(host) is None:
        raise Malformed("Host must be a host name or address, with or without a port")


def _check_coding(coding: str, *, old: bool) -> None:
    if old:
        raise Malformed("HTTP/1.0 has no Transfer-Encoding")
    if coding.strip(" \t").lower() != "chunked":
        raise NotSupported("Transfer-Encoding: only chunked is supported")


def _wants_upgrade(upgrade: str, head: Head) -> bool:
    """Whether another protocol is asked for, one that is passed on.

    Upgrade without Connection: upgrade means nothing.
    """
    values = head.headers.getall(hdrs.CONNECTION, [])
    if not any("upgrade" in (part.strip(" \t").lower() for part in value.split(",")) for value in values):
        return False
    if upgrade.lower() in _IGNORED_UPGRADES:
        return False
    if upgrade.lower() not in _UPGRADES or head.method != "GET" or head.version != HttpVersion11:
        raise NotSupported("Upgrade: only GET requests to websocket over HTTP/1.1 are passed on")
    return True
