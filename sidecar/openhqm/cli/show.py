"""Output of the commands: tables for people, JSON for scripts."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_PIPE_COLUMNS = 1000
STATE_STYLES = {"done": "green", "failed": "red", "retrying": "yellow", "running": "cyan"}


def console() -> Console:
    """Standard output: colours on a terminal, lines as long as they are in a pipe."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)


def as_json(data: Any) -> None:
    """Print *data* as JSON, one document."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """Print rows under headings, or the sentence *empty* when there are none."""
    if not rows:
        console().print(empty)
        return
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        squeezed = column == "request"  # the only one that may lose letters on a narrow terminal
        made.add_column(
            column, overflow="ellipsis" if squeezed else "fold", no_wrap=squeezed or column == "id"
        )
    for row in rows:
        made.add_row(*(_cell(value) for value in row))
    console().print(made)


def fields(data: dict[str, Any]) -> None:
    """Print names and values, one a line; None and empty values are left out."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in data.items():
        if value not in (None, "", [], {}):
            made.add_row(name, _cell(value))
    console().print(made)


def state(name: str) -> str:
    """A state with its colour."""
    style = STATE_STYLES.get(name)
    return f"[{style}]{name}[/{style}]" if style else name


def ago(moment: str | None) -> str:
    """How long ago an ISO time was: "12 s", "3 min", "5 h", "2 d"; "" for None."""
    if not moment:
        return ""
    then = datetime.datetime.fromisoformat(moment)
    return duration((datetime.datetime.now(datetime.UTC) - then).total_seconds())


def duration(seconds: float) -> str:
    """A span in the largest unit that suits it."""
    seconds = max(seconds, 0.0)
    for limit, unit, name in ((60, 1, "s"), (3600, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} d"


def escape(text: str) -> str:
    """Text from outside: square brackets are no markup, control characters reach no terminal."""
    shown = "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)
    return shown.replace("[", r"\[")


def _cell(value: object) -> str:
    return "" if value is None else str(value)
