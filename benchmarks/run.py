"""`make bench`: measures the data plane in one run and writes its section of RESULTS.md (`results.py`).

`python -m benchmarks.run [--only accept,drain] [--queued 1000000]`
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks import measures
from benchmarks.results import DATA_PLANE, Row, facts, publish
from tests import services

PACKAGES = ("openhqm", "aiohttp", "uvloop", "httptools", "hiredis")


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
        publish(DATA_PLANE, found, facts(PACKAGES))


if __name__ == "__main__":
    main()
