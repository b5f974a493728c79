"""Real processes for crash tests: the sidecar, the app, and clients that remember what they were told.

Every process is started here, ended here by its own pid, and logs to a file whose end is shown when
it dies unexpectedly. Ports are free ones, kept over restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.checker import Outcome, Sent, Verdict, check

HERE = Path(__file__).parent
FINAL = {"done", "failed", "cancelled", "expired"}


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """One child process with a log file."""

    def __init__(self, name: str, arguments: Sequence[str], folder: Path, port: int) -> None:
        self.name = name
        self.port = port
        self.health_port = 0
        self.arguments = list(arguments)
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        if self.running:
            self.signal(signal.SIGKILL)
        self.wait()

    def wait(self, timeout_seconds: float = 30.0) -> int:
        assert self.process is not None
        return self.process.wait(timeout_seconds)

    async def listening(self, timeout_seconds: float = 30.0) -> None:
        """Return when the port takes connections; fail with the log's end if the process dies."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            if not self.running or time.monotonic() > deadline:
                raise AssertionError(f"{self.name} is not listening:\n{self.log.read_text()[-3000:]}")
            await asyncio.sleep(0.02)


def journal_app(folder: Path, *, delay_seconds: float = 0.0) -> tuple[Process, Path]:
    """The app process and the path of its journal."""
    port, journal = free_port(), folder / "journal"
    journal.touch()
    arguments = [str(HERE / "journal_app.py"), str(port), str(journal), "--delay-seconds", str(delay_seconds)]
    return Process("app", arguments, folder, port), journal


def sidecar(
    folder: Path, app_port: int, store: str, *, crash: tuple[str, int] | None = None, **settings: object
) -> Process:
    """The sidecar process.

    Args:
        crash: (checkpoint, n): the process kills itself with SIGKILL the n-th time it gets there.
        settings: dotted names with `__` for dots, e.g. egress__concurrency=4.
    """
    port, health_port = free_port(), free_port()
    values = {
        "app__url": f"http://127.0.0.1:{app_port}",
        "store__url": store,
        "ingress__host": "127.0.0.1",
        "ingress__port": port,
        "health__host": "127.0.0.1",
        "health__port": health_port,
        "admin__port": free_port(),
        "log__format": "json",
        **settings,
    }
    arguments = [str(HERE / "crashing_sidecar.py"), json.dumps(values), json.dumps(crash)]
    process = Process("sidecar", arguments, folder, port)
    process.health_port = health_port
    return process


@dataclass
class Reply:
    """A raw HTTP answer: status, headers with lower-case names, body bytes."""

    status: int
    headers: dict[str, str]
    body: bytes


async def call(
    port: int, method: str, path: str, body: bytes = b"", headers: Sequence[tuple[str, str]] = ()
) -> Reply:
    """One request on its own connection, never re-sent.

    Raises:
        OSError: refused, or the connection ended before a whole answer.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: test",
            "Connection: close",
            f"Content-Length: {len(body)}",
        ]
        lines += [f"{name}: {value}" for name, value in headers]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        return _parse(await reader.read())
    finally:
        writer.close()


def _parse(data: bytes) -> Reply:
    head, separator, body = data.partition(b"\r\n\r\n")
    if not separator:
        raise ConnectionResetError("no answer")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    size = int(headers.get("content-length", len(body)))
    if len(body) < size:
        raise ConnectionResetError("answer cut short")
    return Reply(int(status_line.split(" ")[1]), headers, body[:size])


@dataclass
class Clients:
    """Sends requests and keeps the history the checker needs."""

    port: int
    history: list[Sent] = field(default_factory=list)
    accepted: int = 0
    _goals: dict[int, asyncio.Event] = field(default_factory=dict)

    async def send(self, method: str, body_bytes: int = 0) -> Sent:
        """Send one request; what came back decides whether it counts as accepted."""
        name, secret = uuid.uuid4().hex, uuid.uuid4().hex
        body = f"{name} {secret}".encode() + (b" " + b"x" * body_bytes if body_bytes else b"")
        handle = None
        with contextlib.suppress(OSError):
            reply = await call(self.port, method, f"/orders/{name}?b=1&a", body)
            if reply.status == 202:
                handle = reply.headers["location"]
        sent = Sent(name, method, secret, handle)
        self.history.append(sent)
        self.accepted += handle is not None
        self._tell_goals()
        return sent

    def _tell_goals(self) -> None:
        for goal, reached in self._goals.items():
            if self.accepted >= goal:
                reached.set()

    async def until_accepted(self, goal: int) -> None:
        """Wait until *goal* requests were accepted in all."""
        await self._goals.setdefault(goal, asyncio.Event()).wait()

    async def send_until(
        self, accepted: int, *, in_flight: int = 16, methods: Sequence[str] = ("POST", "PUT")
    ) -> None:
        """Keep *in_flight* requests going until that many were accepted in all."""

        async def worker(number: int) -> None:
            turn = number
            while self.accepted < accepted:
                sent = await self.send(methods[turn % len(methods)])
                turn += 1
                if sent.handle is None:
                    await asyncio.sleep(0.05)  # the server is away; do not spin

        await asyncio.gather(*(worker(number) for number in range(in_flight)))

    async def outcomes(self, *, timeout_seconds: float = 90.0, in_flight: int = 16) -> dict[str, Outcome]:
        """Read every accepted request until it is final, and its answer three times over."""
        found: dict[str, Outcome] = {}
        waiting = iter([sent for sent in self.history if sent.handle is not None])
        deadline = time.monotonic() + timeout_seconds

        async def worker() -> None:
            for sent in waiting:
                assert sent.handle is not None
                found[sent.uuid] = await self._outcome(sent.handle, deadline)

        await asyncio.gather(*(worker() for _ in range(in_flight)))
        return found

    async def _outcome(self, location: str, deadline: float) -> Outcome:
        while True:
            status = await self._read(f"{location}?wait=5", deadline)
            state = json.loads(status.body) if status.status == 200 else {"status": f"HTTP {status.status}"}
            if state["status"] in FINAL or status.status != 200 or time.monotonic() > deadline:
                break
        if state["status"] != "done":
            return Outcome(state["status"], reason=state.get("reason", ""))
        replies = [await self._read(f"{location}/response", deadline) for _ in range(3)]
        return Outcome("done", tuple((reply.status, reply.body) for reply in replies))

    async def _read(self, path: str, deadline: float) -> Reply:
        """GET *path*, again while the server is away or says 503: so does whoever polls over a restart."""
        while True:
            try:
                reply = await call(self.port, "GET", path)
            except OSError:
                if time.monotonic() > deadline:
                    raise
            else:
                if reply.status != 503 or time.monotonic() > deadline:
                    return reply
                assert "retry-after" in reply.headers
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def supervised(process: Process, *, crash_free: Callable[[], None]) -> AsyncIterator[list[int]]:
    """Start *process* again whenever it ends, as a kubelet would; yields the list of exit codes.

    Args:
        crash_free: called before each restart, to take a planted crash out of the arguments.
    """
    exits: list[int] = []

    async def keep_alive() -> None:
        while True:
            if not process.running:
                exits.append(process.wait())
                crash_free()
                process.start()
            await asyncio.sleep(0.02)

    process.start()
    await process.listening()
    task = asyncio.create_task(keep_alive())
    try:
        yield exits
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        process.kill()


def verdict(clients: Clients, outcomes: dict[str, Outcome], journal: Path) -> Verdict:
    """The checker's judgement of this run."""
    return check(clients.history, outcomes, journal.read_text().splitlines())
