"""The ordering key of requests whose clients name none."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from openhqm.control import MAX_KEY_BYTES
from openhqm.ordering import MAX_JSON_BYTES, OrderingKey
from openhqm.settings import KeySettings
from openhqm.stores.base import BlobRef


def key_of(
    place: dict[str, str],
    target: bytes = b"/",
    *pairs: tuple[bytes, bytes],
    body: object = b"",
) -> bytes | None:
    found = OrderingKey.from_settings(KeySettings.model_validate(place))
    assert found is not None
    return found.in_request(target, pairs, body)


def test_without_a_place_there_is_nothing_to_look_for() -> None:
    assert OrderingKey.from_settings(KeySettings()) is None


@pytest.mark.parametrize(
    ("pairs", "key"),
    [
        ([(b"X-Customer", b"7")], b"7"),
        ([(b"x-customer", b"7"), (b"X-CUSTOMER", b"8")], b"7"),
        ([(b"X-Customers", b"7")], None),
        ([(b"X-Customer", b"")], None),
        ([], None),
    ],
)
def test_by_header(pairs: list[tuple[bytes, bytes]], key: bytes | None) -> None:
    assert key_of({"header": "X-Customer"}, b"/", *pairs) == key


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b"session=abc", b"abc"),
        (b"theme=dark; session=abc", b"abc"),
        (b"theme=dark;session=a=b;session=c", b"a=b"),
        (b"Session=abc", None),
        (b"xsession=abc", None),
        (b"session", None),
        (b"session=", None),
        (b"", None),
    ],
)
def test_by_cookie(value: bytes, key: bytes | None) -> None:
    assert key_of({"cookie": "session"}, b"/", (b"cookie", value)) == key


def test_a_cookie_may_be_in_any_of_several_headers() -> None:
    pairs = [(b"Cookie", b"a=1"), (b"Cookie", b"session=2")]

    assert key_of({"cookie": "session"}, b"/", *pairs) == b"2"


@pytest.mark.parametrize(
    ("regex", "target", "key"),
    [
        ("^/orders/([^/]+)", b"/orders/7/items?x=1", b"7"),
        ("/orders/([0-9]+)$", b"/v1/orders/7", b"7"),
        ("^/orders/([^/]+)", b"/carts/7", None),
        ("customer=([0-9]+)", b"/orders?customer=7", None),
        ("^/(?:a/([0-9])|b)", b"/b", None),
        ("^/orders/([^/]*)", b"/orders/", None),
        ("^/([^/]+)", b"/%41b", b"%41b"),
    ],
)
def test_by_path(regex: str, target: bytes, key: bytes | None) -> None:
    assert key_of({"path": regex}, target) == key


# The examples of RFC 6901 section 5 that lead to texts and numbers, and what is ours beside them.
DOCUMENT = {
    "foo": ["bar", "baz"],
    "": 0,
    "a/b": 1,
    "c%d": 2,
    'k"l': 6,
    " ": 7,
    "m~n": 8,
    "order": {"customer": "ann", "total": 1.5, "paid": True, "note": None, "empty": ""},
}


@pytest.mark.parametrize(
    ("pointer", "key"),
    [
        ("/foo/0", b"bar"),
        ("/foo/1", b"baz"),
        ("/", b"0"),
        ("/a~1b", b"1"),
        ("/c%d", b"2"),
        ('/k"l', b"6"),
        ("/ ", b"7"),
        ("/m~0n", b"8"),
        ("/order/customer", b"ann"),
        ("/order/total", b"1.5"),
        ("/order/paid", b"true"),
        ("/order/note", None),
        ("/order/empty", None),
        ("/order", None),
        ("/foo", None),
        ("/foo/2", None),
        ("/foo/00", None),
        ("/foo/-", None),
        ("/foo/-1", None),
        ("/foo/0/0", None),
        ("/order/customer/0", None),
        ("/nothing/there", None),
    ],
)
def test_by_json_pointer(pointer: str, key: bytes | None) -> None:
    assert key_of({"json": pointer}, body=orjson.dumps(DOCUMENT)) == key


def test_a_tilde_and_a_one_are_no_slash() -> None:
    assert key_of({"json": "/a~01"}, body=b'{"a~1": "yes", "a/": "no"}') == b"yes"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"customer=ann", id="a form"),
        pytest.param(b'{"customer": "an', id="cut off"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'"ann"', id="a text"),
        pytest.param(b'{"customer": "ann"}' + b" " * MAX_JSON_BYTES, id="large"),
        pytest.param(BlobRef("00-request", 19), id="kept elsewhere"),
    ],
)
def test_what_is_no_json_or_too_large_has_no_key(body: object) -> None:
    assert key_of({"json": "/customer"}, body=body) is None


def test_a_long_key_is_kept_by_its_hash() -> None:
    long, other = b"a" * (MAX_KEY_BYTES + 1), b"a" * MAX_KEY_BYTES + b"b"

    keys = {key_of({"header": "k"}, b"/", (b"k", value)) for value in (long, other)}

    assert len(keys) == 2
    assert all(key is not None and len(key) <= MAX_KEY_BYTES for key in keys)


def test_a_key_in_the_body_is_not_known_before_the_body() -> None:
    ordering = OrderingKey.from_settings(KeySettings.model_validate({"json": "/customer"}))

    assert ordering is not None
    assert ordering.in_head(b"/", [(b"customer", b"ann")]) is None


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ({"header": "a", "cookie": "b"}, "exclude each other"),
        ({"path": "^/orders/"}, "needs a group"),
        ({"path": "^/orders/(", }, "not a regular expression"),
        ({"path": r"^/\N{BULLET}/(.*)"}, "not a regular expression"),
        ({"json": "order"}, "should match pattern"),
        ({"json": "/a~2"}, "should match pattern"),
    ],
)  # fmt: skip
def test_a_place_that_is_none_is_refused(place: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        KeySettings.model_validate(place)
