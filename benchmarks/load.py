"""Load generators on raw asyncio protocols, cheap enough to out-run every server measured here.

Run as its own process: `python benchmarks/load.py closed PORT --connections 64 --seconds 5` prints
one line of JSON. `closed`: every connection sends its next request when the answer is in. `open`:
requests leave at a fixed rate whatever comes back, so that queueing shows in the latencies
(no coordinated omission: latency counts from the moment a request was due).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time

import uvloop


def request_bytes(port: int, path: str, body_bytes: int) -> bytes:
    """One POST of *body_bytes*, as a browserless client would send it."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: bench/1\r\nAccept: */*\r\n"
        f"Content-Type: application/json\r\nContent-Length: {body_bytes}\r\n\r\n"
    ).encode() + b"x" * body_bytes


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request outstanding; calls back with each status."""

    def __init__(self, on_answer) -> None:
        self.on_answer = on_answer
        self.buffer = b""
        self.transport: asyncio.Transport | None = None
        self.started = 0.0

    def connection_made(self, transport) -> None:
        self.transport = transport

    def send(self, request: bytes, started: float) -> None:
        self.started = started
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self.buffer:
            data = self.buffer + data
        head_end = data.find(b"\r\n\r\n")
        if head_end < 0 or len(data) < head_end + 4 + content_length(data, head_end):
            self.buffer = data
            return
        self.buffer = b""
        self.on_answer(self, data[9:12])

    def connection_lost(self, exc: Exception | None) -> None:
        self.on_answer(self, b"")


def content_length(data: bytes, head_end: int) -> int:
    at = data.find(b"Content-Length: ", 0, head_end)
    return int(data[at + 16 : data.index(b"\r\n", at)]) if at >= 0 else 0


async def connect(port: int, count: int, on_answer) -> list[Connection]:
    loop = asyncio.get_running_loop()
    return [
        (await loop.create_connection(lambda: Connection(on_answer), "127.0.0.1", port))[1]
        for _ in range(count)
    ]


async def closed_loop(port: int, request: bytes, connections: int, seconds: float) -> dict:
    """As many requests as *connections* clients can complete in *seconds*."""
    statuses: dict[str, int] = {}
    ended = asyncio.Event()
    stop_at = time.perf_counter() + seconds

    def on_answer(connection: Connection, status: bytes) -> None:
        now = time.perf_counter()
        if now >= stop_at:
            ended.set()
            return
        key = status.decode() or "lost"
        statuses[key] = statuses.get(key, 0) + 1
        if status:
            connection.send(request, now)

    clients = await connect(port, connections, on_answer)
    started = time.perf_counter()
    stop_at = started + seconds
    for client in clients:
        client.send(request, started)
    await ended.wait()
    elapsed = time.perf_counter() - started
    for client in clients:
        client.transport.abort()
    return {"statuses": statuses, "per_second": sum(statuses.values()) / elapsed}


async def open_loop(port: int, request: bytes, rate: float, seconds: float, connections: int) -> dict:
    """Requests at a fixed *rate*; latencies from the moment each was due."""
    idle: list[Connection] = []
    latencies: list[float] = []
    statuses: dict[str, int] = {}

    def on_answer(connection: Connection, status: bytes) -> None:
        key = status.decode() or "lost"
        statuses[key] = statuses.get(key, 0) + 1
        latencies.append(time.perf_counter() - connection.started)
        if status:
            idle.append(connection)

    idle += await connect(port, connections, on_answer)
    everyone = list(idle)
    begin = time.perf_counter()
    total = int(rate * seconds)
    for number in range(total):
        due = begin + number / rate
        while (pause := due - time.perf_counter()) > 0:
            await asyncio.sleep(pause if pause > 0.002 else 0)
        while not idle:
            await asyncio.sleep(0)
        idle.pop().send(request, due)
    while len(latencies) < total:
        await asyncio.sleep(0.001)
    for client in everyone:
        client.transport.abort()
    latencies.sort()
    return {
        "statuses": statuses,
        "p50_seconds": latencies[len(latencies) // 2],
        "p99_seconds": latencies[int(len(latencies) * 0.99)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["closed", "open"])
    parser.add_argument("port", type=int)
    parser.add_argument("--path", default="/orders")
    parser.add_argument("--body-bytes", type=int, default=256)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=1000.0)
    args = parser.parse_args()
    request = request_bytes(args.port, args.path, args.body_bytes)
    if args.kind == "closed":
        work = closed_loop(args.port, request, args.connections, args.seconds)
    else:
        work = open_loop(args.port, request, args.rate, args.seconds, args.connections)
    print(json.dumps(uvloop.run(work)))


if __name__ == "__main__":
    main()
