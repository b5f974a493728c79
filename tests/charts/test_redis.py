"""The bundled Redis as its Pod starts it: the chart's script and settings, on real servers."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from tests.charts.rendering import find, rendered
from tests.operator.reconciling.test_stores import Secrets
from tests.services import binary, free_port

from openhqm.settings import Settings
from openhqm.storage import store_options
from openhqm.stores.base import Durability
from openhqm.stores.redis import RedisStore
from openhqm_operator.reconciling.stores import BundledStore

PASSWORD = "hunter2hunter2"


class BundledRedis:
    """What the StatefulSet runs; *folder* stands for its volume."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.port = free_port()
        self._data = folder / "data"
        self._data.mkdir()
        programs = folder / "bin"
        programs.mkdir()
        shutil.copy(program, programs / "redis-server")
        config = find(rendered("default"), "ConfigMap", "openhqm-redis")["data"]
        (folder / "redis.conf").write_text(
            config["redis.conf"].replace("/data", str(self._data)).replace("6379", str(self.port))
        )
        script = config["start.sh"].replace("/data/", f"{self._data}/")
        self._script = script.replace("/etc/redis/", f"{folder}/")
        self._path = f"{programs}:/usr/bin:/bin"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, password: str = PASSWORD) -> None:
        environment = {**os.environ, "PATH": self._path, "REDIS_PASSWORD": password}
        self._process = subprocess.Popen(
            ["sh", "-c", self._script], env=environment, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while not self._answers():
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(10)

    def client(self, url: str = "redis://127.0.0.1") -> redis.Redis:
        parts = urlsplit(url)
        once = Retry(NoBackoff(), 0)
        return redis.Redis(port=self.port, username=parts.username, password=parts.password, retry=once)

    def _answers(self) -> bool:
        """As its probes ask, without a user."""
        with contextlib.suppress(redis.ConnectionError), self.client() as client:
            return bool(client.ping())
        return False


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BundledRedis]:
    server = BundledRedis(binary(request.param), tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.mark.external_service
async def test_users_of_namespaces_survive_a_restart_and_another_password(server: BundledRedis) -> None:
    secrets, public = Secrets(), f"redis://127.0.0.1:{server.port}/0"
    store = BundledStore(secrets, f"redis://openhqm:{PASSWORD}@127.0.0.1:{server.port}/0", public)  # type: ignore[arg-type]
    await store.mint("shop")
    await store.close()
    server.stop()
    server.start("another")

    url = secrets.url("shop")
    settings = Settings.model_validate({"store": {"url": url}, "queue": {"name": "shop.legacy"}})
    queue = RedisStore(url, store_options(settings))
    await queue.open()
    durability = queue.abilities.durability
    await queue.close()

    assert durability is Durability.POWER, "a 202 survives a power cut"
    with server.client("redis://openhqm:another@x") as admin:
        assert admin.acl_whoami() == "openhqm"
    with server.client(f"redis://openhqm:{PASSWORD}@x") as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


@pytest.mark.external_service
def test_who_does_not_log_in_may_ping_and_nothing_else(server: BundledRedis) -> None:
    with server.client() as nobody:
        assert nobody.ping()
        for command in (("GET", "x"), ("INFO",), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("SUBSCRIBE", "x")):
            with pytest.raises(redis.ResponseError, match="no permissions"):
                nobody.execute_command(*command)
