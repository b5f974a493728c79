"""Correlation ids and the handles that give access to their records.

    handle = <uuid>.<key id>.<mac>

The id is logged and shown everywhere; only who holds the mac may read. `key id` names the signing
key without revealing it, so that keys can be rotated: the first one signs, all of them verify.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import struct
import time
import uuid
from collections.abc import Callable, Sequence

from openhqm.errors import UnknownHandle

ID_TEXT_LENGTH = 36
"""Of the correlation id a handle begins with."""
_MAC_BYTES = 16
_POOL_IDS = 512


class IdMint:
    """Mints UUIDv7 ids, 16 bytes each, strictly increasing within the process.

    48 bits of milliseconds and a 12-bit counter that borrows from the clock when it is used up, then
    62 random bits, which keep ids of different processes apart.
    Source: RFC 9562 sections 5.7 and 6.2 (method 1).
    """

    def __init__(self, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._clock_ns = clock_ns
        self._last = 0
        self._tails: list[int] = []

    def __call__(self) -> bytes:
        """Return a new id."""
        self._last = max(self._clock_ns() // 1_000_000 << 12, self._last + 1)
        head = self._last >> 12 << 16 | 0x7000 | self._last & 0xFFF
        return (head << 64 | self._tail()).to_bytes(16, "big")

    def _tail(self) -> int:
        """Return the variant and 62 random bits."""
        if not self._tails:
            # One system call for many ids: urandom costs more than the rest of an id.
            self._tails = list(struct.unpack(f">{_POOL_IDS}Q", os.urandom(8 * _POOL_IDS)))
        return 1 << 63 | self._tails.pop() >> 2


class Handles:
    """Signs ids and verifies handles.

    Args:
        keys: secrets; the first signs, all verify.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys:
            raise ValueError("handles need at least one key")
        # Keyed once: copying a state that has taken the key halves the cost of a mac.
        self._macs = {_key_id(key): hmac.new(key, b"openhqm handle v1\0", "sha256") for key in keys}
        self._signing = _key_id(keys[0])

    def handle(self, id: bytes) -> str:
        """Return the handle of a record."""
        return self._signed(id, self._signing)

    def verify(self, handle: str) -> bytes:
        """Return the id a handle gives access to.

        Raises:
            UnknownHandle: malformed, made up, or signed by a key we do not have; never says which.
        """
        id_text, _, rest = handle.partition(".")
        key_id = rest.partition(".")[0]
        try:
            id = uuid.UUID(id_text).bytes
        except ValueError:
            raise UnknownHandle("no such request") from None
        known = key_id in self._macs
        expected = self._signed(id, key_id if known else self._signing)
        # The whole text is compared, so that every record has exactly one spelling of its handle.
        same = hmac.compare_digest(expected.encode(), handle.encode("utf-8", "replace"))
        if not (same and known):
            raise UnknownHandle("no such request")
        return id

    def _signed(self, id: bytes, key_id: str) -> str:
        mac = self._macs[key_id].copy()
        mac.update(id)
        text = base64.urlsafe_b64encode(mac.digest()[:_MAC_BYTES])[:-2].decode()
        return f"{id_text(id)}.{key_id}.{text}"


def id_text(id: bytes) -> str:
    """Return an id as people see it: the canonical UUID text."""
    digits = id.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"openhqm handle key id v1\0" + key).hexdigest()[:8]
