"""The examples as their READMEs say them, on free ports: settings files, apps and calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.harness import call, free_port
from tests.services import RedisServer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
START_SECONDS = 30


@contextlib.contextmanager
def process(arguments: list[str], folder: Path, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """A child process in *folder*, ended by SIGTERM at the end."""
    child = subprocess.Popen([sys.executable, *arguments], cwd=folder, env={**os.environ, **environ})
    try:
        yield child
    finally:
        child.terminate()
        child.wait(30)


@pytest.fixture
async def app_port(tmp_path: Path) -> Iterator[int]:
    port = free_port()
    with process([str(EXAMPLES / "01-minimal/app.py"), str(port)], tmp_path):
        await listening(port)
        yield port


def serve(example: str) -> tuple[list[str], int]:
    """`openhqm serve` with the example's settings file, and the port it will listen on."""
    port = free_port()
    config = str(EXAMPLES / example / "openhqm.yaml")
    arguments = ["-m", "openhqm", "serve", "--config", config, "--port", str(port)]
    return [*arguments, "--health-port", str(free_port()), "--admin-port", str(free_port())], port


async def listening(port: int) -> None:
    async with asyncio.timeout(START_SECONDS):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.02)


async def test_minimal(app_port: int, tmp_path: Path) -> None:
    """Queue, wait, pass through; then kill -9 with a request queued, start again, get its answer."""
    arguments, port = serve("01-minimal")
    with process(arguments, tmp_path, APP_PORT=str(app_port)) as child:
        await listening(port)
        accepted = await call(port, "POST", "/work", b"hello")
        answered = await call(port, "POST", "/work", b"hello", [("Prefer", "wait=20")])
        passed = [await call(port, method, "/status/x", b"") for method in ("GET", "POST")]
        last = await call(port, "POST", "/reports", b"report")
        child.kill()
        child.wait()
    with process(arguments, tmp_path, APP_PORT=str(app_port)):
        await listening(port)
        answers = [
            await call(port, "GET", f"{reply.headers['location']}/response?wait=60")
            for reply in (accepted, last)
        ]

    assert [reply.status for reply in (accepted, answered, last)] == [202, 200, 202]
    assert answered.body == b"done: hello\n"
    assert [(reply.status, reply.body) for reply in passed] == [(200, b"it works\n"), (200, b"done: \n")]
    assert [reply.body for reply in answers] == [b"done: hello\n", b"done: report\n"]


@pytest.mark.external_service
async def test_redis(app_port: int, redis_server: RedisServer, tmp_path: Path) -> None:
    """What one process accepted can be asked of the other."""
    first, first_port = serve("02-redis")
    second, second_port = serve("02-redis")
    environ = {
        "APP_PORT": str(app_port),
        "REDIS_URL": redis_server.url,
        "OPENHQM_HANDLE__KEYS": "0123456789abcdef0123456789abcdef",
    }
    with process(first, tmp_path, **environ), process(second, tmp_path, **environ):
        await listening(first_port)
        await listening(second_port)
        accepted = await call(first_port, "POST", "/work", b"hello")
        location = accepted.headers["location"]
        state = await call(second_port, "GET", f"{location}?wait=30")
        answer = await call(second_port, "GET", f"{location}/response?wait=30")

    assert accepted.status == 202
    assert json.loads(state.body)["status"] == "done"
    assert answer.body == b"done: hello\n"
