"""Python in place of an app: runs `handler:<name>` targets on JSON payloads.

A handler takes the decoded payload and returns what is to be answered, both JSON values. It is a
coroutine function, or a plain function, which then runs in a thread. Four come built in; others are
entry points of the group `openhqm.handlers`. An exception ends the request as a dead letter with
reason `handler-error`: whether it may be run again is for people to decide.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from openhqm.envelope import Envelope
from openhqm.errors import AnswerTooLarge, AppTimeout, EnvelopeCorrupt, HandlerFailed
from openhqm.settings import Settings
from openhqm.stores.base import Answer, BlobRef, Blobs, Body

Handler = Callable[[Any], Any]
"""Payload to answer; both JSON values. Coroutine functions are awaited."""

ENTRY_POINTS = "openhqm.handlers"

_ANSWER_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
"""Without framing, like every stored head; see `forwarder.Forwarded`."""


def echo(payload: Any) -> Any:
    """Answer with the payload."""
    return payload


def uppercase(payload: Any) -> Any:
    """Answer with all text in upper case."""
    return _with_text(payload, str.upper)


def reverse(payload: Any) -> Any:
    """Answer with all text reversed."""
    return _with_text(payload, lambda text: text[::-1])


def error(payload: Any) -> Any:
    """Fail, for trying out what a failure looks like."""
    message = payload.get("message") if isinstance(payload, dict) else payload
    raise ValueError(message if isinstance(message, str) and message else "error was asked for")


BUILT_IN: Mapping[str, Handler] = {
    "echo": echo,
    "uppercase": uppercase,
    "reverse": reverse,
    "error": error,
}


def _with_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _with_text(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_text(item, change) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class Handled:
    """A handler's answer, as egress takes it."""

    answer: Answer
    body_bytes: int
    status: int = 200
    retry_after_seconds: float | None = None


class Handlers:
    """The handlers of one process; egress's runner for `handler:<name>`.

    Args:
        handlers: by name.
        blobs: where large payloads are.
        timeout_seconds: for one run, unless the request says otherwise.
        max_answer_bytes: longest answer.
    """

    def __init__(
        self, handlers: Mapping[str, Handler], blobs: Blobs, *, timeout_seconds: float, max_answer_bytes: int
    ) -> None:
        self._handlers = dict(handlers)
        self._blobs = blobs
        self._timeout_seconds = timeout_seconds
        self._max_answer_bytes = max_answer_bytes

    def apply(self, settings: Settings) -> None:
        """Take over the hot settings: timeout and size."""
        self._timeout_seconds = settings.egress.app_timeout_seconds
        self._max_answer_bytes = settings.response.max_bytes

    @property
    def names(self) -> frozenset[str]:
        """What may follow `handler:` in a target."""
        return frozenset(self._handlers)

    def begin(
        self, envelope: Envelope, body: Body, tell: Callable[[], None], *, record_id: bytes, epoch: int
    ) -> None:
        """A handler may take its time: there is no short way; see `egress.Runner`."""

    async def forward(self, envelope: Envelope, body: Body, *, record_id: bytes, epoch: int) -> Handled:
        """Run the handler the envelope names; see `egress.Runner`."""
        name = envelope.target.removeprefix("handler:")
        handler = self._handlers.get(name)
        if handler is None:
            raise EnvelopeCorrupt(f"there is no handler named {name!r} in this process")
        payload = await self._payload(body)
        result = await self._run(handler, payload, envelope.timeout_seconds or self._timeout_seconds)
        return self._answer(result)

    async def _payload(self, body: Body) -> Any:
        if isinstance(body, BlobRef):
            try:
                body = b"".join([chunk async for chunk in self._blobs.read(body)])
            except KeyError as exc:
                raise EnvelopeCorrupt("the request's body is gone") from exc
        try:
            return orjson.loads(body) if body else None
        except orjson.JSONDecodeError as exc:
            raise EnvelopeCorrupt("the payload is not JSON") from exc

    async def _run(self, handler: Handler, payload: Any, timeout_seconds: float) -> Any:
        deadline = asyncio.timeout(timeout_seconds)
        try:
            async with deadline:
                if inspect.iscoroutinefunction(handler):
                    return await handler(payload)
                return await asyncio.to_thread(handler, payload)
        except Exception as exc:  # whatever a handler raises is its failure, not ours
            if deadline.expired():
                raise AppTimeout(f"the handler took longer than {timeout_seconds:g} s") from exc
            raise HandlerFailed(str(exc) or type(exc).__name__) from exc

    def _answer(self, result: Any) -> Handled:
        try:
            body = orjson.dumps(result)
        except orjson.JSONEncodeError as exc:
            raise HandlerFailed("the handler returned what JSON cannot say") from exc
        if len(body) > self._max_answer_bytes:
            raise AnswerTooLarge(f"the handler's answer has {len(body)} bytes")
        return Handled(Answer(_ANSWER_HEAD, body), len(body))


def load_handlers() -> dict[str, Handler]:
    """Return the built-in handlers and those of installed packages; the latter may replace the former."""
    found = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return {**BUILT_IN, **{point.name: point.load() for point in found}}
