"""One function per row of the result table. Each measures ours and its reference in turn, in one run.

Ratios are ours divided by the reference, pair by pair; the table quotes the median pair with the
lowest and highest, because the machine's own speed drifts.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.processes import HERE, Openhqm, call, load, peer
from benchmarks.results import Row

ROUNDS = 5

DRAIN_ROUNDS = 9
"""More than of the others: both sides keep both cores busy, and single pairs lie 15 % apart."""


def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="openhqm-bench-"))


def accept(store_name: str, store_url: Callable[[Path], str], bound: str, aim: str) -> Row:
    """Accepted per second, 256-byte POSTs, 64 keep-alive clients, against a bare aiohttp server."""
    ratios, ours, reference = [], [], []
    where = folder()
    with peer("bare-server") as bare, Openhqm(store_url(where), 1, where, mode="ingress") as openhqm:
        load("closed", bare, "--seconds", "1")
        load("closed", openhqm.port, "--seconds", "1")
        for _ in range(ROUNDS):
            reference.append(accepted_per_second(bare))
            ours.append(accepted_per_second(openhqm.port))
            ratios.append(ours[-1] / reference[-1])
    detail = f"{statistics.median(ours):,.0f}/s; bare {statistics.median(reference):,.0f}/s"
    return Row(f"accept, {store_name}", ratios, bound, aim, detail=detail)


def accepted_per_second(port: int) -> float:
    figures = load("closed", port, "--seconds", "3", "--connections", "64")
    if set(figures["statuses"]) != {"202"}:
        raise RuntimeError(f"not all accepted: {figures['statuses']}")
    return figures["per_second"]


def drain(store_name: str, store_url: Callable[[Path], str], *, fresh: bool) -> Row:
    """Drained per second with an app that answers at once, against aiohttp's client, 64 in flight.

    The reference is measured before and after: filling the queue takes seconds, in which the machine's own
    speed changes.
    """
    ratios, ours, reference = [], [], []
    for _ in range(DRAIN_ROUNDS):
        where = folder()
        with peer("app") as app:
            before = client_per_second(app)
            reuse = 0 if fresh else 1
            with Openhqm(
                store_url(where), app, where, egress__concurrency=64, egress__reuse_idle_seconds=reuse
            ) as openhqm:
                ours.append(drained_per_second(openhqm, app, 40_000))
            reference.append(statistics.harmonic_mean([before, client_per_second(app)]))
            ratios.append(ours[-1] / reference[-1])
    kind = "fresh connections" if fresh else "kept connections"
    detail = f"{statistics.median(ours):,.0f}/s; aiohttp client {statistics.median(reference):,.0f}/s"
    bounds = ("-", "-") if fresh else ("1.5", "3.0")
    return Row(f"drain, {store_name}, {kind}", ratios, *bounds, detail=detail)


def client_per_second(app_port: int, requests: int = 20_000) -> float:
    command = [sys.executable, str(HERE / "peers.py"), "aiohttp-client", "--port", str(app_port)]
    command += ["--requests", str(requests)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)[
        "per_second"
    ]


def drained_per_second(openhqm: Openhqm, app_port: int, requests: int) -> float:
    """Queue *requests* while paused, resume, and time until every one of them is final."""
    openhqm.admin("POST", "/admin/v1/pause")
    before = call(app_port, "GET", "/count")["served"]
    while openhqm.backlog() < requests:
        load("closed", openhqm.port, "--seconds", "1")
    queued = openhqm.settled_backlog()
    openhqm.admin("POST", "/admin/v1/resume")
    started = time.perf_counter()
    # The app is asked, which answers in microseconds: asking us fifty times a second costs us 5 %.
    while call(app_port, "GET", "/count")["served"] - before < queued:
        time.sleep(0.02)
    while openhqm.backlog():
        time.sleep(0.002)
    elapsed = time.perf_counter() - started
    served = call(app_port, "GET", "/count")["served"] - before
    if served != queued:
        raise RuntimeError(f"queued {queued}, the app served {served}")
    return queued / elapsed


def drain_slow_app() -> Row:
    """Drained per second with an app that takes 50 ms, concurrency 64: at most 1,280."""
    most = 64 / 0.05
    shares, reference = [], []
    for _ in range(ROUNDS):
        where = folder()
        with (
            peer("app", "--delay-seconds", "0.05") as app,
            Openhqm(f"sqlite:///{where}/openhqm.db", app, where, egress__concurrency=64) as openhqm,
        ):
            reference.append(client_per_second(app, 6_400) / most)
            shares.append(drained_per_second(openhqm, app, 6_400) / most)
    detail = f"share of 1,280/s; aiohttp client {statistics.median(reference):.2f}"
    return Row("drain, 50 ms app, concurrency 64, SQLite", shares, "0.95", "0.99", detail=detail)


def pass_through() -> list[Row]:
    """Added latency of `pass` at 1,000 requests a second."""
    p50, p99 = [], []
    where = folder()
    routes = '[{"action": "pass"}]'
    with peer("app") as app, Openhqm(f"sqlite:///{where}/openhqm.db", app, where, routes=routes) as openhqm:
        for _ in range(ROUNDS):
            direct = load("open", app, "--rate", "1000", "--seconds", "4")
            through = load("open", openhqm.port, "--rate", "1000", "--seconds", "4")
            p50.append((through["p50_seconds"] - direct["p50_seconds"]) * 1000)
            p99.append((through["p99_seconds"] - direct["p99_seconds"]) * 1000)
    return [
        Row("pass-through, added p50 at 1,000/s", p50, "0.5", "0.2", unit="ms"),
        Row("pass-through, added p99 at 1,000/s", p99, "2", "1", unit="ms"),
    ]


def start_to_first_202() -> Row:
    """Seconds from starting the process to the first 202."""
    seconds = []
    for _ in range(ROUNDS):
        where = folder()
        openhqm = Openhqm(f"sqlite:///{where}/openhqm.db", 1, where)
        started = time.perf_counter()
        openhqm.start()
        openhqm.wait_until_listening()
        call(openhqm.port, "POST", "/orders", b"{}")
        seconds.append(time.perf_counter() - started)
        openhqm.__exit__()
    return Row("start to first 202", seconds, "1.5", "0.5", unit="s")


def memory(store_name: str, store_url: Callable[[Path], str], queued: int) -> list[Row]:
    """Resident memory of the process: idle, and how much more with *queued* requests waiting."""
    where = folder()
    url = store_url(where)
    with Openhqm(url, 1, where, mode="ingress") as openhqm:
        call(openhqm.port, "POST", "/orders", b"{}")
        idle = openhqm.rss_bytes()
    fill(url, queued)
    with Openhqm(url, 1, where, mode="ingress", queue__max_backlog=2 * queued) as openhqm:
        for _ in range(200):
            call(openhqm.port, "POST", "/orders", b"{}")
        full = openhqm.rss_bytes()
    mebibyte = 1024 * 1024
    return [
        Row(f"memory idle, {store_name}", [idle / mebibyte], "60", "45", unit="MiB"),
        Row(
            f"memory added by {queued:,} queued, {store_name}",
            [(full - idle) / mebibyte],
            "20",
            "5",
            unit="MiB",
        ),
    ]


def fill(url: str, queued: int) -> None:
    command = [sys.executable, str(HERE / "depth.py"), "fill", url, "--queued", str(queued)]
    subprocess.run(command, check=True, capture_output=True)


def depth(store_name: str, store_url: Callable[[Path], str], queued: int) -> list[Row]:
    """Cost of accept and of lease + settle with *queued* waiting, against 1,000 waiting."""
    command = [
        sys.executable,
        str(HERE / "depth.py"),
        "compare",
        store_url(folder()),
        "--queued",
        str(queued),
    ]
    figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [
        Row(f"{what} cost at {queued:,} queued, {store_name}", [figures[what]], "1.3", "1.0")
        for what in ("accept", "lease")
    ]
