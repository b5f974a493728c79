"""Fixtures every test may use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from tests.services import BINARIES, RedisServer, S3Server, binary

# How long an example takes says something about the machine, and about who else is on it; not about the code.
hypothesis.settings.register_profile("ours", deadline=None)
hypothesis.settings.load_profile("ours")

# The store contract asserts in modules that pytest does not collect.
pytest.register_assert_rewrite("tests.conformance")


@pytest.fixture(scope="module", params=sorted(BINARIES))
def redis_process(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    """One durable server for a module's tests, once per product; they share its data."""
    server = RedisServer(binary(request.param), tmp_path_factory.mktemp(request.param))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(redis_process: RedisServer) -> RedisServer:
    """The module's server, emptied."""
    with redis_process.client() as client:
        client.flushall()
        client.config_resetstat()
    return redis_process


@pytest.fixture
def valkey_binary() -> Path:
    return binary("valkey")


@pytest.fixture
def make_redis(valkey_binary: Path, tmp_path: Path) -> Iterator[Callable[[str], RedisServer]]:
    """Starts servers of this test's own, by appendfsync mode; for tests that kill them."""
    servers: list[RedisServer] = []

    def make(fsync: str) -> RedisServer:
        folder = tmp_path / f"redis-{len(servers)}"
        folder.mkdir()
        servers.append(RedisServer(valkey_binary, folder, fsync=fsync))
        servers[-1].start()
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for all tests; each uses a prefix of its own."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        server.start()
        yield server
    finally:
        server.stop()
