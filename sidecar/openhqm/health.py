"""The health port: probes for Kubernetes, metrics for Prometheus, figures for the autoscaler.

Open to everyone who reaches the Pod, so it holds nothing secret and changes nothing, but for the hooks of
the kubelet, which need a token (`pod.py`). A dead app or
store does not make the Pod unready: requests are still accepted, or refused with 503 and Retry-After,
and taking every Pod out of the Service would turn those answers into connection errors.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Any

import orjson
from aiohttp import web

from openhqm.errors import SettingsError, StoreUnavailable
from openhqm.stats import Phase, Stats

EXPOSITION_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def build_health_app(
    stats: Stats, exposition: Callable[[], bytes], hooks: Iterable[web.RouteDef] = ()
) -> web.Application:
    """Build the health server's application.

    Args:
        exposition: returns the metrics in Prometheus' text format 0.0.4.
        hooks: what else is served, to the kubelet.
    """

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")  # being answered at all: the event loop turns

    async def readyz(_: web.Request) -> web.Response:
        readiness = stats.readiness()
        return json_response(readiness, status=200 if readiness["ready"] else 503)

    async def startupz(_: web.Request) -> web.Response:
        started = stats.phase is not Phase.STARTING
        return web.Response(text="ok\n" if started else "starting\n", status=200 if started else 503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=exposition(), headers={"Content-Type": EXPOSITION_TYPE})

    async def figures(_: web.Request) -> web.Response:
        try:
            return json_response(await stats.read())
        except StoreUnavailable as exc:
            return json_response({"error": str(exc), **stats.readiness()}, status=503)

    app = web.Application()
    app.add_routes(
        [
            web.get("/livez", livez),
            web.get("/readyz", readyz),
            web.get("/startupz", startupz),
            web.get("/metrics", metrics),
            web.get("/stats", figures),
            *hooks,
        ]
    )
    return app


def json_response(data: Any, status: int = 200, content_type: str = "application/json") -> web.Response:
    """Answer with *data* as JSON that no cache keeps."""
    return web.Response(
        body=orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE),
        status=status,
        content_type=content_type,
        headers={"Cache-Control": "no-store"},
    )


async def listen(app: web.Application, area: str, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Serve *app*; returns its runner, whose `cleanup` ends it, and the port it got.

    Args:
        area: settings area, for the message when the port is taken.

    Raises:
        SettingsError: the address cannot be bound.
    """
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except (OSError, socket.gaierror) as exc:
        await runner.cleanup()
        raise SettingsError(f"{area}.port: cannot listen on {host}:{port}: {exc.strerror or exc}") from exc
    return runner, runner.addresses[0][1]
