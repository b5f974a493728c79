"""Commands about stored requests: get, cancel, list, and dead letters under `dlq`."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from openhqm.cli.client import Admin, CallFailed
from openhqm.cli.options import AdminUrl, AsJson, LaneName

FINAL = frozenset({"done", "failed", "cancelled", "expired"})
POLL_SECONDS = 0.3

dlq = typer.Typer(no_args_is_help=True, help="Dead letters: requests given up on, kept for a decision.")

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Correlation ids or handles.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="Correlation id or handle.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Most records shown.")]


def get(
    id: Id,
    wait: Annotated[
        float, typer.Option("--wait", "-w", min=0, help="Seconds to wait until it is final.")
    ] = 0,
    body: Annotated[bool, typer.Option("--body", help="Write the answer's body, byte for byte.")] = False,
    admin: AdminUrl = "",
    json: AsJson = False,
) -> None:
    """Show what became of a request."""
    from openhqm.cli import show

    api = Admin(admin)
    record = _wait_until_final(api, id, wait)
    if body:
        answer = api.answer(id)
        write_body(answer.body, answer.headers.get("openhqm-answer-status", ""))
    elif json:
        show.as_json(record)
    else:
        _show_record(record)


def cancel(id: Id, admin: AdminUrl = "", json: AsJson = False) -> None:
    """Cancel a request: at once while it waits, at best effort while it runs."""
    from openhqm.cli import show

    record = Admin(admin).cancel(id)
    if json:
        show.as_json(record)
    elif record["state"] == "running":
        show.console().print("asked; it is running and may finish all the same")
    elif record["state"] == "cancelled":
        show.console().print("cancelled" + (", but it may have run before" if record["may_have_run"] else ""))
    else:
        show.console().print(f"too late: it is {record['state']}")


def list_requests(
    state: Annotated[
        list[str] | None,
        typer.Option("--state", "-s", help="queued, running, retrying, done, failed, cancelled, expired."),
    ] = None,
    limit: Limit = 50,
    cursor: Annotated[str, typer.Option("--cursor", help="Continue after an earlier page.")] = "",
    lane: LaneName = "requests",
    admin: AdminUrl = "",
    json: AsJson = False,
) -> None:
    """List requests, oldest first."""
    page = Admin(admin).requests(state=state, limit=limit, cursor=cursor, lane=lane)
    _show_page(page, json, "no requests")


@dlq.command("list")
def list_dead_letters(
    limit: Limit = 50,
    cursor: Annotated[str, typer.Option("--cursor", help="Continue after an earlier page.")] = "",
    lane: LaneName = "requests",
    admin: AdminUrl = "",
    json: AsJson = False,
) -> None:
    """List dead letters, oldest first; those that run again are marked."""
    page = Admin(admin).dead_letters(limit=limit, cursor=cursor, lane=lane)
    _show_page(page, json, "no dead letters")


@dlq.command("show")
def show_dead_letter(id: Id, admin: AdminUrl = "", json: AsJson = False) -> None:
    """Show a dead letter's request, attempts and last answer."""
    from openhqm.cli import show

    record = Admin(admin).dead_letter(id)
    if json:
        show.as_json(record)
    else:
        _show_record(record)


@dlq.command("replay")
def replay_dead_letters(
    ids: Ids = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    lane: LaneName = "requests",
    admin: AdminUrl = "",
    json: AsJson = False,
) -> None:
    """Run dead letters again, each as a new request; the old record stays. Exit code 1: not all could."""
    from openhqm.cli import show

    done = Admin(admin).replay(_choice(ids, everything, lane))
    if json:
        show.as_json(done)
    else:
        rows = [(pair["id"], pair["new_id"]) for pair in done["replayed"]]
        show.table(("id", "runs again as"), rows, "nothing to replay")
        for id in done["refused"]:
            show.console().print(f"{id} is not a dead letter, or was replayed before")
    if done["refused"]:
        raise typer.Exit(1)


