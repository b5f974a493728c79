"""Decisions every store makes alike: pure, no clock, no I/O.

A store reads a record, asks here what follows, and writes that in one transaction. Stores that
decide inside their server (Lua, SQL) follow the same rules; the contract suite compares them.
"""

from __future__ import annotations

from openhqm.stores.base import Body, Idempotency, NewRecord, OnLost, State

OLDEST_FIRST_EVERY = 8
"""One lease in this many goes to the record accepted first, whatever its priority."""


def body_bytes(body: Body) -> int:
    """Size of *body*, in the record or beside it."""
    return len(body) if isinstance(body, bytes) else body.size


def ready_at(record: NewRecord, now: float) -> float:
    """Earliest start of *record*, accepted *now*."""
    return max(now + max(record.delay_seconds, 0.0), record.not_before or 0.0)


def deadline(record: NewRecord, now: float) -> float | None:
    """Latest start of an attempt of *record*, accepted *now*; None for no limit."""
    limits = [record.deadline] if record.deadline is not None else []
    if record.max_age_seconds > 0:
        limits.append(now + record.max_age_seconds)
    return min(limits, default=None)


def waiting_state(attempts: int) -> State:
    """State of an unfinished record that nobody leases."""
    return State.RETRYING if attempts else State.QUEUED


def may_have_run(state: State, attempts: int) -> bool:
    """`Record.may_have_run`: said of what ended without an answer only."""
    return attempts > 0 and state in (State.CANCELLED, State.EXPIRED)


def judge_lapsed(on_lost: OnLost, claims: int, max_claims: int, cancel_requested: bool) -> tuple[State, str]:
    """State and reason of a record whose lease ran out, *claims* counting this one (design R4, R5)."""
    if on_lost is OnLost.UNKNOWN:
        return State.FAILED, "outcome-unknown"
    if cancel_requested:
        return State.CANCELLED, ""
    if claims >= max_claims:
        return State.FAILED, "poison"
    return State.RETRYING, ""


def frees_idempotency(state: State, attempts: int) -> bool:
    """Whether a record that ended in *state* gives its idempotency scope back: it never ran."""
    return attempts == 0 and state in (State.CANCELLED, State.EXPIRED)


def same_request(held: Idempotency | None, asked: Idempotency) -> bool:
    """Whether the record that holds a scope was made by the same request body."""
    return held is not None and held.fingerprint == asked.fingerprint


def callback_id(parent: bytes) -> bytes:
    """Id of the callback record of *parent*: the same for every try, never the id of a request.

    UUIDs minted for requests are version 7; flipping the version nibble makes a version 8, which
    RFC 9562 leaves to the application.
    """
    return parent[:6] + bytes([parent[6] ^ 0xF0]) + parent[7:]


def position(seq: int, first_seq: int | None, waiting: int) -> int:
    """Estimate the records ahead of the one accepted as *seq*: exact for a plain backlog.

    Args:
        first_seq: the oldest record that can be leased, None when there is none.
        waiting: unfinished, unleased records of the lane.
    """
    ahead = 0 if first_seq is None else max(seq - first_seq, 0)
    return min(ahead, max(waiting - 1, 0))


def next_deadline(accepted_at: float, max_age_seconds: float) -> float | None:
    """Deadline of a replay accepted at *accepted_at*; None for no limit."""
    return accepted_at + max_age_seconds if max_age_seconds > 0 else None
