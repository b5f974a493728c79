"""The operator's process on a real API server: what it serves beside its work."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from tests.cluster.control_plane import ControlPlane, free_port
from tests.operator.mounts import mount_pair

from openhqm_operator import main
from openhqm_operator.kube.login import from_kubeconfig
from openhqm_operator.operator_settings import OperatorSettings

LONG_SECONDS = 30.0


async def test_the_metrics_apis_new_certificate_is_shown_without_a_restart(
    api_server: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "CERTIFICATE_SECONDS", 0.05)
    first, second = (api_server.authority.issue(name, hosts=["127.0.0.1"]) for name in ("first", "second"))
    mount_pair(tmp_path, first.certificate.read_bytes(), first.key.read_bytes())
    port = free_port()
    settings = OperatorSettings.model_validate(
        {
            "lease": {"namespace": "nowhere"},  # it never leads: standbys answer too
            "namespace": "default",
            "host": "127.0.0.1",
            "health_port": 0,
            "metrics_api": {"certificate_folder": tmp_path, "port": port},
        }
    )
    process = main.Process(settings, await from_kubeconfig(api_server.kubeconfig))
    running = asyncio.create_task(process.run())

    async with asyncio.timeout(LONG_SECONDS):
        await process.listening.wait()
        before = await _shown(port)
        mount_pair(tmp_path, second.certificate.read_bytes(), second.key.read_bytes())
        while (after := await _shown(port)) == before:
            await asyncio.sleep(0.05)
        process.stop()
        await running

    assert (before, after) == (first.certificate.read_text(), second.certificate.read_text())


async def _shown(port: int) -> str:
    return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port), timeout=5.0)
