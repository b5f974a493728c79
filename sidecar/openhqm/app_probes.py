"""Asks a container whether it is ready, as the kubelet would: HTTP, TCP, gRPC.

`pod.py` relays the answers. Every question has a connection of its own and one timeout for all of it, and
whatever goes wrong is a no. What the kubelet does otherwise is said where it is.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable

from openhqm import __version__, grpc_health
from openhqm.settings import GrpcProbe, HttpProbe, Probe, TcpProbe

LINE_LIMIT_BYTES = 8 * 1024
"""Of a status line; more is no answer of a web server."""

Ask = Callable[[], Awaitable[bool]]


def build_ask(probe: Probe, host: str) -> Ask:
    """Return what asks once.

    Args:
        host: where the containers of the Pod listen.
    """
    if probe.http is not None:
        return _HttpAsk(probe.http, host)
    if probe.grpc is not None:
        return _GrpcAsk(probe.grpc, host)
    assert probe.tcp is not None
    return _TcpAsk(probe.tcp, host)


async def takes_connections(host: str, port: int, timeout_seconds: float = 1.0) -> bool:
    """Whether somebody listens there."""
    return await _TcpAsk(TcpProbe(port=port, timeout_seconds=timeout_seconds), host)()


class _TcpAsk:
    def __init__(self, probe: TcpProbe, host: str) -> None:
        self._probe = probe
        self._host = host

    async def __call__(self) -> bool:
        try:
            async with asyncio.timeout(self._probe.timeout_seconds):
                _, writer = await asyncio.open_connection(self._host, self._probe.port)
        except OSError:  # a TimeoutError is one
            return False
        writer.transport.abort()
        return True


class _HttpAsk:
    """A redirect is success at once, where the kubelet asks on at the same host."""

    def __init__(self, probe: HttpProbe, host: str) -> None:
        self._probe = probe
        self._host = host
        self._tls = _unverified() if probe.scheme == "HTTPS" else None
        self._head = _http_head(probe, host)

    async def __call__(self) -> bool:
        try:
            async with asyncio.timeout(self._probe.timeout_seconds):
                return 200 <= await self._status() < 400
        except (OSError, ValueError):  # not reached, too late, or no HTTP
            return False

    async def _status(self) -> int:
        reader, writer = await asyncio.open_connection(
            self._host, self._probe.port, ssl=self._tls, limit=LINE_LIMIT_BYTES
        )
        try:
            writer.write(self._head)
            version, _, rest = (await reader.readline()).partition(b" ")
            if not version.startswith(b"HTTP/1."):
                raise ValueError("no HTTP")
            return int(rest[:3])
        finally:
            writer.transport.abort()


class _GrpcAsk:
    def __init__(self, probe: GrpcProbe, host: str) -> None:
        self._probe = probe
        self._host = host

    async def __call__(self) -> bool:
        probe = self._probe
        try:
            async with asyncio.timeout(probe.timeout_seconds):
                reader, writer = await asyncio.open_connection(self._host, probe.port)
                try:
                    return await grpc_health.is_serving(
                        reader, writer, f"{self._host}:{probe.port}", probe.service
                    )
                finally:
                    writer.transport.abort()
        except (OSError, EOFError, ValueError):  # not reached, too late, cut off, or no gRPC
            return False


def _http_head(probe: HttpProbe, host: str) -> bytes:
    """The request, with the headers the kubelet sends unless the probe gives its own."""
    headers = {"host": ("Host", f"{host}:{probe.port}")}
    headers["user-agent"] = ("User-Agent", f"kube-probe/openhqm-{__version__}")
    headers["accept"] = ("Accept", "*/*")
    given = [(name, value.get_secret_value()) for name, value in probe.headers]
    kept = [pair for lower, pair in headers.items() if lower not in {name.lower() for name, _ in given}]
    lines = [f"GET {probe.path} HTTP/1.1", *(f"{n}: {v}" for n, v in (*kept, *given)), "Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode()


def _unverified() -> ssl.SSLContext:
    """As the kubelet: a probe asks whether the app works, not who it is."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