@dlq.command("purge")
def purge_dead_letters(
    ids: Ids = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    lane: LaneName = "requests",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    admin: AdminUrl = "",
    json: AsJson = False,
) -> None:
    """Delete dead letters with their requests, for good. Exit code 1: not all were dead letters."""
    from openhqm.cli import show

    choice = _choice(ids, everything, lane)
    if everything and not yes:
        typer.confirm("Delete every dead letter, with its request?", abort=True)
    purged = Admin(admin).purge(choice)
    if json:
        show.as_json(purged)
    else:
        show.console().print(f"deleted {purged['purged']}")
    if ids and purged["purged"] < len(set(ids)):
        raise typer.Exit(1)


# --- helpers ----------------------------------------------------------------------------------------


def _choice(ids: list[str] | None, everything: bool, lane: str) -> dict[str, Any]:
    if everything == bool(ids):
        raise CallFailed("name dead letters by id, or say --all")
    return {"all": True, "lane": lane} if everything else {"ids": ids}


def write_body(body: bytes, status: str) -> None:
    """The body to standard output, untouched; the status beside it, for people."""
    if sys.stderr.isatty():
        typer.echo(f"status {status}", err=True)
    sys.stdout.flush()
    sys.stdout.buffer.write(body)
    sys.stdout.buffer.flush()


def _wait_until_final(admin: Admin, id: str, wait_seconds: float) -> dict[str, Any]:
    deadline = time.monotonic() + wait_seconds
    while True:
        record = admin.request(id)
        if record["state"] in FINAL or time.monotonic() >= deadline:
            return record
        time.sleep(min(POLL_SECONDS, max(deadline - time.monotonic(), 0)))


def _show_page(page: dict[str, Any], json: bool, empty: str) -> None:
    from openhqm.cli import show

    if json:
        show.as_json(page)
        return
    rows = [
        (
            record["id"],
            _outcome(record),
            record["attempts"],
            show.ago(record["accepted_at"]),
            show.escape(f"{record.get('method', '')} {record.get('path', '')}"),
        )
        for record in page["records"]
    ]
    show.table(("id", "state", "sent", "age", "request"), rows, empty)
    if page["cursor"]:
        show.console().print(f"more: --cursor {page['cursor']}")


def _outcome(record: dict[str, Any]) -> str:
    """The reason where there is one; a dead letter that runs again under another id says so."""
    from openhqm.cli import show

    outcome = record["reason"] or show.state(record["state"])
    return f"{outcome} (replayed)" if record["replayed_as"] else outcome


def _show_record(record: dict[str, Any]) -> None:
    from openhqm.cli import show

    request, answer = record.pop("request", None), record.pop("answer", None)
    history = record.pop("history", [])
    method, path = record.pop("method", ""), record.pop("path", "")
    head = {"request": show.escape(f"{method} {path}") if method else ""}
    plain = {name: show.escape(value) if isinstance(value, str) else value for name, value in record.items()}
    show.fields({**plain, **head, "state": show.state(record["state"])})
    for number, note in enumerate(history, start=1):
        attempt = note.pop("attempt", number)
        words = "  ".join(f"{name}={value}" for name, value in note.items())
        show.console().print(f"[bold]attempt {attempt}[/bold]  {show.escape(words)}")
    for title, part in (("request", request), ("answer", answer)):
        if part:
            _show_message(title, part)


def _show_message(title: str, part: dict[str, Any]) -> None:
    from openhqm.cli import show

    status = f", status {part['status']}" if "status" in part else ""
    show.console().print(f"\n[bold]{title}[/bold]{status}, {part['body_bytes']} bytes")
    for name, value in part["headers"]:
        show.console().print(show.escape(f"  {name}: {value}"))
    text = part.get("body") or part.get("body_base64")
    if text:
        show.console().print("\n" + show.escape(text))
