"""The `openhqm` command. Each command lives in the module named after its subject.

Heavy modules (rich, aiohttp, the stores) are imported by the command that needs them: `serve` must
start at once, `--help` even sooner.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from openhqm import __version__
from openhqm.cli import process, records, running, submit
from openhqm.cli.client import CallFailed
from openhqm.errors import OpenHQMError, SettingsError

app = typer.Typer(
    name="openhqm",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A durable queue in front of any HTTP app, without touching the app.\n\n"
    "Start with `openhqm demo`, or `openhqm serve --app http://127.0.0.1:8080`.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"openhqm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


SERVE, REQUESTS, OPERATE, SETUP = "Run", "Requests", "Operate", "Set up"
app.command("serve", rich_help_panel=SERVE)(process.serve)
app.command("demo", rich_help_panel=SERVE)(process.demo)
app.command("submit", rich_help_panel=REQUESTS)(submit.submit)
app.command("get", rich_help_panel=REQUESTS)(records.get)
app.command("cancel", rich_help_panel=REQUESTS)(records.cancel)
app.command("list", rich_help_panel=REQUESTS)(records.list_requests)
app.command("top", rich_help_panel=OPERATE)(running.top)
app.add_typer(records.dlq, name="dlq", rich_help_panel=OPERATE)
app.command("pause", rich_help_panel=OPERATE)(running.pause)
app.command("resume", rich_help_panel=OPERATE)(running.resume)
app.command("check", rich_help_panel=SETUP)(process.check)
app.command("settings", rich_help_panel=SETUP)(process.settings)
app.command("backends", rich_help_panel=SETUP)(process.backends)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 it failed, 2 the settings or the usage are wrong."""
    try:
        app()
    except SettingsError as exc:
        sys.exit(_complain(str(exc), 2))
    except (CallFailed, OpenHQMError) as exc:
        sys.exit(_complain(str(exc), 1))
    except BrokenPipeError:
        sys.stderr.close()  # `openhqm list | head`: nobody reads on, nothing to complain about
        sys.exit(1)


def _complain(message: str, code: int) -> int:
    typer.echo(f"openhqm: {message}", err=True)
    return code
