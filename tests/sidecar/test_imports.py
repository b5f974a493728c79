"""What a process loads: client libraries are extras, and an idle sidecar must stay small."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("hiredis", "redis", "aiokafka", "kopf", "kubernetes", "obstore", "openhqm_operator")


def loaded_by(module: str) -> set[str]:
    """Top-level modules in a fresh process that imported *module*."""
    code = f"import sys, {module}; print(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["openhqm.main", "openhqm.cli.commands"])
def test_no_client_library_is_loaded(module: str) -> None:
    assert loaded_by(module).isdisjoint(HEAVY)


def test_the_command_line_starts_light() -> None:
    """`openhqm --help` and the small commands must not wait for servers and tables to load."""
    assert loaded_by("openhqm.cli.commands").isdisjoint({"aiohttp", "rich", "pydantic", "uvloop", "yaml"})


NOT_TO_SERVE = {
    *("typer", "rich", "pydantic_settings"),  # read command lines and variables
    *("yaml", "prometheus_client", "difflib"),  # until there is a file, a scrape, a mistake
    *("openhqm.submit", "openhqm.submit_models", "openhqm.original_api"),  # off in front of an app
    *("openhqm.pod", "openhqm.app_probes", "openhqm.grpc_health"),  # an injector asks for them
    *("openhqm.sharing", "openhqm.succession"),  # with a previous store
    *HEAVY,
}


def test_a_sidecar_holds_only_what_serving_needs(tmp_path: Path) -> None:
    """Each of these was MiBs or tens of milliseconds of every process once."""
    program = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules));"
        "from openhqm.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "serve", "--port", "0", "--health-port", "0", "--admin-port=0"]
    environ = {
        **os.environ,
        "OPENHQM_STORE__URL": f"sqlite:///{tmp_path}/openhqm.db",
        "OPENHQM_APP__URL": "http://127.0.0.1:1",
        "OPENHQM_INGRESS__HOST": "127.0.0.1",
        "OPENHQM_HEALTH__HOST": "127.0.0.1",
        "OPENHQM_LOG__FORMAT": "json",
        "OPENHQM_DRAIN__ACCEPT_SECONDS": "0",
    }
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environ, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stderr is not None
        started = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        shown, _ = process.communicate(timeout=30)

    assert "process.serving" in started
    assert {"openhqm.main", "aiohttp.web"} <= set(shown.split())
    assert NOT_TO_SERVE.isdisjoint(shown.split())
