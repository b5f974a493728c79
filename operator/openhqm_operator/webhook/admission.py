"""What the API server asks an admission webhook, and the answers it understands. Pure.

    {"request": {"uid", "operation", "namespace", "object", "dryRun"}} --read_review--> Review
    allow(uid, patch, warnings) | deny(uid, reason, message) --> {"response": {...}}

Source: admission.k8s.io/v1.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from openhqm_operator.kube.resources import Object

API_VERSION = "admission.k8s.io/v1"
KIND = "AdmissionReview"

WARNING_CHARACTERS = 240
"""The API server cuts what is longer off in the middle of all warnings; clients show about 120 per line."""


class ReviewInvalid(Exception):
    """Not an AdmissionReview, or not one we can read; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Review:
    """One object about to be made.

    Args:
        uid: names the review; the answer repeats it.
        kind: of the object, such as Pod.
        body: the object; None for a deletion.
    """

    uid: str
    operation: str
    kind: str
    namespace: str
    body: Object | None


def read_review(text: bytes) -> Review:
    """Read an AdmissionReview.

    Raises:
        ReviewInvalid: *text* is none.
    """
    try:
        review: Any = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise ReviewInvalid(f"not JSON: {exc}") from exc
    if not isinstance(review, dict) or (review.get("apiVersion"), review.get("kind")) != (API_VERSION, KIND):
        raise ReviewInvalid(f"not an {KIND} of {API_VERSION}")
    request = review.get("request")
    if not isinstance(request, dict) or not isinstance(request.get("uid"), str):
        raise ReviewInvalid("request.uid is missing")
    body, kind = request.get("object"), request.get("kind")
    if not isinstance(kind, dict) or not (body is None or isinstance(body, dict)):
        raise ReviewInvalid("request.kind and request.object must be objects")
    return Review(
        uid=request["uid"],
        operation=str(request.get("operation")),
        kind=str(kind.get("kind")),
        namespace=str(request.get("namespace") or ""),
        body=body,
    )


def allow(uid: str, patch: Sequence[Object] = (), warnings: Sequence[str] = ()) -> Object:
    """Let the object pass, changed by *patch*."""
    response: Object = {"uid": uid, "allowed": True}
    if patch:
        response |= {"patchType": "JSONPatch", "patch": base64.b64encode(orjson.dumps(list(patch))).decode()}
    if warnings:
        response["warnings"] = [warning[:WARNING_CHARACTERS] for warning in warnings]
    return _answer(response)


def deny(uid: str, message: str, *, reason: str, code: int = 403) -> Object:
    """Refuse the object; whoever made it, such as a ReplicaSet, tells *message* in an Event."""
    status = {"code": code, "reason": reason, "message": message}
    return _answer({"uid": uid, "allowed": False, "status": status})


def _answer(response: Object) -> Object:
    return {"apiVersion": API_VERSION, "kind": KIND, "response": response}
