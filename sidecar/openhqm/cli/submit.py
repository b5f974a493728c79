"""The command `submit`: a request through the queue, as a client sends it or by the submit API.

An openhqm with an app takes the request at its own path. One without knows only the submit API
(`POST <prefix>/v1/requests`, the request as JSON); it says so, with nothing stored, and is asked again there.
"""

from __future__ import annotations

import base64
import json as jsons
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from openhqm.cli.client import Admin, Answer, CallFailed, call, explain
from openhqm.cli.options import AdminUrl, AsJson
from openhqm.cli.records import write_body

DEFAULT_PREFIX = "/.openhqm"
APP = "app"
SUBMIT_API_ONLY = "unknown-path"
"""The problem of a server that has no app to route to."""

_WISHES = ("openhqm-", "idempotency-key", "prefer")
"""Beginnings of headers that are for us and not for the app."""


def submit(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Path and query at the app: /orders?dry=1")],
    method: Annotated[str, typer.Option("--method", "-X", help="HTTP method.")] = "POST",
    data: Annotated[
        str, typer.Option("--data", "-d", help="Body; @FILE reads a file, @- standard input.")
    ] = "",
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help="'Name: value', repeatable.")
    ] = None,
    wait: Annotated[float, typer.Option("--wait", "-w", min=0, help="Seconds to wait for the answer.")] = 0,
    target: Annotated[
        str, typer.Option("--target", "-t", help="app, or handler:NAME; by the submit API.")
    ] = "",
    api_key: Annotated[
        str,
        typer.Option("--api-key", envvar="OPENHQM_API_KEY", help="For the submit API.", show_default=False),
    ] = "",
    url: Annotated[str, typer.Option("--url", help="Intercept port; default: asked of the admin port.")] = "",
    admin: AdminUrl = "",
    json: AsJson = False,
) -> None:
    """Send a request through the queue and show its handle, or its answer with --wait.

    By the submit API with --target or --api-key, and where there is no app.
    """
    request = Request(method, path, _headers(header or []), _body(data), wait)
    port = Port.named(url) if url else Port.of(Admin(admin))
    if target or api_key:
        answer = request.submit(port, target or APP, api_key)
    else:
        answer = request.send(port)
        if answer.headers.get("openhqm-error") == SUBMIT_API_ONLY:
            answer = request.submit(port, APP, "")
    if "openhqm-error" in answer.headers:
        raise CallFailed(explain(answer, port.url))
    _show(answer, port.url, json)


@dataclass(frozen=True, slots=True)
class Port:
    """Where to send.

    Args:
        url: of the intercept port.
        prefix: what our own paths there begin with.
    """

    url: str
    prefix: str

    @classmethod
    def named(cls, url: str) -> Port:
        return cls(url.rstrip("/"), DEFAULT_PREFIX)

    @classmethod
    def of(cls, admin: Admin) -> Port:
        """Raises CallFailed where there is none."""
        port = admin.stats()["ports"].get("ingress")
        if port is None:
            raise CallFailed("this openhqm has no intercept port (mode egress); name one with --url")
        return cls(f"http://127.0.0.1:{port}", admin.settings()["ingress"]["reserved_prefix"])


@dataclass(frozen=True, slots=True)
class Request:
    """What to submit."""

    method: str
    path: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    wait_seconds: float

    def send(self, port: Port) -> Answer:
        """As any client of the app."""
        headers = {"Content-Type": "application/json", **dict(self.headers), **self._preference()}
        return self._call(port, self.method, self.path, self.body, headers)

    def submit(self, port: Port, target: str, api_key: str) -> Answer:
        """By the submit API."""
        wishes = {name: value for name, value in self.headers if name.lower().startswith(_WISHES)}
        headers = {**wishes, "Content-Type": "application/json", **self._preference()}
        if api_key:
            headers["X-API-Key"] = api_key
        body = jsons.dumps(self._described(target)).encode()
        return self._call(port, "POST", f"{port.prefix}/v1/requests", body, headers)

    def _described(self, target: str) -> dict[str, Any]:
        headers: dict[str, list[str]] = {}
        for name, value in self.headers:
            if not name.lower().startswith(_WISHES):
                headers.setdefault(name, []).append(value)
        if not any(name.lower() == "content-type" for name in headers):
            headers["Content-Type"] = ["application/json"]
        described = {"target": target, "method": self.method, "path": self.path, "headers": headers}
        try:
            return {**described, "body": self.body.decode()}
        except UnicodeDecodeError:
            return {**described, "body_base64": base64.b64encode(self.body).decode()}

    def _preference(self) -> dict[str, str]:
        return {"Prefer": f"wait={self.wait_seconds:.0f}" if self.wait_seconds else "respond-async"}

    def _call(self, port: Port, method: str, target: str, body: bytes, headers: dict[str, str]) -> Answer:
        return call(port.url, method, target, body, headers, timeout_seconds=self.wait_seconds + 30)


def _show(answer: Answer, url: str, json: bool) -> None:
    from openhqm.cli import show

    id = answer.headers.get("openhqm-correlation-id", "")
    location = answer.headers.get("location", "") if answer.status == 202 and id else ""
    if json:
        text = answer.body.decode("utf-8", "replace")
        known = {"correlation_id": id or None, "handle": location.rpartition("/")[2] or None}
        show.as_json({**known, "status": answer.status, "headers": answer.headers, "body": text})
    elif location:
        show.fields(
            {
                "accepted": id,
                "state": f"curl {url}{location}",
                "answer": f"openhqm get --body --wait 60 {id}",
            }
        )
    else:
        write_body(answer.body, f"{answer.status}")


def _headers(lines: list[str]) -> list[tuple[str, str]]:
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise CallFailed(f"not a header: {line!r}; write 'Name: value'")
        headers.append((name.strip(), value.strip()))
    return headers


def _body(data: str) -> bytes:
    if data == "@-":
        return sys.stdin.buffer.read()
    if data.startswith("@"):
        try:
            return Path(data[1:]).read_bytes()
        except OSError as exc:
            raise CallFailed(f"{data[1:]}: {exc.strerror}") from exc
    return data.encode()
