"""The Redis store against the contract suite, on Valkey and Redis, and what only it has to keep."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.conformance.store_case import StoreCase
from tests.conformance.store_contract import StoreContract
from tests.services import RedisServer

from openhqm.stores.base import Options, Store
from openhqm.stores.redis import RedisStore

pytestmark = pytest.mark.external_service


class RedisCase:
    """Stores on one server, whose clock really passes."""

    tick_seconds = 0.03
    durable = True

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._stores: list[RedisStore] = []

    async def open(self, options: Options) -> Store:
        store = RedisStore(self._server.url, options)
        await store.open()
        self._stores.append(store)
        return store

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def now(self) -> float:
        with self._server.client() as client:
            seconds, microseconds = client.time()
        return seconds + microseconds / 1e6

    async def close(self) -> None:
        for store in self._stores:
            await store.close()


@pytest.fixture
async def case(redis_server: RedisServer) -> AsyncIterator[RedisCase]:
    case = RedisCase(redis_server)
    yield case
    await case.close()


class TestRedisStore(StoreContract):
    @pytest.fixture
    async def case(self, redis_server: RedisServer) -> AsyncIterator[StoreCase]:
        case = RedisCase(redis_server)
        yield case
        await case.close()
