"""The fixtures all parts of the contract share."""

from __future__ import annotations

import pytest
from tests.conformance.store_case import (
    Audited,
    StoreCase,
)

from openhqm.stores.base import (
    Options,
    Store,
)


class StoreFixtures:
    """Subclass per store; override `case`."""

    @pytest.fixture
    def options(self) -> Options:
        return Options(answer_ttl_seconds=7200.0, dead_letter_ttl_seconds=72_000.0)

    @pytest.fixture
    async def case(self) -> StoreCase:
        raise NotImplementedError("a store's test class supplies its case")

    @pytest.fixture
    async def raw(self, case: StoreCase, options: Options) -> Store:
        return await case.open(options)

    @pytest.fixture
    def store(self, raw: Store, options: Options) -> Store:
        return Audited(raw, options)  # type: ignore[return-value]
