"""The admin API as the CLI sees it: plain calls, JSON in and out, one helpful line when they fail.

http.client and not aiohttp: a command makes one or two calls, and loads in a fifth of the time.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from openhqm.errors import OpenHQMError

TIMEOUT_SECONDS = 30.0


class CallFailed(OpenHQMError):
    """A call brought no usable answer; the message is for the person at the terminal."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def call(
    url: str,
    method: str,
    target: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Answer:
    """Send one request to the server at *url* (http://host:port) and return whatever it answers.

    Raises:
        CallFailed: the URL is no use, or nobody answered.
    """
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        host, port = None, 0
    if parts.scheme != "http" or not host:
        raise CallFailed(f"{url} is not an address like http://127.0.0.1:16000")
    connection = http.client.HTTPConnection(host, port, timeout=timeout_seconds)
    try:
        connection.request(method, target, body, dict(headers or {}))
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())
    except ConnectionRefusedError as exc:
        raise CallFailed(
            f"no openhqm is listening on {url}; start one with: openhqm serve --app http://127.0.0.1:8080"
        ) from exc
    except (OSError, http.client.HTTPException) as exc:
        raise CallFailed(f"{url} does not answer: {exc or type(exc).__name__}") from exc
    finally:
        connection.close()


class Admin:
    """The admin API of a running openhqm.

    Args:
        url: http://host:port of its admin port.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def stats(self) -> dict[str, Any]:
        return self._json("GET", "/stats")

    def settings(self) -> dict[str, Any]:
        return self._json("GET", "/settings")

    def requests(self, **query: Any) -> dict[str, Any]:
        """A page of records: state, lane, limit, cursor."""
        return self._json("GET", _with_query("/requests", query))

    def request(self, id: str) -> dict[str, Any]:
        return self._json("GET", f"/requests/{quote(id, safe='')}")

    def answer(self, id: str) -> Answer:
        """The stored answer's body; its status is in the header openhqm-answer-status."""
        return self._send("GET", f"/requests/{quote(id, safe='')}/response")

    def cancel(self, id: str) -> dict[str, Any]:
        return self._json("DELETE", f"/requests/{quote(id, safe='')}")

    def dead_letters(self, **query: Any) -> dict[str, Any]:
        return self._json("GET", _with_query("/dead-letters", query))

    def dead_letter(self, id: str) -> dict[str, Any]:
        return self._json("GET", f"/dead-letters/{quote(id, safe='')}")

    def replay(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Replay {"ids": [...]} or {"all": True}."""
        return self._json("POST", "/dead-letters/replay", choice)

    def purge(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Delete {"ids": [...]} or {"all": True}."""
        return self._json("POST", "/dead-letters/purge", choice)

    def set_paused(self, paused: bool, lane: str) -> dict[str, Any]:
        return self._json("POST", "/pause" if paused else "/resume", {"lane": lane})

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = self._send(method, path, body)
        try:
            found: dict[str, Any] = json.loads(answer.body)
        except ValueError as exc:
            raise CallFailed(f"{self._url} is not an openhqm admin port") from exc
        return found

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
        headers = {"OpenHQM-Admin": "cli", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        answer = call(self._url, method, f"/admin/v1{path}", data, headers)
        if answer.status >= 400:
            raise CallFailed(explain(answer, self._url))
        return answer


def explain(answer: Answer, url: str) -> str:
    """One line about an error answer: the problem's detail where there is one."""
    try:
        problem = json.loads(answer.body)
        return f"{problem['detail']} ({answer.headers['openhqm-error']})"
    except (ValueError, KeyError, TypeError):
        return f"{url} answered {answer.status}, not like an openhqm does"


def _with_query(path: str, query: dict[str, Any]) -> str:
    given = {name: value for name, value in query.items() if value not in (None, "", [])}
    return f"{path}?{urlencode(given, doseq=True)}" if given else path
