"""An old HTTP app that knows nothing of queues: one process, threads, the standard library alone.

POST /orders?wait=0.2 takes that long and answers 201 with what it was sent and how often it ran;
GET /count tells how many POSTs ran; GET /healthz is its readiness; POST /die ends the process. Each run
appends a line to the file $RAN, which outlives the Pod.
"""

import hashlib
import json
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ran = 0
    lock = threading.Lock()

    def do_GET(self):
        self.answer(200, {"ran": Handler.ran, "pod": os.environ.get("HOSTNAME", "")})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path)
        if parts.path == "/die":
            os._exit(1)
        time.sleep(float(parse_qs(parts.query).get("wait", ["0"])[0]))
        digest = hashlib.sha256(body).hexdigest()
        with Handler.lock, open(os.environ["RAN"], "a") as ran:
            Handler.ran += 1
            ran.write(f"{digest}\n")
        self.answer(201, {"path": self.path, "sha256": digest, "size": len(body)})

    def answer(self, status, data):
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Legacy", "yes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128


signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
Server(("0.0.0.0", 8080), Handler).serve_forever()
