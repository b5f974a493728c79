"""`openhqm demo`: a slow app, `openhqm serve` in front of it, a burst, and every request accounted for.

Everything is real and runs as you would run it: two child processes, SQLite in a temporary folder,
requests over HTTP. With `once` it judges itself, which is how it is tested.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from openhqm import demo_app
from openhqm.demo_scene import DEFAULT_PORTS, DemoFailed, Scene, free_ports

FINISH_SECONDS = 120.0


@dataclass
class Order:
    """One request of the burst and what became of it."""

    method: str
    path: str
    body: bytes
    handle: str = ""
    status: int = 0
    answer: bytes = b""
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def is_payment(self) -> bool:
        return self.method == "POST"

    @property
    def attempts(self) -> int:
        """How often it was sent to the app."""
        return int(self.record["attempts"])

    @property
    def is_right(self) -> bool:
        """Whether the answer is the app's own, and to this very request."""
        expected = {"order": self.path.rpartition("/")[2], "receipt": demo_app.receipt(self.body)}
        return self.status == 201 and bool(json.loads(self.answer) == expected)


def run(*, once: bool, requests: int, kill: bool = False) -> int:
    """Run the demo. Returns the exit code: 0 when every request ended as it should.

    Args:
        once: leave when all are answered instead of waiting for Ctrl-C.
        requests: size of the burst.
        kill: end `openhqm serve` with SIGKILL in the middle, and start it again.
    """
    try:
        return asyncio.run(_run(once, requests, kill))
    except asyncio.CancelledError:
        return 130 if once else 0  # Ctrl-C is how the long form ends
    except DemoFailed as exc:
        sys.stderr.write(f"openhqm demo: {exc}\n")
        return 1


async def _run(once: bool, requests: int, kill: bool) -> int:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started us with SIGINT ignored
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    console = Console(highlight=False)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="openhqm-demo-")))
        scene = Scene(folder, free_ports())
        stack.callback(scene.end)
        _introduce(console, scene)
        await scene.start()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{scene.ports['ingress']}") as session:
            orders = _burst(requests)
            with _progress(console, len(orders)) as progress:
                await _send(session, orders, progress)
                if kill:
                    console.print(f"kill -9 {scene.sidecar.pid}, and openhqm serve again ...")
                    await scene.crash_and_restart()
                await _collect(session, orders, progress, scene)
        good = _judge(console, orders)
        if not once:
            _invite(console, scene, orders)
            await asyncio.Event().wait()
        return 0 if good else 1


# --- the burst --------------------------------------------------------------------------------------


