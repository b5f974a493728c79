"""The wire format: what is written is read back, and what is not of it is refused with a reason."""

from __future__ import annotations

import base64
import uuid
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openhqm import wire
from openhqm.brokers.base import Abilities, Message
from openhqm.envelope import Envelope
from openhqm.errors import EnvelopeCorrupt
from openhqm.stores.base import Durability, Outbound

ROOMY = Abilities(Durability.POWER, ordered=True, tells_backlog=True, max_message_bytes=1 << 20)
SHORT = Abilities(
    Durability.POWER, ordered=True, tells_backlog=True, max_message_bytes=1 << 20, max_attribute_bytes=40
)
FEW = Abilities(
    Durability.POWER, ordered=True, tells_backlog=True, max_message_bytes=1 << 20, max_attributes=5
)
TEXT = Abilities(
    Durability.POWER, ordered=True, tells_backlog=True, max_message_bytes=1 << 20, carries_bytes=False
)
every_broker = pytest.mark.parametrize("abilities", [ROOMY, SHORT, FEW, TEXT])

HEAD = (
    b"POST /a%20b?x=1&x=2 HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nx-a: caf\xe9\r\nContent-Type: text/plain\r\n\r\n"
)
ID = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")


def record(head: bytes = HEAD, **changes: Any) -> Outbound:
    fields = {
        "id": ID.bytes,
        "envelope": Envelope(head).encode(),
        "body": b"",
        "accepted_at": 1_700_000_000.25,
        "deadline": None,
        **changes,
    }
    return Outbound(**fields)


def test_all_of_a_request_stands_in_attributes_and_its_body_is_raw() -> None:
    message = wire.encode_request(record(priority=7, key=b"a/b", deadline=1_700_000_100.0), b"\x00raw", ROOMY)

    assert message.body == b"\x00raw"
    assert message.key == b"a/b"
    assert message.id == str(ID)
    assert message.attributes == {
        "openhqm-format": "1",
        "openhqm-id": str(ID),
        "openhqm-method": "POST",
        "openhqm-path": "/a%20b?x=1&x=2",
        "openhqm-headers": '[["Host","h"],["X-A","1"],["x-a","caf\\u00e9"],["Content-Type","text/plain"]]',
        "openhqm-accepted": "2023-11-14T22:13:20.250Z",
        "openhqm-deadline": "2023-11-14T22:15:00.000Z",
        "openhqm-priority": "7",
        "openhqm-key": "a/b",
        "content-type": "text/plain",
    }


@pytest.mark.parametrize("abilities", [SHORT, FEW, TEXT])
def test_where_attributes_do_not_suffice_the_body_is_a_document(abilities: Abilities) -> None:
    message = wire.encode_request(record(), b"text", abilities)

    assert message.attributes == {
        "openhqm-format": "1+json",
        "openhqm-id": str(ID),
        "content-type": "application/json",
    }
    assert orjson.loads(message.body) == {
        "format": 1,
        "id": str(ID),
        "method": "POST",
        "path": "/a%20b?x=1&x=2",
        "headers": [["Host", "h"], ["X-A", "1"], ["x-a", "café"], ["Content-Type", "text/plain"]],
        "accepted": "2023-11-14T22:13:20.250Z",
        "body": "text",
    }


def test_bytes_that_are_not_text_are_base64_in_a_document() -> None:
    document = orjson.loads(wire.encode_request(record(), b"\xff\x00", TEXT).body)
    assert base64.b64decode(document["body_base64"]) == b"\xff\x00"
    assert "body" not in document


@every_broker
def test_an_ordinary_request_comes_back(abilities: Abilities) -> None:
    found = wire.decode_request(wire.encode_request(record(), b"body", abilities))
    assert found == wire.Carried(ID.bytes, record().envelope, b"body", accepted_at=1_700_000_000.25)


@every_broker
@pytest.mark.parametrize(
    "head",
    [
        b"DELETE / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost:h\r\nA:  spaced \r\nEmpty: \r\nBare:\r\n\r\n",
        b"POST /\xff HTTP/1.1\r\nX: \x80\xff\ttab\r\n\r\n",
    ],
    ids=["no-headers", "odd-spaces", "high-bytes"],
)
def test_every_head_comes_back_byte_for_byte(head: bytes, abilities: Abilities) -> None:
    found = wire.decode_request(wire.encode_request(record(head), b"", abilities))
    assert Envelope.decode(found.envelope).head == head


_names = st.text("abcXYZ-_09!#", min_size=1, max_size=8).map(str.encode)
_values = st.binary(max_size=20).map(lambda raw: raw.translate(None, b"\0\r\n"))
_heads = st.builds(
    lambda method, path, pairs: (
        b"%b /%b HTTP/1.1\r\n%b\r\n" % (method, path, b"".join(b"%b: %b\r\n" % pair for pair in pairs))
    ),
    st.sampled_from([b"POST", b"PATCH", b"M-SEARCH"]),
    st.binary(max_size=10).map(lambda raw: bytes(byte for byte in raw if byte > 0x20 and byte != 0x7F)),
    st.lists(st.tuples(_names, _values), max_size=5),
)
_envelopes = st.builds(
    Envelope,
    _heads,
    target=st.sampled_from(["app", "endpoint:billing"]),
    timeout_seconds=st.none() | st.floats(0.1, 100),
    max_attempts=st.none() | st.integers(1, 9),
    repeat=st.booleans(),
    peer=st.sampled_from(["", "10.0.0.1"]),
)


