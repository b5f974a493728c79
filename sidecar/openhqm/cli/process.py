"""Commands that need no running process: demo, check, settings, backends."""

from __future__ import annotations

import dataclasses
import enum
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from openhqm.cli.client import Admin
from openhqm.cli.options import AdminUrl, AsJson
from openhqm.cli.serving import APP, CONFIG, STORE, nested

Config = Annotated[Path | None, typer.Option(*CONFIG.names, help=CONFIG.help)]
App = Annotated[str | None, typer.Option(*APP.names, help=APP.help)]
StoreUrl = Annotated[str | None, typer.Option(*STORE.names, help=STORE.help)]


class Format(enum.StrEnum):
    """What `openhqm settings` prints."""

    VALUES = "values"
    MARKDOWN = "markdown"
    SCHEMA = "schema"
    ENV = "env"


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

    loaded = load(config=config, flags=nested({"app.url": app, "store.url": store}))
    findings = asyncio.run(check_all(loaded))
    if json:
        show.as_json([{"what": f.what, "ok": f.ok, "detail": f.detail} for f in findings])
    else:
        marks = {True: "[green]ok[/green]", False: "[red]FAILED[/red]"}
        show.table(("what", "", ""), [(f.what, marks[f.ok], show.escape(f.detail)) for f in findings], "")
    raise typer.Exit(0 if all(f.ok for f in findings) else 1)


def backends(json: AsJson = False) -> None:
    """List the stores and brokers that a URL can name, and what to install for them."""
    from openhqm.cli import show
    from openhqm.cli.checks import known_backends

    found = known_backends()
    if json:
        show.as_json([dataclasses.asdict(backend) for backend in found])
    else:
        rows = [
            (b.url, b.kind, "installed" if b.installed else show.escape(b.install), b.summary) for b in found
        ]
        show.table(("url", "", "", ""), rows, "")


def _yaml(data: dict[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return text


def _print_json(data: dict[str, Any]) -> None:
    import json

    sys.stdout.write(json.dumps(data, indent=2) + "\n")
