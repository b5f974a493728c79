"""How long the injector lets a Pod wait: its own process, TLS, an API server that knows 1,000 AsyncProxies.

    python -m benchmarks.injector [pods per second] [seconds]

Pods come at fixed moments, whether or not those before are answered, so that waiting is part of the figure.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from tests.operator.fake_api import FakeApi
from tests.operator.pods import legacy, proxy
from tests.services import free_port

from openhqm_operator.certificates.rotation import issue_leaf, make_authority

PROXIES = 1_000
NOW = dt.datetime.now(dt.UTC)
AUTHORITY = make_authority("benchmark", NOW)
HASH = "0123"


def write_files(folder: Path, server: str) -> tuple[Path, Path, int, int]:
    leaf = issue_leaf(AUTHORITY, ["127.0.0.1"], NOW)
    (folder / "tls.crt").write_bytes(leaf.certificate)
    (folder / "tls.key").write_bytes(leaf.key)
    port, health_port = free_port(), free_port()
    settings = {
        "platform": {"image": "openhqm"},
        "host": "127.0.0.1",
        "port": port,
        "health_port": health_port,
        "certificate_folder": str(folder),
        "drain_seconds": 0,
        "log": {"format": "json"},
    }
    config, kubeconfig = folder / "injector.yaml", folder / "kubeconfig"
    config.write_text(json.dumps(settings))
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": server}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    return config, kubeconfig, port, health_port


def review(number: int) -> bytes:
    """A Pod of one of the workloads, with as much in it as Pods usually have."""
    name = f"legacy-{number % PROXIES}"
    pod = legacy()
    pod["metadata"]["labels"]["openhqm.io/proxy"] = name
    pod["metadata"]["annotations"]["openhqm.io/config-hash"] = HASH
    pod["spec"]["containers"][0]["env"] = [{"name": f"SETTING_{i}", "value": "x" * 60} for i in range(60)]
    request = {"uid": "u", "operation": "CREATE", "kind": {"kind": "Pod"}, "namespace": "shop", "object": pod}
    return json.dumps(
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    ).encode()


async def load(session: aiohttp.ClientSession, url: str, rate: float, seconds: float) -> list[float]:
    """Ask *rate* times a second; returns seconds from the planned moment to the whole answer."""
    reviews = [review(number) for number in range(PROXIES)]
    start, taken = time.perf_counter() + 0.1, []

    async def ask(number: int, planned: float) -> None:
        async with session.post(url, data=reviews[number % PROXIES]) as response:
            answer: Any = await response.json()
        assert answer["response"]["allowed"] is True
        assert "patch" in answer["response"]
        taken.append(time.perf_counter() - planned)

    async with asyncio.TaskGroup() as tasks:
        for number in range(int(rate * seconds)):
            planned = start + number / rate
            await asyncio.sleep(max(0.0, planned - time.perf_counter()))
            tasks.create_task(ask(number, planned))
    return sorted(taken)


def figures_of(process: subprocess.Popen[bytes]) -> tuple[float, float]:
    """CPU seconds so far and resident MiB."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100, int(fields[21]) * 4096 / 2**20


async def measure(rate: float, seconds: float) -> None:
    api = FakeApi()
    await api.start()
    body = {"spec": proxy()["spec"], "status": {"intercept": "NamedPort", "configHash": HASH}}
    for number in range(PROXIES):
        api.put(f"legacy-{number}", **body)
    with tempfile.TemporaryDirectory(prefix="openhqm-injector-") as folder:
        config, kubeconfig, port, health_port = write_files(Path(folder), api.server)
        program = [sys.executable, "-m", "openhqm_operator.injector", "--config", config]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(  # noqa: ASYNC220 - a moment, before anything is measured
                [*program, "--kubeconfig", kubeconfig], stderr=log
            )
        context = ssl.create_default_context(cadata=AUTHORITY.certificate.decode())
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
            await _until_ready(session, health_port)
            url = f"https://127.0.0.1:{port}/inject"
            await load(session, url, rate, 2)
            before, _ = figures_of(process)
            taken = await load(session, url, rate, seconds)
            after, resident = figures_of(process)
        process.terminate()
        process.wait()
    await api.stop()
    p50, p99 = (1000 * taken[int(len(taken) * share)] for share in (0.5, 0.99))
    print(
        f"{rate:g} Pods/s for {seconds:g} s, {PROXIES} AsyncProxies: p50 {p50:.1f} ms, p99 {p99:.1f} ms, "
        f"max {1000 * taken[-1]:.1f} ms; {1000 * (after - before) / len(taken):.2f} ms CPU each, "
        f"{resident:.0f} MiB resident"
    )


async def _until_ready(session: aiohttp.ClientSession, port: int) -> None:
    while True:
        try:
            async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientError:
            pass  # not listening yet
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    given = [float(each) for each in sys.argv[1:]]
    asyncio.run(measure(*(given + [100.0, 20.0][len(given) :])))
