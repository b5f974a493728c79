"""The SQLite store keeps the store contract; what is its own is tested below it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from openhqm.stores.base import Options, Store
from openhqm.stores.sqlite import SqliteStore

pytest.register_assert_rewrite("tests.conformance.store_contract", "tests.conformance.store_model")

from tests.conformance.store_case import SkippingClock, StoreCase  # noqa: E402
from tests.conformance.store_contract import StoreContract  # noqa: E402


class SqliteCase:
    """Stores on one file, with time that can be skipped."""

    tick_seconds = 10.0
    durable = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._clock = SkippingClock()
        self._opened: list[Store] = []

    async def open(self, options: Options) -> Store:
        store = SqliteStore(self._path, options, clock=self._clock)
        await store.open()
        self._opened.append(store)
        return store

    async def pass_time(self, seconds: float) -> None:
        self._clock.skipped += seconds

    async def now(self) -> float:
        return self._clock()

    async def close(self) -> None:
        for store in self._opened:
            await store.close()


class TestSqliteStore(StoreContract):
    @pytest.fixture
    async def case(self, tmp_path: Path) -> AsyncIterator[StoreCase]:
        case = SqliteCase(tmp_path / "store" / "openhqm.db")
        yield case
        await case.close()
