"""Users of the bundled Redis on a real server: each namespace reaches its own queues and nothing else."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from tests.services import RedisServer, binary

from openhqm.settings import Settings
from openhqm.storage import store_options
from openhqm.stores.redis import RedisStore
from openhqm_operator.kube.errors import AlreadyExists, NotFound
from openhqm_operator.reconciling.stores import BundledStore, BundledStoreUnusable, rules_of

ADMIN = "user operator on >admin ~* &* +@all\nuser default off\n"


class Secrets:
    """Secrets of an API server, by namespace and name."""

    def __init__(self) -> None:
        self.stored: dict[tuple[str, str], dict[str, Any]] = {}

    async def get(self, _resource: object, key: tuple[str, str]) -> dict[str, Any]:
        if key not in self.stored:
            raise NotFound("no such Secret", status=404)
        return self.stored[key]

    async def create(self, body: dict[str, Any], *, manager: str) -> dict[str, Any]:
        key = body["metadata"]["namespace"], body["metadata"]["name"]
        if key in self.stored:
            raise AlreadyExists("there is one", status=409)
        data = {name: base64.b64encode(value.encode()).decode() for name, value in body["stringData"].items()}
        self.stored[key] = {**body, "data": data}
        return self.stored[key]

    def url(self, namespace: str) -> str:
        return base64.b64decode(self.stored[namespace, "openhqm-store"]["data"]["url"]).decode()


@pytest.fixture(scope="module", params=["valkey", "redis"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    users = folder / "users.acl"
    users.write_text(ADMIN)
    started = RedisServer(binary(request.param), folder, ["--aclfile", str(users)], fsync="always")
    started.start()
    yield started
    started.stop()


@pytest.fixture
def secrets() -> Secrets:
    return Secrets()


@pytest.fixture
async def bundled(server: RedisServer, secrets: Secrets) -> AsyncIterator[BundledStore]:
    store = BundledStore(secrets, admin_url(server), server.url)  # type: ignore[arg-type]
    yield store
    await store.close()


def admin_url(server: RedisServer) -> str:
    return f"redis://operator:admin@127.0.0.1:{server.port}"


def tenant(secrets: Secrets, namespace: str) -> redis.Redis:
    return redis.Redis.from_url(secrets.url(namespace), socket_timeout=5)


async def test_the_url_in_the_secret_is_all_a_sidecar_s_store_needs(
    bundled: BundledStore, secrets: Secrets
) -> None:
    await bundled.mint("shop")
    options = store_options(Settings.model_validate({"queue": {"name": "shop.legacy"}}))
    store = RedisStore(secrets.url("shop"), options)

    await store.open()
    try:
        counts = await store.counts()
        kept = await store.secret("handle-key", b"x" * 32)
    finally:
        await store.close()

    assert counts.backlog == 0
    assert kept == b"x" * 32
    assert store.abilities.durability.name == "POWER"


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "openhqm:{other.legacy}:schema"),
        ("SET", "openhqm:{shop-2.legacy}:schema", "1"),
        ("SET", "mine", "1"),
        ("EVAL", "return redis.call('GET', 'openhqm:{other.x}:schema')", "0"),
        ("PUBLISH", "openhqm:{other.legacy}:changes", "x"),
        ("SUBSCRIBE", "openhqm:{other.legacy}:changes"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("FLUSHALL",),
        ("CONFIG", "SET", "appendonly", "no"),
        ("ACL", "LIST"),
        ("SHUTDOWN",),
        ("MONITOR",),
    ],
    ids=lambda command: " ".join(command)[:40],
)
async def test_a_namespace_cannot_see_or_harm_others(
    bundled: BundledStore, secrets: Secrets, command: tuple[str, ...]
) -> None:
    await bundled.mint("shop")

    with tenant(secrets, "shop") as client, pytest.raises(redis.ResponseError) as caught:
        client.execute_command(*command)

    assert any(word in str(caught.value).lower() for word in ("permission", "acl failure", "can't"))


async def test_minting_again_changes_nothing(bundled: BundledStore, secrets: Secrets) -> None:
    await bundled.mint("shop")
    before = secrets.url("shop")

    await bundled.mint("shop")

    assert secrets.url("shop") == before
    with tenant(secrets, "shop") as client:
        assert client.ping()


async def test_users_outlive_a_restart_of_the_server(
    bundled: BundledStore, secrets: Secrets, server: RedisServer
) -> None:
    await bundled.mint("shop")

    server.restart()

    with tenant(secrets, "shop") as client:
        assert client.ping()


async def test_a_user_that_was_lost_gets_the_same_password_again(
    bundled: BundledStore, secrets: Secrets, server: RedisServer
) -> None:
    await bundled.mint("shop")
    with redis.Redis.from_url(admin_url(server)) as admin:
        admin.execute_command("ACL", "DELUSER", "ns-shop")

    await bundled.repair(["shop", "never-minted"])

    with tenant(secrets, "shop") as client:
        assert client.ping()


async def test_a_secret_that_somebody_else_made_is_not_overwritten(
    bundled: BundledStore, secrets: Secrets
) -> None:
    foreign = {"metadata": {"namespace": "shop", "name": "openhqm-store"}, "stringData": {"url": "redis://x"}}
    await secrets.create(foreign, manager="them")

    with pytest.raises(BundledStoreUnusable, match="not one that the operator made"):
        await bundled.mint("shop")

    assert secrets.url("shop") == "redis://x"


async def test_a_server_that_shows_its_own_password_to_all_users_gets_none(
    bundled: BundledStore, secrets: Secrets, server: RedisServer
) -> None:
    with redis.Redis.from_url(admin_url(server)) as admin:
        admin.config_set("masterauth", "hunter2")
        with pytest.raises(BundledStoreUnusable, match="masterauth") as caught:
            await bundled.mint("shop")
        admin.config_set("masterauth", "")

    assert "hunter2" not in str(caught.value)
    assert secrets.stored == {}


async def test_a_server_that_is_away_is_said_to_be(bundled: BundledStore, server: RedisServer) -> None:
    server.stop()

    try:
        with pytest.raises(BundledStoreUnusable, match="cannot be reached"):
            await bundled.mint("shop")
    finally:
        server.start()


def test_the_pattern_holds_the_namespace_alone() -> None:
    assert "~openhqm:{shop.*}:*" in rules_of("shop")
    assert "&openhqm:{shop.*}:*" in rules_of("shop")
