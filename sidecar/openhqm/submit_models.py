"""What the submit API reads: JSON bodies, checked member by member. Pure.

`submit.py` and `original_api.py` hand in bytes and get a `Submission`: a request for the app or a
handler, and what the client wishes besides. A member we do not know, of the wrong type or given twice
is refused by name; what is stored is never a guess. No refusal quotes a value: it may be a secret.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from openhqm.control import MAX_KEY_BYTES, MOMENT, Control, read_moment
from openhqm.errors import BadRequest
from openhqm.handlers import BUILT_IN
from openhqm.headers import HOP_BY_HOP, Pair
from openhqm.invalid import problems

APP = "app"
HANDLER = "handler:"
MAX_SECONDS = 1e9

_METHOD = re.compile(r"[A-Z][A-Z-]{0,31}", re.ASCII)
_PATH = re.compile(r'/[!"$-~]*', re.ASCII)
_TARGET = re.compile(r"app|handler:[A-Za-z0-9._-]{1,128}", re.ASCII)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^`|~0-9A-Za-z-]+", re.ASCII)
"""A token without the underscore: such names never reach an app, see `headers.py`."""
_HEADER_VALUE = re.compile(rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?")
_VISIBLE = re.compile(r"[ -~]+", re.ASCII)
_OURS = HOP_BY_HOP | {b"content-length", b"expect"}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


@dataclass(frozen=True, slots=True)
class Submission:
    """A request as submitted.

    Args:
        target: "app" or "handler:<name>".
        path: raw path and query, in origin form.
        pairs: headers to send; framing and `Host` are added where they are missing.
        body: None: there is none, and no framing is written.
        wishes: what members of the body say; headers of the call may say more.
        timeout_seconds, max_attempts: None leaves them to route and settings.
        repeat: the app tolerates repeats (design R4).
    """

    target: str
    method: bytes
    path: bytes
    pairs: tuple[Pair, ...]
    body: bytes | None
    wishes: Control
    timeout_seconds: float | None = None
    max_attempts: int | None = None
    repeat: bool = False


def _matching(pattern: re.Pattern[str], message: str) -> AfterValidator:
    def check(value: str) -> str:
        if pattern.fullmatch(value) is None:
            raise ValueError(message)
        return value

    return AfterValidator(check)


def _short(value: str) -> str:
    if not 1 <= len(value.encode()) <= MAX_KEY_BYTES:
        raise ValueError(f"must have 1 to {MAX_KEY_BYTES} bytes")
    return value


def _forwardable(value: str) -> str:
    if value == "CONNECT":
        raise ValueError("CONNECT cannot be forwarded")
    return value


def _read_headers(value: Any) -> tuple[Pair, ...]:
    """Turn {"name": "value" or ["value", ...]} into pairs, in order."""
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise ValueError("must be an object of strings or lists of strings")
    pairs = tuple(
        (name.encode(), _header_value(name, item))
        for name, given in value.items()
        for item in (given if isinstance(given, list) else [given])
        if _is_header_name(name)
    )
    if sum(name.lower() == b"host" for name, _ in pairs) > 1:
        raise ValueError("Host must be given once")
    return pairs


def _is_header_name(name: str) -> bool:
    """Refuse what would be dropped or rewritten on the way to the app."""
    if _HEADER_NAME.fullmatch(name) is None:
        raise ValueError("names are letters, digits and dashes")
    lower = name.lower().encode()
    if lower in _OURS:
        raise ValueError(f"{name} belongs to the connection and is written by us")
    if lower.startswith(b"openhqm-") or lower == b"idempotency-key":
        raise ValueError(f"{name} is not for the app; say it beside the headers")
    return True


def _header_value(name: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string or a list of strings")
    encoded = value.encode()
    if _HEADER_VALUE.fullmatch(encoded) is None:
        raise ValueError(f"{name} has a control character, or blanks around its value")
    return encoded


def _moment(value: Any) -> float:
    if not isinstance(value, str):
        raise ValueError(f"must be {MOMENT}")
    return read_moment(value)


def _deadline(value: Any) -> tuple[float | None, float | None]:
    """Return (absolute, relative to acceptance)."""
    if value is None:
        return None, None
    if isinstance(value, str):
        return read_moment(value), None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_SECONDS:
        raise ValueError(f"must be more than 0 seconds, or {MOMENT}")
    return None, float(value)


Method = Annotated[
    str, _matching(_METHOD, "must be an HTTP method in upper case"), AfterValidator(_forwardable)
]
Headers = Annotated[tuple[Pair, ...], BeforeValidator(_read_headers)]
Priority = Annotated[int, Field(ge=0, le=9)]
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS)]
Timeout = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
Moment = Annotated[float, BeforeValidator(_moment)]
Deadline = Annotated[tuple[float | None, float | None], BeforeValidator(_deadline)]
Key = Annotated[str, AfterValidator(_short)]


class _Members(BaseModel):
    """A JSON object: no unknown members, no conversions between types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _check_payload(body: bytes) -> None:
    """Refuse now what a handler could not read later."""
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise BadRequest("body: a handler takes JSON, so that text needs quotes") from exc


