"""Cancels a stored request, and tells of it once, whoever asks and however often."""

from __future__ import annotations

from openhqm.lifecycle import Event, Happening, Lifecycle
from openhqm.stores.base import Record, State, Store


async def cancel(store: Store, lifecycle: Lifecycle, id: bytes, reason: str = "") -> Record | None:
    """Cancel at once if it is not running, else have whoever runs it asked to stop.

    A cancelled request is told of by the call that cancelled it. One that is still running is told
    of by every call: the first may not have reached who runs it.

    Args:
        reason: who asked, for the log.

    Returns:
        The record after it, None if it is not held.

    Raises:
        StoreUnavailable: it may have been cancelled; safe to call again.
    """
    [before] = await store.get([id])
    if before is None or before.state.is_final:
        return before
    record = await store.cancel(id)
    if record is not None and (happening := _happening(record)) is not None:
        lifecycle.emit(Event(happening, id, record.attempts, record.epoch, reason=reason))
    return record


def _happening(record: Record) -> Happening | None:
    """None where it came to another end meanwhile."""
    if record.state is State.CANCELLED:
        return Happening.CANCELLED
    return None if record.state.is_final else Happening.CANCEL_REQUESTED
