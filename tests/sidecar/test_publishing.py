"""Publishing: what was accepted for a broker gets there, whatever fails on the way."""

from __future__ import annotations

import asyncio

import orjson
import pytest
from tests.conformance.memory_broker import MAX_MESSAGE_BYTES
from tests.conformance.store_case import get_one, new
from tests.sidecar.broker_bench import HEAD, Bench, Failing, bench, outbound, running, until

from openhqm import publishing, wire
from openhqm.envelope import Envelope
from openhqm.errors import BrokerUnavailable, StoreUnavailable
from openhqm.lifecycle import Happening
from openhqm.publishing import Publishing
from openhqm.stores.base import Stage, State, Want


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "BACKOFF_SECONDS", 0.005)
    monkeypatch.setattr(publishing, "WAIT_SECONDS", 0.05)


async def stage(bench: Bench, id: bytes) -> Stage:
    return (await get_one(bench.store, id)).stage


async def test_a_record_is_published_and_carried() -> None:
    test = await bench()
    record = outbound(body=b"body", key=b"k", priority=8)
    async with running(Publishing(test.store, await test.broker(), test.lifecycle)):
        await test.store.accept([record])
        await until(lambda: test.lifecycle.happened[Happening.PUBLISHED] == 1)

    [message] = test.messages
    found = wire.decode_request(message)
    assert (found.id, found.body, found.key, found.priority) == (record.id, b"body", b"k", 8)
    assert Envelope.decode(found.envelope).head == HEAD
    assert await stage(test, record.id) is Stage.CARRIED


async def test_the_order_of_acceptance_is_kept() -> None:
    test = await bench()
    records = [outbound(priority=number % 10) for number in range(700)]
    await test.store.accept(records)
    async with running(Publishing(test.store, await test.broker(), test.lifecycle)):
        await until(lambda: len(test.messages) == 700)
    assert [wire.decode_request(message).id for message in test.messages] == [each.id for each in records]


async def test_what_is_not_for_a_broker_stays() -> None:
    test = await bench()
    here, there = new(), outbound()
    await test.store.accept([here, there])
    async with running(Publishing(test.store, await test.broker(), test.lifecycle)):
        await until(lambda: len(test.messages) == 1)
    assert await stage(test, here.id) is Stage.HERE


async def test_a_broker_that_is_away_costs_time_only() -> None:
    test = await bench()
    tries = 0

    def fails(name: str) -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise BrokerUnavailable("away")

    older, younger = outbound(body=b"1"), outbound(body=b"2")
    await test.store.accept([older])
    async with running(Publishing(test.store, await test.broker(fails), test.lifecycle)):
        await until(lambda: tries > 0)
        await test.store.accept([younger])
        await until(lambda: len(test.messages) == 2)
    assert [message.body for message in test.messages] == [b"1", b"2"]


@pytest.mark.parametrize("name", ["outbound", "carried", "settle"])
@pytest.mark.parametrize("was_done", [False, True], ids=["before", "after"])
async def test_a_store_that_fails_loses_nothing(
    name: str, was_done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whether a call that failed was done; one record is published, one refused."""
    monkeypatch.setattr(publishing, "HOLD_SECONDS", 0.05)
    test = await bench()
    left = 2

    def decide(called: str, is_done: bool) -> None:
        nonlocal left
        if called == name and is_done is was_done and left:
            left -= 1
            raise StoreUnavailable("away")

    sound, large = outbound(body=b"sound"), outbound(body=b"x" * (MAX_MESSAGE_BYTES + 1))
    await test.store.accept([sound, large])
    store = Failing(test.store, decide)
    async with running(Publishing(store, await test.broker(), test.lifecycle)):  # type: ignore[arg-type]
        await until(lambda: left == 0)
        async with asyncio.timeout(5):
            while (await test.store.counts()).publishing:
                await asyncio.sleep(0.005)
    counts = await test.store.counts()
    assert (counts.carried, counts.failed, counts.conserved) == (1, 1, True)
    assert {message.body for message in test.messages} == {b"sound"}


async def test_what_the_broker_will_never_take_becomes_a_dead_letter() -> None:
    test = await bench()
    large, small = outbound(body=b"x" * (MAX_MESSAGE_BYTES + 1)), outbound(body=b"small")
    await test.store.accept([large, small])
    async with running(Publishing(test.store, await test.broker(), test.lifecycle)):
        await until(lambda: any(event.what is Happening.DEAD_LETTERED for event in test.events))

    found = await get_one(test.store, large.id, Want.REQUEST)
    assert (found.state, found.reason, found.attempts) == (State.FAILED, "refused-by-broker", 0)
    assert found.request == (large.envelope, large.body)
    assert "1048576" in orjson.loads(found.history)["error"]
    assert [message.body for message in test.messages] == [b"small"]


async def test_a_large_body_is_read_from_its_blob() -> None:
    test = await bench()
    record = outbound()
    writer = await test.store.blobs.write(record.id, "request")
    await writer.write(b"a" * 300_000)
    record.body = await writer.commit()
    await test.store.accept([record])
    async with running(Publishing(test.store, await test.broker(), test.lifecycle)):
        await until(lambda: len(test.messages) == 1)
    assert test.messages[0].body == b"a" * 300_000
    with pytest.raises(KeyError):
        [_ async for _ in test.store.blobs.read(record.body)]


async def test_a_stored_request_that_cannot_be_read_becomes_a_dead_letter() -> None:
    test = await bench()
    record = outbound(envelope=b"nonsense")
    await test.store.accept([record])
    async with running(Publishing(test.store, await test.broker(), test.lifecycle)):
        await until(lambda: test.lifecycle.happened[Happening.DEAD_LETTERED] == 1)
    assert (await get_one(test.store, record.id)).reason == "envelope-corrupt"


async def test_what_was_cancelled_while_the_broker_was_away_is_not_handed_out_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publishing, "HOLD_SECONDS", 0.02)
    test = await bench()
    is_away = True
    handed_out = 0

    def fails(name: str) -> None:
        if is_away:
            raise BrokerUnavailable("away")

    def decide(called: str, is_done: bool) -> None:
        nonlocal handed_out
        handed_out += called == "outbound" and is_done

    cancelled, kept = outbound(body=b"cancelled"), outbound(body=b"kept")
    await test.store.accept([cancelled, kept])
    store = Failing(test.store, decide)
    async with running(Publishing(store, await test.broker(fails), test.lifecycle)):  # type: ignore[arg-type]
        await until(lambda: handed_out == 1)
        await test.store.cancel(cancelled.id)
        await until(lambda: handed_out == 2)
        is_away = False
        await until(lambda: bool(test.messages))
    assert [message.body for message in test.messages] == [b"kept"]


async def test_draining_leaves_what_is_not_published() -> None:
    test = await bench()
    tries = 0

    def fails(name: str) -> None:
        nonlocal tries
        tries += 1
        raise BrokerUnavailable("away")

    record = outbound()
    await test.store.accept([record])
    async with running(Publishing(test.store, await test.broker(fails), test.lifecycle)):
        await until(lambda: tries > 0)
    assert await stage(test, record.id) is Stage.PUBLISHING
