"""The broker's side of a process: made from settings, opened when it is there, ended in order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.conformance.memory_broker import MemoryBroker
from tests.sidecar.broker_bench import bench, running, until

from openhqm import carrying
from openhqm.brokers import registry
from openhqm.brokers.base import BrokerOptions
from openhqm.carrying import Carrying
from openhqm.errors import BrokerUnavailable, SettingsError
from openhqm.publishing import Publishing
from openhqm.settings import load
from openhqm.storage import make_broker


class Late(MemoryBroker):
    """A broker that can be opened only after *tries*."""

    tries = 2

    async def open(self) -> None:
        self.tries -= 1
        if self.tries >= 0:
            raise BrokerUnavailable("away")
        await super().open()


async def test_a_broker_that_is_away_at_the_start_is_opened_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "OPEN_SECONDS", 0.005)
    test = await bench()
    broker = Late(test.queue)
    part = Carrying(broker, Publishing(test.store, broker, test.lifecycle), None)

    await part.open()
    assert (part.is_open, await part.backlog()) == (False, None)
    async with running(part):
        await until(lambda: part.is_open)
        assert await part.backlog() == 0


async def test_it_can_be_drained_before_the_broker_was_there() -> None:
    test = await bench()
    broker = Late(test.queue)
    broker.tries = 1_000_000
    part = Carrying(broker, Publishing(test.store, broker, test.lifecycle), None)
    task = asyncio.create_task(part.run())
    await part.drain(1.0)
    await asyncio.wait_for(task, 5.0)


def settings(**changes: Any) -> Any:
    flags = {
        "app": {"url": "http://127.0.0.1:1"},
        "store": {"url": "memory:", "require_durability": "none"},
        **changes,
    }
    return load(flags=flags, environ={})


async def test_without_a_broker_there_is_none() -> None:
    assert make_broker(settings(), (await bench()).store) is None


async def test_an_ingress_whose_answers_nobody_could_bring_is_refused() -> None:
    wanted = settings(mode="ingress", broker={"url": "nats://127.0.0.1/q"})
    with pytest.raises(SettingsError, match=r"broker\.url: in mode ingress .* that can be shared"):
        make_broker(wanted, (await bench()).store)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://127.0.0.1", "redis is a store, not a broker"),
        ("carrier-pigeon://loft", "broker.url: unknown scheme 'carrier-pigeon'; known are"),
        ("nats://127.0.0.1/q?durable=x", "unknown parameter durable"),
    ],
)
def test_a_url_that_names_no_broker_is_refused(url: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        registry.create(url, BrokerOptions())
