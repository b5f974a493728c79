"""Commands that need no running process: serve, demo, check, settings, backends."""

from __future__ import annotations

import dataclasses
import enum
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from openhqm.cli.client import Admin
from openhqm.cli.options import AdminUrl, AsJson

Config = Annotated[Path | None, typer.Option("--config", "-c", help="Settings file, YAML.")]
App = Annotated[str | None, typer.Option("--app", help="The app to protect: http://127.0.0.1:8080.")]
StoreUrl = Annotated[
    str | None, typer.Option("--store", help="memory:, sqlite:///PATH, redis://HOST. Default SQLite.")
]


class Mode(enum.StrEnum):
    """What a process does; see `settings.Settings.mode`."""

    COMBINED = "combined"
    INGRESS = "ingress"
    EGRESS = "egress"


class Format(enum.StrEnum):
    """What `openhqm settings` prints."""

    VALUES = "values"
    MARKDOWN = "markdown"
    SCHEMA = "schema"
    ENV = "env"


def serve(
    app: App = None,
    store: StoreUrl = None,
    broker: Annotated[str | None, typer.Option("--broker", help="Broker that carries the backlog.")] = None,
    port: Annotated[int | None, typer.Option("--port", "-p", help="Intercept port, default 8000.")] = None,
    health_port: Annotated[int | None, typer.Option(help="Probes and metrics, default 16020.")] = None,
    admin_port: Annotated[int | None, typer.Option(help="Operator's port, default 16000.")] = None,
    config: Config = None,
    mode: Annotated[Mode | None, typer.Option("--mode", help="Default combined.")] = None,
) -> None:
    """Queue requests in front of an app and replay them at its pace.

    Every setting can also come from the environment (OPENHQM_EGRESS__CONCURRENCY=4) or the
    settings file; flags win. `openhqm settings --format markdown` lists them all.
    """
    from openhqm.settings import load

    given = {
        "app.url": app,
        "store.url": store,
        "broker.url": broker,
        "ingress.port": port,
        "health.port": health_port,
        "admin.port": admin_port,
        "mode": mode.value if mode else None,
    }
    reread = partial(load, config=config, flags=_flags(given))
    settings = reread()

    with _without("rich"):
        from openhqm.main import run

    raise typer.Exit(run(settings, config=config, reread=reread))


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


def demo(
    once: Annotated[bool, typer.Option("--once", help="Check the outcome and leave: exit 0 or 1.")] = False,
    requests: Annotated[int, typer.Option("--requests", "-n", min=10, max=5000, help="Burst size.")] = 60,
    kill: Annotated[
        bool, typer.Option("--kill", help="End openhqm with kill -9 in the middle, and start it again.")
    ] = False,
) -> None:
    """See it work: a slow, failing app, a burst of requests, and every one answered."""
    from openhqm.demo import run

    raise typer.Exit(run(once=once, requests=requests, kill=kill))


def settings(
    format: Annotated[Format, typer.Option("--format", "-f", help="What to print.")] = Format.VALUES,
    config: Config = None,
    running: Annotated[bool, typer.Option("--running", help="Ask the running process.")] = False,
    admin: AdminUrl = "",
) -> None:
    """Print the settings: the values in force (secrets masked), the table, the schema, an env file."""
    from openhqm import settings_docs
    from openhqm.settings import load

    if format is Format.MARKDOWN:
        sys.stdout.write(settings_docs.markdown())
    elif format is Format.ENV:
        sys.stdout.write(settings_docs.environment())
    elif format is Format.SCHEMA:
        _print_json(settings_docs.schema())
    else:
        values = Admin(admin).settings() if running else settings_docs.in_force(load(config=config))
        sys.stdout.write(_yaml(values))


def check(app: App = None, store: StoreUrl = None, config: Config = None, json: AsJson = False) -> None:
    """Try the settings, the store and the app, without serving anything."""
    import asyncio

    from openhqm.cli import show
    from openhqm.cli.checks import check_all
    from openhqm.settings import load

    loaded = load(config=config, flags=_flags({"app.url": app, "store.url": store}))
    findings = asyncio.run(check_all(loaded))
    if json:
        show.as_json([{"what": f.what, "ok": f.ok, "detail": f.detail} for f in findings])
    else:
        marks = {True: "[green]ok[/green]", False: "[red]FAILED[/red]"}
        show.table(("what", "", ""), [(f.what, marks[f.ok], show.escape(f.detail)) for f in findings], "")
    raise typer.Exit(0 if all(f.ok for f in findings) else 1)


def backends(json: AsJson = False) -> None:
    """List the stores that a URL can name, and what to install for them."""
    from openhqm.cli import show
    from openhqm.cli.checks import known_backends

    found = known_backends()
    if json:
        show.as_json([dataclasses.asdict(backend) for backend in found])
    else:
        rows = [(b.url, "installed" if b.installed else show.escape(b.install), b.summary) for b in found]
        show.table(("url", "", ""), rows, "")


def _flags(given: dict[str, Any]) -> dict[str, Any]:
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


def _yaml(data: dict[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return text


def _print_json(data: dict[str, Any]) -> None:
    import json

    sys.stdout.write(json.dumps(data, indent=2) + "\n")
