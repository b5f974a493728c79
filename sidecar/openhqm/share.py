"""Which requests are queued while only a part of them is to be (`intercept.percent`). Pure.

Ingress asks about every request that a route would queue; what is not taken passes straight through.

    asks for what only the queue gives     taken, whatever the share: OpenHQM-* headers, respond-async
    has an ordering or Idempotency-Key     by a hash of the key: all of one key go the same way, or else
                                           order would break, and a repeat would miss the first one's record
    any other                              by a counter: every hundred requests have exactly their share,
                                           however much alike they are; a hash of them would take all or none
"""

from __future__ import annotations

import zlib

from openhqm.control import NO_CONTROL, Control
from openhqm.settings import InterceptSettings


class Share:
    """The share of requests to queue.

    Args:
        percent: 1 to 99.
    """

    def __init__(self, percent: int) -> None:
        self._percent = percent
        self._owed = 0
        """In hundredths of a request; grows by the share with each and is paid by one that is queued."""

    @classmethod
    def from_settings(cls, intercept: InterceptSettings) -> Share | None:
        """Return the share; None where all requests fare alike, which is up to `routes.py`."""
        if intercept.shadow or intercept.percent in (0, 100):
            return None
        return cls(intercept.percent)

    def would_take(self, control: Control, key: bytes | None) -> bool:
        """Say what `takes` would, and count nothing."""
        by_wish = _by_wish(control, key, self._percent)
        return self._owed + self._percent >= 100 if by_wish is None else by_wish

    def takes(self, control: Control, key: bytes | None) -> bool:
        """Decide about one request.

        Args:
            key: what orders it, None for nothing.
        """
        by_wish = _by_wish(control, key, self._percent)
        if by_wish is not None:
            return by_wish
        self._owed += self._percent
        if self._owed < 100:
            return False
        self._owed -= 100
        return True


def _by_wish(control: Control, key: bytes | None, percent: int) -> bool | None:
    """What a client's words or a key decide; None where there are none."""
    if control is not NO_CONTROL and _needs_queue(control):
        return True
    named = key or control.idempotency_key
    return None if named is None else zlib.crc32(named) % 100 < percent


def _needs_queue(control: Control) -> bool:
    """Whether the client asks for what only a queued request gets. A wait is no such wish: passing is one."""
    return (
        control.respond_async
        or control.priority is not None
        or control.delay_seconds > 0
        or control.not_before is not None
        or control.deadline is not None
        or control.deadline_seconds is not None
        or control.callback is not None
    )
