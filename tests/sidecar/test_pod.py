"""What the kubelet is told: relayed readiness, and both preStop hooks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp.test_utils import TestClient, TestServer
from tests.sidecar.raw_app import RawApp, always, running

from openhqm import pod as pods
from openhqm.health import build_health_app
from openhqm.lifecycle import Lifecycle
from openhqm.pod import TOKEN_HEADER, Pod
from openhqm.settings import Settings
from openhqm.stats import Stats
from openhqm.stores.base import Options
from openhqm.stores.memory import MemoryStore

TOKEN = "a token of this Pod alone"
PASSWORD = {TOKEN_HEADER: TOKEN.replace(" ", "-")}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"


class Sender:
    """Stands for an egress: says whether it leases, and is quiet when told so."""

    def __init__(self) -> None:
        self.leasing = True
        self.resumed = asyncio.Event()
        self.is_quiet = asyncio.Event()
        self.is_quiet.set()

    def stop_leasing(self) -> None:
        self.leasing = False

    def resume(self) -> None:
        self.leasing = True
        self.resumed.set()

    async def quiet(self) -> None:
        await self.is_quiet.wait()


@dataclass
class Scene:
    """A Pod's sidecar behind its health port."""

    kubelet: TestClient
    pod: Pod
    sender: Sender
    serving: bool = True
    ends: int = 0
    passing: asyncio.Event = field(default_factory=asyncio.Event)
    waited: list[float] = field(default_factory=list)

    async def get(self, path: str, headers: dict[str, str] | None = None) -> int:
        async with self.kubelet.get(path, headers=headers) as answer:
            await answer.read()
            return answer.status

    async def stopping(self) -> int:
        return await self.get("/app-stopping", PASSWORD)


@asynccontextmanager
async def scene(port: int | None = None, **pod: object) -> AsyncIterator[Scene]:
    store = MemoryStore(Options())
    await store.open()
    area = {"token": PASSWORD[TOKEN_HEADER], **pod}
    settings = Settings.model_validate(
        {"pod": area, "drain": {"accept_seconds": 0.0, "timeout_seconds": 7.0}}
    )
    sender = Sender()
    address = None if port is None else ("127.0.0.1", port)

    async def passing(seconds: float) -> None:
        made.waited.append(seconds)
        await made.passing.wait()

    def end() -> None:
        made.serving = False
        made.ends += 1

    made_pod = Pod(
        settings,
        address=address,
        sending=[sender],
        passing=passing,
        is_serving=lambda: made.serving,
        end=end,
    )
    health = build_health_app(Stats(store, None, Lifecycle()), lambda: b"", made_pod.routes())
    async with TestClient(TestServer(health)) as kubelet:
        made = Scene(kubelet, made_pod, sender)
        made.passing.set()
        loop = asyncio.create_task(made_pod.run())
        try:
            yield made
        finally:
            loop.cancel()
            await asyncio.wait([loop])


def http_probe(port: int) -> dict[str, object]:
    return {"app": {"http": {"port": port, "timeout_seconds": 5.0}}}


def port_of(app: RawApp) -> int:
    return int(app.url.rpartition(":")[2])


