"""Which lease calls of this process have ended, so that nobody need look at their timers.

The records of one lease call share an entry of the timers (`redis_scripts/common.lua`), which lapsed
leases are found by. Once all of them were settled it says nothing any more, but only their holder
knows without reading each of them: the holder takes it away with its next lease call. An entry that
is forgotten, because the process ended or a reply was lost, costs the sweep a look at each record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from openhqm.stores.base import Lease, Settlement

FOLLOWED = 10_000
"""Most leases remembered; those that are lost are never settled, and must not pile up."""

_LEASED = b"L"


class _Call:
    """One lease call.

    Args:
        entry: its member of the timers.
        running: leases not known to be settled.
    """

    __slots__ = ("entry", "running")

    def __init__(self, entry: bytes, running: int) -> None:
        self.entry = entry
        self.running = running


class LeaseCalls:
    """Follows leases from their call to their settlement."""

    def __init__(self) -> None:
        self._running: dict[bytes, tuple[int, _Call]] = {}
        """By record: the epoch of its lease, and the call that took it."""
        self._ended: list[bytes] = []

    def leased(self, leases: Sequence[Lease]) -> None:
        """One call took these."""
        if len(self._running) > FOLLOWED:
            self._running.clear()
        epochs = [lease.epoch for lease in leases]
        ids = b"".join([lease.id for lease in leases])
        call = _Call(b"%b%b%b" % (_LEASED, ids, struct.pack(f">{len(epochs)}I", *epochs)), len(leases))
        for lease in leases:
            self._running[lease.id] = lease.epoch, call

    def settled(self, settlements: Iterable[Settlement], applied: Iterable[bool]) -> None:
        """The server applied these, or refused them: then the record may run under another lease."""
        for settlement, was_applied in zip(settlements, applied, strict=True):
            epoch, call = self._running.get(settlement.id, (0, None))
            if call is None or epoch != settlement.epoch:
                continue
            del self._running[settlement.id]
            if was_applied:
                call.running -= 1
                if not call.running:
                    self._ended.append(call.entry)

    def take_ended(self) -> list[bytes]:
        """Entries to be taken away; told once."""
        ended, self._ended = self._ended, []
        return ended
