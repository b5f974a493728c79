"""What the kubelet asks of a sidecar beside an app: the readiness it relays, and both preStop hooks.

    GET /app-ready/{container}   in place of the container's own readinessProbe
    GET /app-stopping            the preStop of the app's containers: before their SIGTERM, whatever for
    GET /drain                   our own preStop: the Pod ends

The hooks change something, so they need the Pod's token, which only the Pod's spec knows. They are built
where `pod.token` or `pod.probes` is set (`main.py`) and served on the health port (`health.py`).

A container stops for one of two reasons, and its hook cannot tell which. When the Pod ends, /drain came
too, and leasing stays off. Otherwise the container is restarted, and leasing goes on once the app is back:
it was seen to refuse connections, or RESTART_SECONDS passed, and then it is ready, or takes connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog
from aiohttp import web

from openhqm.app_probes import Ask, build_ask, takes_connections
from openhqm.settings import Settings

TOKEN_HEADER = "OpenHQM-Pod-Token"  # noqa: S105 - the name of a header

LOOK_SECONDS = 0.25
"""How often the app is looked at after its hook; a restart takes longer."""

RESTART_SECONDS = 60.0
"""An app that takes connections for this long after its hook was not the container that stopped, or it ends
without refusing any: twice the grace period that Kubernetes gives by default."""

log = structlog.get_logger("openhqm.pod")


class Sending(Protocol):
    """What replays requests to the app."""

    def stop_leasing(self) -> None: ...

    def resume(self) -> None: ...

    async def quiet(self) -> None: ...


class Pod:
    """The sidecar's part in the life of its Pod.

    Args:
        address: where the app listens; None without one.
        sending: everything that replays to the app.
        passing: waits until what passes straight through now is over, for the seconds given at most.
        is_serving: whether this process is not draining.
        end: begins the drain: unready, held waits become 202s, no new leases; requests are still accepted,
            for routes lag behind. May be called again.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        address: tuple[str, int] | None,
        sending: Sequence[Sending],
        passing: Callable[[float], Awaitable[None]],
        is_serving: Callable[[], bool],
        end: Callable[[], None],
    ) -> None:
        host = address[0] if address else "127.0.0.1"
        self._token = settings.pod.token
        self._asks = {name: build_ask(probe, host) for name, probe in settings.pod.probes.items()}
        self._always_relays = settings.pod.readiness == "app"
        self._were_ready: set[str] = set()
        self._asking: dict[str, asyncio.Task[bool]] = {}
        self._address = address
        self._sending = sending
        self._passing = passing
        self._is_serving = is_serving
        self._end = end
        self._hooks = 0
        """Hooks of the app that wait for an answer."""
        self._answered = asyncio.Event()
        self.is_stopped = False
        """Whether leasing is off because of a hook of the app."""
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Take over the hot settings: how long to wait."""
        self._drain = settings.drain

    def routes(self) -> list[web.RouteDef]:
        """Return what the health port serves for the kubelet, whose hooks can send GET alone."""
        return [
            web.get("/app-ready/{container}", self.app_ready),
            web.get("/app-stopping", self.app_stopping, allow_head=False),
            web.get("/drain", self.drain, allow_head=False),
        ]

    async def run(self) -> None:
        """Let leasing go on after each restart of the app."""
        while True:
            await self._answered.wait()
            self._answered.clear()
            await self._app_is_back()
            if not self._hooks and not self._answered.is_set() and self._is_serving():
                self._resume()

    # what the kubelet asks

    async def app_ready(self, request: web.Request) -> web.Response:
        """Relay the container's own probe; after its first success say whether we serve.

        From then on an overloaded app keeps its place in the Service while the queue takes what it cannot;
        with `pod.readiness: app` every call is relayed.
        """
        name = request.match_info["container"]
        if name not in self._asks:
            raise web.HTTPNotFound
        if self._always_relays or name not in self._were_ready:
            is_ready = await self._ask(name)
        else:
            is_ready = self._is_serving()
        return _said(is_ready, "ready", "not ready")

    async def app_stopping(self, request: web.Request) -> web.Response:
        """Stop leasing, and answer once the app may be ended.

        That is when no replay is in flight, what passed straight through has ended (WebSockets have no end:
        `drain.timeout_seconds` at most), and routes had `drain.accept_seconds` to move away.
        """
        self._admit(request)
        self._stop()
        self._hooks += 1
        try:
            await asyncio.gather(
                *(part.quiet() for part in self._sending),
                self._passing(self._drain.timeout_seconds),
                asyncio.sleep(self._drain.accept_seconds),
            )
        finally:
            self._hooks -= 1
            if not self._hooks:
                self._answered.set()
        return _said(True, "nothing is in flight to the app")

    async def drain(self, request: web.Request) -> web.Response:
        """Begin the end, and answer at once.

        Nothing is gained by holding the hook: the kubelet sends SIGTERM to a native sidecar only after all
        ordinary containers have ended, whose own hooks wait in `app_stopping`, and what is left in flight
        then is finished or released after SIGTERM (design R8). A hook that is held uses up the Pod's grace.
        """
        self._admit(request)
        self._end()
        return _said(True, "draining")

    # who asks

    def _admit(self, request: web.Request) -> None:
        if self._token is None:
            raise web.HTTPNotFound
        given = request.headers.get(TOKEN_HEADER, "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self._token.get_secret_value().encode()):
            raise web.HTTPForbidden(text=f"{TOKEN_HEADER} is missing or not this Pod's\n")

    # the app

    async def _ask(self, name: str) -> bool:
        """Ask the container; callers that come meanwhile share the answer, for this port is open to all."""
        asking = self._asking.get(name)
        if asking is None:
            asking = self._asking[name] = asyncio.create_task(_called(self._asks[name]), name=f"ask-{name}")
            asking.add_done_callback(lambda _: self._asking.pop(name))
        is_ready = await asyncio.shield(asking)
        if is_ready:
            self._were_ready.add(name)
        return is_ready

    def _stop(self) -> None:
        for part in self._sending:
            part.stop_leasing()
        if not self.is_stopped:
            log.info("app.stopping")
        self.is_stopped = True

    def _resume(self) -> None:
        for part in self._sending:
            part.resume()
        self.is_stopped = False
        log.info("app.back")

    async def _app_is_back(self) -> None:
        await _until(self._refuses_connections, RESTART_SECONDS)
        await _until(self._takes_connections, None)
        # A probe that never succeeds kept no request from the app before, and must not from now on.
        await _until(self._all_ready, RESTART_SECONDS)

    async def _takes_connections(self) -> bool:
        return self._address is None or await takes_connections(*self._address)

    async def _refuses_connections(self) -> bool:
        return not await self._takes_connections()

    async def _all_ready(self) -> bool:
        return all(await asyncio.gather(*(ask() for ask in self._asks.values())))


async def _until(is_so: Ask, seconds: float | None) -> None:
    """Look again and again until *is_so*, at most for *seconds* (None: for ever)."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while True:
                if await is_so():
                    return
                await asyncio.sleep(LOOK_SECONDS)


async def _called(ask: Ask) -> bool:
    return await ask()


def _said(is_so: bool, yes: str, no: str = "") -> web.Response:
    return web.Response(text=f"{yes if is_so else no}\n", status=200 if is_so else 503)
