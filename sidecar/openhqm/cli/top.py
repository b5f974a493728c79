"""`openhqm top`: the figures of a running openhqm, live."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from openhqm.cli import show
from openhqm.cli.client import Admin, CallFailed

BARS = " ▁▂▃▄▅▆▇█"
HISTORY = 60


def once(api: Admin) -> None:
    """Print the figures as they are now."""
    show.console().print(render(api.stats(), []))


def watch(api: Admin, interval_seconds: float) -> None:
    """Show the figures until Ctrl-C."""
    backlog: deque[int] = deque(maxlen=HISTORY)
    figures = api.stats()
    with Live(render(figures, backlog), console=show.console(), screen=True, auto_refresh=False) as live:
        while True:
            backlog.append(figures["backlog"])
            live.update(render(figures, backlog), refresh=True)
            time.sleep(interval_seconds)
            try:
                figures = api.stats()
            except CallFailed as exc:
                live.update(Text(f"{exc}\ntrying again; Ctrl-C ends this", style="red"), refresh=True)


def render(stats: dict[str, Any], backlog: deque[int] | list[int]) -> RenderableType:
    """Lay the figures out; pure, for the live view and --once alike."""
    requests, callbacks, store = stats["requests"], stats["callbacks"], stats["store"]
    state = "paused" if stats["paused"] else stats["phase"]
    heading = Text.assemble(
        ("openhqm ", "bold"),
        f"{stats['version']}  queue {stats['queue']}  ",
        (state, "green" if state == "serving" else "yellow"),
        f"  up {show.duration(stats['uptime_seconds'])}  durability {store['durability']}",
    )
    rows = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    for _ in range(3):
        rows.add_column(style="bold", no_wrap=True)
        rows.add_column(justify="right", no_wrap=True)
    rows.add_row("backlog", _n(stats["backlog"]), "accepted", _rate(stats["arrival_per_second"]),
                 "done", _n(requests["done"]))  # fmt: skip
    rows.add_row("in flight", f"{stats['in_flight']}/{stats['concurrency']}", "finished",
                 _rate(stats["drain_per_second"]), "retrying", _n(requests["retrying"]))  # fmt: skip
    rows.add_row("due now", _n(stats["due"]), "app takes", _seconds(stats["mean_app_seconds"]),
                 "dead letters", _warned(requests["dead_letters"]))  # fmt: skip
    rows.add_row("later", _n(stats["delayed"]), "oldest waits", show.duration(stats["oldest_age_seconds"]),
                 "callbacks", _n(callbacks["backlog"]))  # fmt: skip
    rows.add_row("held", _bytes(requests["bytes"]), "breaker", _breaker(stats["breaker"]),
                 "store", "reachable" if store["reachable"] else Text("away", style="red"))  # fmt: skip
    parts: list[RenderableType] = [heading, "", rows]
    if backlog:
        parts += ["", Text(f"backlog {spark(list(backlog))} {_n(max(backlog))} at most", style="cyan")]
    return Group(*parts)


def spark(values: list[int]) -> str:
    """Values as a row of bars, the largest as high as a line."""
    peak = max([*values, 1])
    return "".join(BARS[round(value / peak * (len(BARS) - 1))] for value in values)


def _n(value: int) -> str:
    return f"{value:,}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}/s"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} s"


def _warned(value: int) -> Text:
    return Text(_n(value), style="red" if value else "")


def _breaker(state: str | None) -> Text:
    return Text(state or "-", style="red" if state == "open" else "")


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
