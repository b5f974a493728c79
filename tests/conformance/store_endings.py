"""Sample data of the contract, and every way a record can end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.conformance.store_case import (
    StoreCase,
    new,
    take,
    take_one,
)

from openhqm.stores.base import (
    Answer,
    Finish,
    Idempotency,
    Lease,
    NewRecord,
    Release,
    Retry,
    Settlement,
    State,
    Store,
)

ODD_BYTES = [
    pytest.param(b"", id="empty"),
    pytest.param(b"\x00", id="nul"),
    pytest.param(bytes(range(256)), id="every-byte"),
    pytest.param(b"\xff\xfe\xc3(\r\n\r\n\x1a'\"\\%s{}", id="not-utf8"),
    pytest.param(b"caf\xc3\xa9 " * 20_000, id="large"),
]
KEYED = Idempotency(b"s" * 32, b"f" * 32)
ANSWER = Answer(b"200\r\nx: \xff\r\n\r\n", b"\x00answer")


def done(lease: Lease, answer: Answer | None = ANSWER) -> Finish:
    return Finish(lease.id, lease.epoch, State.DONE, answer)


def failed(lease: Lease, reason: str = "attempts-used-up") -> Finish:
    return Finish(lease.id, lease.epoch, State.FAILED, ANSWER, reason)


def settlements(id: bytes, epoch: int) -> list[Settlement]:
    """One of each kind."""
    return [
        Finish(id, epoch, State.DONE, Answer(b"late", b"late")),
        Finish(id, epoch, State.FAILED, reason="late"),
        Retry(id, epoch, 0.0, b"late"),
        Release(id, epoch),
    ]


async def end_done(store: Store, case: StoreCase, record: NewRecord) -> None:
    await store.settle([done(await take_one(store))])


async def end_failed(store: Store, case: StoreCase, record: NewRecord) -> None:
    await store.settle([failed(await take_one(store))])


async def end_cancelled_unsent(store: Store, case: StoreCase, record: NewRecord) -> None:
    await store.cancel(record.id)


async def end_cancelled_by_runner(store: Store, case: StoreCase, record: NewRecord) -> None:
    lease = await take_one(store)
    await store.cancel(record.id)
    await store.settle([Retry(lease.id, lease.epoch, 0.0)])


async def end_cancelled_at_release(store: Store, case: StoreCase, record: NewRecord) -> None:
    lease = await take_one(store)
    await store.cancel(record.id)
    await store.settle([Release(lease.id, lease.epoch)])


async def end_expired_by_sweep(store: Store, case: StoreCase, record: NewRecord) -> None:
    await case.pass_time(3 * case.tick_seconds)
    await store.sweep()


async def end_expired_by_lease(store: Store, case: StoreCase, record: NewRecord) -> None:
    await case.pass_time(3 * case.tick_seconds)
    assert await take(store) == []


async def end_outcome_unknown(store: Store, case: StoreCase, record: NewRecord) -> None:
    await take_one(store, lease_seconds=case.tick_seconds)
    await case.pass_time(2 * case.tick_seconds)
    await store.sweep()


Ending = Callable[[Store, StoreCase, NewRecord], Awaitable[None]]

ENDINGS: list[tuple[Ending, State]] = [
    (end_done, State.DONE),
    (end_failed, State.FAILED),
    (end_cancelled_unsent, State.CANCELLED),
    (end_cancelled_by_runner, State.CANCELLED),
    (end_cancelled_at_release, State.CANCELLED),
    (end_expired_by_sweep, State.EXPIRED),
    (end_expired_by_lease, State.EXPIRED),
    (end_outcome_unknown, State.FAILED),
]
every_ending = pytest.mark.parametrize(
    ("end", "state"), ENDINGS, ids=[ending.__name__[4:] for ending, _ in ENDINGS]
)


def mortal(end: Ending, case: StoreCase, **changes: Any) -> NewRecord:
    """A record that can come to *end*."""
    age = 2 * case.tick_seconds if end in (end_expired_by_sweep, end_expired_by_lease) else 0.0
    return new(max_age_seconds=age, **changes)
