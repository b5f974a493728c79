"""Starts and measures the processes a benchmark needs; all on loopback, ended by their own pids."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cost(NamedTuple):
    """What a process has used."""

    cpu_seconds: float
    resident_mebibytes: float
    peak_mebibytes: float


def cost_of(pid: int) -> Cost:
    """What the process has used so far, from the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    resident, peak = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return Cost((int(fields[11]) + int(fields[12])) / 100, resident, peak)


@contextlib.contextmanager
def running(arguments: list[str], **popen) -> Iterator[subprocess.Popen]:
    """A child process, terminated at the end and killed if it does not go."""
    process = subprocess.Popen(arguments, **popen)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def peer(role: str, *arguments: str) -> Iterator[int]:
    """A server of peers.py; yields its port."""
    command = [sys.executable, str(HERE / "peers.py"), role, *arguments]
    with running(command, stdout=subprocess.PIPE) as process:
        yield int(process.stdout.readline())


class Openhqm:
    """`openhqm serve` as a child process, configured by its environment."""

    def __init__(self, store: str, app_port: int, folder: Path, **settings: object) -> None:
        self.port, self.admin_port, self.health_port = free_port(), free_port(), free_port()
        values = {
            "app__url": f"http://127.0.0.1:{app_port}",
            "store__url": store,
            "ingress__host": "127.0.0.1",
            "ingress__port": self.port,
            "admin__port": self.admin_port,
            "health__host": "127.0.0.1",
            "health__port": self.health_port,
            "log__level": "warning",
            **settings,
        }
        if store == "memory:":
            values["store__require_durability"] = "none"
        self.environ = {
            # Without bytecode a start compiles every module, which no installed OpenHQM does.
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith("OPENHQM_") and name != "PYTHONDONTWRITEBYTECODE"
            },
            **{f"OPENHQM_{name.upper()}": str(value) for name, value in values.items()},
        }
        self.log = folder / "openhqm.log"
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> Openhqm:
        self.start()
        self.wait_until_listening()
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def start(self) -> None:
        command = [sys.executable, "-m", "openhqm", "serve"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environ, stdout=log, stderr=log)

    def wait_until_listening(self, timeout_seconds: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"openhqm did not start:\n{self.log.read_text()[-2000:]}") from None
                time.sleep(0.005)

    def admin(self, method: str, path: str) -> dict:
        return call(self.admin_port, method, path)

    def backlog(self) -> int:
        return self.admin("GET", "/admin/v1/stats")["backlog"]

    def settled_backlog(self) -> int:
        """The backlog once the requests of clients that have left are all committed."""
        before = -1
        while (now := self.backlog()) != before:
            before = now
            time.sleep(0.2)
        return now

    def rss_bytes(self) -> int:
        """Resident memory now, from the kernel."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("no VmRSS in /proc")


def call(port: int, method: str, path: str, body: bytes | None = None) -> dict:
    """One JSON call on its own connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(
            method, path, body or (b"{}" if method == "POST" else None), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        data = answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {data[:300]!r}")
        return json.loads(data) if data else {}
    finally:
        connection.close()


def load(kind: str, port: int, *arguments: str) -> dict:
    """Run load.py and return its figures."""
    command = [sys.executable, str(HERE / "load.py"), kind, str(port), *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
