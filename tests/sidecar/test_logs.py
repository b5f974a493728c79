"""What is written, as JSON and for people, and what is left out."""

from __future__ import annotations

import io
import json
import logging
import uuid

import pytest
import structlog

from openhqm import logs
from openhqm.lifecycle import Event, Happening
from openhqm.settings import LogSettings

ID = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")


@pytest.fixture(autouse=True)
def _restored():
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    logging.getLogger("aiohttp.access").setLevel(logging.NOTSET)
    structlog.reset_defaults()


class Written:
    """Logging set up on a buffer, and what came of it."""

    def __init__(self, **settings):
        self.stream = io.StringIO()
        self.settings = LogSettings(**{"format": "json"} | settings)
        logs.configure(self.settings, self.stream)
        self.now = 0.0
        self.on_event = logs.RequestLog(self.settings, lambda: self.now).on_event

    @property
    def text(self):
        return self.stream.getvalue()

    @property
    def lines(self):
        return [json.loads(line) for line in self.text.splitlines()]


def test_line_is_json_with_event_level_and_time():
    written = Written()

    structlog.get_logger("openhqm").info("drain.started", seconds=2)

    [line] = written.lines
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "drain.started", "level": "info", "seconds": 2}


def test_level_is_the_lowest_written():
    written = Written(level="warning")

    structlog.get_logger().info("a.b")
    structlog.get_logger().warning("c.d")

    assert [line["event"] for line in written.lines] == ["c.d"]


def test_traceback_is_part_of_the_line():
    written = Written()

    try:
        raise ZeroDivisionError("bug")
    except ZeroDivisionError:
        structlog.get_logger().exception("egress.failed")

    [line] = written.lines
    assert line["level"] == "error"
    assert "ZeroDivisionError: bug" in line["exception"]


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize("library", [structlog.get_logger, logging.getLogger])
def test_traceback_shows_no_local_variables(format, library):
    """They hold what clients sent, and the keys that sign what they get."""
    written = Written(format=format)
    canary = "canary-" + uuid.uuid4().hex

    try:
        raise ZeroDivisionError(f"bug number {len(canary)}")
    except ZeroDivisionError:
        library("openhqm").exception("egress.failed")

    assert "ZeroDivisionError: bug number 39" in written.text
    assert canary not in written.text


def test_standard_library_writes_the_same_lines():
    written = Written()

    logging.getLogger("asyncio").warning("Executing %s took %s seconds", "x", 3)
    logging.getLogger("aiohttp.access").info("GET /?token=secret")
    logging.getLogger("asyncio").debug("Using selector")

    [line] = written.lines
    assert (line["event"], line["level"], line["logger"]) == (
        "Executing x took 3 seconds",
        "warning",
        "asyncio",
    )


def test_console_is_for_people():
    written = Written(format="console")

    structlog.get_logger().info("drain.started", seconds=2)

    assert "drain.started" in written.text
    assert "seconds=2" in written.text


def test_auto_is_json_unless_on_a_terminal():
    written = Written(format="auto")

    structlog.get_logger().info("a.b")

    assert written.lines[0]["event"] == "a.b"


ANSWERED = Event(Happening.ANSWERED, ID.bytes, 2, 3, 200, 0.25, 0.0, 5)
FAILED_ANSWER = Event(Happening.ANSWERED, ID.bytes, 1, 1, 500, 0.25)
EVENTS = [
    *(Event(what, ID.bytes, 1, 1, reason="slug") for what in Happening if what is not Happening.ANSWERED),
    ANSWERED,
    FAILED_ANSWER,
]


@pytest.mark.parametrize(
    ("access", "level", "expected"),
    [
        ("none", "debug", {"request.dead_lettered", "lease.lost"}),
        (
            "errors",
            "debug",
            {
                "request.dead_lettered",
                "lease.lost",
                "request.refused",
                "request.retried",
                "request.released",
                "request.expired",
                "request.answered",
                "message.dropped",
            },
        ),
        ("errors", "warning", {"request.dead_lettered", "lease.lost", "request.refused", "request.answered"}),
        ("all", "debug", {what.value for what in Happening}),
        ("all", "info", {what.value for what in Happening} - {"request.leased"}),
    ],
)
def test_access_says_which_requests_get_a_line(access, level, expected):
    written = Written(access=access, level=level)

    for event in EVENTS:
        written.on_event(event)

    assert {line["event"] for line in written.lines} == expected


def test_only_failed_answers_get_a_line_by_default():
    written = Written()

    written.on_event(ANSWERED)
    written.on_event(FAILED_ANSWER)

    assert [line["status"] for line in written.lines] == [500]


def test_line_about_a_request_says_what_is_known():
    written = Written(access="all")

    written.on_event(ANSWERED)

    [line] = written.lines
    del line["timestamp"], line["level"]
    assert line == {
        "event": "request.answered",
        "correlation_id": str(ID),
        "attempt": 2,
        "epoch": 3,
        "status": 200,
        "duration_seconds": 0.25,
        "body_bytes": 5,
    }


def test_flood_of_one_event_is_cut_and_counted():
    written = Written()

    for _ in range(1000):
        written.on_event(Event(Happening.REFUSED, status=503, reason="backlog-full"))
    written.on_event(Event(Happening.DEAD_LETTERED, ID.bytes, 1, 1, reason="timeout"))
    written.now = 1.0
    written.on_event(Event(Happening.REFUSED, status=503, reason="backlog-full"))

    refused = [line for line in written.lines if line["event"] == "request.refused"]
    assert len(refused) == logs.MOST_LINES_PER_SECOND + 1
    assert refused[-1]["left_out"] == 1000 - logs.MOST_LINES_PER_SECOND
    assert len(written.lines) == len(refused) + 1
