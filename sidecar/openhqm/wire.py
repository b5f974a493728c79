"""Wire format v1: how a request and its answer travel through a broker. Pure.

Two forms of one message; a reader tells them apart by the attribute `openhqm-format`:

    1        the body is the request's body, raw; all else stands in attributes
    1+json   the body is a JSON document that holds everything. Used where a broker's attributes are too
             few or too short for a request's headers, or where bodies must be text

    attribute           in the document   meaning
    openhqm-format      "format"          1; higher ones are refused
    openhqm-id          "id"              correlation id, a UUID. An answer names the request's
    openhqm-method      "method"          of the request
    openhqm-path        "path"            path and query, as they were sent
    openhqm-status      "status"          of an answer, three digits
    openhqm-headers     "headers"         JSON list of [name, value], in order, with duplicates
    openhqm-options     "options"         JSON object, what else a stored request says (`envelope.py`)
    openhqm-priority    "priority"        0 to 9; left out: 5
    openhqm-accepted    "accepted"        RFC 3339
    openhqm-deadline    "deadline"        RFC 3339; left out: none
    openhqm-key         "key"             ordering key, percent-encoded
    openhqm-head        "head"            base64 of the request's head, where its headers have odd blanks
    content-type        -                 of the body, or application/json
    -                   "body"            text, or instead
    -                   "body_base64"

`openhqm-enc` and `openhqm-kid` are kept for encrypted bodies; a message that has them is refused. Text that
is not ASCII stands for the byte of the same number (Latin-1), as HTTP has it. Attributes are printable ASCII:
a request that needs more goes as a document. Unknown names are ignored.
"""

from __future__ import annotations

import base64
import binascii
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

import orjson

from openhqm.brokers.base import Abilities, Message
from openhqm.envelope import Envelope
from openhqm.errors import EnvelopeCorrupt
from openhqm.stores.base import Outbound

FORMAT = 1
DEFAULT_PRIORITY = 5
_PREFIX = "openhqm-"
_JSON_TYPE = "application/json"
_BLANK_OPTIONS = b'{"v":1}'
_ATTRIBUTE_OVERHEAD_BYTES = 16
"""What brokers add to an attribute, counted generously."""

Pairs = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Carried:
    """A request that came through a broker.

    Args:
        accepted_at, deadline: seconds since the epoch; None where the message does not say.
    """

    id: bytes
    envelope: bytes
    body: bytes
    key: bytes | None = None
    priority: int = DEFAULT_PRIORITY
    accepted_at: float | None = None
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class CarriedAnswer:
    """An answer that came through a broker, to the request *id*."""

    id: bytes
    status: int
    headers: Pairs
    body: bytes


def is_ours(message: Message) -> bool:
    """Whether *message* is of this format, of any version."""
    return f"{_PREFIX}format" in message.attributes


