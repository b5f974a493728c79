"""Commands about the running process as a whole: top, pause, resume."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from openhqm.cli.client import Admin
from openhqm.cli.options import AdminUrl, AsJson, LaneName


def top(
    interval: Annotated[float, typer.Option("--interval", "-i", min=0.1, help="Seconds between looks.")] = 1,
    once: Annotated[bool, typer.Option("--once", help="Look once and leave.")] = False,
    admin: AdminUrl = "",
    json: AsJson = False,
) -> None:
    """Watch backlog, rates, retries and dead letters live; Ctrl-C ends it."""
    from openhqm.cli import show, top

    api = Admin(admin)
    if json:
        show.as_json(api.stats())
    elif once or not sys.stdout.isatty():
        top.once(api)
    else:
        top.watch(api, interval)


def pause(lane: LaneName = "requests", admin: AdminUrl = "", json: AsJson = False) -> None:
    """Stop sending requests to the app, in all processes of the queue; accepting goes on."""
    _set_paused(True, lane, admin, json)


def resume(lane: LaneName = "requests", admin: AdminUrl = "", json: AsJson = False) -> None:
    """Send requests to the app again."""
    _set_paused(False, lane, admin, json)


def _set_paused(paused: bool, lane: str, admin: str, json: bool) -> None:
    from openhqm.cli import show

    result = Admin(admin).set_paused(paused, lane)
    if json:
        show.as_json(result)
    else:
        show.console().print(f"{lane} {'paused' if paused else 'resumed'}")