def unused_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Answers:
    """An app whose answer can be changed."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    async def __call__(self, peer):  # type: ignore[no-untyped-def]
        while await peer.request():
            await peer.send(self.answer)


@contextlib.contextmanager
def listening(port: int) -> Iterator[None]:
    """An app as far as connecting tells."""
    with socket.create_server(("127.0.0.1", port), backlog=1000):
        yield


# --- readiness -------------------------------------------------------------------------------------------


async def test_readiness_is_the_apps_until_it_was_ready_once() -> None:
    answers = Answers(BUSY)
    async with running(answers) as app, scene(probes=http_probe(port_of(app))) as pod:
        before = await pod.get("/app-ready/app")
        answers.answer = OK
        first = await pod.get("/app-ready/app")
        answers.answer = BUSY
        overloaded = await pod.get("/app-ready/app")

    assert (before, first, overloaded) == (503, 200, 200)
    assert len(app.requests) == 2, "it is asked no more once it was ready"


async def test_after_that_readiness_means_that_we_serve() -> None:
    async with running(always(OK)) as app, scene(probes=http_probe(port_of(app))) as pod:
        await pod.get("/app-ready/app")
        pod.serving = False

        assert await pod.get("/app-ready/app") == 503


async def test_with_readiness_app_every_call_is_relayed() -> None:
    answers = Answers(OK)
    async with running(answers) as app, scene(probes=http_probe(port_of(app)), readiness="app") as pod:
        first = await pod.get("/app-ready/app")
        answers.answer = BUSY

        assert (first, await pod.get("/app-ready/app")) == (200, 503)


async def test_each_container_has_a_readiness_of_its_own() -> None:
    async with running(always(OK)) as ready, running(always(BUSY)) as busy:
        probes = {"app": http_probe(port_of(ready))["app"], "other": http_probe(port_of(busy))["app"]}
        async with scene(probes=probes) as pod:
            statuses = [await pod.get(f"/app-ready/{name}") for name in ("app", "other", "third")]

    assert statuses == [200, 503, 404]


async def test_many_who_ask_at_once_cost_the_app_one_probe() -> None:
    opened = asyncio.Event()

    async def slow(peer):  # type: ignore[no-untyped-def]
        await peer.request()
        await opened.wait()
        await peer.send(OK)

    async with running(slow) as app, scene(probes=http_probe(port_of(app))) as pod:
        asking = [asyncio.create_task(pod.get("/app-ready/app")) for _ in range(20)]
        while not app.requests:
            await asyncio.sleep(0)
        opened.set()

        assert await asyncio.gather(*asking) == [200] * 20
    assert app.connections < 20


# --- who may call the hooks ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/app-stopping", "/drain"])
@pytest.mark.parametrize("headers", [{}, {TOKEN_HEADER: ""}, {TOKEN_HEADER: TOKEN}, {TOKEN_HEADER: "\xe9"}])
async def test_hooks_need_the_token(path: str, headers: dict[str, str]) -> None:
    async with scene() as pod:
        assert await pod.get(path, headers) == 403
        assert (pod.sender.leasing, pod.ends) == (True, 0)


@pytest.mark.parametrize("path", ["/app-stopping", "/drain"])
async def test_without_a_token_configured_there_are_no_hooks(path: str) -> None:
    async with running(always(OK)) as app, scene(token=None, probes=http_probe(port_of(app))) as pod:
        assert await pod.get(path, PASSWORD) == 404
        assert await pod.get(path, {TOKEN_HEADER: ""}) == 404


@pytest.mark.parametrize("path", ["/app-stopping", "/drain"])
async def test_hooks_are_called_by_get_alone(path: str) -> None:
    async with scene() as pod:
        for method in ("HEAD", "POST"):
            async with pod.kubelet.request(method, path, headers=PASSWORD) as answer:
                assert answer.status == 405
        assert (pod.sender.leasing, pod.ends) == (True, 0)


# --- the app stops ---------------------------------------------------------------------------------------


async def test_the_hook_answers_when_nothing_is_in_flight() -> None:
    async with running(always(OK)) as app, scene(port_of(app)) as pod:
        pod.sender.is_quiet.clear()
        pod.passing.clear()
        hook = asyncio.create_task(pod.stopping())
        while pod.sender.leasing or not pod.waited:
            await asyncio.sleep(0)
        pod.sender.is_quiet.set()
        await pod.get("/livez")
        assert not hook.done(), "an answer is still on its way to a client"
        pod.passing.set()

        assert await hook == 200
        assert pod.waited == [7.0], "WebSockets have no end, so that wait has"
        assert (pod.sender.leasing, pod.pod.is_stopped) == (False, True)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[bool]:
    """What the sidecar sees of the app after a hook, look by look, with short pauses."""
    seen: asyncio.Queue[bool] = asyncio.Queue()
    look = pods.takes_connections

    async def noted(host: str, port: int) -> bool:
        found = await look(host, port)
        seen.put_nowait(found)
        return found

    monkeypatch.setattr(pods, "takes_connections", noted)
    monkeypatch.setattr(pods, "LOOK_SECONDS", 0.005)
    return seen


async def until(looks: asyncio.Queue[bool], wanted: bool) -> None:
    async with asyncio.timeout(5):
        while await looks.get() is not wanted:
            pass


async def test_the_hook_gives_routes_their_time_to_move() -> None:
    """What passes straight through still comes for a moment, and needs the app."""
    async with scene() as pod:
        drain = {"accept_seconds": 0.15, "timeout_seconds": 7.0}
        pod.pod.apply(Settings.model_validate({"drain": drain}))
        began = time.monotonic()

        assert await pod.stopping() == 200
        assert time.monotonic() - began >= 0.15


async def test_leasing_goes_on_when_the_app_is_back(looks: asyncio.Queue[bool]) -> None:
    port = unused_port()
    async with scene(port) as pod:
        with listening(port):
            await pod.stopping()
            await until(looks, True)
            assert not pod.sender.leasing, "the old process takes connections, but it is about to end"
        await until(looks, False)
        assert not pod.sender.leasing
        with listening(port):
            await asyncio.wait_for(pod.sender.resumed.wait(), 5)

        assert (pod.sender.leasing, pod.pod.is_stopped) == (True, False)


async def test_an_app_that_is_back_must_be_ready_too(looks: asyncio.Queue[bool]) -> None:
    port = unused_port()
    answers = Answers(BUSY)
    async with scene(port, probes=http_probe(port)) as pod:
        await pod.stopping()
        await until(looks, False)
        async with running(answers, port=port) as app:
            while not app.requests:
                await asyncio.sleep(0)
            assert not pod.sender.leasing
            answers.answer = OK
            await asyncio.wait_for(pod.sender.resumed.wait(), 5)


async def test_a_probe_that_never_succeeds_does_not_keep_requests_for_ever(
    looks: asyncio.Queue[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pods, "RESTART_SECONDS", 0.05)
    port = unused_port()
    async with scene(port, probes=http_probe(port)) as pod, running(always(BUSY), port=port):
        await pod.stopping()

        await asyncio.wait_for(pod.sender.resumed.wait(), 5)


async def test_an_app_that_never_went_away_gets_requests_again(
    looks: asyncio.Queue[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook was that of another container, which is restarted beside it."""
    monkeypatch.setattr(pods, "RESTART_SECONDS", 0.05)
    port = unused_port()
    with listening(port):
        async with scene(port) as pod:
            await pod.stopping()

            await asyncio.wait_for(pod.sender.resumed.wait(), 5)


