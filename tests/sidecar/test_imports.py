"""What a process loads: client libraries are extras, and an idle sidecar must stay small."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("redis", "aiokafka", "kopf", "kubernetes", "obstore", "openhqm_operator")


def loaded_by(module: str) -> set[str]:
    """Top-level modules in a fresh process that imported *module*."""
    code = f"import sys, {module}; print(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["openhqm.main", "openhqm.cli"])
def test_no_client_library_is_loaded(module: str) -> None:
    assert loaded_by(module).isdisjoint(HEAVY)


def test_the_command_line_starts_light() -> None:
    """`openhqm --help` and the small commands must not wait for servers and tables to load."""
    assert loaded_by("openhqm.cli").isdisjoint({"aiohttp", "rich", "pydantic", "uvloop", "yaml"})
