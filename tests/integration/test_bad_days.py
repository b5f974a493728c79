"""What bad input and bad days get, seen from outside: real processes, raw HTTP, no second chances."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.harness import Process, Reply, call, journal_app, sidecar
from tests.services import RedisServer

pytestmark = pytest.mark.crash


@contextlib.asynccontextmanager
async def started(process: Process) -> AsyncIterator[Process]:
    process.start()
    try:
        await process.listening()
        yield process
    finally:
        process.kill()


@contextlib.asynccontextmanager
async def garbage_app(answer: bytes) -> AsyncIterator[int]:
    """An app that answers every connection with the same bytes and hangs up; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'openhqm.db'}"


async def until_accepted(port: int, within_seconds: float) -> Reply:
    """Ask again until 202; fail when it takes longer than *within_seconds*."""
    deadline = time.monotonic() + within_seconds
    while (reply := await call(port, "POST", "/orders", b"x")).status != 202:
        assert time.monotonic() < deadline, reply
        await asyncio.sleep(0.05)
    return reply


async def test_full_backlog_refuses_the_new_and_recovers_when_it_drains(tmp_path: Path) -> None:
    app, _ = journal_app(tmp_path)  # not started: nothing drains

    async with started(sidecar(tmp_path, app.port, sqlite(tmp_path), queue__max_backlog=3)) as process:
        statuses = [(await call(process.port, "POST", "/orders", b"u s")).status for _ in range(3)]
        refused = await call(process.port, "POST", "/orders", b"u s")
        app.start()
        try:
            await until_accepted(process.port, within_seconds=40)
        finally:
            app.kill()

    assert statuses == [202, 202, 202]
    assert refused.status == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["content-type"] == "application/problem+json"
    assert json.loads(refused.body)["type"] == "urn:openhqm:problem:backlog-full"


async def test_clients_held_for_an_app_that_is_away_are_counted(tmp_path: Path) -> None:
    held = [("Prefer", "wait=30")]

    async with started(sidecar(tmp_path, 1, sqlite(tmp_path))) as process:
        waits = [asyncio.create_task(call(process.port, "POST", "/orders", b"x", held)) for _ in range(3)]
        while json.loads((await call(process.health_port, "GET", "/stats")).body)["waiting_clients"] < 3:
            assert not any(wait.done() for wait in waits)
        metrics = await call(process.health_port, "GET", "/metrics")
        process.signal(signal.SIGTERM)
        replies = await asyncio.gather(*waits)

    assert b"openhqm_waiting_clients 3.0\n" in metrics.body
    assert [reply.status for reply in replies] == [202, 202, 202]


@pytest.mark.external_service
async def test_hanging_redis_gives_503_within_three_seconds_and_recovers(
    tmp_path: Path, make_redis: Callable[[str], RedisServer]
) -> None:
    redis = make_redis("everysec")

    async with started(sidecar(tmp_path, 1, redis.url)) as process:
        assert (await call(process.port, "POST", "/orders", b"x")).status == 202
        redis.pause()
        began = time.monotonic()
        refused = await call(process.port, "POST", "/orders", b"x")
        waited_seconds = time.monotonic() - began
        redis.resume()
        await until_accepted(process.port, within_seconds=10)

    assert refused.status == 503
    assert "retry-after" in refused.headers
    assert waited_seconds < 3.5


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


async def test_full_disk_gives_503_and_recovers_when_space_returns(tmp_path: Path, small_disk: Path) -> None:
    async with started(sidecar(tmp_path, 1, sqlite(small_disk))) as process:
        assert (await call(process.port, "POST", "/orders", b"x")).status == 202
        hog = small_disk / "hog"
        with contextlib.suppress(OSError), hog.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 65536)
        began = time.monotonic()
        refused = await call(process.port, "POST", "/orders", b"x" * 100_000)
        waited_seconds = time.monotonic() - began
        hog.unlink()
        await until_accepted(process.port, within_seconds=5)

    assert refused.status == 503
    assert waited_seconds < 3.5
    with contextlib.closing(sqlite3.connect(small_disk / "openhqm.db")) as db:
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)


