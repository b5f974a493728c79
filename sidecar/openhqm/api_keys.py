"""Who may use the submit API: API keys, as Bearer token or X-API-Key.

`submit.py` and `original_api.py` ask before they read a body. Keys are compared in constant time and
never logged.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import SecretStr

from openhqm.errors import Unauthorized
from openhqm.headers import Pair


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling.

    Args:
        key: the valid API key that was presented; None where none is needed.
    """

    key: bytes | None


class ApiKeys:
    """The keys in force; without any, everyone may call."""

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        self._digests = [_digest(key.get_secret_value().encode()) for key in keys]

    def check(self, pairs: Sequence[Pair]) -> Caller:
        """Return who is calling.

        Raises:
            Unauthorized: no key was presented, or none of ours.
        """
        if not self._digests:
            return Caller(None)
        valid = [key for key in _presented(pairs) if self._knows(key)]
        if not valid:
            raise Unauthorized("send an API key as Authorization: Bearer, or as X-API-Key")
        return Caller(valid[0])

    def _knows(self, key: bytes) -> bool:
        digest = _digest(key)
        # All are compared, and by digests of one length: time tells neither which nor how much.
        return sum([hmac.compare_digest(digest, known) for known in self._digests]) > 0


def _presented(pairs: Sequence[Pair]) -> list[bytes]:
    found = []
    for name, value in pairs:
        lower = name.lower()
        if lower == b"x-api-key":
            found.append(value)
        elif lower == b"authorization" and value[:7].lower() == b"bearer ":
            found.append(value[7:].strip())
    return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