class Explicit(_Members):
    """Body of `POST <prefix>/v1/requests`."""

    target: Annotated[str, _matching(_TARGET, 'must be "app" or "handler:<name>"')] = APP
    method: Method = "POST"
    path: Annotated[str, _matching(_PATH, "must be a path and query, percent-encoded, from the first /")] = ""
    headers: Headers = ()
    body: str | None = None
    body_base64: str | None = None
    priority: Priority | None = None
    delay_seconds: Seconds = 0.0
    not_before: Moment | None = None
    deadline: Deadline = (None, None)
    key: Key | None = None
    callback: str | None = None
    idempotency_key: Annotated[Key, _matching(_VISIBLE, "must be printable ASCII")] | None = None
    wait_seconds: Seconds | None = None
    max_attempts: Annotated[int, Field(ge=1)] | None = None
    timeout_seconds: Timeout | None = None
    repeat: bool = False

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.body is not None and self.body_base64 is not None:
            raise ValueError("body and body_base64 exclude each other")
        if self.target == APP and not self.path:
            raise ValueError("path is required where the target is the app")
        return self

    def submission(self) -> Submission:
        """Return what is to be stored.

        Raises:
            BadRequest: body_base64 is not Base64, or the body is for a handler and not JSON.
        """
        deadline, deadline_seconds = self.deadline
        body = self._body()
        if self.target != APP and body:
            _check_payload(body)
        return Submission(
            target=self.target,
            method=self.method.encode(),
            path=(self.path or "/").encode(),
            pairs=self.headers,
            body=body,
            wishes=Control(
                priority=self.priority,
                delay_seconds=self.delay_seconds,
                not_before=self.not_before,
                deadline=deadline,
                deadline_seconds=deadline_seconds,
                key=None if self.key is None else self.key.encode(),
                callback=self.callback,
                wait_seconds=self.wait_seconds,
                idempotency_key=None if self.idempotency_key is None else self.idempotency_key.encode(),
            ),
            timeout_seconds=self.timeout_seconds,
            max_attempts=self.max_attempts,
            repeat=self.repeat,
        )

    def _body(self) -> bytes | None:
        if self.body_base64 is not None:
            try:
                return base64.b64decode(self.body_base64, validate=True)
            except ValueError as exc:
                raise BadRequest("body_base64: must be Base64 (RFC 4648 section 4)") from exc
        if self.body is not None:
            return self.body.encode()
        return b"" if self.method in _WITH_BODY else None


class Metadata(_Members):
    """What the original API calls metadata.

    Args:
        timeout: seconds one attempt may take.
        retry_count: taken because clients of the original send it; attempts are counted here.
        endpoint: path below the app's URL.
        operation: name of the handler that runs the payload.
    """

    priority: Priority | None = None
    timeout: Timeout | None = None
    retry_count: Annotated[int, Field(ge=0)] | None = None
    endpoint: Annotated[str, _matching(re.compile(r'[!"$-~]+'), "must be a path, percent-encoded")] = "/"
    method: Method = "POST"
    operation: str | None = None


