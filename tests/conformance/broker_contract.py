"""What every broker must do, told as tests; a broker's own test file subclasses and supplies `case`."""

from __future__ import annotations

import asyncio

import pytest
from tests.conformance.broker_case import (
    PATIENCE_SECONDS,
    BrokerCase,
    bodies,
    message,
    none_left,
    numbered,
    receive,
)

from openhqm.brokers.base import Broker, Rejected
from openhqm.errors import BrokerUnavailable

ODD_BODIES = [
    pytest.param(b"", id="empty"),
    pytest.param(b"\x00", id="nul"),
    pytest.param(bytes(range(256)), id="every-byte"),
    pytest.param(b"{}" * 50_000, id="large"),
]


class BrokerContract:
    """Subclass per broker; override `case`."""

    @pytest.fixture
    async def case(self) -> BrokerCase:
        raise NotImplementedError("a broker's test class supplies its case")

    @pytest.fixture
    async def broker(self, case: BrokerCase) -> Broker:
        return await case.open()

    # what travels

    @pytest.mark.parametrize("body", ODD_BODIES)
    async def test_a_body_arrives_as_it_was(self, broker: Broker, body: bytes) -> None:
        if not broker.abilities.carries_bytes:
            body = body.decode("latin-1").encode("ascii", "replace").replace(b"\0", b"?") or b"-"
        assert await broker.publish([message(body)]) == [None]
        [delivery] = await receive(broker, 1)
        assert delivery.message.body == body
        await broker.confirm([delivery])

    async def test_attributes_and_key_arrive_with_it(self, broker: Broker) -> None:
        attributes = {
            "openhqm-format": "1",
            "openhqm-path": "/a?b=c%20",
            "openhqm-headers": '[["x","\\u00e9"]]',
        }
        await broker.publish([message(attributes=attributes, key=b"a/key")])
        [delivery] = await receive(broker, 1)
        found = {name.lower(): value for name, value in delivery.message.attributes.items()}
        assert {name: found.get(name) for name in attributes} == attributes
        assert delivery.message.key in (b"a/key", None)
        if broker.abilities.ordered:
            assert delivery.message.key == b"a/key"

    async def test_positions_tell_messages_apart(self, broker: Broker) -> None:
        await broker.publish(numbered(20))
        deliveries = await receive(broker, 20)
        assert len({delivery.position for delivery in deliveries}) == 20

    async def test_messages_of_one_key_keep_their_order(self, broker: Broker) -> None:
        if not broker.abilities.ordered:
            pytest.skip("this broker keeps no order")
        for start in range(0, 60, 20):
            batch = [message(b"%d" % n, key=b"k%d" % (n % 3)) for n in range(start, start + 20)]
            assert await broker.publish(batch) == [None] * 20
        found: list[bytes] = []
        while len(found) < 60:
            deliveries = await receive(broker, 5)
            assert deliveries
            found += bodies(deliveries)
            await broker.confirm(deliveries)
        for key in range(3):
            numbers = [int(body) for body in found if int(body) % 3 == key]
            assert numbers == sorted(numbers)

    # taking and giving

    async def test_no_more_than_the_limit_is_received(self, broker: Broker) -> None:
        await broker.publish(numbered(10))
        assert 1 <= len(await broker.receive(3, wait_seconds=PATIENCE_SECONDS)) <= 3

    async def test_waiting_ends_empty(self, broker: Broker) -> None:
        assert await broker.receive(1, wait_seconds=0.05) == []

    async def test_waiting_ends_when_something_is_published(self, broker: Broker) -> None:
        waiting = asyncio.create_task(receive(broker, 1))
        await asyncio.sleep(0.02)
        await broker.publish([message(b"late")])
        assert bodies(await waiting) == [b"late"]

    async def test_a_cancelled_wait_loses_nothing(self, broker: Broker, case: BrokerCase) -> None:
        found: set[bytes] = set()
        for number in range(5):
            waiting = asyncio.create_task(broker.receive(10, wait_seconds=5.0))
            await asyncio.sleep(0.01 * number)
            await broker.publish([message(b"%d" % number)])
            waiting.cancel()
            [received] = await asyncio.gather(waiting, return_exceptions=True)
            if not isinstance(received, BaseException):  # it came before the cancellation did
                found |= set(bodies(received))
        until = asyncio.get_running_loop().time() + case.redelivers_within_seconds + PATIENCE_SECONDS
        while len(found) < 5 and asyncio.get_running_loop().time() < until:
            deliveries = await broker.receive(10, wait_seconds=1.0)
            await broker.confirm(deliveries)
            found |= set(bodies(deliveries))
        assert found == {b"%d" % number for number in range(5)}

    async def test_what_is_confirmed_is_forgotten(self, broker: Broker, case: BrokerCase) -> None:
        await broker.publish(numbered(30))
        deliveries = await receive(broker, 30)
        await broker.confirm(deliveries)
        await broker.close()
        again = await case.open()
        assert await none_left(again, case.redelivers_within_seconds + 0.5)

    async def test_what_is_not_confirmed_comes_again(self, broker: Broker, case: BrokerCase) -> None:
        await broker.publish(numbered(10))
        deliveries = await receive(broker, 10)
        kept = {delivery.position: delivery.message.body for delivery in deliveries[1::2]}
        await broker.confirm(deliveries[::2])
        await broker.close()
        again = await case.open()
        found: dict[str, bytes] = {}
        until = asyncio.get_running_loop().time() + case.redelivers_within_seconds + PATIENCE_SECONDS
        while not kept.items() <= found.items() and asyncio.get_running_loop().time() < until:
            for delivery in await again.receive(10, wait_seconds=1.0):
                found[delivery.position] = delivery.message.body
                await again.confirm([delivery])
        assert kept.items() <= found.items()

    async def test_confirming_nothing_or_twice_is_no_error(self, broker: Broker) -> None:
        await broker.publish([message()])
        [delivery] = await receive(broker, 1)
        await broker.confirm([])
        await broker.confirm([delivery])
        await broker.confirm([delivery])
        await broker.hold([])

    async def test_two_receivers_share_the_work(self, broker: Broker, case: BrokerCase) -> None:
        other = await case.open(publishes=False)
        await broker.publish(numbered(100, key=None))
        found: list[bytes] = []

        async def work(each: Broker) -> None:
            while len(set(found)) < 100:
                deliveries = await each.receive(7, wait_seconds=0.2)
                await each.confirm(deliveries)
                found.extend(bodies(deliveries))

        async with asyncio.timeout(case.redelivers_within_seconds + 2 * PATIENCE_SECONDS):
            await asyncio.gather(work(broker), work(other))
        assert set(found) == {b"%d" % number for number in range(100)}

    async def test_what_is_held_does_not_come_again(self, broker: Broker, case: BrokerCase) -> None:
        await broker.publish([message()])
        [delivery] = await receive(broker, 1)
        loop = asyncio.get_running_loop()
        until = loop.time() + 2 * case.redelivers_within_seconds
        while loop.time() < until:
            await broker.hold([delivery])
            assert await broker.receive(1, wait_seconds=case.redelivers_within_seconds / 4) == []
        await broker.confirm([delivery])

    async def test_nothing_is_published_by_an_empty_batch(self, broker: Broker) -> None:
        assert await broker.publish([]) == []

    async def test_one_that_is_too_large_is_rejected_and_the_others_are_not(self, broker: Broker) -> None:
        large = message(b"x" * (broker.abilities.max_message_bytes + 1))
        first, second = message(b"1"), message(b"2")
        results = await broker.publish([first, large, second])
        assert [result is None for result in results] == [True, False, True]
        assert isinstance(results[1], Rejected)
        assert str(broker.abilities.max_message_bytes) in results[1].reason.replace(",", "")
        assert set(bodies(await receive(broker, 2))) == {b"1", b"2"}

    async def test_the_backlog_is_told(self, broker: Broker) -> None:
        if not broker.abilities.tells_backlog:
            assert await broker.backlog() is None
            return
        assert await broker.backlog() == 0
        await broker.publish(numbered(25))
        assert await _eventually_backlog(broker, 25) == 25
        await broker.confirm(await receive(broker, 25))
        assert await _eventually_backlog(broker, 0) == 0

    # bad days

    async def test_it_goes_on_after_the_server_was_killed(self, broker: Broker, case: BrokerCase) -> None:
        if not case.has_server:
            pytest.skip("there is no server to kill")
        await broker.publish(numbered(50))
        received = await receive(broker, 10)
        await broker.confirm(received[:5])
        await case.stop()
        loop = asyncio.get_running_loop()
        for call in (broker.publish([message(b"unknown")]), broker.receive(1, wait_seconds=0.1)):
            begun = loop.time()
            with pytest.raises(BrokerUnavailable):
                await call
            assert loop.time() - begun < 6
        await case.start()
        await _published(broker, b"after")
        found: set[bytes] = set(bodies(received[:5]))
        until = loop.time() + case.redelivers_within_seconds + 2 * PATIENCE_SECONDS
        wanted = {b"%d" % number for number in range(50)} | {b"after"}
        while not wanted <= found and loop.time() < until:
            try:
                deliveries = await broker.receive(20, wait_seconds=1.0)
                await broker.confirm(deliveries)
            except BrokerUnavailable:
                continue
            found |= set(bodies(deliveries))
        assert wanted <= found

    async def test_a_queue_that_was_deleted_is_made_again(self, broker: Broker, case: BrokerCase) -> None:
        """What was in it is gone, and nobody's fault but its deleter's; what comes after is not."""
        if not case.has_server:
            pytest.skip("there is no queue to delete")
        await broker.publish([message(b"gone")])
        await receive(broker, 1)
        await case.forget_queue()
        await _published(broker, b"new")
        until = asyncio.get_running_loop().time() + 2 * PATIENCE_SECONDS
        found: set[bytes] = set()
        while b"new" not in found and asyncio.get_running_loop().time() < until:
            try:
                found |= set(bodies(await broker.receive(10, wait_seconds=1.0)))
            except BrokerUnavailable:
                continue
        assert b"new" in found

    async def test_a_closed_broker_is_unavailable(self, broker: Broker) -> None:
        await broker.close()
        await broker.close()
        with pytest.raises(BrokerUnavailable):
            await broker.publish([message()])
        with pytest.raises(BrokerUnavailable):
            await broker.receive(1, wait_seconds=0.1)


async def _published(broker: Broker, body: bytes) -> None:
    """Publish as callers do: again, until the broker has it."""
    async with asyncio.timeout(2 * PATIENCE_SECONDS):
        while True:
            try:
                assert await broker.publish([message(body)]) == [None]
                return
            except BrokerUnavailable:
                await asyncio.sleep(0.1)


async def _eventually_backlog(broker: Broker, wanted: int) -> int | None:
    """Brokers count a moment later."""
    found = await broker.backlog()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while found != wanted:
            await asyncio.sleep(0.05)
            found = await broker.backlog()
    return found
