"""What is written to standard error: one event per line, JSON for machines, colours for people.

`configure` sets structlog up once per process and routes the standard library's logging through it, so
that aiohttp and asyncio write the same lines. `RequestLog` is the lifecycle listener that writes about
requests. Event names are stable, noun.verb. Never bodies, credentials or query strings: nothing here
is given any.
"""

from __future__ import annotations

import logging
import sys
import time
import uuid
from collections.abc import Callable, MutableMapping
from typing import Any, TextIO

import orjson
import structlog

from openhqm.lifecycle import Event, Happening
from openhqm.settings import LogSettings

MOST_LINES_PER_SECOND = 50
"""Of one event name: a flood of refusals must not make the process slower than the flood itself. The
next line of that name says how many were left out."""

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

# Written whatever log.access says: somebody must decide or look.
_ALWAYS = {Happening.DEAD_LETTERED: "warning", Happening.LEASE_LOST: "warning"}
_ERRORS = {
    Happening.REFUSED: "warning",
    Happening.RETRIED: "info",
    Happening.RELEASED: "info",
    Happening.EXPIRED: "info",
    Happening.DROPPED: "info",
}
_ORDINARY = {
    Happening.ACCEPTED: "info",
    Happening.ANSWERED: "info",
    Happening.CANCEL_REQUESTED: "info",
    Happening.CANCELLED: "info",
    Happening.REPLAYED: "info",
    Happening.PUBLISHED: "info",
    Happening.TAKEN_IN: "info",
    Happening.RETURNED: "info",
    Happening.SHADOWED: "info",
    Happening.LEFT_OUT: "info",
    Happening.LEASED: "debug",
}


def configure(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Set up logging for the process.

    Args:
        stream: standard error if not given.
    """
    stream = stream or sys.stderr
    as_json = settings.format == "json" or (settings.format == "auto" and not stream.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # The default formatter prints the local variables of every frame: bodies and credentials among them.
    renderers: list[structlog.typing.Processor] = [
        structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    ]
    if as_json:
        renderers = [structlog.processors.format_exc_info, _render_json]
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.level]),
        logger_factory=structlog.WriteLoggerFactory(stream),
    )
    _route_standard_library(settings, stream, shared, renderers)


def _route_standard_library(
    settings: LogSettings,
    stream: TextIO,
    shared: list[structlog.typing.Processor],
    renderers: list[structlog.typing.Processor],
) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    # Their debug lines are about themselves, and aiohttp's access log would name query strings.
    root.setLevel(max(_LEVELS[settings.level], logging.INFO))
    logging.getLogger("aiohttp.access").setLevel(logging.CRITICAL)


def _render_json(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    return orjson.dumps(event, default=str).decode()


class RequestLog:
    """Writes about requests. `on_event` is a lifecycle listener.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, settings: LogSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._second = -1
        self._written: dict[Happening, int] = {}
        self._left_out: dict[Happening, int] = {}
        self.apply(settings)

    def apply(self, settings: LogSettings) -> None:
        """Take over hot settings, after `configure`."""
        levels = dict(_ALWAYS)
        if settings.access != "none":
            levels |= _ERRORS
        if settings.access == "all":
            levels |= _ORDINARY
        log = structlog.get_logger("openhqm")
        self._write = {what: getattr(log, level) for what, level in levels.items()}
        self._write_failed_answer = log.warning if settings.access == "errors" else None

    @property
    def wanted(self) -> frozenset[Happening]:
        """What `on_event` may write about; for `Lifecycle.listen`."""
        failed_answers = {Happening.ANSWERED} if self._write_failed_answer is not None else set()
        return frozenset(self._write) | failed_answers

    def on_event(self, event: Event) -> None:
        """Write a line about *event* if it is one of those asked for."""
        write = self._write.get(event.what)
        if write is None:
            if (
                event.status < 500
                or event.what is not Happening.ANSWERED
                or self._write_failed_answer is None
            ):
                return
            write = self._write_failed_answer
        if self._has_room(event.what):
            write(event.what.value, **self._fields(event))

    def _has_room(self, what: Happening) -> bool:
        second = int(self._clock())
        if second != self._second:
            self._second = second
            self._written.clear()
        written = self._written.get(what, 0) + 1
        self._written[what] = written
        if written > MOST_LINES_PER_SECOND:
            self._left_out[what] = self._left_out.get(what, 0) + 1
            return False
        return True

    def _fields(self, event: Event) -> dict[str, Any]:
        """What is known, without the zeroes."""
        fields: dict[str, Any] = {}
        if event.id:
            fields["correlation_id"] = str(uuid.UUID(bytes=event.id))
        for name in ("attempt", "epoch", "status", "body_bytes", "reason"):
            if value := getattr(event, name):
                fields[name] = value
        for name in ("duration_seconds", "backoff_seconds"):
            if value := getattr(event, name):
                fields[name] = round(value, 6)
        if left_out := self._left_out.pop(event.what, 0):
            fields["left_out"] = left_out
        return fields
