"""The demo's app: an order service of the kind OpenHQM is for. Slow, fragile, knows nothing of queues.

Standard library only, and its own process (`python -m openhqm.demo_app PORT`).

    PUT  /orders/N     works slowly, then 201 with the order; N = 7 fails once with 503 first
    POST /payments     dies in the middle: the connection ends without an answer
    GET  /             200, at once
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WORK_SECONDS = 0.2
CAPACITY = 8
"""More at once than this, and it answers 503: the burst would break it."""

HICCUP = "/orders/7"

_slots = threading.BoundedSemaphore(CAPACITY)
_stumbled = threading.Event()


class OrderService(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server_version = "LegacyOrders/1.0"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer(200, {"service": "orders"})

    def do_POST(self) -> None:
        self._read_body()
        time.sleep(WORK_SECONDS)
        self.close_connection = True  # was the payment made? nobody can tell

    def do_PUT(self) -> None:
        body = self._read_body()
        if not _slots.acquire(blocking=False):
            self._answer(503, {"error": "overloaded"})
            return
        try:
            time.sleep(WORK_SECONDS)
        finally:
            _slots.release()
        if self.path == HICCUP and not _stumbled.is_set():
            _stumbled.set()
            self._answer(503, {"error": "database is restarting"})
            return
        order = {"order": self.path.rpartition("/")[2], "receipt": receipt(body)}
        self._answer(201, order)

    def _read_body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def _answer(self, status: int, data: dict[str, str]) -> None:
        body = json.dumps(data).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def receipt(body: bytes) -> str:
    """What the app makes of a body: only the right answer has it."""
    return hashlib.sha256(body).hexdigest()[:16]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def main(port: int) -> None:
    """Serve until ended from outside."""
    _Server(("127.0.0.1", port), OrderService).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]))
