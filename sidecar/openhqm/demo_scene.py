"""The demo's two child processes: the app, and `openhqm serve` as a person would start it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

CONCURRENCY = 4
START_SECONDS = 30.0
DEFAULT_PORTS = {"ingress": 8000, "health": 16020, "admin": 16000}


class DemoFailed(Exception):
    """A part of the demo did not come up or did not finish; the message says which and why."""


class Scene:
    """The app and the sidecar, each a child process with a log file in *folder*."""

    def __init__(self, folder: Path, ports: dict[str, int]) -> None:
        self.folder = folder
        self.ports = ports
        self.app_url = f"http://127.0.0.1:{ports['app']}"
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def sidecar(self) -> subprocess.Popen[bytes]:
        return self._children["openhqm"]

    @property
    def serve_command(self) -> list[str]:
        """`openhqm serve` as a person would type it."""
        return [
            *("serve", "--app", self.app_url, "--store", f"sqlite:///{self.folder}/openhqm.db"),
            *("--port", str(self.ports["ingress"]), "--health-port", str(self.ports["health"])),
            *("--admin-port", str(self.ports["admin"])),
        ]

    async def start(self) -> None:
        """Start both and wait until they listen."""
        self._spawn("app", ["-m", "openhqm.demo_app", str(self.ports["app"])])
        self._spawn("openhqm", ["-m", "openhqm", *self.serve_command])
        await self._listening("app")
        await self._listening("openhqm")

    async def crash_and_restart(self) -> None:
        """SIGKILL for the sidecar: nothing it holds in memory survives. Then the same command again."""
        self.sidecar.kill()
        self.sidecar.wait()
        self._spawn("openhqm", ["-m", "openhqm", *self.serve_command])
        await self._listening("openhqm")

    def end(self) -> None:
        """SIGTERM, then SIGKILL for who has not gone after ten seconds."""
        for child in self._children.values():
            child.terminate()
        for child in self._children.values():
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _spawn(self, name: str, arguments: list[str]) -> None:
        # Settings of the shell that runs the demo do not leak into it.
        environ = {key: value for key, value in os.environ.items() if not key.startswith("OPENHQM_")}
        environ |= {
            "OPENHQM_INGRESS__HOST": "127.0.0.1",
            "OPENHQM_HEALTH__HOST": "127.0.0.1",
            "OPENHQM_EGRESS__CONCURRENCY": str(CONCURRENCY),
            "OPENHQM_EGRESS__LEASE_SECONDS": "3",
            "OPENHQM_RETRY__INITIAL_BACKOFF_SECONDS": "0.5",
            "OPENHQM_DRAIN__ACCEPT_SECONDS": "0",
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(  # noqa: S603 - our own programs
                [sys.executable, *arguments],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which then ends its children
            )

    async def _listening(self, name: str) -> None:
        port = self.ports["app" if name == "app" else "health"]
        path = b"/" if name == "app" else b"/readyz"
        deadline = time.monotonic() + START_SECONDS
        while not await _answers_200(port, path):
            self.check_alive()
            if time.monotonic() > deadline:
                raise DemoFailed(f"{name} does not listen on port {port}:\n{self._log_end(name)}")
            await asyncio.sleep(0.05)

    def check_alive(self) -> None:
        """Raise DemoFailed with the end of its log when a child has ended."""
        for name, child in self._children.items():
            if child.poll() is not None:
                raise DemoFailed(f"{name} ended with code {child.returncode}:\n{self._log_end(name)}")

    def _log_end(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]


async def _answers_200(port: int, path: bytes) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n" % path)
        return (await reader.readline()).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
    finally:
        writer.close()


def free_ports() -> dict[str, int]:
    """The usual ports where they are free, so that `openhqm top` needs no option; others elsewhere."""
    with ExitStack() as held:
        ports = {name: _bind(held, port) or _bind(held, 0) for name, port in DEFAULT_PORTS.items()}
        return {**ports, "app": _bind(held, 0)}


def _bind(held: ExitStack, port: int) -> int:
    """The port while it is held, 0 when it is taken."""
    probe = held.enter_context(socket.socket())
    # As servers do, or a port that served a moment ago would seem taken.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        return 0
    bound: int = probe.getsockname()[1]
    return bound
