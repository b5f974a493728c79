"""A fake API server, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from tests.operator.fake_api import FakeApi

from openhqm_operator.kube.client import Kube


@pytest_asyncio.fixture
async def api() -> AsyncIterator[FakeApi]:
    api = FakeApi()
    await api.start()
    yield api
    await api.stop()


@pytest_asyncio.fixture
async def kube(api: FakeApi) -> AsyncIterator[Kube]:
    async with api.client() as kube:
        yield kube
