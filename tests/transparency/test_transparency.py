"""The app cannot tell the queue from its client, nor the client the queue from the app.

Every shape is sent twice, straight to a recording app and through the queue; the two recordings must
be equal once `allowed_differences.py` is applied.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import h11
import pytest
import pytest_asyncio
from tests.integration.harness import Process, sidecar
from tests.transparency.allowed_differences import Pairs, answer_as_allowed, request_as_allowed
from tests.transparency.shapes import ANSWERS, REQUESTS, AnswerShape, RequestShape

HELD = b"Prefer: wait=20\r\n"


class RecordingApp:
    """Keeps the bytes of the last request per tag and answers what it was told to."""

    def __init__(self) -> None:
        self.seen: dict[bytes, tuple[bytes, Pairs, bytes]] = {}
        self.answers: dict[bytes, AnswerShape] = {}
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**24)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the other side went away between requests
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        line, pairs = parse_head(await reader.readuntil(b"\r\n\r\n"))
        body = await read_body(reader, pairs)
        tag = dict(pairs)[b"X-Tag"]
        self.seen[tag] = (line, pairs, body)
        answer = self.answers.get(tag)
        writer.write(answer.raw if answer else b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        return not (answer and answer.closes)


def parse_head(head: bytes) -> tuple[bytes, Pairs]:
    """Request or status line and header pairs, values stripped of the optional white space only."""
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    pairs = [(name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]
    return first, pairs


async def read_body(reader: asyncio.StreamReader, pairs: Pairs) -> bytes:
    """The body by its framing: chunked, by length, or none."""
    headers = {name.lower(): value for name, value in pairs}
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        body = b""
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readuntil(b"\r\n")
        return body
    return await reader.readexactly(int(headers.get(b"content-length", b"0")))


async def ask(port: int, raw: bytes, method: bytes) -> tuple[bytes, Pairs, bytes]:
    """Send raw bytes, read one answer with h11: status and reason, headers as written, body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    client = h11.Connection(h11.CLIENT, max_incomplete_event_size=2**20)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "x"), ("Content-Length", "0")]))
    client.send(h11.EndOfMessage())
    writer.write(raw)
    body = b""
    try:
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA:
                client.receive_data(await reader.read(2**20))
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
    finally:
        writer.close()
    pairs = [(bytes(name), bytes(value)) for name, value in response.headers.raw_items()]
    return b"%d %s" % (response.status_code, bytes(response.reason)), pairs, body


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[RecordingApp, Process]]:
    """A recording app with the sidecar before it."""
    folder: Path = tmp_path_factory.mktemp("transparency")
    app = RecordingApp()
    await app.start()
    process = sidecar(folder, app.port, f"sqlite:///{folder / 'openhqm.db'}")
    process.start()
    try:
        await process.listening()
        yield app, process
    finally:
        process.kill()
        await app.stop()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("shape", REQUESTS, ids=lambda shape: shape.name)
async def test_app_sees_the_same_request(pair: tuple[RecordingApp, Process], shape: RequestShape) -> None:
    app, process = pair
    direct, queued = f"direct {shape.name}".encode(), f"queued {shape.name}".encode()
    held = b"" if b"Prefer" in shape.headers else HELD

    await ask(app.port, shape.raw(direct.hex().encode()), shape.method)
    await ask(process.port, shape.raw(queued.hex().encode(), held), shape.method)
    if not held:
        await seen_soon(app, queued.hex().encode())

    expected, found = app.seen[direct.hex().encode()], app.seen[queued.hex().encode()]
    assert found[0] == expected[0]
    assert untagged(request_as_allowed(found[1])) == untagged(request_as_allowed(expected[1]))
    assert found[2] == expected[2]


async def seen_soon(app: RecordingApp, tag: bytes) -> None:
    """Wait for a request that was not held."""
    async with asyncio.timeout(10):
        while tag not in app.seen:
            await asyncio.sleep(0.01)


def untagged(pairs: Pairs) -> Pairs:
    return [(name, value) for name, value in pairs if name != b"X-Tag"]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("shape", ANSWERS, ids=lambda shape: shape.name)
async def test_client_sees_the_same_answer(pair: tuple[RecordingApp, Process], shape: AnswerShape) -> None:
    app, process = pair
    tag = f"answer {shape.name}".encode().hex().encode()
    app.answers[tag] = shape
    request = RequestShape(shape.name, method=shape.method, body=b"b")

    expected = await ask(app.port, request.raw(tag), shape.method)
    found = await ask(process.port, request.raw(tag, HELD), shape.method)

    assert found[0] == expected[0]
    assert answer_as_allowed(found[1]) == answer_as_allowed(expected[1])
    assert found[2] == expected[2]


def test_there_are_sixty_of_each() -> None:
    assert len(REQUESTS) >= 60
    assert len(ANSWERS) >= 60
