"""How records are shown to operators: everything that helps, nothing that lets them act as a caller."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from openhqm.envelope import Envelope
from openhqm.errors import BadRequest
from openhqm.stores.base import Answer, BlobRef, Body, Lane, Record, State
from openhqm.views import answer_parts, details, parse_id, summary

ID = uuid.UUID("0197f6a0-0000-7000-8000-000000000001")


def record(
    head: bytes = b"POST /orders HTTP/1.1\r\nHost: a\r\n\r\n", body: Body = b"", **given: Any
) -> Record:
    return Record(
        id=ID.bytes,
        lane=Lane.REQUESTS,
        state=given.pop("state", State.FAILED),
        priority=5,
        attempts=given.pop("attempts", 1),
        claims=0,
        epoch=1,
        accepted_at=1_750_000_000.0,
        ready_at=1_750_000_000.0,
        request=(Envelope(head=head).encode(), body),
        **given,
    )


def test_a_summary_says_what_was_asked() -> None:
    shown = summary(record(reason="outcome-unknown"))

    assert shown["id"] == str(ID)
    assert (shown["method"], shown["path"]) == ("POST", "/orders")
    assert (shown["state"], shown["reason"], shown["attempts"]) == ("failed", "outcome-unknown", 1)
    assert shown["accepted_at"] == "2025-06-15T15:06:40.000Z"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/a?id=7&token=abc", "/a?id=7&token=***"),
        ("/a?api_key=abc&API-KEY=d&x", "/a?api_key=***&API-KEY=***&x"),
        ("/a?", "/a?"),
        ("/a?tokens", "/a?tokens"),
    ],
)
def test_secrets_in_the_query_are_masked(path: str, shown: str) -> None:
    assert summary(record(f"GET {path} HTTP/1.1\r\n\r\n".encode()))["path"] == shown


def test_credentials_in_headers_are_masked() -> None:
    head = (
        b"POST / HTTP/1.1\r\nAuthorization: Bearer abc\r\nCookie: sid=abc\r\n"
        b"X-Auth-Token: abc\r\nX-Trace: abc\r\n\r\n"
    )
    answer = Answer(b"HTTP/1.1 200 OK\r\nSet-Cookie: sid=abc\r\nContent-Type: text/plain\r\n\r\n", b"hello")

    shown = details(record(head, answer=answer))

    assert dict(shown["request"]["headers"]) == {
        "Authorization": "***", "Cookie": "***", "X-Auth-Token": "***", "X-Trace": "abc",
    }  # fmt: skip
    assert dict(shown["answer"]["headers"]) == {"Set-Cookie": "***", "Content-Type": "text/plain"}
    assert (shown["answer"]["status"], shown["answer"]["body"]) == (200, "hello")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"plain", {"body_bytes": 5, "body_shown_bytes": 5, "body": "plain"}),
        (b"\xff\x00", {"body_bytes": 2, "body_shown_bytes": 2, "body_base64": "/wA="}),
        (BlobRef("ab", 10_000_000), {"body_bytes": 10_000_000}),
    ],
)
def test_bodies_are_shown_as_what_they_are(body: Body, expected: dict[str, Any]) -> None:
    shown = details(record(body=body))["request"]

    assert {name: value for name, value in shown.items() if name.startswith("body")} == expected


def test_a_long_text_is_cut_between_characters() -> None:
    """A preview that ends inside a character is still shown as text."""
    body = ("x" + "é" * 20_000).encode()

    shown = details(record(body=body))["request"]

    assert shown["body_bytes"] == 40_001
    assert shown["body"] == body[: shown["body_shown_bytes"]].decode()


def test_a_request_that_cannot_be_decoded_is_shown_without_it() -> None:
    broken = record()
    poison = Record(**{name: getattr(broken, name) for name in Record.__slots__} | {"request": (b"?", b"")})

    assert details(poison)["request"] is None
    assert "method" not in summary(poison)


def test_history_is_read_line_by_line() -> None:
    shown = details(record(history=b'{"attempt":1,"at":1750000000.25,"status":503}\nnot json\n7\n'))

    assert shown["history"] == [
        {"attempt": 1, "at": "2025-06-15T15:06:40.250Z", "status": 503},
        {"note": "not json"},
        {"note": "7"},
    ]


def test_answers_without_a_readable_status_count_as_bad_gateway() -> None:
    assert answer_parts(Answer(b"nonsense")) == (502, [])


@pytest.mark.parametrize("text", [str(ID), f"{ID}.k1.mac", ID.hex])
def test_ids_and_handles_name_a_record(text: str) -> None:
    assert parse_id(text) == ID.bytes


@pytest.mark.parametrize("text", ["", "7", "zzz.k1.mac"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_id(text)
