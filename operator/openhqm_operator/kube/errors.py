"""What the API server may answer instead of what we asked for, as one tree. Pure.

KubeError                     base; `status` is the HTTP status (0: no answer), `reason` the server's word
├── NotFound                  404: the object, or the whole resource (a CRD that is not installed)
├── Conflict                  409: the object changed since it was read; read again
│   ├── AlreadyExists         409: create met an object of that name
│   └── FieldsTaken           409: an apply without force met fields of other managers (`owners`)
├── Gone                      410: the resourceVersion cannot be continued from; list again
├── Invalid                   400, 405, 413, 415, 422: the request is wrong and stays so
├── Forbidden                 403: RBAC, admission policy, quota, a namespace that is ending
└── Unavailable               408, 429, 5xx, no connection, timeout: try later (`retry_after`)
    ├── Unauthorized          401: the token ran out; it is read again before the next call
    └── WatchSilent           a watch said nothing for too long, not even a bookmark; it may be well

A write that ends in `Unavailable` may still have happened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class KubeError(Exception):
    """A call to the API server that did not work.

    Attributes:
        status: HTTP status, 0 if there was no answer.
        reason: the server's word for it, such as `AlreadyExists`; may be empty.
        causes: the server's list of causes, each with reason, message and field as far as it gave them.
    """

    def __init__(
        self, message: str, *, status: int = 0, reason: str = "", causes: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.causes = tuple(causes)


class NotFound(KubeError):
    """There is no such object, or no such resource."""


class Conflict(KubeError):
    """Somebody else was faster: read again and decide again."""


class AlreadyExists(Conflict):
    """An object of this name exists."""


class FieldsTaken(Conflict):
    """Other managers own fields of this apply, with other values.

    Attributes:
        owners: field -> who owns it, such as `.spec.replicas` -> `conflict with "kubectl" using apps/v1`.
    """

    @property
    def owners(self) -> dict[str, str]:
        return {cause.get("field", ""): cause.get("message", "") for cause in self.causes}


class Gone(KubeError):
    """No watch or list can continue from this resourceVersion: too old, or unknown to this server."""


class Invalid(KubeError):
    """The request is wrong; sending it again does not help."""


class Forbidden(KubeError):
    """We may not do this, or not here, or not now."""


class Unavailable(KubeError):
    """No usable answer.

    Attributes:
        retry_after: seconds the server asked to wait, 0 if it did not.
    """

    def __init__(self, message: str, *, retry_after: float = 0.0, **rest: Any) -> None:
        super().__init__(message, **rest)
        self.retry_after = retry_after


class Unauthorized(Unavailable):
    """Our credentials were refused; fresh ones are read before the next call."""


class WatchSilent(Unavailable):
    """A watch said nothing for longer than bookmarks take to come, if there are any: quiet, or dead."""


def error_of(status: int, answer: Mapping[str, Any], what: str, retry_after: float = 0.0) -> KubeError:
    """The error for an answer of *status*.

    Args:
        answer: the body, a metav1.Status if all is well; anything else is passed over.
        what: the call, for the message: `PATCH /apis/...`.
        retry_after: seconds, from the header.
    """
    details = answer.get("details")
    details = details if isinstance(details, Mapping) else {}
    causes = details.get("causes") or ()
    reason = str(answer.get("reason") or "")
    message = f"{what}: {status} {answer.get('message') or reason or 'no reason given'}"
    rest: dict[str, Any] = {"status": status, "reason": reason, "causes": causes}
    cause_words = {cause.get("reason") for cause in causes}
    # A server that restarted may know fewer versions than we saw, for seconds or, restored, for ever.
    if status == 410 or "ResourceVersionTooLarge" in cause_words:
        return Gone(message, **rest)
    if status == 409 and "FieldManagerConflict" in cause_words:
        return FieldsTaken(message, **rest)
    if status == 409 and reason == "AlreadyExists":
        return AlreadyExists(message, **rest)
    if status in _CLASSES:
        return _CLASSES[status](message, **rest)
    if status in (408, 429) or status >= 500:
        wait = retry_after or float(details.get("retryAfterSeconds") or 0)
        return Unavailable(message, retry_after=wait, **rest)
    return Invalid(message, **rest)


_CLASSES: dict[int, type[KubeError]] = {401: Unauthorized, 403: Forbidden, 404: NotFound, 409: Conflict}