async def test_leasing_stays_off_while_another_hook_waits(looks: asyncio.Queue[bool]) -> None:
    port = unused_port()
    async with scene(port) as pod:
        await pod.stopping()
        await until(looks, False)
        pod.sender.is_quiet.clear()
        second = asyncio.create_task(pod.stopping())
        while len(pod.waited) < 2:
            await asyncio.sleep(0)
        with listening(port):
            await until(looks, True)
            await pod.get("/livez")
            assert not pod.sender.leasing
            pod.sender.is_quiet.set()
            await second
        await until(looks, False)
        with listening(port):
            await asyncio.wait_for(pod.sender.resumed.wait(), 5)


# --- the Pod ends ----------------------------------------------------------------------------------------


async def test_drain_begins_the_end_and_answers_at_once() -> None:
    async with scene() as pod:
        pod.sender.is_quiet.clear()
        pod.passing.clear()

        assert await pod.get("/drain", PASSWORD) == 200
        assert pod.ends == 1


@pytest.mark.parametrize("order", [("drain", "app-stopping"), ("app-stopping", "drain")])
async def test_when_the_pod_ends_leasing_stays_off(
    order: tuple[str, str], looks: asyncio.Queue[bool]
) -> None:
    port = unused_port()
    async with scene(port) as pod:
        for path in order:
            assert await pod.get(f"/{path}", PASSWORD) == 200
        await until(looks, False)
        with listening(port):
            await until(looks, True)
            await pod.get("/livez")

            assert not pod.sender.leasing
