"""The tests' own broker keeps the broker contract, so that what is tested with it holds for others."""

from collections.abc import AsyncIterator

import pytest
from tests.conformance.broker_case import BrokerCase
from tests.conformance.broker_contract import BrokerContract
from tests.conformance.memory_broker import MemoryBroker, Queue

from openhqm.brokers.base import Broker


class MemoryBrokerCase:
    redelivers_within_seconds = 0.0
    has_server = False

    def __init__(self) -> None:
        self._queue = Queue()
        self._opened: list[Broker] = []

    async def open(self, *, publishes: bool = True, receives: bool = True) -> Broker:
        broker = MemoryBroker(self._queue)
        await broker.open()
        self._opened.append(broker)
        return broker

    async def stop(self) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        raise NotImplementedError

    async def forget_queue(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        for broker in self._opened:
            await broker.close()


class TestMemoryBroker(BrokerContract):
    @pytest.fixture
    async def case(self) -> AsyncIterator[BrokerCase]:
        case = MemoryBrokerCase()
        yield case
        await case.close()
