"""The app behind the sidecar in crash tests: writes down what it ran, answers with the caller's secret.

`python tests/integration/journal_app.py PORT JOURNAL [--delay-seconds S]`. A request's body is
`<uuid> <secret>`; the journal gets `start <uuid>` before and `end <uuid>` after the work, each in one
append. Raw asyncio, so that nothing between the socket and the journal can re-send or merge.
"""

from __future__ import annotations

import argparse
import asyncio
import os


class JournalApp(asyncio.Protocol):
    """Runs one request after the other per connection."""

    def __init__(self, journal: int, delay_seconds: float) -> None:
        self._journal = journal
        self._delay_seconds = delay_seconds
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (request := self._next_request()) is not None:
            self._start(request)

    def _next_request(self) -> bytes | None:
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return None
        size = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                size = int(value)
        if len(rest) < size:
            return None
        self._buffer = rest[size:]
        return rest[:size]

    def _start(self, body: bytes) -> None:
        uuid, _, secret = body.partition(b" ")
        os.write(self._journal, b"start %s\n" % uuid)
        asyncio.get_running_loop().call_later(self._delay_seconds, self._finish, uuid, secret)

    def _finish(self, uuid: bytes, secret: bytes) -> None:
        assert self._transport is not None
        os.write(self._journal, b"end %s\n" % uuid)
        body = uuid + b" " + secret.split(b" ", 1)[0]
        self._transport.write(
            b"HTTP/1.1 201 Created\r\nX-Secret: %s\r\nContent-Length: %d\r\n\r\n%s"
            % (secret.split(b" ", 1)[0], len(body), body)
        )


async def serve(port: int, journal_path: str, delay_seconds: float) -> None:
    journal = os.open(journal_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    server = await asyncio.get_running_loop().create_server(
        lambda: JournalApp(journal, delay_seconds), "127.0.0.1", port, backlog=512
    )
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("journal")
    parser.add_argument("--delay-seconds", type=float, default=0.0)
    args = parser.parse_args()
    asyncio.run(serve(args.port, args.journal, args.delay_seconds))
