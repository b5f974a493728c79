"""What happens to requests, told at one place; logs, metrics and server-sent events listen.

Ingress, egress, results, admin and the sweep call `Lifecycle.emit` after the Store has committed a
change, never before. Listeners are plain functions that must not raise, block or await.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass


class Happening(enum.StrEnum):
    """One word per thing that can happen to a request; also the log event's name."""

    ACCEPTED = "request.accepted"
    REFUSED = "request.refused"
    SHADOWED = "request.shadowed"
    """Passed on, but a `shadow` route would have queued it."""
    LEASED = "request.leased"
    ANSWERED = "request.answered"
    RETRIED = "request.retried"
    RELEASED = "request.released"
    DEAD_LETTERED = "request.dead_lettered"
    CANCEL_REQUESTED = "request.cancel_requested"
    """The app may be working on it: whoever runs it is to stop."""
    CANCELLED = "request.cancelled"
    EXPIRED = "request.expired"
    REPLAYED = "request.replayed"
    LEASE_LOST = "lease.lost"


@dataclass(slots=True)  # one per request, and not frozen: that would treble what it costs
class Event:
    """One thing that happened.

    Args:
        id: the record, b"" where nothing was stored (REFUSED).
        status: HTTP status of the app's answer, or of our refusal; 0 where there is none.
        duration_seconds: of the attempt (ANSWERED, RETRIED, DEAD_LETTERED), of the call (ACCEPTED).
        reason: slug, as in `Record.reason`.
    """

    what: Happening
    id: bytes = b""
    attempt: int = 0
    epoch: int = 0
    status: int = 0
    duration_seconds: float = 0.0
    backoff_seconds: float = 0.0
    body_bytes: int = 0
    reason: str = ""


Listener = Callable[[Event], None]


class Lifecycle:
    """Passes events on to listeners, in the order they were added."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def add(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def emit(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)
