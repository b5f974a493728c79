"""The submit API: requests handed to us as JSON, stored and answered like intercepted ones.

    POST <prefix>/v1/requests     {"path": "/orders", "body": ...}  ->  202, or the answer

Beside `ingress.py`, which takes requests as they are. `submit_models.py` reads the JSON, `acceptor.py`
stores; `original_api.py` takes the words of the original API and submits through `Submitter` too.

Who may submit: holders of an API key; everyone where none is configured, which settings allow only
without an app. Handlers that somebody installed run for holders of a key only: the built-in ones do
no harm, of others nobody knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace

from aiohttp import hdrs
from aiohttp.web import BaseRequest

from openhqm.acceptor import Acceptor
from openhqm.api_keys import ApiKeys, Caller
from openhqm.body import Limits, check_size, keep_body, read_body, send_continue
from openhqm.control import Control, idempotency_scope, read_control
from openhqm.envelope import Envelope
from openhqm.errors import BadRequest, Draining, Forbidden, Unauthorized
from openhqm.handlers import BUILT_IN
from openhqm.headers import Forwarding, Pair, request_head
from openhqm.ingress import expects_continue
from openhqm.replies import Reply
from openhqm.results import allow
from openhqm.routes import Action, Decision, Routes
from openhqm.settings import Settings
from openhqm.stores.base import Store
from openhqm.submit_models import APP, HANDLER, Explicit, Submission, read_json

PATH = b"/v1/requests"
"""Of `SubmitPage`, below the reserved prefix."""
SMALL_BYTES = 256 * 1024
"""More JSON than this is read in a thread: everyone else's requests do not wait for it."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of a submission.

    Args:
        id: of the record that stands for it.
        existing: that record was there before.
    """

    id: bytes
    existing: bool
    control: Control
    decision: Decision


class Submitter:
    """Takes submissions into the store.

    Args:
        handlers: names that may follow "handler:" in a target.
    """

    def __init__(
        self, settings: Settings, store: Store, acceptor: Acceptor, *, handlers: Collection[str]
    ) -> None:
        self._store = store
        self._acceptor = acceptor
        self._accepting = True
        self.handlers = frozenset(handlers)
        self.has_app = settings.app.url is not None
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Take over the hot settings: API keys, routes and limits."""
        ingress = settings.ingress
        self._keys = ApiKeys(ingress.api_keys)
        self._routes = Routes(settings.routes)
        self._forwarding = Forwarding.from_settings(ingress, settings.app.url)
        self._identity_header = ingress.identity_header.lower().encode()
        self._reserved = ingress.reserved_prefix.encode()
        self._limits = Limits.from_settings(settings, self._store.abilities)

    def stop_accepting(self) -> None:
        """Refuse every submission from now on (503)."""
        self._accepting = False

    def check(self, request: BaseRequest) -> Caller:
        """Return who is calling.

        Raises:
            Unauthorized: a key is needed, and none of ours was sent.
        """
        return self._keys.check(request.raw_headers)

    async def receive(self, request: BaseRequest, understand: Callable[[bytes], Submission]) -> Submission:
        """Read what a call submits; what is refused for its head is refused unread.

        Args:
            understand: makes sense of the body; may run in a thread.

        Raises:
            Draining, BodyTooLarge, ExpectationFailed, and what `read_body` and *understand* raise.
        """
        if not self._accepting:
            raise Draining("this process is about to exit; the next try meets another one")
        length = request.headers.get(hdrs.CONTENT_LENGTH)
        declared = None if length is None else int(length)
        check_size(declared, self._limits)
        if expects_continue(request):
            await send_continue(request)
        # It is read here and now, whatever its size: as a whole it never becomes a blob.
        whole = replace(self._limits, inline_bytes=self._limits.max_bytes)
        received = await read_body(request, self._store.blobs, b"", whole, declared=declared, hashed=False)
        assert isinstance(received.body, bytes)
        if received.size <= SMALL_BYTES:
            return understand(received.body)
        return await asyncio.to_thread(understand, received.body)

    async def submit(self, request: BaseRequest, caller: Caller, submission: Submission) -> Submitted:
        """Commit a submission.

        Args:
            request: the call that brought it; its control headers count besides the wishes.

        Raises:
            BadRequest, Unauthorized, Forbidden: it is not taken.
            BacklogFull, IdempotencyMismatch, StoreUnavailable: nothing was stored.
        """
        self._check_target(submission, caller)
        control = merged(read_control(request.raw_headers), submission.wishes)
        decision = self._decision(submission)
        id = self._acceptor.new_id()
        callback = self._acceptor.callback(id, control)
        scope = self._scope(request, caller, submission, control)
        envelope = self._envelope(submission, control, decision, request.remote or "")
        received = await keep_body(
            submission.body or b"", self._store.blobs, id, self._limits, hashed=scope is not None
        )
        in_force = await self._acceptor.accept(
            id, envelope, received, control, decision, scope=scope, callback=callback
        )
        return Submitted(in_force, in_force != id, control, decision)

    def _check_target(self, submission: Submission, caller: Caller) -> None:
        if submission.target == APP:
            if not self.has_app:
                raise BadRequest('target: no app is configured here (app.url); name a "handler:<name>"')
            path = submission.path.partition(b"?")[0]
            if path == self._reserved or path.startswith(self._reserved + b"/"):
                raise BadRequest("path: what is below the reserved prefix is never forwarded")
            return
        name = submission.target.removeprefix(HANDLER)
        if name not in self.handlers:
            raise BadRequest(
                f"target: there is no such handler; known are {', '.join(sorted(self.handlers))}"
            )
        if caller.key is None and name not in BUILT_IN:
            raise Unauthorized(f"{submission.target} needs an API key (ingress.api_keys)")

    def _decision(self, submission: Submission) -> Decision:
        """Return what routes say of the request, and the submission's own word over it."""
        decision = Decision(Action.QUEUE)
        if submission.target == APP:
            decision = self._routes.decide(submission.method, submission.path, submission.pairs)
            if decision.action is Action.REJECT:
                raise Forbidden("a route rejects this request")
        return replace(
            decision,
            action=Action.QUEUE,
            timeout_seconds=submission.timeout_seconds or decision.timeout_seconds,
            max_attempts=submission.max_attempts or decision.max_attempts,
            repeat=submission.repeat or decision.repeat,
        )

    def _envelope(self, submission: Submission, control: Control, decision: Decision, peer: str) -> Envelope:
        pairs: Sequence[Pair] = submission.pairs
        if control.idempotency_key is not None:
            pairs = (*pairs, (b"Idempotency-Key", control.idempotency_key))
        head = request_head(
            submission.method,
            submission.path,
            pairs,
            length=None if submission.body is None else len(submission.body),
            peer=peer,
            forwarding=self._forwarding,
            consume_prefer=False,
        )
        return Envelope(
            head,
            target=submission.target,
            timeout_seconds=decision.timeout_seconds,
            max_attempts=decision.max_attempts,
            repeat=decision.repeat,
            peer=peer,
        )

    def _scope(
        self, request: BaseRequest, caller: Caller, submission: Submission, control: Control
    ) -> bytes | None:
        """Return the scope of the Idempotency-Key: for the app, the very one of an intercepted request."""
        if control.idempotency_key is None:
            return None
        identity = b"\n".join(v for n, v in request.raw_headers if n.lower() == self._identity_header)
        method = submission.method
        if submission.target != APP:
            method = b"%b %b" % (submission.target.encode(), method)
        return idempotency_scope(
            identity or caller.key or b"", method, submission.path, control.idempotency_key
        )


