"""How a process of ours begins and ends: a settings file, a login, a run until a signal."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import uvloop

from openhqm import logs
from openhqm.errors import SettingsError
from openhqm.settings import LogSettings
from openhqm.settings_file import FileSettings, load_file
from openhqm_operator.kube.login import Login, LoginFailed, find_login


class Process(Protocol):
    """What runs until it is stopped."""

    def stop(self) -> None:
        """Begin to end."""
        ...

    async def run(self) -> None:
        """Work until `stop`."""
        ...


class ProcessSettings(FileSettings, Protocol):
    """What a process's settings file may say."""

    @property
    def log(self) -> LogSettings: ...


Settings = TypeVar("Settings", bound=ProcessSettings)


def run(
    name: str,
    description: str,
    model: type[Settings],
    build: Callable[[Settings, Login], Process],
) -> None:
    """Read the command line and run one process until SIGTERM or SIGINT.

    Settings or a login that cannot be used are told in one line, with exit code 2.
    """
    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument("--config", type=Path, required=True, help="settings file")
    parser.add_argument("--kubeconfig", type=Path, help="log in by this file instead of the Pod's account")
    given = parser.parse_args()
    try:
        settings = load_file(model, given.config, os.environ)
        logs.configure(settings.log)
        uvloop.run(_run(settings, given.kubeconfig, build))
    except (SettingsError, LoginFailed) as exc:
        sys.stderr.write(f"{name}: {exc}\n")
        sys.exit(2)


async def _run(
    settings: Settings, kubeconfig: Path | None, build: Callable[[Settings, Login], Process]
) -> None:
    process = build(settings, await find_login(kubeconfig))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, process.stop)
    await process.run()
