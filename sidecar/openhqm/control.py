"""What the client asks of us besides the request itself: OpenHQM-* headers, Prefer, Idempotency-Key.

Pure: ingress hands in the raw headers, routes' defaults fill what the client left open. A value we
cannot read is refused by name, never guessed at; a control header sent twice is refused too, because
a proxy before us may have judged the other one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from openhqm.errors import BadRequest
from openhqm.headers import Pair

MAX_KEY_BYTES = 512
MOMENT = "a moment as in RFC 3339, such as 2030-01-31T12:00:00Z"
_RFC_3339 = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(?:\.\d{1,9})?(?:[Zz]|[+-]\d{2}:\d{2})", re.ASCII
)
_SECONDS = re.compile(r"\d{1,10}(?:\.\d{1,6})?", re.ASCII)
_WAIT = re.compile(rb'\s*wait\s*=\s*"?(\d{1,9})"?\s*(?:;.*)?', re.IGNORECASE)
_RESPOND_ASYNC = re.compile(rb"\s*respond-async\s*(?:;.*)?", re.IGNORECASE)

_NAMES = {
    b"openhqm-priority": "OpenHQM-Priority",
    b"openhqm-delay": "OpenHQM-Delay",
    b"openhqm-not-before": "OpenHQM-Not-Before",
    b"openhqm-deadline": "OpenHQM-Deadline",
    b"openhqm-key": "OpenHQM-Key",
    b"openhqm-callback": "OpenHQM-Callback",
    b"idempotency-key": "Idempotency-Key",
}


@dataclass(frozen=True, slots=True)
class Control:
    """The client's wishes; None and False where it has none.

    Args:
        not_before, deadline: absolute, seconds since the epoch.
        deadline_seconds: relative to acceptance.
        wait_seconds: how long it would hold the connection (`Prefer: wait`).
        respond_async: `Prefer: respond-async`.
        idempotency_key: as sent, quotes and all.
    """

    priority: int | None = None
    delay_seconds: float = 0.0
    not_before: float | None = None
    deadline: float | None = None
    deadline_seconds: float | None = None
    key: bytes | None = None
    callback: str | None = None
    wait_seconds: float | None = None
    respond_async: bool = False
    idempotency_key: bytes | None = None


NO_CONTROL = Control()


def read_control(pairs: Sequence[Pair]) -> Control:
    """Read the control headers of a request.

    Raises:
        BadRequest: naming the header that cannot be read, is repeated, or is unknown to us.
    """
    found: dict[bytes, bytes] = {}
    prefer: list[bytes] = []
    for name, value in pairs:
        first = name[0]
        if first not in b"oOiIpP":
            continue
        lower = name.lower()
        if lower in _NAMES:
            if lower in found:
                raise BadRequest(f"{_NAMES[lower]} was sent more than once")
            found[lower] = value
        elif lower == b"prefer":
            prefer.append(value)
        elif lower.startswith(b"openhqm-"):
            raise BadRequest(f"{name.decode('latin-1')} is not a header we know")
    return _control(found, prefer) if found or prefer else NO_CONTROL


def _control(found: dict[bytes, bytes], prefer: list[bytes]) -> Control:
    deadline, deadline_seconds = _deadline(found.get(b"openhqm-deadline"))
    wait_seconds, respond_async = read_prefer(prefer)
    return Control(
        priority=_priority(found.get(b"openhqm-priority")),
        delay_seconds=_seconds("OpenHQM-Delay", found.get(b"openhqm-delay")) or 0.0,
        not_before=_moment("OpenHQM-Not-Before", found.get(b"openhqm-not-before")),
        deadline=deadline,
        deadline_seconds=deadline_seconds,
        key=_opaque("OpenHQM-Key", found.get(b"openhqm-key")),
        callback=_callback(found.get(b"openhqm-callback")),
        wait_seconds=wait_seconds,
        respond_async=respond_async,
        idempotency_key=_opaque("Idempotency-Key", found.get(b"idempotency-key")),
    )


def read_prefer(values: Sequence[bytes]) -> tuple[float | None, bool]:
    """Return (wait seconds, respond-async) of all Prefer values; the first of each counts.

    A preference that cannot be read is ignored, not refused. Source: RFC 7240 section 2.
    """
    wait_seconds: float | None = None
    respond_async = False
    for preference in b",".join(values).split(b",") if values else ():
        if _RESPOND_ASYNC.fullmatch(preference):
            respond_async = True
        elif wait_seconds is None and (match := _WAIT.fullmatch(preference)):
            wait_seconds = float(match[1])
    return wait_seconds, respond_async


def idempotency_scope(identity: bytes, method: bytes, target: bytes, key: bytes) -> bytes:
    """Return the 32 bytes that name an Idempotency-Key among all callers and resources.

    Args:
        identity: value of the identity header, b"" for anonymous callers.
    """
    parts = (hashlib.sha256(identity).digest(), method, target, key)
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode("ascii").strip(" \t")
    except UnicodeDecodeError:
        raise BadRequest(f"{name} must be plain ASCII") from None


def _priority(value: bytes | None) -> int | None:
    if value is None:
        return None
    if len(value) != 1 or not value.isdigit():
        raise BadRequest("OpenHQM-Priority must be a digit from 0 (lowest) to 9")
    return int(value)


def _seconds(name: str, value: bytes | None) -> float | None:
    if value is None:
        return None
    text = _text(name, value)
    if not _SECONDS.fullmatch(text):
        raise BadRequest(f"{name} must be seconds, such as 90 or 0.5")
    return float(text)


def read_moment(text: str) -> float:
    """Return a moment as seconds since the epoch.

    Raises:
        ValueError: not RFC 3339, or the shape of it without being a day and time there is.
    """
    if _RFC_3339.fullmatch(text):
        try:
            moment = datetime.fromisoformat(text.upper()).timestamp()
            datetime.fromtimestamp(moment, UTC)  # states show it in UTC, where it may be in the year 10000
            return moment
        except (ValueError, OverflowError):
            pass  # the shape of a date, but no such day or hour
    raise ValueError(f"must be {MOMENT}")


def _moment(name: str, value: bytes | None) -> float | None:
    if value is None:
        return None
    try:
        return read_moment(_text(name, value))
    except ValueError as exc:
        raise BadRequest(f"{name} {exc}") from exc


def _deadline(value: bytes | None) -> tuple[float | None, float | None]:
    if value is None:
        return None, None
    if _SECONDS.fullmatch(_text("OpenHQM-Deadline", value)):
        seconds = _seconds("OpenHQM-Deadline", value)
        if not seconds:
            raise BadRequest("OpenHQM-Deadline must be more than 0 seconds")
        return None, seconds
    return _moment("OpenHQM-Deadline", value), None


def _opaque(name: str, value: bytes | None) -> bytes | None:
    if value is None:
        return None
    if not value or len(value) > MAX_KEY_BYTES:
        raise BadRequest(f"{name} must have 1 to {MAX_KEY_BYTES} bytes")
    return value


def _callback(value: bytes | None) -> str | None:
    if value is None:
        return None
    text = _text("OpenHQM-Callback", value)
    if not text:
        raise BadRequest("OpenHQM-Callback must be a URL")
    return text