def encode_request(record: Outbound, body: bytes, abilities: Abilities) -> Message:
    """Return the message of a record, in the form that fits the broker.

    Args:
        body: the request's, whole.

    Raises:
        EnvelopeCorrupt: the stored request cannot be read.
    """
    Envelope.decode(record.envelope)
    options, _, head = record.envelope.partition(b"\n")
    request_line, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    method, path, _ = request_line.split(b" ")
    pairs = [(name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]
    fields: dict[str, Any] = {
        "id": str(uuid.UUID(bytes=record.id)),
        "method": method.decode("latin-1"),
        "path": path.decode("latin-1"),
        "headers": _texts(pairs),
        "accepted": _time(record.accepted_at),
    }
    if _request_head(fields) != head:
        fields["head"] = base64.b64encode(head).decode()
    if options != _BLANK_OPTIONS:
        fields["options"] = orjson.loads(options)
    if record.priority != DEFAULT_PRIORITY:
        fields["priority"] = record.priority
    if record.deadline is not None:
        fields["deadline"] = _time(record.deadline)
    if record.key is not None:
        fields["key"] = quote_from_bytes(record.key)
    return _message(fields, pairs, body, abilities, record.key)


def encode_answer(
    id: bytes, status: int, headers: Pairs, body: bytes, abilities: Abilities, key: bytes | None = None
) -> Message:
    """Return the message that tells the answer to the request *id*."""
    fields = {"id": str(uuid.UUID(bytes=id)), "status": status, "headers": _texts(headers)}
    return _message(fields, headers, body, abilities, key)


def decode_request(message: Message) -> Carried:
    """Read `encode_request` back, in either form.

    Raises:
        EnvelopeCorrupt: it is not of a format this build reads; says why.
    """
    fields, body = _fields(message)
    options = fields.get("options", {})
    if not isinstance(options, dict):
        raise EnvelopeCorrupt("openhqm-options is not a JSON object")
    head = _decoded_head(fields)
    line = orjson.dumps({"v": 1, **options}) if options else _BLANK_OPTIONS
    key = fields.get("key")
    return Carried(
        id=_id(fields),
        envelope=line + b"\n" + head,
        body=body,
        key=None if key is None else unquote_to_bytes(_text(fields, "key")),
        priority=_whole(fields, "priority", 0, 9, DEFAULT_PRIORITY),
        accepted_at=_seconds(fields, "accepted"),
        deadline=_seconds(fields, "deadline"),
    )


def decode_answer(message: Message) -> CarriedAnswer:
    """Read an answer, of `encode_answer` or of anybody who keeps to the format.

    Raises:
        EnvelopeCorrupt: it is not of a format this build reads; says why.
    """
    fields, body = _fields(message)
    return CarriedAnswer(_id(fields), _whole(fields, "status", 200, 599, None), _pairs(fields), body)


# writing


def _message(
    fields: Mapping[str, Any], pairs: Pairs, body: bytes, abilities: Abilities, key: bytes | None
) -> Message:
    id = f"{fields['id']}.{fields.get('status', '')}".removesuffix(".")
    attributes = {f"{_PREFIX}format": str(FORMAT)}
    for name, value in fields.items():
        attributes[_PREFIX + name] = (
            value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        )
    for header, content in pairs:
        if header.lower() == b"content-type":
            attributes["content-type"] = content.decode("latin-1")
    if abilities.carries_bytes and _fit(attributes, abilities):
        return Message(body, attributes, key, id)
    document = {"format": FORMAT, **fields, **_body_fields(body)}
    short = {f"{_PREFIX}format": f"{FORMAT}+json", f"{_PREFIX}id": fields["id"], "content-type": _JSON_TYPE}
    return Message(orjson.dumps(document), short, key, id)


def _fit(attributes: Mapping[str, str], abilities: Abilities) -> bool:
    return len(attributes) <= abilities.max_attributes and all(
        len(value) <= abilities.max_attribute_bytes and value.isascii() and value.isprintable()
        for value in attributes.values()
    )


def message_bytes(message: Message) -> int:
    """What a broker counts against its limit, or a little more."""
    attributes = message.attributes.items()
    return len(message.body) + sum(
        len(name) + len(value) + _ATTRIBUTE_OVERHEAD_BYTES for name, value in attributes
    )


def _body_fields(body: bytes) -> dict[str, str]:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}
    return {"body": text}


def _texts(pairs: Pairs) -> list[list[str]]:
    return [[name.decode("latin-1"), value.decode("latin-1")] for name, value in pairs]


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# reading


def _fields(message: Message) -> tuple[Mapping[str, Any], bytes]:
    """The fields by their names in the document, and the body."""
    attributes = {name.lower(): value for name, value in message.attributes.items()}
    if attributes.get(f"{_PREFIX}enc") or attributes.get(f"{_PREFIX}kid"):
        raise EnvelopeCorrupt("the message is encrypted, which this build cannot read")
    version, _, form = attributes.get(f"{_PREFIX}format", "").partition("+")
    if form == "json" or (not version and attributes.get("content-type", "").startswith(_JSON_TYPE)):
        return _document(message.body)
    if version != str(FORMAT) or form:
        raise EnvelopeCorrupt(f"message format {(version or 'none')!r} is not one this build reads")
    fields: dict[str, Any] = {}
    for name, value in attributes.items():
        if name.startswith(_PREFIX):
            fields[name.removeprefix(_PREFIX)] = value
    for name in ("headers", "options"):
        if name in fields:
            fields[name] = _json(fields[name], f"{_PREFIX}{name}")
    return fields, message.body


