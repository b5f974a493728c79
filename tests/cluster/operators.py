"""Operators as processes, on an API server that writes down who wrote what."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import yaml
from tests.cluster.control_plane import ControlPlane, die_with_parent, free_port
from tests.cluster.toolbox import Toolbox

POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "None", "verbs": ["get", "list", "watch"]}, {"level": "Metadata"}],
}
START_SECONDS = 30.0
_numbers = itertools.count()


class Write(NamedTuple):
    """One write, of the audit log."""

    user: str
    at: datetime.datetime
    verb: str
    resource: str
    status: int


class AuditedPlane(ControlPlane):
    """An API server that writes down who wrote what."""

    def __init__(self, folder: Path, toolbox: Toolbox, **others: Any) -> None:
        policy, self._log = folder / "audit.yaml", folder / "audit.log"
        policy.write_text(yaml.safe_dump(POLICY))
        options = (
            f"--audit-policy-file={policy}",
            f"--audit-log-path={self._log}",
            "--audit-log-mode=blocking",
        )
        super().__init__(folder, toolbox, options=options, **others)

    def writes_of(self, users: set[str]) -> list[Write]:
        """What they wrote apart from Leases, in the order in which the API server got it."""
        lines = map(json.loads, self._log.read_text().splitlines())
        found = [_write(line) for line in lines if line["user"]["username"] in users]
        return sorted((one for one in found if one.resource != "leases"), key=lambda one: one.at)


def _write(line: dict) -> Write:
    at = datetime.datetime.fromisoformat(line["requestReceivedTimestamp"])
    status = line.get("responseStatus", {}).get("code", 0)
    return Write(line["user"]["username"], at, line["verb"], line["objectRef"]["resource"], status)


class Operator:
    """One operator process.

    Args:
        home: namespace of its Lease, and the one it looks after unless *settings* say otherwise.
    """

    def __init__(self, plane: ControlPlane, home: str, folder: Path, **settings: object) -> None:
        self.user = f"operator-{next(_numbers)}"
        self.port = free_port()
        self._log = folder / f"{self.user}.log"
        config = folder / f"{self.user}.yaml"
        asked = {
            "lease": {"namespace": home},
            "namespace": home,
            "host": "127.0.0.1",
            "health_port": self.port,
        }
        config.write_text(yaml.safe_dump(asked | settings))
        kubeconfig = plane.kubeconfig_of(self.user, "system:masters")
        command = [sys.executable, "-m", "openhqm_operator.main"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--config", str(config), "--kubeconfig", str(kubeconfig)],
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )

    async def is_leading(self) -> bool:
        return "openhqm_operator_leader 1.0" in await self._ask("metrics")

    async def ready(self) -> None:
        await self._until(lambda: self._ask("readyz"), "ok\n")

    async def leading(self) -> None:
        await self._until(self.is_leading, True)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it as Kubernetes does: the Lease is given back."""
        self.process.terminate()
        self.process.wait(START_SECONDS)

    def log(self) -> str:
        return self._log.read_text()[-4000:]

    async def _ask(self, path: str) -> str:
        try:
            async with (
                aiohttp.ClientSession() as client,
                client.get(f"http://127.0.0.1:{self.port}/{path}") as answer,
            ):
                return await answer.text()
        except aiohttp.ClientError:
            return ""

    async def _until(self, ask, wanted: object) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                while await ask() != wanted:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(self.log()) from None
