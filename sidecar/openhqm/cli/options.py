"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_ADMIN = "http://127.0.0.1:16000"

AdminUrl = Annotated[
    str,
    typer.Option(
        "--admin",
        envvar="OPENHQM_ADMIN_URL",
        help=f"Admin port of the running openhqm, default {DEFAULT_ADMIN}.",
        callback=lambda value: value or DEFAULT_ADMIN,
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
LaneName = Annotated[str, typer.Option("--lane", help="requests or callbacks.")]