def _document(data: bytes) -> tuple[Mapping[str, Any], bytes]:
    fields = _json(data, "the message")
    if not isinstance(fields, dict):
        raise EnvelopeCorrupt("the message is not a JSON object")
    if fields.get("format") != FORMAT:
        raise EnvelopeCorrupt(f"message format {fields.get('format')!r} is not one this build reads")
    if fields.get("enc") or fields.get("kid"):
        raise EnvelopeCorrupt("the message is encrypted, which this build cannot read")
    if "body_base64" in fields:
        return fields, _base64(fields, "body_base64")
    body = fields.get("body", "")
    return fields, body.encode() if isinstance(body, str) else orjson.dumps(body)


def _decoded_head(fields: Mapping[str, Any]) -> bytes:
    head = _base64(fields, "head") if "head" in fields else _request_head(fields)
    line, separator, rest = head.partition(b"\r\n")
    if not separator or not rest.endswith(b"\r\n") or line.count(b" ") != 2 or line[-9:] != b" HTTP/1.1":
        raise EnvelopeCorrupt("openhqm-head is not the head of an HTTP/1.1 request")
    return head


def _request_head(fields: Mapping[str, Any]) -> bytes:
    method, path = _token(fields, "method"), _token(fields, "path")
    lines = b"".join(b"%b: %b\r\n" % pair for pair in _pairs(fields))
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method, path, lines)


def _token(fields: Mapping[str, Any], name: str) -> bytes:
    """A part of the request line: no blanks, no line ends, not empty."""
    value = _latin(_text(fields, name), name)
    if not value or any(byte <= 0x20 or byte == 0x7F for byte in value):
        raise EnvelopeCorrupt(f"openhqm-{name} cannot stand in a request line")
    return value


def _pairs(fields: Mapping[str, Any]) -> Pairs:
    found = fields.get("headers", [])
    if not isinstance(found, list):
        raise EnvelopeCorrupt("openhqm-headers is not a list of [name, value]")
    pairs = []
    for pair in found:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(each, str) for each in pair)):
            raise EnvelopeCorrupt("openhqm-headers is not a list of [name, value]")
        name, value = (_latin(each, "headers") for each in pair)
        if not name or set(name) & _NOT_IN_NAMES or set(value) & _NOT_IN_VALUES:
            raise EnvelopeCorrupt("openhqm-headers has a name or value that HTTP does not allow")
        pairs.append((name, value))
    return pairs


_NOT_IN_NAMES = frozenset(range(0x21)) | frozenset(range(0x7F, 0x100)) | frozenset(b'"(),/:;<=>?@[\\]{}')
"""Source: RFC 9110 5.6.2, the characters of a token."""
_NOT_IN_VALUES = frozenset(b"\0\r\n")
"""Source: RFC 9110 5.5."""


def _latin(text: str, name: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as exc:
        raise EnvelopeCorrupt(f"openhqm-{name} has characters that stand for no byte") from exc


def _id(fields: Mapping[str, Any]) -> bytes:
    try:
        return uuid.UUID(_text(fields, "id")).bytes
    except ValueError as exc:
        raise EnvelopeCorrupt("openhqm-id is not a UUID") from exc


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise EnvelopeCorrupt(f"openhqm-{name} is missing or not text")
    return value


def _whole(fields: Mapping[str, Any], name: str, least: int, most: int, default: int | None) -> int:
    value = fields.get(name, default)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 4:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise EnvelopeCorrupt(f"openhqm-{name} is not a whole number from {least} to {most}")
    return value


def _seconds(fields: Mapping[str, Any], name: str) -> float | None:
    if name not in fields:
        return None
    try:
        found = datetime.fromisoformat(_text(fields, name))
        if found.tzinfo is None:
            raise ValueError("no time zone")
        return found.timestamp()
    except (ValueError, OverflowError) as exc:
        raise EnvelopeCorrupt(f"openhqm-{name} is not a time of RFC 3339") from exc


def _base64(fields: Mapping[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(_text(fields, name), validate=True)
    except binascii.Error as exc:
        raise EnvelopeCorrupt(f"openhqm-{name} is not base64") from exc


def _json(data: str | bytes, what: str) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        raise EnvelopeCorrupt(f"{what} is not JSON") from exc
