"""All commands, as typer reads them. Each lives in the module named after its subject.

Heavy modules (rich, aiohttp, the stores) are imported by the command that needs them: `--help` must
come at once.
"""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from openhqm import __version__
from openhqm.cli import inject, process, records, running, serving, submit

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


def _serve(**given: Any) -> None:
    """Queue requests in front of an app and replay them at its pace.

    Every setting can also come from the environment (OPENHQM_EGRESS__CONCURRENCY=4) or the
    settings file; flags win. `openhqm settings --format markdown` lists them all.
    """
    raise typer.Exit(serving.serve(given))


def _parameter(flag: serving.Flag) -> inspect.Parameter:
    """*flag* as typer would find it in a signature."""
    option = typer.Option(None, *flag.names, help=flag.help)
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(flag.parameter, kind, default=option, annotation=flag.kind | None)


_serve.__signature__ = inspect.Signature([_parameter(flag) for flag in serving.FLAGS])  # type: ignore[attr-defined]

SERVE, REQUESTS, OPERATE, SETUP = "Run", "Requests", "Operate", "Set up"
app.command("serve", rich_help_panel=SERVE)(_serve)
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
app.command("inject", rich_help_panel=SETUP)(inject.inject)
