"""Who asks for leases, so that leases whose reply was lost are not lost with it.

A lease call that timed out or was cancelled may have taken records, or may yet. Nobody will send
them, so letting their leases lapse would report an outcome as unknown that is not. Instead the next
call comes from the same caller and says which reply it heard last; see `redis_scripts/lease.lua`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Caller:
    """One of a process's lease calls that may be under way at once.

    Args:
        serial: of its last call.
        heard: serial of the last call whose reply arrived.
    """

    name: bytes = field(default_factory=lambda: secrets.token_bytes(8))
    serial: int = 0
    heard: int = 0

    @property
    def is_unheard(self) -> bool:
        return self.serial > self.heard


class Callers:
    """As many callers as calls were ever under way at once."""

    def __init__(self) -> None:
        self._free: list[Caller] = []

    def take(self) -> Caller:
        """A caller for one call; those with something to give back come first."""
        unheard = next((caller for caller in self._free if caller.is_unheard), None)
        if unheard is not None:
            self._free.remove(unheard)
        caller = unheard or (self._free.pop() if self._free else Caller())
        caller.serial += 1
        return caller

    def put_back(self, caller: Caller, *, was_heard: bool) -> None:
        if was_heard:
            caller.heard = caller.serial
        self._free.append(caller)

    @property
    def has_unheard(self) -> bool:
        return any(caller.is_unheard for caller in self._free)
