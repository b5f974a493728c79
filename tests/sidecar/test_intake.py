"""Intake: what a broker delivers is in the Store before it is confirmed, once, and never lost."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from tests.conformance.memory_broker import MemoryBroker
from tests.conformance.store_case import fresh_id, get_one, take, take_one
from tests.conformance.store_endings import done
from tests.sidecar.broker_bench import ENVELOPE, Bench, Failing, bench, outbound, running, until

from openhqm import intake, publishing, wire
from openhqm.brokers.base import Delivery, Message
from openhqm.envelope import Envelope
from openhqm.errors import BrokerUnavailable, EnvelopeCorrupt, StoreUnavailable
from openhqm.intake import Intake, foreign_id, room_for
from openhqm.lifecycle import Happening
from openhqm.publishing import Publishing
from openhqm.settings import load
from openhqm.stores.base import BlobRef, Counts, OnLost, Outbound, Refused, State, Store, Want

INLINE_BYTES = 100_000
SETTINGS = load(
    flags={
        "app": {"url": "http://127.0.0.1:1"},
        "store": {"url": "memory:", "require_durability": "none", "spill_bytes": INLINE_BYTES},
    },
    environ={},
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FULL_SECONDS", "AGAIN_SECONDS"):
        monkeypatch.setattr(intake, name, 0.005)
    monkeypatch.setattr(intake, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(publishing, "HOLD_SECONDS", 0.1)
    monkeypatch.setattr(publishing, "BACKOFF_SECONDS", 0.005)
    monkeypatch.setattr(publishing, "WAIT_SECONDS", 0.05)


def of(test: Bench, broker: MemoryBroker, store: Store | None = None, **changes: Any) -> Intake:
    return Intake(store or test.store, broker, test.lifecycle, SETTINGS, **changes)


def ours(body: bytes = b"body", **changes: Any) -> Message:
    """The message of a record that this store does not know."""
    fields = {"id": fresh_id(), "envelope": ENVELOPE, "body": body, "accepted_at": 1.0, "deadline": None}
    return wire.encode_request(Outbound(**{**fields, **changes}), body, MemoryBroker.abilities)


async def test_a_message_becomes_a_record_and_is_confirmed() -> None:
    test = await bench()
    test.queue.put(ours(b"payload", key=b"k", priority=7))
    broker = await test.broker()
    async with running(of(test, broker)):
        lease = await take_one(test.store, wait_seconds=5.0)
    assert (lease.envelope, lease.body, lease.key, lease.priority) == (ENVELOPE, b"payload", b"k", 7)
    assert test.lifecycle.happened[Happening.TAKEN_IN] == 1
    await broker.close()
    assert not test.messages


async def test_what_went_out_comes_back_as_the_same_record() -> None:
    test = await bench()
    record = outbound(body=b"there and back", key=b"k", priority=2)
    broker = await test.broker()
    async with running(Publishing(test.store, broker, test.lifecycle)), running(of(test, broker)):
        await test.store.accept([record])
        lease = await take_one(test.store, wait_seconds=5.0)
        assert (lease.id, lease.body, lease.attempt) == (record.id, b"there and back", 1)
        await test.store.settle([done(lease)])
    counts = await test.store.counts()
    assert (counts.accepted, counts.done, counts.backlog) == (1, 1, 0)


@pytest.mark.parametrize(
    ("head", "repeat", "on_lost"),
    [
        (b"POST / HTTP/1.1\r\n\r\n", False, OnLost.UNKNOWN),
        (b"POST / HTTP/1.1\r\n\r\n", True, OnLost.REPEAT),
        (b"PUT / HTTP/1.1\r\n\r\n", False, OnLost.REPEAT),
    ],
)
async def test_what_a_lost_lease_means_follows_from_the_request(
    head: bytes, repeat: bool, on_lost: OnLost
) -> None:
    test = await bench()
    seen: list[OnLost] = []

    def decide(name: str, is_done: bool) -> None:
        pass

    class Looking(Failing):
        async def arrive(self, records: Any) -> Any:
            seen.extend(record.on_lost for record in records)
            return await test.store.arrive(records)

    test.queue.put(ours(envelope=Envelope(head, repeat=repeat).encode()))
    store: Any = Looking(test.store, decide)
    async with running(of(test, await test.broker(), store)):
        await until(lambda: bool(seen))
    assert seen == [on_lost]


async def test_a_large_body_becomes_a_blob() -> None:
    test = await bench()
    test.queue.put(ours(b"x" * (INLINE_BYTES + 1)))
    async with running(of(test, await test.broker())):
        lease = await take_one(test.store, wait_seconds=5.0)
    assert isinstance(lease.body, BlobRef)
    assert b"".join([chunk async for chunk in test.store.blobs.read(lease.body)]) == b"x" * 100_001


async def test_what_cannot_be_read_is_kept_with_its_bytes_and_the_reason() -> None:
    test = await bench()
    test.queue.put(Message(b"\x00garbage", {"openhqm-format": "7"}))
    broker = await test.broker()
    async with running(of(test, broker)):
        lease = await take_one(test.store, wait_seconds=5.0)
    assert lease.body == b"\x00garbage"
    with pytest.raises(EnvelopeCorrupt, match="format '7'"):
        Envelope.decode(lease.envelope)
    await broker.close()
    assert not test.messages


async def test_messages_of_others_are_read_by_those_who_understand_them() -> None:
    test = await bench()

    def understand(delivery: Delivery) -> wire.Carried:
        return wire.Carried(foreign_id(delivery.position), ENVELOPE, delivery.message.body.upper())

    test.queue.put(Message(b"hello"))
    async with running(of(test, await test.broker(), understand=understand)):
        lease = await take_one(test.store, wait_seconds=5.0)
    assert (lease.body, lease.id) == (b"HELLO", foreign_id("0"))


async def test_messages_of_others_are_dead_letters_where_nobody_understands_them() -> None:
    test = await bench()
    test.queue.put(Message(b"hello"))
    async with running(of(test, await test.broker())):
        lease = await take_one(test.store, wait_seconds=5.0)
    with pytest.raises(EnvelopeCorrupt, match="not of OpenHQM's format"):
        Envelope.decode(lease.envelope)


async def test_one_that_is_too_late_is_dropped_and_counted() -> None:
    test = await bench()
    test.queue.put(ours(deadline=1.0))
    broker = await test.broker()
    async with running(of(test, broker)):
        await until(lambda: test.lifecycle.happened[Happening.DROPPED] == 1)
    await broker.close()
    assert not test.messages
    assert (await test.store.counts()).accepted == 0


async def test_what_the_store_has_no_room_for_waits_with_the_broker() -> None:
    test = await bench(max_backlog=2)
    for number in range(3):
        test.queue.put(ours(b"%d" % number))
    holds = 0

    def fails(name: str) -> None:
        nonlocal holds
        holds += name == "hold"

    broker = await test.broker(fails)
    found = []
    async with running(of(test, broker)):
        for _ in range(3):
            lease = await take_one(test.store, wait_seconds=5.0)
            found.append(lease.body)
            await test.store.settle([done(lease)])
    assert found == [b"0", b"1", b"2"]
    assert (await test.store.counts()).accepted == 3


async def test_what_is_held_long_is_held_with_the_broker_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "HOLD_SECONDS", 0.01)
    test = await bench(max_backlog=1)
    test.queue.put(ours())
    test.queue.put(ours())
    holds = 0

    def fails(name: str) -> None:
        nonlocal holds
        holds += name == "hold"

    async with running(of(test, await test.broker(fails))):
        await until(lambda: holds > 1)
        await test.store.settle([done(await take_one(test.store, wait_seconds=5.0))])
        await take_one(test.store, wait_seconds=5.0)


@pytest.mark.parametrize("was_done", [False, True], ids=["before", "after"])
async def test_a_store_that_fails_loses_no_body(was_done: bool) -> None:
    """When it is not known whether a record was committed, its blob must stay: the next try has its own."""
    test = await bench()
    left = 3

    def decide(name: str, is_done: bool) -> None:
        nonlocal left
        if name == "arrive" and is_done is was_done and left:
            left -= 1
            raise StoreUnavailable("away")

    test.queue.put(ours(b"x" * 200_000))
    broker = await test.broker()
    store: Any = Failing(test.store, decide)
    async with running(of(test, broker, store)):
        await until(lambda: not left)
        lease = await take_one(test.store, wait_seconds=5.0)
        assert isinstance(lease.body, BlobRef)
        assert len(b"".join([chunk async for chunk in test.store.blobs.read(lease.body)])) == 200_000
    await broker.close()
    assert not test.messages


async def test_one_whose_confirmation_failed_comes_again_and_is_known() -> None:
    test = await bench()
    left = 1

    def fails(name: str) -> None:
        nonlocal left
        if name == "confirm" and left:
            left -= 1
            raise BrokerUnavailable("away")

    test.queue.put(ours())
    broker = await test.broker(fails)
    async with running(of(test, broker)):
        await until(lambda: not left)
        await broker.close()
        await broker.open()
        lease = await take_one(test.store, wait_seconds=5.0)
        await test.store.settle([done(lease)])
        await until(lambda: not test.queue.waiting and not broker._held)
    assert (await test.store.counts()).accepted == 1
    assert await take(test.store) == []


async def test_draining_leaves_what_was_not_stored() -> None:
    test = await bench(max_backlog=1)
    test.queue.put(ours(b"first"))
    test.queue.put(ours(b"second"))
    broker = await test.broker()
    async with running(of(test, broker)):
        await until(lambda: test.lifecycle.happened[Happening.TAKEN_IN] == 1)
    await broker.close()
    assert [message.body for message in test.messages] == [b"second"]


@pytest.mark.parametrize(
    ("counts", "room"),
    [
        (Counts(), 8 + 32),
        (Counts(queued=10), 30),
        (Counts(queued=40), 0),
        (Counts(queued=100), 0),
        (Counts(running=8), 32),
        (Counts(running=20, queued=5), 27),
        (Counts(queued=1000, delayed=1000), 40),
        (Counts(queued=1000, carried=600, publishing=400), 40),
        (Counts(retrying=4, queued=4), 32),
        (Counts(paused=True), 0),
    ],
)
def test_room_is_for_the_free_slots_and_a_few_more(counts: Counts, room: int) -> None:
    assert room_for(counts, slots=8) == room


def test_an_id_of_a_position_is_always_the_same_and_no_id_of_a_request() -> None:
    assert foreign_id("topic/3/17") == foreign_id("topic/3/17")
    assert foreign_id("topic/3/17") != foreign_id("topic/3/18")
    assert foreign_id("topic/3/17")[6] >> 4 == 8


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_fails_every_request_runs_once(seed: int) -> None:
    """Store and broker fail at random, before and after they did what they were asked."""
    chance = random.Random(seed)
    test = await bench()
    is_calm = False

    def decide(name: str, is_done: bool) -> None:
        if not is_calm and chance.random() < 0.2:
            raise StoreUnavailable("away")

    def fails(name: str) -> None:
        if not is_calm and chance.random() < 0.2:
            raise BrokerUnavailable("away")

    store: Any = Failing(test.store, decide)
    records = [outbound(body=b"%d" % number) for number in range(60)]
    ran: list[bytes] = []
    broker = await test.broker(fails)
    async with (
        running(Publishing(store, broker, test.lifecycle)),
        running(of(test, broker, store)),
        asyncio.timeout(20),
    ):
        for start in range(0, 60, 10):
            assert not any(
                isinstance(each, Refused) for each in await test.store.accept(records[start : start + 10])
            )
            await asyncio.sleep(0)
        while len(ran) < 60:
            for lease in await take(test.store, 7, wait_seconds=0.02):
                ran.append(lease.body)
                await test.store.settle([done(lease)])
            if chance.random() < 0.1:  # it was restarted: what nobody confirmed comes again
                await broker.close()
                await broker.open()
            if len(ran) > 50:
                is_calm = True
                await test.store.sweep()
    assert sorted(ran) == sorted(record.body for record in records)
    counts = await test.store.counts()
    assert (counts.accepted, counts.done, counts.backlog, counts.conserved) == (60, 60, 0, True)
    for record in records:
        assert (await get_one(test.store, record.id, Want.ANSWER)).state is State.DONE