def exit_of(process: Process) -> tuple[int, str]:
    process.start()
    return process.wait(20), process.log.read_text()


def test_corrupt_database_stops_the_start_and_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "openhqm.db"
    file.write_bytes(b"this is not a database" * 1000)
    before = file.read_bytes()

    code, log = exit_of(sidecar(tmp_path, 1, sqlite(tmp_path)))

    assert code == 2
    assert str(file) in log
    assert file.read_bytes() == before


def test_database_of_a_newer_version_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "openhqm.db"
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.execute("pragma user_version = 9999")
        db.execute("create table records (x)")
        db.commit()
    before = file.read_bytes()

    code, log = exit_of(sidecar(tmp_path, 1, sqlite(tmp_path)))

    assert code == 2
    assert str(file) in log
    assert "newer" in log
    assert file.read_bytes() == before


async def test_second_process_on_one_database_exits_naming_the_first(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()

    async with started(sidecar(tmp_path, 1, sqlite(tmp_path))) as first:
        code, log = exit_of(sidecar(other, 1, sqlite(tmp_path)))

        assert first.process is not None
        assert code == 2
        assert str(first.process.pid) in log


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--store", "memory:"], "store.require_durability"),
        (["--store", "carrier-pigeon://x"], "carrier-pigeon"),
        (["--app", "ftp://x"], "app.url"),
        (["--port", "70000"], "ingress.port"),
        (["--port", "16020"], "health.port"),
    ],
)
def test_settings_that_cannot_be_used_stop_the_start_with_one_line(
    tmp_path: Path, flags: list[str], expected: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "openhqm", "serve", *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
    )

    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_garbage_from_the_app_is_a_stored_502_with_its_reason(tmp_path: Path, answer: bytes) -> None:
    async with garbage_app(answer) as port, started(sidecar(tmp_path, port, sqlite(tmp_path))) as process:
        reply = await call(process.port, "POST", "/orders", b"x", [("Prefer", "wait=10")])

    assert reply.status == 502
    assert json.loads(reply.body)["type"] == "urn:openhqm:problem:invalid-answer"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OpenHQM-Priority", "high"),
        ("OpenHQM-Priority", "10"),
        ("OpenHQM-Delay", "-1"),
        ("OpenHQM-Delay", "nan"),
        ("OpenHQM-Not-Before", "tomorrow"),
        ("OpenHQM-Deadline", "never"),
        ("OpenHQM-Callback", "http://169.254.169.254/latest"),
        ("OpenHQM-Callback", "https://user:pass@example.com/"),
        ("OpenHQM-Callback", "not a url"),
        ("OpenHQM-Wait", "5"),
    ],
)
async def test_bad_control_header_is_a_400_that_names_it(tmp_path: Path, name: str, value: str) -> None:
    async with started(sidecar(tmp_path, 1, sqlite(tmp_path))) as process:
        reply = await call(process.port, "POST", "/orders", b"x", [(name, value)])

    assert reply.status == 400
    assert name in json.loads(reply.body)["detail"]


async def test_wrong_and_missing_handles_are_the_same_404(tmp_path: Path) -> None:
    async with started(sidecar(tmp_path, 1, sqlite(tmp_path))) as process:
        location = (await call(process.port, "POST", "/orders", b"x")).headers["location"]
        forged = location[:-1] + ("A" if location[-1] != "A" else "B")
        replies = [
            await call(process.port, "GET", path)
            for path in (forged, "/.openhqm/v1/requests/nonsense", forged + "/response", location + "x")
        ]

    assert {reply.status for reply in replies} == {404}
    assert len({reply.body for reply in replies}) == 1


async def test_body_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with started(sidecar(tmp_path, 1, sqlite(tmp_path), ingress__max_body_bytes=300_000)) as process:
        reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
        writer.write(b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Length: 300001\r\n\r\n")
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)
        writer.close()

    assert answer.startswith(b"HTTP/1.1 413 ")