class SubmitPage:
    """Explicit submit: `POST <prefix>/v1/requests`, a page of `Results`."""

    def __init__(self, submitter: Submitter, acceptor: Acceptor) -> None:
        self._submitter = submitter
        self._acceptor = acceptor

    async def handle(self, request: BaseRequest, query: bytes) -> Reply:
        """Store what the body describes; answer as for an intercepted request."""
        allow(request, ("POST",))
        caller = self._submitter.check(request)
        submission = await self._submitter.receive(
            request, lambda data: read_json(data, Explicit).submission()
        )
        submitted = await self._submitter.submit(request, caller, submission)
        return await self._acceptor.answer(
            submitted.id, submitted.control, submitted.decision, existing=submitted.existing
        )


def merged(headers: Control, members: Control) -> Control:
    """Return the wishes of the call's headers and of its body as one.

    Raises:
        BadRequest: they differ.
    """
    unset = Control()
    said = {}
    for field in fields(Control):
        by_header, by_member = getattr(headers, field.name), getattr(members, field.name)
        default = getattr(unset, field.name)
        if default not in (by_header, by_member) and by_header != by_member:
            raise BadRequest(f"{field.name}: the body and a header of the call say different things")
        said[field.name] = by_header if by_member == default else by_member
    if said["deadline"] is not None and said["deadline_seconds"] is not None:
        raise BadRequest("deadline: the body and a header of the call say different things")
    return Control(**said)
