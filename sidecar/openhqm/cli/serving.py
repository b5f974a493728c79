"""`openhqm serve`: its flags, declared once, and what they start.

A sidecar holds for its whole life what its command line loads. Typer is 1.7 MiB and 120 ms of that, so
plain flags are read here; help, completion and mistakes are typer's (`commands.py`), which builds its
command from the same table.
"""

from __future__ import annotations

import enum
import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any


class Mode(enum.StrEnum):
    """What a process does; see `settings.Settings.mode`."""

    COMBINED = "combined"
    INGRESS = "ingress"
    EGRESS = "egress"


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of the command line.

    Args:
        names: as they are typed, the long one first.
        gives: the setting; "" for the settings file.
        kind: makes its value of what was typed, or raises ValueError.
    """

    names: tuple[str, ...]
    gives: str
    help: str
    kind: type = str

    @property
    def parameter(self) -> str:
        """Its name in Python: health_port."""
        return self.names[0].removeprefix("--").replace("-", "_")


APP = Flag(("--app",), "app.url", "The app to protect: http://127.0.0.1:8080.")
STORE = Flag(("--store",), "store.url", "memory:, sqlite:///PATH, redis://HOST. Default SQLite.")
CONFIG = Flag(("--config", "-c"), "", "Settings file, YAML.", Path)

FLAGS = (
    APP,
    STORE,
    Flag(("--broker",), "broker.url", "Broker that carries the backlog."),
    Flag(("--port", "-p"), "ingress.port", "Intercept port, default 8000.", int),
    Flag(("--health-port",), "health.port", "Probes and metrics, default 16020.", int),
    Flag(("--admin-port",), "admin.port", "Operator's port, default 16000.", int),
    CONFIG,
    Flag(("--mode",), "mode", "Default combined.", Mode),
)


def read_plain(words: Sequence[str]) -> dict[str, Any] | None:
    """Read flags with their values: ["--port", "80"] -> {"port": 80}.

    Returns: values by `Flag.parameter`; None when *words* need more than that: typer then reads them.
    """
    named = {name: flag for flag in FLAGS for name in flag.names}
    given: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        flag = named.get(name)
        value = value if equals else next(rest, "")
        if flag is None or not value or value.startswith("-"):
            return None
        try:
            given[flag.parameter] = flag.kind(value)
        except ValueError:
            return None
    return given


def serve(given: Mapping[str, Any]) -> int:
    """Serve until told to end; returns the exit code.

    Args:
        given: values of flags by `Flag.parameter`; None: not given.
    """
    # A request leaves no cycles behind, imports few; the collector is for the rare ones that errors leave.
    # Looking at young objects less often, and never at what was imported, is 8 to 13% of the accept path
    # and 60 ms of the start.
    gc.set_threshold(20_000, 20, 100)
    from openhqm.settings import load

    config: Path | None = given.get(CONFIG.parameter)
    flags = {flag.gives: given.get(flag.parameter) for flag in FLAGS if flag is not CONFIG}
    reread = partial(load, config=config, flags=nested(flags))
    settings = reread()

    with _without("rich"):
        from openhqm.main import run
    gc.freeze()

    return run(settings, config=config, reread=reread)


def nested(given: Mapping[str, Any]) -> dict[str, Any]:
    """{"app.url": "x", "mode": None} -> {"app": {"url": "x"}}: what was not given is left out."""
    flags: dict[str, Any] = {}
    for key, value in given.items():
        area, _, name = key.partition(".")
        if value is None:
            continue
        if name:
            flags.setdefault(area, {})[name] = value
        else:
            flags[area] = value
    return flags


@contextmanager
def _without(library: str) -> Iterator[None]:
    """Import as if *library* were not installed: structlog loads rich for tracebacks that we do not
    print, 3 MiB and 50 ms of every sidecar."""
    absent = library not in sys.modules
    if absent:
        sys.modules[library] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if absent:
            del sys.modules[library]
