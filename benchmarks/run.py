"""`make bench`: measures everything in one run and writes RESULTS.md and results.json beside itself.

`python -m benchmarks.run [--only accept,drain] [--queued 1000000]`
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks import measures
from benchmarks.measures import Row
from tests import services

HERE = Path(__file__).parent


def sqlite_url(folder: Path) -> str:
    return f"sqlite:///{folder}/openhqm.db"


def memory_url(folder: Path) -> str:
    return "memory:"


def redis_url(stack: ExitStack, appendfsync: str) -> Callable[[Path], str]:
    """A server for this run; every measurement finds it empty."""
    folder = Path(tempfile.mkdtemp(prefix="openhqm-bench-redis-"))
    server = services.RedisServer(services.binary("valkey"), folder, fsync=appendfsync)
    server.start()
    stack.callback(server.stop)

    def emptied(folder: Path) -> str:
        with server.client() as client:
            client.flushall()
        return server.url

    return emptied


def rows(only: set[str], queued: int) -> Iterator[Row]:
    """Every measurement asked for, in the order of the table."""
    with ExitStack() as stack:
        everysec = redis_url(stack, "everysec")
        always = redis_url(stack, "always")
        if "accept" in only:
            yield measures.accept("memory (no durability)", memory_url, "-", "-")
            yield measures.accept("SQLite FULL", sqlite_url, "0.40", "0.60")
            yield measures.accept("Redis AOF everysec", everysec, "0.45", "0.65")
            yield measures.accept("Redis AOF always", always, "0.45", "0.65")
        if "drain" in only:
            yield measures.drain("SQLite FULL", sqlite_url, fresh=False)
            yield measures.drain("SQLite FULL", sqlite_url, fresh=True)
            yield measures.drain("Redis AOF everysec", everysec, fresh=False)
            yield measures.drain_slow_app()
        if "pass" in only:
            yield from measures.pass_through()
        if "start" in only:
            yield measures.start_to_first_202()
        if "memory" in only:
            yield from measures.memory("SQLite", sqlite_url, queued)
            yield from measures.memory("Redis", everysec, queued)
        if "depth" in only:
            yield from measures.depth("SQLite", sqlite_url, queued)
            yield from measures.depth("Redis", always, queued)


def facts() -> dict[str, str]:
    """What the figures were measured on."""
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False
    ).stdout.strip()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": revision or "unknown",
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("openhqm", "aiohttp", "uvloop", "httptools", "hiredis")},
    }


def markdown(found: list[Row], about: dict[str, str]) -> str:
    lines = [
        "# Benchmark results",
        "",
        "Written by `make bench`. Ratios compare with a reference measured in the same run, in turns; the",
        "median round is quoted, with the lowest and highest. For ratios more is better, except cost.",
        "",
        ", ".join(f"{name} {value}" for name, value in about.items()),
        "",
        "| work | median | min - max | at least | aim | detail |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in found:
        spread = f"{min(row.values):.2f} - {max(row.values):.2f}"
        middle = f"{row.median:.2f} {row.unit}"
        lines.append(f"| {row.work} | {middle} | {spread} | {row.at_least} | {row.aim} | {row.detail} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    kinds = ("accept", "drain", "pass", "start", "memory", "depth")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(kinds), help="comma-separated: " + ", ".join(kinds))
    parser.add_argument("--queued", type=int, default=1_000_000, help="size of the deep backlog")
    args = parser.parse_args()
    only = set(args.only.split(","))
    found = []
    for row in rows(only, args.queued):
        found.append(row)
        print(f"{row.work}: {row.median:.2f} {row.unit} {row.detail}", file=sys.stderr, flush=True)
    if only == set(kinds):
        about = facts()
        (HERE / "RESULTS.md").write_text(markdown(found, about))
        (HERE / "results.json").write_text(
            json.dumps({"facts": about, "rows": [vars(r) for r in found]}, indent=2)
        )


if __name__ == "__main__":
    main()
