"""Asking a container whether it is ready: against servers that behave, misbehave, or are not there."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
from tests.sidecar.raw_app import Peer, always, running

from openhqm.app_probes import build_ask, takes_connections
from openhqm.settings import Probe

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


async def ask(kind: str, port: int, **probe: object) -> bool:
    settings = Probe.model_validate({kind: {"port": port, "timeout_seconds": 5.0, **probe}})
    return await build_ask(settings, "127.0.0.1")()


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def unused_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


# --- HTTP ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.0 204 No Content\r\n\r\n", True),
        (b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n", True),
        (b"HTTP/1.1 399\r\n\r\n", True),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False),
        (b"HTTP/1.1 199 Odd\r\n\r\n", False),
        (b"HTTP/2 200 OK\r\n\r\n", False),
        (b"SSH-2.0-OpenSSH_9.6\r\n", False),
        (b"HTTP/1.1 abc\r\n\r\n", False),
        (b"HTTP/1.1 200 " + b"x" * 20_000, False),
        (b"", False),
    ],
)
async def test_by_http_the_status_decides(answer: bytes, ready: bool) -> None:
    async with running(always(answer, close=True)) as app:
        assert await ask("http", port_of(app.url)) is ready


async def test_by_http_it_asks_as_the_kubelet_would() -> None:
    async with running(always(OK)) as app:
        port = port_of(app.url)
        headers = [["X-Token", "abc"], ["host", "app.example"]]

        assert await ask("http", port, path="/ready?deep=1", headers=headers)

    [asked] = app.requests
    first, *lines = asked.split(b"\r\n")
    assert first == b"GET /ready?deep=1 HTTP/1.1"
    assert {b"X-Token: abc", b"host: app.example", b"Accept: */*", b"Connection: close"} <= set(lines)
    assert not any(line.startswith(b"Host:") for line in lines)
    assert any(line.startswith(b"User-Agent: kube-probe/") for line in lines)


async def test_by_https_the_certificate_is_not_judged(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async with running(always(OK), tls=context) as app:
        assert await ask("http", port_of(app.url), scheme="HTTPS")
        assert not await ask("http", port_of(app.url))


# --- every kind ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["http", "tcp", "grpc"])
async def test_nobody_there_is_a_no(kind: str) -> None:
    assert not await ask(kind, unused_port())


@pytest.mark.parametrize("kind", ["http", "grpc"])
async def test_who_does_not_answer_in_time_is_a_no(kind: str) -> None:
    async def silent(peer: object) -> None:
        await asyncio.Event().wait()

    async with running(silent) as app:
        began = time.monotonic()

        assert not await ask(kind, port_of(app.url), timeout_seconds=0.1)
        assert time.monotonic() - began < 2


async def test_by_tcp_a_connection_is_enough() -> None:
    async with running(always()) as app:
        assert await ask("tcp", port_of(app.url))
        assert await takes_connections("127.0.0.1", port_of(app.url))


# --- gRPC ------------------------------------------------------------------------------------------------


class HealthServer:
    """A gRPC health service on the h2 library: what it was asked, and what it answers."""

    def __init__(self, answer: Callable[[h2.connection.H2Connection, int, bytes], None]) -> None:
        self._answer = answer
        self.headers: dict[bytes, bytes] = {}
        self.asked = b""

    async def serve(self, peer: Peer) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        connection.ping(b"are you?")
        await peer.send(connection.data_to_send())
        while data := await peer.reader.read(65536):
            for event in connection.receive_data(data):
                self._take(connection, event)
            await peer.send(connection.data_to_send())

    def _take(self, connection: h2.connection.H2Connection, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self.headers = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self.asked += event.data
        elif isinstance(event, h2.events.StreamEnded):
            self._answer(connection, event.stream_id, self.asked)


@asynccontextmanager
async def health_server(
    answer: Callable[[h2.connection.H2Connection, int, bytes], None],
) -> AsyncIterator[tuple[HealthServer, int]]:
    server = HealthServer(answer)
    async with running(server.serve) as app:
        yield server, port_of(app.url)


RESPONSE = [(":status", "200"), ("content-type", "application/grpc")]


def status(message: bytes) -> Callable[[h2.connection.H2Connection, int, bytes], None]:
    def answer(connection: h2.connection.H2Connection, stream: int, _: bytes) -> None:
        connection.send_headers(stream, RESPONSE)
        connection.send_data(stream, len(message).to_bytes(5, "big") + message, pad_length=7)
        connection.send_headers(stream, [("grpc-status", "0")], end_stream=True)

    return answer


def unimplemented(connection: h2.connection.H2Connection, stream: int, _: bytes) -> None:
    connection.send_headers(stream, [*RESPONSE, ("grpc-status", "12")], end_stream=True)


def resets(connection: h2.connection.H2Connection, stream: int, _: bytes) -> None:
    connection.reset_stream(stream)


def goes_away(connection: h2.connection.H2Connection, stream: int, _: bytes) -> None:
    connection.close_connection()


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        pytest.param(status(b"\x08\x01"), True, id="SERVING"),
        pytest.param(status(b"\x08\x02"), False, id="NOT_SERVING"),
        pytest.param(status(b""), False, id="UNKNOWN"),
        pytest.param(unimplemented, False, id="unimplemented"),
        pytest.param(resets, False, id="reset"),
        pytest.param(goes_away, False, id="goes away"),
    ],
)
async def test_by_grpc_the_health_service_decides(
    answer: Callable[[h2.connection.H2Connection, int, bytes], None], ready: bool
) -> None:
    async with health_server(answer) as (server, port):
        assert await ask("grpc", port) is ready

    assert server.headers[b":path"] == b"/grpc.health.v1.Health/Check"
    assert server.headers[b"content-type"] == b"application/grpc"
    assert server.asked == b"\0\0\0\0\0"


async def test_by_grpc_a_service_is_asked_about_by_name() -> None:
    async with health_server(status(b"\x08\x01")) as (server, port):
        assert await ask("grpc", port, service="orders")

    assert server.asked == b"\0\0\0\0\x08\x0a\x06orders"


async def test_by_grpc_a_web_server_is_a_no() -> None:
    async with running(always(b"HTTP/1.1 400 Bad Request\r\n\r\n", close=True)) as app:
        assert not await ask("grpc", port_of(app.url))


def self_signed(folder: Path) -> Path:
    """A certificate and its key in one file, for a name that nobody has."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nobody.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now - timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path
