"""How a stored record is shown: plain data for the admin API, the CLI, the dashboard, and partly for clients.

Pure. Credentials in headers and queries are masked: a dead letter is looked at by people who may
fix the app without being allowed to act as its callers.
"""

from __future__ import annotations

import base64
import codecs
import re
import uuid
from datetime import UTC, datetime
from typing import Any

import orjson

from openhqm.envelope import Envelope
from openhqm.errors import BadRequest, EnvelopeCorrupt
from openhqm.handles import id_text
from openhqm.stores.base import Answer, Body, Record, State

MASK = "***"
PREVIEW_BYTES = 16 * 1024
"""Most of a body that is shown inline; the rest is there by download."""

_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key"})
_SECRET_NAME = re.compile(r"token|secret|passw|signature|api[-_]?key|authorization|credential", re.IGNORECASE)


def parse_id(text: str) -> bytes:
    """Read a correlation id, or the one that a handle begins with.

    Raises:
        BadRequest: it is neither.
    """
    try:
        return uuid.UUID(text.partition(".")[0]).bytes
    except ValueError as exc:
        raise BadRequest(f"{text[:80]!r} is not a correlation id or handle") from exc


def summary(record: Record) -> dict[str, Any]:
    """One line of a list; method and path where the record was read with its request."""
    return {
        "id": id_text(record.id),
        "state": record.state,
        "reason": record.reason,
        **_request_line(record),
        "priority": record.priority,
        "attempts": record.attempts,
        "claims": record.claims,
        "accepted_at": rfc3339(record.accepted_at),
        "finished_at": rfc3339(record.finished_at),
        "replayed_as": id_text(record.replayed_as) if record.replayed_as else None,
    }


def details(record: Record) -> dict[str, Any]:
    """Everything that is known of one record."""
    return {
        **summary(record),
        "lane": record.lane,
        "epoch": record.epoch,
        "key": record.key.decode("utf-8", "backslashreplace") if record.key is not None else None,
        "ready_at": None if record.state.is_final else rfc3339(record.ready_at),
        "started_at": rfc3339(record.started_at),
        "deadline": rfc3339(record.deadline),
        "expires_at": rfc3339(record.expires_at),
        "position": record.position,
        "cancel_requested": record.cancel_requested,
        "may_have_run": record.may_have_run or record.attempts > 0 or record.state is State.RUNNING,
        "replay_of": id_text(record.replay_of) if record.replay_of else None,
        "parent": id_text(record.parent) if record.parent else None,
        "history": attempts(record),
        "request": _request(record),
        "answer": _answer(record.answer) if record.answer else None,
    }


def attempts(record: Record) -> list[dict[str, Any]]:
    """What is noted of each attempt, first to last."""
    return [_note(line) for line in record.history.splitlines() if line]


def rfc3339(seconds: float | None) -> str | None:
    """Return a moment in UTC as people and clients read it, to the millisecond."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def answer_parts(answer: Answer) -> tuple[int, list[tuple[str, str]]]:
    """Status and headers of a stored answer."""
    lines = answer.head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 502
    return status, _headers(lines[1:])


def _request_line(record: Record) -> dict[str, Any]:
    envelope = _envelope(record)
    if envelope is None:
        return {}
    return {
        "method": envelope.method.decode("latin-1"),
        "path": _mask_query(envelope.path.decode("latin-1")),
        "target": envelope.target,
    }


def _envelope(record: Record) -> Envelope | None:
    """None when the request was not read, is gone, or cannot be decoded (poison)."""
    if record.request is None:
        return None
    try:
        return Envelope.decode(record.request[0])
    except EnvelopeCorrupt:
        return None


def _request(record: Record) -> dict[str, Any] | None:
    envelope = _envelope(record)
    if envelope is None or record.request is None:
        return None
    lines = envelope.head.decode("latin-1").split("\r\n")
    return {
        "peer": envelope.peer,
        "timeout_seconds": envelope.timeout_seconds,
        "max_attempts": envelope.max_attempts,
        "repeat": envelope.repeat,
        "headers": _masked(_headers(lines[1:])),
        **_body(record.request[1]),
    }


def _answer(answer: Answer) -> dict[str, Any]:
    status, headers = answer_parts(answer)
    return {"status": status, "headers": _masked(headers), **_body(answer.body)}


def _body(body: Body) -> dict[str, Any]:
    """Size, and the beginning as text where it is text, as base64 where it is not."""
    if not isinstance(body, bytes):
        return {"body_bytes": body.size}
    start = body[:PREVIEW_BYTES]
    text = _text(start, cut=len(start) < len(body))
    if text is not None:
        return {"body_bytes": len(body), "body_shown_bytes": len(text.encode()), "body": text}
    encoded = base64.b64encode(start).decode("ascii")
    return {"body_bytes": len(body), "body_shown_bytes": len(start), "body_base64": encoded}


def _text(start: bytes, *, cut: bool) -> str | None:
    """*start* as text, less a character that was *cut* off; None when it is not UTF-8."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(start, final=not cut)
    except UnicodeDecodeError:
        return None


def _headers(lines: list[str]) -> list[tuple[str, str]]:
    pairs = (line.partition(":") for line in lines if line)
    return [(name, value.strip()) for name, _, value in pairs]


def _masked(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [
        (name, MASK if name.lower() in _SECRET_HEADERS or _SECRET_NAME.search(name) else value)
        for name, value in headers
    ]


def _mask_query(path: str) -> str:
    """Mask the values of parameters whose names sound secret: `?id=7&token=***`."""
    bare, separator, query = path.partition("?")
    words = query.split("&")
    for index, word in enumerate(words):
        name, equals, _ = word.partition("=")
        if equals and _SECRET_NAME.search(name):
            words[index] = f"{name}={MASK}"
    return bare + separator + "&".join(words)


def _note(line: bytes) -> dict[str, Any]:
    """One attempt; a note another version wrote is shown as it is."""
    try:
        note: dict[str, Any] = orjson.loads(line)
        return {**note, "at": rfc3339(note["at"])} if "at" in note else note
    except (orjson.JSONDecodeError, TypeError):
        return {"note": line.decode("utf-8", "backslashreplace")}