def _burst(requests: int) -> list[Order]:
    """Orders, all different, and in their middle the one payment that the app will not survive."""
    orders = [
        Order("PUT", f"/orders/{n}", json.dumps({"order": n, "secret": os.urandom(8).hex()}).encode())
        for n in range(1, requests)
    ]
    orders.insert(len(orders) // 2, Order("POST", "/payments", b'{"amount": 100}'))
    return orders


async def _send(session: aiohttp.ClientSession, orders: list[Order], progress: Board) -> None:
    """Send all at once, as a burst is."""

    async def send(order: Order) -> None:
        headers = {"Prefer": "respond-async", "Content-Type": "application/json"}
        asked_at = time.monotonic()
        async with session.request(order.method, order.path, data=order.body, headers=headers) as response:
            if response.status != 202:
                raise DemoFailed(f"{order.method} {order.path} got {response.status}, not 202")
            location = response.headers["Location"]
            order.handle = location.rpartition("/requests/")[2].partition("/")[0]
            progress.accepted(order, time.monotonic() - asked_at)

    await _all([send(order) for order in orders])


async def _collect(
    session: aiohttp.ClientSession, orders: list[Order], progress: Board, scene: Scene
) -> None:
    """Wait for every answer by long polling."""
    slots = asyncio.Semaphore(64)
    deadline = time.monotonic() + FINISH_SECONDS

    async def collect(order: Order) -> None:
        base = f"/.openhqm/v1/requests/{order.handle}"
        async with slots:
            while True:
                if time.monotonic() > deadline:
                    raise DemoFailed(f"{order.method} {order.path} is not finished; see {base}")
                async with session.get(base, params={"wait": "10"}) as response:
                    order.record = await response.json()
                if order.record["status"] in ("done", "failed", "cancelled", "expired"):
                    break
                scene.check_alive()
            async with session.get(f"{base}/response") as response:
                order.status, order.answer = response.status, await response.read()
        progress.finished(order)

    await _all([collect(order) for order in orders])


async def _all(calls: list[Any]) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(call)
    except* (aiohttp.ClientError, DemoFailed) as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise DemoFailed(str(first)) from first


# --- what people see --------------------------------------------------------------------------------


class Board:
    """Two bars on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._accepted = self._finished = 0
        self._shown: Order | None = None
        self.bars = Progress(
            TextColumn("{task.description:<20}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._accepted_bar = self.bars.add_task("accepted (202)", total=total)
        self._finished_bar = self.bars.add_task("finished", total=total)

    def accepted(self, order: Order, seconds: float) -> None:
        if self._shown is None:
            self._shown = order  # one request is followed from 202 to answer, the others are counted
            self._console.print(f"202          {order.method} {order.path} after {seconds * 1000:.0f} ms")
        self._accepted += 1
        self.bars.advance(self._accepted_bar)
        self._tell(self._accepted, "accepted")

    def finished(self, order: Order) -> None:
        self._finished += 1
        self.bars.advance(self._finished_bar)
        if order.record["status"] != "done":
            reason = order.record.get("reason") or order.record["status"]
            self._console.print(f"[red]dead letter[/red]  {order.method} {order.path}: {reason}")
        elif order.attempts > 1:
            self._console.print(
                f"[yellow]retried[/yellow]      {order.method} {order.path}: "
                f"answered {order.status} at attempt {order.attempts}"
            )
        elif order is self._shown:
            answer = order.answer.decode().strip()
            self._console.print(f"{order.status}          {order.method} {order.path} {answer}", markup=False)
        self._tell(self._finished, "finished")

    def _tell(self, number: int, what: str) -> None:
        if self.bars.disable and (number == self._total or number % max(self._total // 4, 1) == 0):
            self._console.print(f"{number} of {self._total} {what}")


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Board]:
    board = Board(console, total)
    with board.bars:
        yield board


def _introduce(console: Console, scene: Scene) -> None:
    console.print(
        "An order service that takes 0.2 s for an order and breaks when more than "
        f"{demo_app.CAPACITY} come at once,\n"
        "and in front of it, storing every request before it says 202:\n\n"
        f"  openhqm {' '.join(scene.serve_command)}\n",
        soft_wrap=True,
    )


def _judge(console: Console, orders: list[Order]) -> bool:
    """Say what became of the burst; whether all of it is as promised."""
    placed = [order for order in orders if not order.is_payment]
    right = [order for order in placed if order.is_right]
    retried = [order for order in placed if order.attempts > 1]
    dead = [order for order in orders if order.record["status"] == "failed"]
    findings = [
        (len(right) == len(placed), f"{len(right)} of {len(placed)} orders have their own right answer"),
        (len(retried) >= 1, f"{len(retried)} of them sent again after a failure that was safe to repeat"),
        (
            [order.is_payment for order in dead] == [True],
            f"{len(dead)} dead letter: the app died during a payment, and nobody can know if it was made.\n"
            "       Repeating it could pay twice, so it is kept for you to decide: openhqm dlq list",
        ),
    ]
    console.print()
    for good, sentence in findings:
        mark = "[green]ok[/green]    " if good else "[red]FAILED[/red]"
        console.print(mark, sentence, soft_wrap=True)
    return all(good for good, _ in findings)


def _invite(console: Console, scene: Scene, orders: list[Order]) -> None:
    url = f"http://127.0.0.1:{scene.ports['ingress']}"
    handle = next(order.handle for order in orders if not order.is_payment)
    admin = scene.ports["admin"]
    option = "" if admin == DEFAULT_PORTS["admin"] else f" --admin http://127.0.0.1:{admin}"
    command = sys.argv[0] if sys.argv[0].endswith("openhqm") else f"{sys.executable} -m openhqm"
    console.print(
        "\nTry it yourself:\n\n"
        f"  curl -i -X PUT -d '{{}}' {url}/orders/1000                       # 202, at once\n"
        f"  curl -i -X PUT -d '{{}}' -H 'Prefer: wait=5' {url}/orders/1001   # the app's own answer\n"
        f"  curl {url}/.openhqm/v1/requests/{handle}\n"
        f"  curl {url}/.openhqm/v1/requests/{handle}/response\n"
        f"  {command} dlq list{option}\n"
        f"  {command} top{option}\n\n"
        f"Dashboard: http://127.0.0.1:{admin}/   Ctrl-C ends the demo.",
        soft_wrap=True,
    )
