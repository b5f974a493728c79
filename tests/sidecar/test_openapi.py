"""The description says what is served, and what is served is as described."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from openapi_schema_validator import OAS31Validator, oas31_format_checker
from openapi_spec_validator import validate
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from tests.sidecar.intercepted import Got, Intercept, get, intercepting, post, replaying

from openhqm import openapi, original_api, problems
from openhqm.settings import Settings
from openhqm.stores.base import State
from openhqm.submit_models import Explicit, Metadata, Original

PREFIX = "/.openhqm/v1/requests"
ROOT = "urn:description"
VERBS = {"get", "post", "put", "patch", "delete", "head", "options", "trace"}


class Description:
    """The document, and answers compared with it."""

    def __init__(self, **settings: Any) -> None:
        self.document = openapi.document(Settings.model_validate(settings))
        resource = Resource.from_contents(self.document, default_specification=DRAFT202012)
        self._registry: Registry[Any] = Registry().with_resource(ROOT, resource)

    @property
    def schemas(self) -> dict[str, Any]:
        return self.document["components"]["schemas"]

    def methods(self, path: str) -> set[str]:
        return {verb.upper() for verb in VERBS & set(self.document["paths"][path])}

    def check(self, method: str, path: str, got: Got) -> None:
        """Fail unless *got* is an answer that the document describes for this call."""
        responses = self.document["paths"][path][method.lower()]["responses"]
        response = self._resolved(responses[str(got.status)])
        for name, header in response["headers"].items():
            self._check_header(name, self._resolved(header), got[name.lower().encode()])
        media_type = (got[b"content-type"] or b"").decode().partition(";")[0]
        schema = response["content"][media_type]["schema"]
        self.check_value(got.json if media_type.endswith("json") else got.body.decode(), schema)

    def _check_header(self, name: str, header: dict[str, Any], value: bytes | None) -> None:
        if value is None:
            assert not header.get("required"), f"{name} is missing"
            return
        text = value.decode()
        is_integer = self._resolved(header["schema"]).get("type") == "integer"
        self.check_value(int(text) if is_integer else text, header["schema"])

    def check_value(self, value: Any, schema: dict[str, Any]) -> None:
        """Fail unless *value* is of *schema*; references in it are into the document."""
        absolute = orjson.loads(orjson.dumps(schema).replace(b'"#/', f'"{ROOT}#/'.encode()))
        OAS31Validator(absolute, registry=self._registry, format_checker=oas31_format_checker).validate(value)

    def _resolved(self, part: dict[str, Any]) -> dict[str, Any]:
        if "$ref" not in part:
            return part
        found = self.document
        for step in part["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        return found


@pytest.fixture(scope="module")
def described() -> Description:
    return Description()


def filled(path: str, handle: bytes) -> bytes:
    return path.encode().replace(b"{handle}", handle)


async def queued(port: Intercept, **body: Any) -> tuple[Got, bytes]:
    """Queue something by the original API; returns the answer and the handle."""
    got = await port.send(post(b"/api/v1/submit", orjson.dumps({"payload": "x", **body})))
    return got, got.json["correlation_id"].encode()


# --- the document ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"app": {"url": "http://127.0.0.1:9"}},
        {"ingress": {"reserved_prefix": "/_queue"}},
        {"app": {"url": "http://127.0.0.1:9"}, "ingress": {"submit_api": True, "api_keys": ["a key"]}},
    ],
)
def test_the_document_is_openapi_3_1(settings):
    description = Description(**settings)
    validate(description.document)
    assert description.document["info"]["version"]


async def test_it_is_served_with_the_prefix_in_force_and_without_what_is_switched_off():
    async with intercepting(ingress={"reserved_prefix": "/_queue"}) as port:
        got = await port.send(get(b"/_queue/v1/openapi.json"))

        assert (got.status, got[b"content-type"]) == (200, b"application/json")
        assert sorted(got.json["paths"]) == [
            "/_queue/v1/openapi.json",
            "/_queue/v1/requests/{handle}",
            "/_queue/v1/requests/{handle}/events",
            "/_queue/v1/requests/{handle}/response",
        ]
        assert b".openhqm" not in got.body


async def test_every_call_described_is_served_and_no_other_method(described):
    async with intercepting(None) as port:
        _, handle = await queued(port)
        for path in described.document["paths"]:
            got = await port.send(get(filled(path, handle), method=b"PROPFIND"))
            methods = described.methods(path)
            allowed = methods | {"HEAD"} if "GET" in methods else methods
            assert got.status == 405, path
            assert set((got[b"allow"] or b"").decode().split(", ")) == allowed, path


async def test_every_path_served_is_described(described):
    """All paths that can be made of our own words, asked by a method that none of them allows."""
    async with intercepting(None) as port:
        _, handle = await queued(port)
        paths = described.document["paths"]
        templates = [re.compile(re.escape(path).replace(r"\{handle\}", "[^/]+").encode()) for path in paths]
        words = {word for path in paths for word in filled(path, handle).split(b"/")}
        connection = await port.connect()
        served = 0
        for path in candidates(sorted(words - {b"", b".openhqm", b"v1"})):
            connection.write(get(path, method=b"PROPFIND"))
            got = await connection.answer()
            is_described = any(template.fullmatch(path) for template in templates)
            assert (path, got.status) == (path, 405 if is_described else 404)
            served += is_described
        await connection.close()
        assert served >= len(templates)


def candidates(words: list[bytes]) -> Iterator[bytes]:
    for prefix in (b"", b"/.openhqm", b"/.openhqm/v1", b"/api", b"/api/v1"):
        for depth in range(1 if prefix.endswith(b"1") else 0, 4 if prefix.endswith(b"1") else 3):
            for chosen in itertools.product(words, repeat=depth):
                if prefix or chosen:
                    yield b"/".join([prefix, *chosen])


def test_problem_types_are_those_there_are(described):
    kinds = [problems.INTERNAL, *problems._KINDS.values(), *problems._OUTCOMES.values()]
    types = described.schemas["Problem"]["properties"]["type"]["enum"]
    assert types == sorted({f"urn:openhqm:problem:{kind.slug}" for kind in kinds})


def test_words_and_members_are_those_of_the_code(described):
    schemas = described.schemas
    assert set(schemas["State"]["properties"]["status"]["enum"]) == {state.value for state in State}
    assert set(schemas["OriginalWord"]["enum"]) == {*original_api.WORDS.values(), "TIMEOUT"}
    for name, model in (
        ("Submission", Explicit),
        ("OriginalSubmission", Original),
        ("OriginalMetadata", Metadata),
    ):
        assert set(schemas[name]["properties"]) == set(model.model_fields), name


async def test_the_examples_work(described):
    async with intercepting(None) as port, replaying(port):
        for path in (PREFIX, "/api/v1/submit"):
            content = described.document["paths"][path]["post"]["requestBody"]["content"]
            for example in content["application/json"]["examples"].values():
                described.check_value(example["value"], content["application/json"]["schema"])
                if "path" in example["value"]:
                    continue  # for an app; there is none here
                got = await port.send(post(path.encode(), orjson.dumps(example["value"])))
                assert got.status in (200, 202)


# --- real answers ------------------------------------------------------------------------------------


async def test_a_requests_whole_life_is_as_described(described):
    async with intercepting(None) as port:
        body = b'{"target": "handler:echo", "body": "1", "priority": 7, "deadline": 60}'
        accepted = await port.send(post(PREFIX.encode(), body, b"Prefer: respond-async"))
        described.check("POST", PREFIX, accepted)
        assert accepted.status == 202
        handle = accepted.path.rpartition(b"/")[2]

        async def check(template: str, status: int, method: str = "GET") -> None:
            got = await port.send(get(filled(template, handle), method=method.encode()))
            assert got.status == status
            described.check(method, template, got)

        state, response = PREFIX + "/{handle}", PREFIX + "/{handle}/response"
        await check(state, 200)
        await check(response, 202)
        lease = await port.lease()
        await check(state, 200)
        await check(state, 202, "DELETE")
        note = b'{"attempt":1,"at":1.5,"outcome":"outcome-unknown","duration_seconds":2.5,"cause":"timeout"}'
        await port.finish(lease, state=State.FAILED, answer=None, reason="outcome-unknown", note=note)
        await check(state, 200)
        await check(response, 502)
        await check(state, 409, "DELETE")
        await check(PREFIX + "/{handle}/events", 200)
        await port.store.purge([lease.id])
        await check(state, 410)
        await check(response, 410)
        await check("/api/v1/status/{handle}", 410)


async def test_a_cancelled_request_is_as_described(described):
    async with intercepting(None) as port:
        _, handle = await queued(port)
        for method, template, status in (
            ("DELETE", PREFIX + "/{handle}", 200),
            ("GET", PREFIX + "/{handle}/response", 409),
            ("GET", "/api/v1/response/{handle}", 200),
        ):
            got = await port.send(get(filled(template, handle), method=method.encode()))
            assert got.status == status
            described.check(method, template, got)


@pytest.mark.parametrize("payload", ["x", {"operation": "error"}, [1, {"a": None}], None])
async def test_the_original_api_answers_as_described(described, payload):
    async with intercepting(None) as port:
        submitted, handle = await queued(port, payload=payload)
        described.check("POST", "/api/v1/submit", submitted)

        async def check(statuses: tuple[int, int]) -> None:
            for template, status in zip(
                ("/api/v1/status/{handle}", "/api/v1/response/{handle}"), statuses, strict=True
            ):
                got = await port.send(get(filled(template, handle)))
                assert got.status == status
                described.check("GET", template, got)

        await check((200, 202))
        async with replaying(port):
            await port.waiters.final(port.handles.verify(handle.decode()), 10)
        await check((200, 200))


@pytest.mark.parametrize(
    ("method", "template", "request_", "status"),
    [
        ("GET", "/health", get(b"/health"), 200),
        ("GET", "/metrics", get(b"/metrics", b"X-API-Key: a key"), 200),
        ("GET", "/metrics", get(b"/metrics"), 401),
        ("GET", "/.openhqm/v1/openapi.json", get(b"/.openhqm/v1/openapi.json"), 200),
        ("POST", PREFIX, post(PREFIX.encode(), b"{}"), 401),
        ("POST", PREFIX, post(PREFIX.encode(), b"{}", b"X-API-Key: a key"), 400),
        ("POST", PREFIX, post(PREFIX.encode(), b" " * 2000, b"X-API-Key: a key"), 413),
        ("POST", PREFIX, post(PREFIX.encode(), b"{}", b"X-API-Key: a key", b"Expect: 200-ok"), 417),
        ("POST", "/api/v1/submit", post(b"/api/v1/submit", b"{}", b"X-API-Key: a key"), 400),
        ("GET", "/api/v1/status/{handle}", get(b"/api/v1/status/x"), 401),
        ("GET", "/api/v1/status/{handle}", get(b"/api/v1/status/x", b"X-API-Key: a key"), 404),
        ("GET", PREFIX + "/{handle}", get(PREFIX.encode() + b"/x"), 404),
        ("GET", PREFIX + "/{handle}", post(PREFIX.encode() + b"/x"), 405),
    ],
)
async def test_pages_and_problems_are_as_described(described, method, template, request_, status):
    async with intercepting(
        None, spill_bytes=500, ingress={"api_keys": ["a key"], "max_body_bytes": 1000}
    ) as port:
        got = await port.send(request_)
        assert got.status == status
        described.check(method, template, got)


async def test_a_full_backlog_and_a_mismatch_are_as_described(described):
    async with intercepting(None) as port:
        line = b"Idempotency-Key: k"
        await port.send(post(b"/api/v1/submit", b'{"payload": 1}', line))
        got = await port.send(post(b"/api/v1/submit", b'{"payload": 2}', line))
        assert got.status == 422
        described.check("POST", "/api/v1/submit", got)

        assert port.submitter is not None
        port.submitter.stop_accepting()
        got = await port.send(post(b"/api/v1/submit", b'{"payload": 3}'))
        assert got.status == 503
        described.check("POST", "/api/v1/submit", got)


def test_a_false_answer_would_be_noticed(described):
    """The checker itself: what it accepts it accepts for being right."""
    answer = Got(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n\r\n")
    answer.body = b'{"status": "healthy"}'
    with pytest.raises(Exception, match="is a required property"):
        described.check("GET", "/health", answer)
    with pytest.raises(Exception, match="is not a 'date-time'"):
        described.check_value("yesterday", {"$ref": "#/components/schemas/Moment"})
