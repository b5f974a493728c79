"""The ordering key of a request whose client names none: from a header, a cookie, the path or the body. Pure.

Ingress asks once a request is to be queued, with `queue.key` set. Keys are compared byte for byte, as
they were sent. What cannot be found is no key, never an error: the request then keeps to no order.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from openhqm.control import MAX_KEY_BYTES
from openhqm.headers import Pair
from openhqm.settings import KeySettings

MAX_JSON_BYTES = 256 * 1024
"""Larger bodies are not looked into: reading one of this size takes a millisecond of everybody's time."""

_Find = Callable[[bytes, Sequence[Pair]], bytes | None]
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)


class OrderingKey:
    """Where the key is.

    Args:
        find: looks in target and headers; None where the body must be looked into.
        pointer: the reference tokens of the JSON Pointer, else none.
    """

    def __init__(self, find: _Find | None, pointer: Sequence[str] = ()) -> None:
        self._find = find
        self._pointer = pointer

    @classmethod
    def from_settings(cls, key: KeySettings) -> OrderingKey | None:
        """Return the place that is set; None without one."""
        if key.header is not None:
            return cls(_in_header(key.header.lower().encode()))
        if key.cookie is not None:
            return cls(_in_cookie(key.cookie.encode()))
        if key.path is not None:
            return cls(_in_path(re.compile(key.path.encode())))
        if key.json_field is not None:
            return cls(None, _tokens(key.json_field))
        return None

    def in_head(self, target: bytes, pairs: Sequence[Pair]) -> bytes | None:
        """Return the key if it is in the head of a request.

        Args:
            target: path and query as received.
        """
        return None if self._find is None else _bounded(self._find(target, pairs))

    def in_request(self, target: bytes, pairs: Sequence[Pair], body: object) -> bytes | None:
        """Return the key of a request.

        Args:
            body: bytes; anything else is a large body kept elsewhere, and has no key.
        """
        if self._find is not None:
            return self.in_head(target, pairs)
        if not isinstance(body, bytes) or len(body) > MAX_JSON_BYTES:
            return None
        return _bounded(_in_json(body, self._pointer))


def _bounded(key: bytes | None) -> bytes | None:
    """A long key by its hash: stores keep keys in indexes."""
    if not key:
        return None
    return key if len(key) <= MAX_KEY_BYTES else b"sha256:" + hashlib.sha256(key).hexdigest().encode()


def _in_header(name: bytes) -> _Find:
    def find(_target: bytes, pairs: Sequence[Pair]) -> bytes | None:
        return next((value for key, value in pairs if key.lower() == name), None)

    return find


def _in_cookie(name: bytes) -> _Find:
    def find(_target: bytes, pairs: Sequence[Pair]) -> bytes | None:
        for key, value in pairs:
            if key.lower() == b"cookie":
                for pair in value.split(b";"):
                    found, separator, content = pair.strip(b" \t").partition(b"=")
                    if separator and found == name:
                        return content
        return None

    return find


def _in_path(pattern: re.Pattern[bytes]) -> _Find:
    def find(target: bytes, _pairs: Sequence[Pair]) -> bytes | None:
        match = pattern.search(target.partition(b"?")[0])
        return match[1] if match else None

    return find


# --- JSON ------------------------------------------------------------------------------------------------


def _tokens(pointer: str) -> tuple[str, ...]:
    """Split a JSON Pointer. Source: RFC 6901 section 4; `~1` first, so that `~01` is a tilde and a 1."""
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:])


def _in_json(body: bytes, pointer: Sequence[str]) -> bytes | None:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    for token in pointer:
        value = _member(value, token)
    return _as_key(value)


def _member(value: Any, token: str) -> Any:
    if isinstance(value, dict):
        return value.get(token)
    if isinstance(value, list) and _INDEX.fullmatch(token) and int(token) < len(value):
        return value[int(token)]
    return None


def _as_key(value: Any) -> bytes | None:
    """A text, number or truth value; objects and lists have no one spelling, and null is nothing."""
    if isinstance(value, str):
        return value.encode()
    return orjson.dumps(value) if isinstance(value, (bool, int, float)) else None
