"""What happens to requests, told at one place; logs, metrics and server-sent events listen.

Ingress, egress, results, admin and the sweep call `Lifecycle.emit` after the Store has committed a
change, never before. Listeners are plain functions that must not raise, block or await.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass


class Happening(enum.StrEnum):
    """One word per thing that can happen to a request; also the log event's name."""

    ACCEPTED = "request.accepted"
    REFUSED = "request.refused"
    SHADOWED = "request.shadowed"
    """Passed on, but a `shadow` route would have queued it."""
    LEFT_OUT = "request.left_out"
    """Passed on, though a route would queue it: `intercept.percent` queues only a share."""
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
    PUBLISHED = "request.published"
    """A broker carries it now."""
    TAKEN_IN = "request.taken_in"
    """It came from a broker, and is a record now."""
    RETURNED = "request.returned"
    """It came back from the broker that carried it."""
    DROPPED = "message.dropped"
    """A message that nobody knew came after its deadline."""
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
    """Counts what happens and passes it on to whoever listens for it.

    The two things that happen to every request, ACCEPTED and LEASED, are ordinarily heard by nobody:
    where nobody `hears`, `tally` spares the event (2 us of 40 on the accept path).
    """

    def __init__(self) -> None:
        self.happened: dict[Happening, int] = dict.fromkeys(Happening, 0)
        """How often each thing has happened in this process."""
        self._interests: dict[Listener, frozenset[Happening]] = {}
        self._listeners: dict[Happening, tuple[Listener, ...]] = dict.fromkeys(Happening, ())

    def listen(self, listener: Listener, whats: Iterable[Happening] = Happening) -> None:
        """Tell *listener* of *whats* from now on, in place of what it listened for before."""
        self._interests[listener] = frozenset(whats)
        for what in Happening:
            self._listeners[what] = tuple(who for who, whats in self._interests.items() if what in whats)

    def hears(self, what: Happening) -> bool:
        """Whether anybody listens for *what*."""
        return bool(self._listeners[what])

    def emit(self, event: Event) -> None:
        """Count *event* and tell it."""
        self.happened[event.what] += 1
        for listener in self._listeners[event.what]:
            listener(event)

    def tally(self, what: Happening, times: int = 1) -> None:
        """Count something nobody `hears`."""
        self.happened[what] += times
