"""The `openhqm` command. `serving.py` is `openhqm serve`, `commands.py` knows the others."""

from __future__ import annotations

import sys

from openhqm.cli import serving
from openhqm.errors import OpenHQMError, SettingsError


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 it failed, 2 the settings or the usage are wrong."""
    try:
        sys.exit(_run(sys.argv[1:]))
    except SettingsError as exc:
        sys.exit(_complain(str(exc), 2))
    except OpenHQMError as exc:
        sys.exit(_complain(str(exc), 1))
    except BrokenPipeError:
        sys.stderr.close()  # `openhqm list | head`: nobody reads on, nothing to complain about
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)  # before `serve` listens to signals


def _run(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    if arguments[:1] == ["serve"] and (given := serving.read_plain(arguments[1:])) is not None:
        return serving.serve(given)
    from openhqm.cli.commands import app  # typer, which `serve` does not keep

    code: int = app()
    return code


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"openhqm: {message}\n")
    return code
