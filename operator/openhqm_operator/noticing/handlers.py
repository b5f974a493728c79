"""What we ask of kopf: its settings, its login, and to say which objects to look at. It writes nothing.

    registry = build_registry(login, told, told_gone)       # `kopf_thread.py` runs it

The handlers of objects are `kopf.on.event` alone, which keep nothing in them: no annotation, no finalizer.
They hand over a key and a version, never the object; `sightings.py` decides when that key is looked at. There
is no `kopf.on.probe`: kopf asks those on a port of its own, and what they would say is known without asking.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import kopf

from openhqm_operator.api import names
from openhqm_operator.kube.login import Login
from openhqm_operator.kube.resources import ASYNC_PROXIES, WORKLOADS, Key
from openhqm_operator.reconciling.reconcile import Work

REQUEST_SECONDS = 15.0
CONNECT_SECONDS = 5.0
WATCH_SECONDS = 600
"""The server ends a watch after that long; one that only seems to be open ends before, by its silence."""

CHUNK = 100
"""Objects of a list that are in memory at once; as few as in our own lists, for the same reason."""

IDLE_SECONDS = 0.5
"""kopf keeps a task and the last object for that long after each event; by default for 5 s."""

Tell = Callable[[Work, int], None]
"""Takes a key and the version seen of it."""

Authorization = Callable[[], Awaitable[str | None]]
"""`Login.authorization`, callable on kopf's event loop."""


class _Endlessly:
    """Seconds between tries. kopf ends when they are used up, and an API server may be away for an hour."""

    def __iter__(self) -> Iterator[float]:
        yield from (1.0, 1.0, 2.0, 3.0, 5.0)
        while True:
            yield 8.0


def build_registry(
    login: Login, authorization: Authorization, told: Tell, told_gone: Tell
) -> kopf.OperatorRegistry:
    """Everything kopf calls of us.

    Args:
        told: an object was met or has changed.
        told_gone: an object was seen to go.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.startup(registry=registry)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        set_up(settings)

    @kopf.on.login(registry=registry)
    async def log_in(**_: Any) -> kopf.AiohttpSession:
        return kopf.AiohttpSession(server=login.server, aiohttp_session=_session(login, authorization))

    for resource in (ASYNC_PROXIES, *WORKLOADS.values()):
        tell = _teller(resource.kind, told, told_gone)
        kopf.on.event(resource.group, resource.version, resource.plural, id=resource.kind, registry=registry)(
            tell
        )
    return registry


def quieten() -> None:
    """Keep of kopf's log what somebody must look at; below warnings it has a line for each event."""
    logging.getLogger("kopf").setLevel(logging.WARNING)
    # Warns that signals are left alone outside of the main thread, which is why it runs there.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)


def set_up(settings: kopf.OperatorSettings) -> None:
    """How kopf behaves in our process."""
    settings.posting.enabled = False  # `kube/events.py` does that
    settings.scanning.disabled = True  # no right to watch all CRDs and namespaces is needed
    settings.process.ultimate_exiting_timeout = None  # we end it, by ending ourselves
    # kopf removes *its* finalizer from whatever it watches without needing one: by default that would be the
    # one by which other kopf operators hold a Deployment; with `names.FINALIZER` it would be ours.
    settings.persistence.finalizer = f"{names.GROUP}/kopf"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=names.GROUP)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=names.GROUP)
    settings.execution.max_workers = 1  # no handler of ours needs a thread
    settings.queueing.idle_timeout = IDLE_SECONDS
    settings.queueing.exit_timeout = IDLE_SECONDS
    settings.networking.request_timeout = REQUEST_SECONDS
    settings.networking.connect_timeout = CONNECT_SECONDS
    settings.networking.error_backoffs = _Endlessly()
    settings.watching.connect_timeout = CONNECT_SECONDS
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.chunk_size = CHUNK


def _teller(kind: str, told: Tell, told_gone: Tell) -> Any:
    async def tell(type: str | None, body: kopf.Body, **_: Any) -> None:
        metadata = body["metadata"]
        work = Work(kind, Key(metadata["namespace"], metadata["name"]))
        (told_gone if type == "DELETED" else told)(work, int(metadata["resourceVersion"]))

    return tell


class _Response(aiohttp.ClientResponse):
    """Ends its connection at once if that is not read to its end: a polite end of TLS takes up to 30 s."""

    def close(self) -> None:
        self._abort()
        super().close()

    def release(self) -> Any:
        self._abort()
        return super().release()

    def _abort(self) -> None:
        connection = self.connection  # None once all was read
        if connection is not None and connection.transport is not None:
            connection.transport.abort()


def _session(login: Login, authorization: Authorization) -> aiohttp.ClientSession:
    """Logs in as `kube/client.py` does, asking for the token before each call."""

    async def authorize(
        request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        value = await authorization()
        if value is not None:
            request.headers["Authorization"] = value
        request.server_hostname = login.server_name
        response = await send(request)
        if response.status == 401:
            login.refused()
        return response

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=login.tls),
        proxy=login.proxy,
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        middlewares=[authorize],
        response_class=_Response,
    )
