"""`make bench-cluster`: measures the control plane on the tests' own real clusters, and writes its sections.

`python -m benchmarks.control_plane [--only injector,operator] [--real] [--proxies 1000] [--rate 100] ...`

Only a run of the full size writes into RESULTS.md (`results.py`). `--real` takes containers and root,
as the tests on a real node do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml
from benchmarks import fleet, injector
from benchmarks.results import CONTROL_PLANE, REAL_NODE, Row, facts, publish
from tests.cluster.control_plane import ControlPlane
from tests.cluster.operators import AuditedPlane
from tests.cluster.story import Story, opened
from tests.cluster.toolbox import KUBERNETES_VERSION, Toolbox, prepare

ROOT = Path(__file__).parents[1]
CRD = ROOT / "crds" / "asyncproxies.yaml"
PACKAGES = ("openhqm", "aiohttp", "uvloop", "kopf")
KINDS = ("injector", "operator")
PROXIES, RATE, SECONDS, IDLE_SECONDS = 1_000, 100.0, 60.0, 60.0
WAKES = 3


@contextlib.contextmanager
def started(build: Callable[[Path], ControlPlane]) -> Iterator[ControlPlane]:
    """A cluster in a folder of its own that knows our definition, ended with the block."""
    with tempfile.TemporaryDirectory(prefix="openhqm-bench-") as folder:
        plane = build(Path(folder))
        try:
            plane.start()
            plane.install_definition(yaml.safe_load(CRD.read_text()))
            yield plane
        finally:
            plane.stop()


def rows(only: set[str], toolbox: Toolbox, args: argparse.Namespace) -> Iterator[Row]:
    """Every measurement asked for, in the order of the table."""
    if "injector" in only:
        with started(lambda folder: ControlPlane(folder, toolbox)) as plane:
            folder = plane.folder / "injector"
            yield from asyncio.run(injector.measure(plane, folder, args.proxies, args.rate, args.seconds))
    if "operator" in only:
        with started(lambda folder: AuditedPlane(folder, toolbox, pod_cidr=fleet.POD_CIDR)) as plane:
            yield from asyncio.run(fleet.measure(plane, plane.folder, args.proxies, args.idle))


def real_rows(toolbox: Toolbox) -> Iterator[Row]:
    """What a user waits for, on a node with containers: the chapters that the tests tell, timed."""
    with (
        tempfile.TemporaryDirectory(prefix="openhqm-bench-") as folder,
        opened(toolbox, Path(folder)) as story,
    ):
        story.install()
        story.start_app()
        seconds, location = story.enable(b"queued")
        story.answer_of(location)
        work = "annotation to the first 202"
        yield Row(work, [seconds], "-", "-", "s", "one replica; its rollout and ours")
        wakes = [_wake(story, b"wake up %d" % number) for number in range(WAKES)]
        yield Row("wake from zero to the first answer", wakes, "-", "-", "s")


def _wake(story: Story, body: bytes) -> float:
    """Seconds from a request that meets no Pod to the app's answer."""
    story.fall_asleep()
    begun = time.monotonic()
    status, headers, _ = story.call("POST", "/orders", body)
    assert status == 202, story.report()
    assert story.answer_of(headers["Location"])[0] == 201
    return time.monotonic() - begun


def told(found: Iterator[Row]) -> list[Row]:
    """All of them, each said as soon as it is there."""
    collected = []
    for row in found:
        collected.append(row)
        values = ", ".join(f"{value:.2f}" for value in row.values)
        print(f"{row.work}: {values} {row.unit}; {row.detail}", file=sys.stderr, flush=True)
    return collected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(KINDS), help="comma-separated: " + ", ".join(KINDS))
    parser.add_argument("--real", action="store_true", help="measure on a node with containers too")
    parser.add_argument("--proxies", type=int, default=PROXIES, help="AsyncProxies, each with a workload")
    parser.add_argument("--rate", type=float, default=RATE, help="Pods per second at the injector")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of Pods, for each way to ask")
    parser.add_argument("--idle", type=float, default=IDLE_SECONDS, help="seconds of counting writes")
    args = parser.parse_args()
    only = {each for each in args.only.split(",") if each}
    toolbox = prepare()
    about = facts(PACKAGES) | {"kubernetes": KUBERNETES_VERSION}
    found = told(rows(only, toolbox, args))
    is_whole = (args.proxies, args.rate, args.seconds, args.idle) == (PROXIES, RATE, SECONDS, IDLE_SECONDS)
    if only == set(KINDS) and is_whole:
        publish(CONTROL_PLANE, found, about)
    if args.real:
        publish(REAL_NODE, told(real_rows(toolbox)), about)


if __name__ == "__main__":
    main()