@given(
    envelope=_envelopes,
    body=st.binary(max_size=50),
    key=st.none() | st.binary(min_size=1, max_size=10),
    priority=st.integers(0, 9),
    deadline=st.none() | st.integers(1_700_000_000, 1_800_000_000),
    abilities=st.sampled_from([ROOMY, SHORT, FEW, TEXT]),
)
def test_every_request_comes_back(
    envelope: Envelope,
    body: bytes,
    key: bytes | None,
    priority: int,
    deadline: int | None,
    abilities: Abilities,
) -> None:
    sent = record(envelope=envelope.encode(), key=key, priority=priority, deadline=deadline)
    found = wire.decode_request(wire.encode_request(sent, body, abilities))
    assert (found.body, found.key, found.priority, found.deadline) == (body, key, priority, deadline)
    assert Envelope.decode(found.envelope) == envelope


@given(
    status=st.integers(200, 599),
    headers=st.lists(st.tuples(_names, _values), max_size=5),
    body=st.binary(max_size=50),
    abilities=st.sampled_from([ROOMY, SHORT, FEW, TEXT]),
)
def test_every_answer_comes_back(
    status: int, headers: list[tuple[bytes, bytes]], body: bytes, abilities: Abilities
) -> None:
    message = wire.encode_answer(ID.bytes, status, headers, body, abilities)
    assert wire.decode_answer(message) == wire.CarriedAnswer(ID.bytes, status, headers, body)


def test_an_answer_and_its_request_have_different_ids_for_the_broker() -> None:
    request = wire.encode_request(record(), b"", ROOMY)
    answer = wire.encode_answer(ID.bytes, 200, [], b"", ROOMY)
    assert request.id != answer.id


def test_an_answer_may_be_written_by_hand() -> None:
    """Without attributes, which some clients cannot set: the document says what it is."""
    document = {"format": 1, "id": str(ID), "status": 201, "body": {"total": 3}}
    found = wire.decode_answer(Message(orjson.dumps(document), {"Content-Type": "application/json"}))
    assert found == wire.CarriedAnswer(ID.bytes, 201, [], b'{"total":3}')


def test_names_of_attributes_have_no_case() -> None:
    attributes = {"OpenHQM-Format": "1", "OPENHQM-ID": str(ID), "Openhqm-Status": "204"}
    assert wire.decode_answer(Message(b"", attributes)).status == 204


GOOD = {"openhqm-format": "1", "openhqm-id": str(ID), "openhqm-method": "POST", "openhqm-path": "/"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"openhqm-format": "2"}, "format '2'"),
        ({"openhqm-format": "1+xml"}, "format '1'"),
        ({"openhqm-format": ""}, "format 'none'"),
        ({"openhqm-enc": "aes256gcm"}, "encrypted"),
        ({"openhqm-id": "7"}, "openhqm-id"),
        ({"openhqm-method": ""}, "openhqm-method"),
        ({"openhqm-method": "GET /\r\nX:"}, "openhqm-method"),
        ({"openhqm-path": "/ HTTP/1.1\r\n\r\nGET /"}, "openhqm-path"),
        ({"openhqm-path": "/\u20ac"}, "openhqm-path"),
        ({"openhqm-headers": "X: 1"}, "openhqm-headers is not JSON"),
        ({"openhqm-headers": '{"X":"1"}'}, "openhqm-headers"),
        ({"openhqm-headers": '[["X"]]'}, "openhqm-headers"),
        ({"openhqm-headers": '[["X",1]]'}, "openhqm-headers"),
        ({"openhqm-headers": '[["X","1\\r\\nY: 2"]]'}, "openhqm-headers"),
        ({"openhqm-headers": '[["X: 1\\r\\nY","2"]]'}, "openhqm-headers"),
        ({"openhqm-headers": '[["","2"]]'}, "openhqm-headers"),
        ({"openhqm-options": "[]"}, "openhqm-options"),
        ({"openhqm-priority": "10"}, "openhqm-priority"),
        ({"openhqm-priority": "high"}, "openhqm-priority"),
        ({"openhqm-deadline": "tomorrow"}, "openhqm-deadline"),
        ({"openhqm-deadline": "2026-01-01T00:00:00"}, "openhqm-deadline"),
        ({"openhqm-head": "***"}, "openhqm-head is not base64"),
        ({"openhqm-head": base64.b64encode(b"nonsense").decode()}, "openhqm-head"),
    ],
)
def test_what_is_not_a_request_is_refused_and_says_why(changes: dict[str, str], said: str) -> None:
    with pytest.raises(EnvelopeCorrupt, match=said):
        wire.decode_request(Message(b"", {**GOOD, **changes}))


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"format":2}', "format 2"),
        (b'{"format":1}', "openhqm-id"),
        (b'{"format":1,"id":"%b"}' % str(ID).encode(), "openhqm-status"),
        (b'{"format":1,"id":"%b","status":true}' % str(ID).encode(), "openhqm-status"),
        (b'{"format":1,"id":"%b","status":100}' % str(ID).encode(), "openhqm-status"),
        (b'{"format":1,"id":"%b","status":200,"body_base64":"*"}' % str(ID).encode(), "body_base64"),
        (b'{"format":1,"enc":"x"}', "encrypted"),
    ],
)
def test_what_is_not_an_answer_is_refused_and_says_why(document: bytes, said: str) -> None:
    with pytest.raises(EnvelopeCorrupt, match=said):
        wire.decode_answer(Message(document, {"openhqm-format": "1+json"}))


def test_the_size_of_a_message_is_not_told_too_small() -> None:
    message = wire.encode_request(record(), b"x" * 100, ROOMY)
    assert wire.message_bytes(message) >= 100 + sum(len(n) + len(v) for n, v in message.attributes.items())
