"""Heads of answers that were parsed before, by their exact bytes.

What the parser and our judgement make of a head depends on nothing but its bytes, and an app writes the
same head for many answers: apart from the length, only its Date changes, once a second. `Connection`
looks here first when an answer begins, and need not parse one whose head is known and whose body came
with it. That spares 5 us of 42 per replayed request; where no two heads are the same (a request id in
each) looking and keeping cost 1.3. tests/sidecar/test_http1.py runs its table against known heads too.
"""

from __future__ import annotations

from dataclasses import dataclass

Headers = list[tuple[bytes, bytes]]

MOST_HEADS = 256
LONGEST_HEAD_BYTES = 2048


@dataclass(slots=True)
class Head:
    """A head that was found good, followed by a body of Content-Length bytes, connection kept.

    Args:
        raw: status line and header lines with the empty line behind them.
        headers: shared by all its answers; nobody changes them.
        body_bytes: its Content-Length.
        stored: the forwarder's: what it stores of this head, b"" where it must look each time.
    """

    raw: bytes
    status: int
    reason: bytes
    headers: Headers
    version: str
    body_bytes: int
    stored: bytes = b""


class KnownHeads:
    """The heads of one app's answers, the latest few hundred."""

    def __init__(self) -> None:
        self._heads: dict[bytes, Head] = {}
        self._last: Head | None = None

    def find(self, data: bytes) -> Head | None:
        """Return the head of *data* if it is known and *data* is one whole answer."""
        last = self._last  # most often it is the same again: no slice to be hashed
        if last is not None and data.startswith(last.raw) and len(last.raw) + last.body_bytes == len(data):
            return last
        end = data.find(b"\r\n\r\n") + 4
        head = self._heads.get(data[:end])
        if head is None or end + head.body_bytes != len(data):
            return None
        self._last = head
        return head

    def keep(self, head: Head) -> None:
        """Know *head* from now on."""
        if len(head.raw) <= LONGEST_HEAD_BYTES:
            if len(self._heads) >= MOST_HEADS:
                self._heads.clear()  # most are of seconds gone by
            self._heads[head.raw] = head