class Original(_Members):
    """Body of `POST /api/v1/submit`."""

    payload: Any
    headers: Headers = ()
    metadata: Metadata = Metadata()

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        """The original took null for a member that is left out; `payload` alone may really be null."""
        if not isinstance(value, dict):
            return value
        kept = {name: item for name, item in value.items() if item is not None or name == "payload"}
        if isinstance(metadata := kept.get("metadata"), dict):
            kept["metadata"] = {name: item for name, item in metadata.items() if item is not None}
        return kept

    def submission(self, *, has_app: bool, operations: Collection[str]) -> Submission:
        """Return what is to be stored.

        Args:
            has_app: without an operation the payload goes to the app; there is one.
            operations: handlers that there are.

        Raises:
            BadRequest: the operation is none of those.
        """
        operation, payload = self._operation(has_app), self.payload
        if operation is not None and operation not in operations:
            raise BadRequest(f"operation: must be one of {', '.join(sorted(operations))}")
        if operation is not None and self.metadata.operation is None:
            payload = operand(operation, payload)
        metadata = self.metadata
        endpoint = metadata.endpoint if metadata.endpoint.startswith("/") else f"/{metadata.endpoint}"
        return Submission(
            target=APP if operation is None else HANDLER + operation,
            method=metadata.method.encode(),
            path=endpoint.encode(),
            pairs=self._pairs(),
            body=write_json(payload),
            wishes=Control(priority=metadata.priority),
            timeout_seconds=metadata.timeout,
        )

    def _operation(self, has_app: bool) -> str | None:
        """Return the handler's name; None for the app.

        A payload is the app's own where there is one, whatever its members are called.
        """
        if self.metadata.operation is not None or has_app:
            return self.metadata.operation
        named = self.payload.get("operation", "echo") if isinstance(self.payload, dict) else "echo"
        if not isinstance(named, str):
            raise BadRequest("payload.operation: must be the name of a handler")
        return named

    def _pairs(self) -> tuple[Pair, ...]:
        if self.payload is None or any(name.lower() == b"content-type" for name, _ in self.headers):
            return self.headers
        return ((b"Content-Type", b"application/json"), *self.headers)


def operand(operation: str, payload: Any) -> Any:
    """Return what a handler gets of a payload that names its operation itself.

    The original answers {"operation": "uppercase", "data": "a"} with {"output": "A"}. The built-in
    operations keep the shape of what they get, so they get it in that shape; others get the payload.
    """
    if operation not in BUILT_IN or not isinstance(payload, dict):
        return payload
    if "data" in payload:
        return {"output": payload["data"]}
    return {name: value for name, value in payload.items() if name != "operation"}


def write_json(value: Any) -> bytes | None:
    """Return *value* as a JSON body; None, and so no body, for null."""
    if value is None:
        return None
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        # Integers beyond 64 bits, which must come out as they went in, or deep nesting.
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


Model = TypeVar("Model", bound=_Members)


def read_json(data: bytes, model: type[Model]) -> Model:
    """Read a body.

    Raises:
        BadRequest: naming the member that cannot be used.
    """
    try:
        found = json.loads(
            data.decode(), object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite
        )
        if _SURROGATE.search(data):
            orjson.loads(data)  # refuses halves of pairs, which are no Unicode and fit into no header
    except RecursionError as exc:
        raise BadRequest("the body is nested too deeply") from exc
    except ValueError as exc:
        raise BadRequest(f"the body must be JSON in UTF-8: {exc}") from exc
    if not isinstance(found, dict):
        raise BadRequest("the body must be a JSON object")
    try:
        return model.model_validate(found)
    except ValidationError as exc:
        raise BadRequest(_described(exc)) from exc


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a member twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number is too large")
    return value


def _described(error: ValidationError) -> str:
    """Say what is wrong with the first member that is."""
    first = problems(error)[0]
    where = ".".join(str(part) for part in first["loc"])[:200]
    if first["type"] == "extra_forbidden":
        return f"{where}: is not a member we know"
    if first["type"] == "missing":
        return f"{where}: is required"
    if first["type"] in ("model_type", "model_attributes_type"):
        return f"{where}: must be an object"
    what = first["msg"]
    if first["type"] != "value_error":
        what = what[0].lower() + what[1:]
    return f"{where}: {what}" if where else what
