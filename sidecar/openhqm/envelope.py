"""The stored request and the stored answer, and their byte format (wire format v1).

Ingress builds an `Envelope` once, with the request head exactly as it will be replayed; egress
sends those bytes. Pure: no I/O, no clock. Stores treat the encoded form as opaque.

    envelope   = attributes LF request-head
    attributes = one line of JSON: {"v": 1, ...}; keys with default values are left out
    head       = request line and header lines, each ended by CRLF, then an empty line (RFC 9112)

The body travels beside it, raw. Any language can read both parts; there is nothing to unpickle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from openhqm.errors import EnvelopeCorrupt

FORMAT_VERSION = 1


@dataclass(slots=True)  # one per request, and not frozen: that would treble what it costs
class Envelope:
    """One request as it will be replayed.

    Args:
        head: request line and header lines up to and including the empty line, ready to send.
        target: "app", "endpoint:<name>" or "handler:<name>".
        timeout_seconds: for one attempt; None takes `egress.app_timeout_seconds`.
        max_attempts: None takes `retry.max_attempts`.
        repeat: whether an attempt whose outcome is unknown may be run again (design R4).
        peer: address of the original client, for logs and the dead letter view.
    """

    head: bytes
    target: str = "app"
    timeout_seconds: float | None = None
    max_attempts: int | None = None
    repeat: bool = False
    peer: str = ""

    @property
    def method(self) -> bytes:
        """The request method as the client wrote it."""
        return self.head[: self.head.index(b" ")]

    @property
    def path(self) -> bytes:
        """The raw request target: path and query, never normalised."""
        return self.head[self.head.index(b" ") + 1 : self.head.index(b" HTTP/1.1\r\n")]

    def encode(self) -> bytes:
        """Return the wire form; see the module docstring."""
        attributes: dict[str, Any] = {"v": FORMAT_VERSION}
        if self.target != "app":
            attributes["target"] = self.target
        if self.timeout_seconds is not None:
            attributes["timeout_seconds"] = self.timeout_seconds
        if self.max_attempts is not None:
            attributes["max_attempts"] = self.max_attempts
        if self.repeat:
            attributes["repeat"] = True
        if self.peer:
            attributes["peer"] = self.peer
        return orjson.dumps(attributes) + b"\n" + self.head

    @classmethod
    def decode(cls, data: bytes) -> Envelope:
        """Read the wire form back.

        Raises:
            EnvelopeCorrupt: the bytes are not an envelope of a version this build knows.
        """
        line, _, head = data.partition(b"\n")
        attributes = _attributes(line)
        if not head.endswith(b"\r\n\r\n") or head.find(b" HTTP/1.1\r\n") < 0:  # `in` takes 0.1 us more
            raise EnvelopeCorrupt("the envelope's request head is incomplete")
        return cls(head, *attributes)


def unreadable(reason: str) -> bytes:
    """Return what stands in the place of an envelope for bytes that are none: reading it says *reason*."""
    return orjson.dumps({"v": FORMAT_VERSION, "unreadable": reason}) + b"\n"


@lru_cache(maxsize=1024)  # clients come back with the same few lines: 0.2 us instead of 0.9 for each
def _attributes(line: bytes) -> tuple[str, float | None, int | None, bool, str]:
    """Read an attribute line: the fields of `Envelope` after the head, in their order."""
    try:
        attributes = orjson.loads(line)
        version = attributes.pop("v")
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError) as exc:
        raise EnvelopeCorrupt("the envelope's attribute line cannot be read") from exc
    if version != FORMAT_VERSION:
        raise EnvelopeCorrupt(f"envelope format {version} is newer than this build reads")
    if "unreadable" in attributes:
        raise EnvelopeCorrupt(str(attributes["unreadable"]))
    try:
        read = Envelope(b"", **attributes)
    except TypeError as exc:
        raise EnvelopeCorrupt(f"unknown envelope attribute: {exc}") from exc
    return read.target, read.timeout_seconds, read.max_attempts, read.repeat, read.peer
