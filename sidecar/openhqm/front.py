"""Everything behind the intercept port, built and ended as one: ingress, results, pass-through, waits.

`main.py` makes one `Front` in the modes that take requests in. The order of its end is part of the
product (design R8): waits become 202s first, new requests are taken until routes have moved, and
what is still being answered is answered before connections close.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp.web import Server

from openhqm import openapi
from openhqm.acceptor import Acceptor, CallbackEncoder
from openhqm.addresses import AllowList
from openhqm.callbacks import encode_callback
from openhqm.errors import SettingsError
from openhqm.estimates import DrainRate
from openhqm.express import ExpressConnection
from openhqm.handlers import load_handlers
from openhqm.handles import Handles
from openhqm.http1 import Client
from openhqm.ingress import Ingress, Surface
from openhqm.intercept import build_server
from openhqm.lifecycle import Lifecycle
from openhqm.passthrough import Passthrough
from openhqm.results import Page, Results
from openhqm.settings import CallbackSettings, Settings
from openhqm.stores.base import Store
from openhqm.waiters import Waiters

if TYPE_CHECKING:
    from openhqm.submit import Submitter

BACKLOG = 1024
"""Connections the kernel holds while we are busy: a burst is what we are here for."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What the original API shows of the process at /health and /metrics."""

    readiness: Callable[[], Mapping[str, Any]]
    exposition: Callable[[], bytes]


class Front:
    """The intercept port and all it needs.

    Args:
        client: to the app; None in API mode.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        handles: Handles,
        client: Client | None,
        lifecycle: Lifecycle,
        figures: Figures,
    ) -> None:
        self._settings = settings.ingress
        self._waiters = Waiters(store)
        self.drain_rate = DrainRate()
        self._passthrough = Passthrough(client, settings) if client is not None else None
        self._submitter: Submitter | None = None
        self._acceptor = acceptor = Acceptor(
            settings,
            store,
            handles=handles,
            waiters=self._waiters,
            drain_rate=self.drain_rate,
            lifecycle=lifecycle,
            encode_callback=_callback_encoder(settings.callback),
        )
        pages: dict[bytes, Page] = {openapi.PATH: openapi.DescriptionPage(settings).handle}
        surfaces: dict[bytes, Surface] = {}
        exact: dict[bytes, Surface] = {}
        if settings.submit_api_enabled:
            # Loaded where it is offered: its models are 0.3 MiB, and in front of an app it is off.
            from openhqm.original_api import OriginalApi
            from openhqm.submit import PATH, SubmitPage, Submitter

            self._submitter = Submitter(settings, store, acceptor, handlers=load_handlers())
            pages[PATH] = SubmitPage(self._submitter, acceptor).handle
            original = OriginalApi(
                self._submitter,
                store,
                handles=handles,
                waiters=self._waiters,
                drain_rate=self.drain_rate,
                readiness=figures.readiness,
                exposition=figures.exposition,
            )
            surfaces.update(original.surfaces)
            exact.update(original.pages)
        self._results = results = Results(
            settings.ingress,
            store,
            handles=handles,
            waiters=self._waiters,
            drain_rate=self.drain_rate,
            lifecycle=lifecycle,
            pages=pages,
        )
        surfaces[settings.ingress.reserved_prefix.encode()] = results.handle
        self.ingress = Ingress(
            settings,
            store,
            acceptor,
            lifecycle=lifecycle,
            passthrough=self._passthrough,
            surfaces=surfaces,
            pages=exact,
        )
        self._protocols: Server = build_server(
            self.ingress.handle, settings.ingress, partial(ExpressConnection, self.ingress.admit)
        )
        self._server: asyncio.Server | None = None

    def apply(self, settings: Settings) -> None:
        """Take over the hot settings."""
        self._acceptor.apply(settings, _callback_encoder(settings.callback))
        self._results.apply(settings.ingress)
        self.ingress.apply(settings)
        if self._passthrough is not None:
            self._passthrough.apply(settings)
        if self._submitter is not None:
            self._submitter.apply(settings)

    def waiting_clients(self) -> int:
        """Clients held for an answer, a long poll or events."""
        return self._waiters.waiting

    def held(self) -> int:
        """Requests held until the app takes connections."""
        return self._passthrough.held if self._passthrough is not None else 0

    def passed(self) -> tuple[int, int]:
        """Requests that came to pass straight through since the start, and those with the app now."""
        straight = self._passthrough
        return (straight.passed, straight.passing) if straight is not None else (0, 0)

    async def passing(self, timeout_seconds: float) -> None:
        """Wait until what passes straight through now has ended, at most *timeout_seconds*."""
        if self._passthrough is not None:
            await self._passthrough.quiet(timeout_seconds)

    async def listen(self) -> int:
        """Take connections; returns the port.

        Raises:
            SettingsError: the address cannot be bound.
        """
        self._waiters.open()
        host, port = self._settings.host, self._settings.port
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._protocols, host, port, backlog=BACKLOG
            )
        except OSError as exc:
            raise SettingsError(
                f"ingress.port: cannot listen on {host}:{port}: {exc.strerror or exc}"
            ) from exc
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def begin_drain(self) -> None:
        """Give held requests their 202 and close connections after their next answer."""
        self.ingress.begin_drain()
        self._waiters.drain()

    async def drain(self, timeout_seconds: float) -> None:
        """Refuse what is new, finish the answers under way within *timeout_seconds*, disconnect."""
        self.ingress.stop_accepting()
        if self._submitter is not None:
            self._submitter.stop_accepting()
        if self._server is not None:
            self._server.close()
        if self._passthrough is not None:
            # Before pre_shutdown: after it aiohttp throws away what clients send, tunnels included.
            await self._passthrough.close(timeout_seconds)
        self._protocols.pre_shutdown()
        await self._protocols.shutdown(timeout_seconds)
        await self._waiters.close()


def _callback_encoder(settings: CallbackSettings) -> CallbackEncoder | None:
    """What turns a callback URL and a handle into a stored notice; None where callbacks are not offered."""
    if not settings.allowed_hosts:
        return None
    allowed = AllowList(settings)

    def encode(url: str, handle: str) -> bytes:
        return encode_callback(allowed.check_url(url), handle)

    return encode
