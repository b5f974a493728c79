"""Handlers: what they are given, what is answered, and how their failures are told."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from openhqm.envelope import Envelope
from openhqm.errors import AnswerTooLarge, AppTimeout, EnvelopeCorrupt, HandlerFailed
from openhqm.handlers import BUILT_IN, Handlers, load_handlers
from openhqm.retry import Policy, Reason, Verdict, decide
from openhqm.settings import RetrySettings
from openhqm.stores.blobs import MemoryBlobs

HEAD = b"POST /api/v1/submit HTTP/1.1\r\nHost: x\r\n\r\n"


async def run(name, payload, handlers=BUILT_IN, blobs=None, **more):
    runner = Handlers(handlers, blobs or MemoryBlobs(), timeout_seconds=30.0, max_answer_bytes=1000)
    envelope = Envelope(HEAD, target=f"handler:{name}", **more)
    body = (
        payload
        if not isinstance(payload, (dict, list, str, int, type(None)))
        else json.dumps(payload).encode()
    )
    return await runner.forward(envelope, body, record_id=b"i" * 16, epoch=1)


@pytest.mark.parametrize(
    ("name", "payload", "answer"),
    [
        ("echo", {"a": [1, None, "ä"]}, {"a": [1, None, "ä"]}),
        ("echo", b"", None),
        ("uppercase", {"data": "straße", "n": 1, "l": ["x"]}, {"data": "STRASSE", "n": 1, "l": ["X"]}),
        ("reverse", {"data": "abc"}, {"data": "cba"}),
        ("reverse", "abc", "cba"),
    ],
)
async def test_built_in_handlers(name, payload, answer):
    handled = await run(name, payload)

    assert handled.status == 200
    assert json.loads(handled.answer.body) == answer
    assert handled.body_bytes == len(handled.answer.body)
    assert handled.answer.head.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(("payload", "message"), [({"message": "boom"}, "boom"), ({}, "error was asked for")])
async def test_error_fails_with_its_message(payload, message):
    with pytest.raises(HandlerFailed, match=message):
        await run("error", payload)


async def test_failure_is_a_dead_letter_even_where_repeating_is_allowed():
    decision = decide(
        HandlerFailed("boom"),
        Policy.from_settings(RetrySettings()),
        attempt=1,
        idempotent=True,
        jitter=0.5,
        repeat=True,
    )

    assert (decision.verdict, decision.reason) == (Verdict.DEAD_LETTER, Reason.HANDLER_ERROR)


async def test_coroutine_runs_on_the_loop_and_function_in_a_thread():
    async def on_loop(_):
        return threading.current_thread() is threading.main_thread()

    def in_thread(_):
        return threading.current_thread() is threading.main_thread()

    handlers = {"on_loop": on_loop, "in_thread": in_thread}

    assert json.loads((await run("on_loop", {}, handlers)).answer.body) is True
    assert json.loads((await run("in_thread", {}, handlers)).answer.body) is False


async def test_handler_that_takes_too_long_is_a_timeout():
    async def never(_):
        await asyncio.Event().wait()

    with pytest.raises(AppTimeout, match=r"0\.01 s"):
        await run("never", {}, {"never": never}, timeout_seconds=0.01)


async def test_handlers_own_timeout_is_its_failure():
    async def impatient(_):
        raise TimeoutError("the database was slow")

    with pytest.raises(HandlerFailed, match="the database was slow"):
        await run("impatient", {}, {"impatient": impatient})


@pytest.mark.parametrize(
    ("answer", "error"), [(object(), HandlerFailed), ("x" * 2000, AnswerTooLarge), (float("nan"), None)]
)
async def test_answer_that_cannot_be_kept_is_refused(answer, error):
    call = run("odd", {}, {"odd": lambda _: answer})

    if error is None:
        assert (await call).answer.body == b"null"
    else:
        with pytest.raises(error):
            await call


async def test_payload_may_be_a_blob():
    blobs = MemoryBlobs()
    writer = await blobs.write(b"i" * 16, "request")
    await writer.write(b'{"data":')
    await writer.write(b'"large"}')

    handled = await run("uppercase", await writer.commit(), blobs=blobs)

    assert json.loads(handled.answer.body) == {"data": "LARGE"}


@pytest.mark.parametrize(("name", "payload"), [("echo", b"{"), ("unknown", {})])
async def test_what_cannot_be_run_is_corrupt(name, payload):
    with pytest.raises(EnvelopeCorrupt):
        await run(name, payload)


def test_built_in_handlers_are_loaded():
    assert set(load_handlers()) >= {"echo", "uppercase", "reverse", "error"}
