"""Asks the sidecars what they know: /stats on their health port, many at once, none for long.

A sidecar that does not answer, or with something else, is left out and counted; the others speak for the
queue. `figures.py` comes after.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp
import structlog

from openhqm_operator.api import names
from openhqm_operator.scaling.figures import BadFigures, Figures, read_figures

TIMEOUT_SECONDS = 2.0
MOST_AT_ONCE = 64
MOST_BYTES = 256 * 1024
"""A body is a few KiB; more is nothing of ours."""

Address = Callable[[Mapping[str, Any]], str | None]
"""Returns where a Pod's health port is, as `http://host:port`; None while it has no address."""

log = structlog.get_logger()


def address_of(pod: Mapping[str, Any]) -> str | None:
    """Return the URL of a Pod's health port; None while the Pod has no IP address."""
    ip = (pod.get("status") or {}).get("podIP")
    if not ip:
        return None
    host = f"[{ip}]" if ipaddress.ip_address(ip).version == 6 else ip
    return f"http://{host}:{names.HEALTH_PORT}"


class SidecarStats:
    """Reads /stats of Pods.

    Args:
        address: for tests and for those who reach Pods another way.

    Attributes:
        failures: answers that did not come or were none, by kind.
    """

    def __init__(self, address: Address = address_of) -> None:
        self.failures: Counter[str] = Counter()
        self._address = address
        self._slots = asyncio.Semaphore(MOST_AT_ONCE)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS, connect=TIMEOUT_SECONDS / 2),
            connector=aiohttp.TCPConnector(limit=MOST_AT_ONCE),
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def read(self, pods: Iterable[Mapping[str, Any]]) -> dict[str, Figures]:
        """Return the figures of those that answered, by Pod name."""
        asked = {pod["metadata"]["name"]: url for pod in pods if (url := self._address(pod)) is not None}
        answers = await asyncio.gather(*(self._ask(name, url) for name, url in asked.items()))
        return {name: figures for name, figures in zip(asked, answers, strict=True) if figures is not None}

    async def _ask(self, pod: str, url: str) -> Figures | None:
        try:
            async with self._slots:
                return read_figures(await self._get(f"{url}/stats"))
        except (aiohttp.ClientError, TimeoutError, OSError, BadFigures) as exc:
            self.failures[type(exc).__name__] += 1
            log.debug("stats.unreachable", pod=pod, error=str(exc) or type(exc).__name__)
            return None

    async def _get(self, url: str) -> bytes:
        if self._session is None:
            raise RuntimeError("use it as `async with SidecarStats() as stats`")
        async with self._session.get(url, allow_redirects=False) as response:
            response.raise_for_status()
            body = await response.content.read(MOST_BYTES + 1)
            while len(body) <= MOST_BYTES and (chunk := await response.content.read(MOST_BYTES)):
                body += chunk
        if len(body) > MOST_BYTES:
            raise BadFigures(f"/stats: more than {MOST_BYTES} bytes")
        return body
