"""Asks the app's health path, so that an open circuit breaker need not try real requests on it."""

from __future__ import annotations

from openhqm.errors import AppError
from openhqm.http1 import Client

TIMEOUT_SECONDS = 5.0
BODY_LIMIT_BYTES = 64 * 1024


class AppProbe:
    """Whether the app works, by its own account.

    Args:
        url: `app.url`.
        path: `app.health_path`.
    """

    def __init__(self, client: Client, url: str, path: str) -> None:
        self._client = client
        self._head = f"GET {path} HTTP/1.1\r\nHost: {url.removeprefix('http://')}\r\n\r\n".encode()

    async def __call__(self) -> bool:
        """Ask once; only an answer of 200 to 399 means yes, as for a Kubernetes probe."""
        try:
            response = await self._client.exchange(
                self._head, b"", timeout_seconds=TIMEOUT_SECONDS, gather_bytes=BODY_LIMIT_BYTES
            )
        except AppError:
            return False
        if not response.complete:
            response.close()
        return 200 <= response.status < 400
