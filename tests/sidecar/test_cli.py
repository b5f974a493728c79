"""The command line: what people and scripts see, and one helpful line when something is wrong."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from tests.sidecar.intercepted import intercepting, replaying
from typer.testing import CliRunner, Result

from openhqm.admin import build_admin_app
from openhqm.cli import serving
from openhqm.cli.client import CallFailed, call
from openhqm.cli.commands import app
from openhqm.cli.show import duration, escape
from openhqm.cli.top import render, spark
from openhqm.envelope import Envelope
from openhqm.handles import IdMint
from openhqm.lifecycle import Lifecycle
from openhqm.settings import Settings
from openhqm.stats import Stats
from openhqm.stores.base import Answer, Finish, NewRecord, Options, State
from openhqm.stores.memory import MemoryStore

COMMANDS = [
    *("serve", "demo", "submit", "get", "cancel", "list", "top", "dlq", "pause", "resume"),
    *("check", "settings", "backends", "inject"),
]


class Running:
    """A running openhqm, as far as the command line can tell."""

    def __init__(self, store: MemoryStore, stats: Stats, url: str) -> None:
        self.store = store
        self.stats = stats
        self.url = url

    async def run(self, *arguments: str, input: bytes | None = None) -> Result:
        """Invoke a command; in a thread, because it waits for the server on this loop."""
        environ = {"OPENHQM_ADMIN_URL": self.url, "COLUMNS": "200"}
        return await asyncio.to_thread(CliRunner().invoke, app, arguments, input=input, env=environ)

    async def json(self, *arguments: str) -> Any:
        result = await self.run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    async def queued(self) -> str:
        id = uuid.uuid4()
        head = b"POST /orders HTTP/1.1\r\nHost: a\r\n\r\n"
        await self.store.accept([NewRecord(id=id.bytes, envelope=Envelope(head).encode(), body=b"[red]x")])
        return str(id)

    async def dead_letter(self) -> str:
        """The request accepted first, failed; a new one if there is none."""
        if not (await self.store.counts()).queued:
            await self.queued()
        [lease] = await self.store.lease(1, lease_seconds=30, wait_seconds=0)
        answer = Answer(b"HTTP/1.1 500 No\r\n\r\n", b"\x00no")
        note = b'{"attempt":1,"at":1.5,"status":500}'
        await self.store.settle(
            [Finish(lease.id, lease.epoch, State.FAILED, answer, "attempts-used-up", note)]
        )
        return str(uuid.UUID(bytes=lease.id))


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    store = MemoryStore(Options())
    await store.open()
    stats = Stats(store, None, Lifecycle())
    async with TestServer(build_admin_app(Settings, store, stats, Lifecycle(), IdMint())) as server:
        yield Running(store, stats, f"http://127.0.0.1:{server.port}")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})


# --- help and mistakes ------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    shown = invoke("--help").stdout

    assert all(f" {command} " in shown for command in COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, "dlq list", "dlq show", "dlq replay", "dlq purge"])
def test_every_command_explains_itself(command: str) -> None:
    result = invoke(*command.split(), "--help")

    assert result.exit_code == 0
    assert "Usage: " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["serve", "--app", "ftp://x"], 2,
         "openhqm: app.url: must be http://host:port without a path; the app's own paths are kept"),
        (["serve", "--config", "/nowhere.yaml"], 2, "openhqm: /nowhere.yaml: No such file or directory"),
        (["list", "--admin", "http://127.0.0.1:1"], 1,
         "openhqm: no openhqm is listening on http://127.0.0.1:1; "
         "start one with: openhqm serve --app http://127.0.0.1:8080"),
        (["dlq", "replay"], 1, "openhqm: name dead letters by id, or say --all"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_an_exit_code(arguments: Sequence[str], code: int, line: str) -> None:
    done = subprocess.run([sys.executable, "-m", "openhqm", *arguments], capture_output=True, text=True)

    assert (done.returncode, done.stderr, done.stdout) == (code, f"{line}\n", "")


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ["--app", "http://127.0.0.1:1", "--store", f"sqlite:///{tmp_path}/store.db"]
        ports = ["--port", unused_port(), "--admin-port", unused_port(), "--health-port", port]
        command = [sys.executable, "-m", "openhqm", "serve", *arguments, *map(str, ports)]
        done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 2
    assert re.fullmatch(rf"openhqm: health\.port: cannot listen on 0\.0\.0\.0:{port}: .*\n", done.stderr)


@pytest.mark.parametrize("url", ["127.0.0.1:16000", "https://127.0.0.1", "http://", "http://a:b", "nonsense"])
def test_addresses_that_are_none_are_explained(url: str) -> None:
    with pytest.raises(CallFailed, match="is not an address like"):
        call(url, "GET", "/")


async def test_another_server_on_the_port_is_noticed() -> None:
    async with TestServer(web.Application()) as server:
        result = await asyncio.to_thread(invoke, "list", "--admin", f"http://127.0.0.1:{server.port}")

    assert isinstance(result.exception, CallFailed)
    assert "answered 404, not like an openhqm does" in str(result.exception)


# --- requests ---------------------------------------------------------------------------------------


async def test_requests_are_listed(running: Running) -> None:
    dead, queued = await running.dead_letter(), await running.queued()

    shown = (await running.run("list")).stdout
    page = await running.json("list", "--state", "failed")

    assert queued in shown
    assert dead in shown
    assert "POST /orders" in shown
    assert [record["id"] for record in page["records"]] == [dead]


async def test_a_long_list_says_how_to_go_on(running: Running) -> None:
    ids = [await running.queued() for _ in range(3)]

    first = await running.json("list", "-n", "2")
    shown = (await running.run("list", "-n", "2")).stdout
    rest = await running.json("list", "--cursor", first["cursor"])

    assert f"more: --cursor {first['cursor']}" in shown
    assert [record["id"] for record in rest["records"]] == ids[2:]


async def test_an_empty_list_is_a_sentence(running: Running) -> None:
    assert (await running.run("dlq", "list")).stdout == "no dead letters\n"


async def test_a_request_is_shown_with_attempts_and_messages(running: Running) -> None:
    dead = await running.dead_letter()

    shown = (await running.run("get", dead)).stdout

    for words in (
        dead,
        "attempts-used-up",
        "attempt 1  at=1970-01-01T00:00:01.500Z  status=500",
        "POST /orders",
        "[red]x",
    ):
        assert words in shown


async def test_an_answers_body_is_written_untouched(running: Running) -> None:
    dead = await running.dead_letter()

    assert (await running.run("get", dead, "--body")).stdout_bytes == b"\x00no"


async def test_get_waits_until_it_is_final(running: Running) -> None:
    id = await running.queued()
    waiting = asyncio.create_task(running.json("get", id, "--wait", "30"))
    [lease] = await running.store.lease(1, lease_seconds=30, wait_seconds=0)
    await running.store.settle([Finish(lease.id, lease.epoch, State.DONE)])

    assert (await waiting)["state"] == "done"


async def test_cancel(running: Running) -> None:
    dead, queued = await running.dead_letter(), await running.queued()

    first, second = await running.run("cancel", queued), await running.run("cancel", dead)

    assert (first.stdout, second.stdout) == ("cancelled\n", "too late: it is failed\n")


async def test_submit_sends_through_the_queue_and_tells_how_to_go_on(running: Running) -> None:
    seen: dict[str, Any] = {}

    async def accept(request: web.Request) -> web.Response:
        seen.update(method=request.method, path=request.path_qs, body=await request.read())
        seen.update(request.headers)
        headers = {"Location": "/.openhqm/v1/requests/abc.k.m", "OpenHQM-Correlation-Id": "abc"}
        return web.Response(status=202, headers=headers)

    ingress = web.Application()
    ingress.router.add_route("*", "/{path:.*}", accept)
    async with TestServer(ingress) as server:
        running.stats.ports = {"ingress": server.port or 0}
        result = await running.run("submit", "/orders?dry=1", "-d", "@-", "-H", "X-A: b", input=b"\x00{}")

    assert (seen["method"], seen["path"], seen["body"]) == ("POST", "/orders?dry=1", b"\x00{}")
    assert (seen["X-A"], seen["Prefer"]) == ("b", "respond-async")
    assert "openhqm get --body --wait 60 abc" in result.stdout


@pytest.mark.parametrize(
    "arguments", [("--target", "handler:reverse"), ("--api-key", "k", "-t", "handler:echo")]
)
async def test_submit_goes_by_the_submit_api_when_told_to(
    running: Running, arguments: tuple[str, ...]
) -> None:
    async with intercepting(None) as port:
        running.stats.ports = {"ingress": port.port}
        sent = await running.json("submit", "/x", *arguments, "-d", '"abc"', "-H", "OpenHQM-Priority: 7")
        lease = await port.lease()

        assert (sent["status"], sent["correlation_id"]) == (202, str(uuid.UUID(bytes=lease.id)))
        assert sent["handle"] == port.handles.handle(lease.id)
        assert Envelope.decode(lease.envelope).target == arguments[-1]
        assert (lease.priority, lease.body) == (7, b'"abc"')


async def test_submit_goes_by_the_submit_api_where_there_is_no_app(running: Running) -> None:
    async with intercepting(None) as port:
        running.stats.ports = {"ingress": port.port}
        result = await running.run("submit", "/orders")

    assert result.exit_code == 1
    assert "no app is configured here" in str(result.exception)
    assert "handler:<name>" in str(result.exception)


async def test_submit_by_the_submit_api_takes_any_bytes_and_repeated_headers(running: Running) -> None:
    async with intercepting(ingress={"submit_api": True, "api_keys": ["k"]}) as port:
        command = ("submit", "/", "-t", "app", "--api-key", "k", "-d", "@-", "-H", "A: 1", "-H", "A: 2")
        url = ("--url", f"http://127.0.0.1:{port.port}/")
        result = await running.run(*command, *url, input=b"\xff\x00")
        lease = await port.lease()

    assert "accepted" in result.stdout
    assert lease.body == b"\xff\x00"
    assert b"\r\nA: 1\r\nA: 2\r\n" in Envelope.decode(lease.envelope).head


async def test_submit_with_wait_writes_the_handlers_answer(running: Running) -> None:
    async with intercepting(None) as port, replaying(port):
        running.stats.ports = {"ingress": port.port}
        result = await running.run("submit", "/", "-t", "handler:reverse", "-d", '"abc"', "--wait", "10")

    assert result.stdout_bytes == b'"cba"'


# --- dead letters, pause, figures -------------------------------------------------------------------


async def test_dead_letters_are_shown_replayed_and_purged(running: Running) -> None:
    dead, other = await running.dead_letter(), await running.dead_letter()

    shown = (await running.run("dlq", "show", dead)).stdout
    replayed = await running.json("dlq", "replay", dead)
    refused = await running.run("dlq", "replay", dead)
    listed = (await running.run("dlq", "list")).stdout
    purged = await running.run("dlq", "purge", "--all", "--yes")

    assert "attempts-used-up" in shown
    assert [pair["id"] for pair in replayed["replayed"]] == [dead]
    assert f"{dead} is not a dead letter, or was replayed before" in refused.stdout
    assert refused.exit_code == 1
    assert listed.count("(replayed)") == 1
    assert purged.stdout == "deleted 2\n"
    assert await running.store.get([uuid.UUID(other).bytes]) == [None]
    assert (await running.run("dlq", "purge", other)).exit_code == 1


async def test_purging_everything_asks_first(running: Running) -> None:
    await running.dead_letter()

    result = await running.run("dlq", "purge", "--all", input=b"n\n")

    assert result.exit_code == 1
    assert (await running.store.counts()).dead_letters == 1


async def test_pause_and_resume(running: Running) -> None:
    assert (await running.run("pause")).stdout == "requests paused\n"
    assert (await running.store.counts()).paused
    assert (await running.json("resume", "--lane", "requests")) == {"lane": "requests", "paused": False}


async def test_top_shows_the_figures(running: Running) -> None:
    await running.queued()

    shown = (await running.run("top", "--once")).stdout

    for words in ("backlog", "dead letters", "durability none", "in flight", "breaker"):
        assert words in shown
    assert (await running.json("top"))["backlog"] == 1


async def test_top_draws_the_backlog(running: Running) -> None:
    render(await running.stats.read(), [1, 2, 3])

    assert spark([0, 4, 8]) == " ▄█"
    assert spark([]) == ""


async def test_settings_of_the_running_process(running: Running) -> None:
    shown = (await running.run("settings", "--running")).stdout

    assert yaml.safe_load(shown)["egress"]["concurrency"] == 8


# --- without a running process ----------------------------------------------------------------------


def test_settings_are_printed_in_every_format(tmp_path: Path) -> None:
    config = tmp_path / "openhqm.yaml"
    config.write_text("egress: {concurrency: 3}\nhandle: {keys: [hunter2-hunter2-hunter2]}\n")

    values = invoke("settings", "--config", str(config)).stdout

    assert yaml.safe_load(values)["egress"]["concurrency"] == 3
    assert "hunter2" not in values
    assert invoke("settings", "-f", "markdown").stdout.startswith("# Settings")
    assert "OPENHQM_EGRESS__CONCURRENCY=8" in invoke("settings", "-f", "env").stdout
    assert json.loads(invoke("settings", "-f", "schema").stdout)["type"] == "object"


def test_backends_say_what_to_install() -> None:
    found = {backend["url"]: backend for backend in json.loads(invoke("backends", "--json").stdout)}

    assert found["memory:"]["installed"]
    assert found["redis://"]["install"] == "pip install 'openhqm[redis]'"
    assert (found["redis://"]["kind"], found["nats://"]["kind"]) == ("store", "broker")
    assert found["nats://"]["install"] == "pip install 'openhqm[nats]'"


async def test_check_tells_what_works_and_what_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENHQM_STORE__REQUIRE_DURABILITY", "none")
    looked_at = asyncio.Event()

    async def app_that_listens(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        looked_at.set()

    async with await asyncio.start_server(app_that_listens, "127.0.0.1", 0) as server:
        app_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        good = await asyncio.to_thread(invoke, "check", "--json", "--store", "memory:", "--app", app_url)
        await looked_at.wait()
    port = unused_port()
    bad = await asyncio.to_thread(
        invoke, "check", "--json", "--store", "odd://x", "--app", f"http://127.0.0.1:{port}"
    )

    assert (good.exit_code, [found["ok"] for found in json.loads(good.stdout)]) == (0, [True, True, True])
    assert (bad.exit_code, [found["ok"] for found in json.loads(bad.stdout)]) == (1, [True, False, False])
    assert "unknown scheme 'odd'" in json.loads(bad.stdout)[1]["detail"]


def test_check_looks_at_the_previous_store_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENHQM_STORE__REQUIRE_DURABILITY", "none")
    found = []
    for url in (f"sqlite:///{tmp_path}/before.db", "odd://x"):
        monkeypatch.setenv("OPENHQM_STORE__PREVIOUS_URL", url)
        done = invoke("check", "--json", "--store", "memory:")
        found.append((done.exit_code, json.loads(done.stdout)[2]))

    (code, good), (bad_code, bad) = found
    assert (code, good["ok"], bad_code, bad["ok"]) == (0, True, 1, False)
    assert good["detail"].endswith("0 unfinished requests")
    assert "store.previous_url: " in bad["detail"]


PLAIN = [
    [],
    ["--app", "http://127.0.0.1:8080", "--store=memory:", "--broker", "kafka://a=b"],
    ["--port", "80", "-p", "81", "--health-port=0", "--admin-port", "+82"],
    ["--config", "a.yaml", "--mode", "ingress"],
    ["-c", "b.yaml", "--mode=egress"],
]
NOT_PLAIN = [
    *(["--help"], ["-h"], ["word"], ["--nope", "1"], ["--", "--app"]),
    *(["--port"], ["--port="], ["--port", "many"], ["-p80"], ["--port", "-1"], ["--mode", "both"]),
]


@pytest.mark.parametrize("words", PLAIN)
def test_plain_flags_of_serve_mean_what_typer_reads(words: list[str]) -> None:
    """Two readers of one table; the process that serves is spared typer."""
    command = typer.main.get_command(app).commands["serve"]

    by_typer = command.make_context("serve", [*words]).params

    assert {name: value for name, value in by_typer.items() if value is not None} == serving.read_plain(words)


@pytest.mark.parametrize("words", NOT_PLAIN)
def test_all_else_is_left_to_typer(words: list[str]) -> None:
    assert serving.read_plain(words) is None


def test_flags_become_nested_settings() -> None:
    assert serving.nested({"app.url": "http://a", "mode": "egress", "store.url": None, "app.x": 1}) == {
        "app": {"url": "http://a", "x": 1},
        "mode": "egress",
    }


def test_text_from_outside_is_neither_markup_nor_terminal_control() -> None:
    assert escape("[red]a\x1b[2J\nb") == "\\[red]a\\x1b\\[2J\nb"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-1, "0 s"), (59, "59 s"), (90, "2 min"), (7200, "2 h"), (172_800, "2 d")]
)
def test_durations_are_short(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
