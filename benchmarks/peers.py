"""The other side of each measurement: the app behind us, and the references we compare with.

`python benchmarks/peers.py app|bare-server|aiohttp-client ...`; servers print their port, then serve
until SIGTERM. The references are the plainest correct use of aiohttp, on uvloop like ourselves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Callable

import aiohttp
import uvloop
from aiohttp import web


class Pause:
    """Makes calls on the running loop *seconds* later, to a tenth of a millisecond.

    The loop's own timers count whole milliseconds and end late: of 50 ms they make 51.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._due: deque[tuple[float, Callable[..., None], bytes]] = deque()
        self._some = threading.Semaphore(0)
        threading.Thread(target=self._wait, daemon=True).start()

    def call(self, function: Callable[..., None], argument: bytes) -> None:
        self._due.append((time.perf_counter() + self._seconds, function, argument))
        if len(self._due) == 1:
            self._some.release()

    def _wait(self) -> None:
        while self._some.acquire():
            while self._due:
                time.sleep(max(0.0, self._due[0][0] - time.perf_counter()))
                passed = threading.Event()
                self._loop.call_soon_threadsafe(self._call_due, passed)
                passed.wait()

    def _call_due(self, passed: threading.Event) -> None:
        """Make all calls that are due: waking the loop for each would take longer than the call."""
        now = time.perf_counter()
        while self._due and self._due[0][0] <= now:
            _, function, argument = self._due.popleft()
            function(argument)
        passed.set()


class App(asyncio.Protocol):
    """A raw HTTP app: answers every request with 200, after a *pause* if any; counts at GET /count."""

    served = 0

    def __init__(self, pause: Pause | None) -> None:
        self.pause = pause
        self.buffer = b""

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (head_end := self.buffer.find(b"\r\n\r\n")) >= 0:
            size = self._content_length(self.buffer[:head_end])
            if len(self.buffer) < head_end + 4 + size:
                return
            head, self.buffer = self.buffer[:head_end], self.buffer[head_end + 4 + size :]
            self._answer(head)

    @staticmethod
    def _content_length(head: bytes) -> int:
        at = head.lower().find(b"content-length:")
        return int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0

    def _answer(self, head: bytes) -> None:
        if head.startswith(b"GET /count "):
            body = json.dumps({"served": App.served}).encode()
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            return
        App.served += 1
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
        if self.pause is not None:
            self.pause.call(self.transport.write, answer)
        else:
            self.transport.write(answer)


async def serve_app(delay_seconds: float) -> None:
    pause = Pause(delay_seconds) if delay_seconds else None
    server = await asyncio.get_running_loop().create_server(lambda: App(pause), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def serve_bare() -> None:
    """The reference for accepting: aiohttp's low-level server, body read, 202 answered."""

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        return web.Response(status=202, body=b'{"status":"accepted"}')

    server = await asyncio.get_running_loop().create_server(
        web.Server(handler, access_log=None), "127.0.0.1", 0, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def client(port: int, requests: int, in_flight: int) -> None:
    """The reference for draining: aiohttp's client posting to the app, *in_flight* at once."""
    left = iter(range(requests))

    async def worker(session: aiohttp.ClientSession) -> None:
        for _ in left:
            async with session.post(f"http://127.0.0.1:{port}/orders", data=b"x" * 256) as answer:
                await answer.read()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight)) as session:
        started = time.perf_counter()
        await asyncio.gather(*(worker(session) for _ in range(in_flight)))
        print(json.dumps({"per_second": requests / (time.perf_counter() - started)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["app", "bare-server", "aiohttp-client"])
    parser.add_argument("--delay-seconds", type=float, default=0.0)
    parser.add_argument("--port", type=int)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--in-flight", type=int, default=64)
    args = parser.parse_args()
    if args.role == "app":
        uvloop.run(serve_app(args.delay_seconds))
    elif args.role == "bare-server":
        uvloop.run(serve_bare())
    else:
        uvloop.run(client(args.port, args.requests, args.in_flight))


if __name__ == "__main__":
    main()
