"""The NATS broker keeps the broker contract on a real server; what is its own is tested below it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import nats
import pytest
from tests import services
from tests.conformance.broker_case import BrokerCase, message
from tests.conformance.broker_contract import BrokerContract

from openhqm.brokers.base import Broker, BrokerOptions
from openhqm.brokers.nats import NatsBroker
from openhqm.errors import BrokerUnavailable, SettingsError
from openhqm.stores.base import Durability

pytestmark = pytest.mark.external_service
ACK_WAIT_SECONDS = 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.NatsServer]:
    server = services.NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.stop()


class NatsCase:
    redelivers_within_seconds = float(ACK_WAIT_SECONDS)
    has_server = True

    def __init__(self, server: services.NatsServer, queue: str) -> None:
        self._server = server
        self._queue = queue
        self._opened: list[Broker] = []

    @property
    def url(self) -> str:
        return f"{self._server.url}/?ack_wait_seconds={ACK_WAIT_SECONDS}"

    async def open(self, *, publishes: bool = True, receives: bool = True) -> Broker:
        options = BrokerOptions(self._queue, publishes, receives)
        broker = NatsBroker.from_url(self.url, options)
        await broker.open()
        self._opened.append(broker)
        return broker

    async def stop(self) -> None:
        self._server.kill()

    async def start(self) -> None:
        self._server.start()

    async def forget_queue(self) -> None:
        client = await nats.connect(self._server.url)
        await client.jetstream().delete_stream(f"openhqm_{self._queue}")
        await client.close()

    async def close(self) -> None:
        for broker in self._opened:
            await broker.close()


class TestNatsBroker(BrokerContract):
    @pytest.fixture
    async def case(
        self, server: services.NatsServer, request: pytest.FixtureRequest
    ) -> AsyncIterator[BrokerCase]:
        case = NatsCase(server, f"q{abs(hash(request.node.name))}")
        yield case
        await case.close()
        if not server.is_running:
            server.start()


async def test_a_server_that_is_away_cannot_be_opened(tmp_path: Path) -> None:
    broker = NatsBroker.from_url(f"nats://u:secret@127.0.0.1:{services.free_port()}/q", BrokerOptions())
    with pytest.raises(BrokerUnavailable) as caught:
        await broker.open()
    assert "secret" not in str(caught.value)


async def test_wrong_credentials_are_told_from_a_server_that_is_away(tmp_path: Path) -> None:
    server = services.NatsServer(tmp_path, "authorization { user: app, password: right }")
    server.start()
    try:
        host = server.url.removeprefix("nats://")
        broker = NatsBroker.from_url(f"nats://app:right@{host}/q", BrokerOptions())
        await broker.open()
        await broker.close()
        for credentials in ("app:s3cret@", ""):
            with pytest.raises(SettingsError, match="credentials") as caught:
                await NatsBroker.from_url(f"nats://{credentials}{host}/q", BrokerOptions()).open()
            assert "s3cret" not in str(caught.value)
    finally:
        server.stop()


async def test_what_a_stream_survives_is_read(server: services.NatsServer) -> None:
    broker = NatsBroker.from_url(f"{server.url}/durable", BrokerOptions())
    await broker.open()
    assert broker.abilities.durability is Durability.PROCESS
    assert "two minutes" in broker.abilities.why
    await broker.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"storage": "memory"}, "in memory"),
        ({"max_msgs": 10, "discard": "old"}, "drops the oldest"),
    ],
)
async def test_a_stream_that_loses_messages_promises_nothing(
    server: services.NatsServer, changes: dict[str, object], said: str
) -> None:
    client = await nats.connect(server.url)
    stream = client.jetstream()
    name = f"found_{len(said)}"
    await stream.add_stream(name=name, subjects=[f"{name}.in"], **changes)
    await client.close()
    broker = NatsBroker.from_url(f"{server.url}/{name}.in", BrokerOptions())
    await broker.open()
    assert broker.abilities.durability is Durability.NONE
    assert said in broker.abilities.why
    await broker.close()


async def test_a_message_published_twice_is_there_once(server: services.NatsServer) -> None:
    broker = NatsBroker.from_url(f"{server.url}/twice", BrokerOptions())
    await broker.open()
    twice = message()
    await broker.publish([twice])
    await broker.publish([twice])
    assert await broker.backlog() == 1
    await broker.close()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("a.*", "not a subject"),
        ("q?acks=1", "unknown parameter acks"),
        ("q?ack_wait_seconds=soon", "ack_wait_seconds must be a whole number"),
    ],
)
async def test_what_cannot_be_meant_is_refused(server: services.NatsServer, path: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        await NatsBroker.from_url(f"{server.url}/{path}", BrokerOptions()).open()
