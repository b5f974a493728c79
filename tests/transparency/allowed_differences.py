"""Every difference between talking to the app directly and through the queue, in one place.

Anything not undone here is a failure of `test_transparency.py`. Each entry says why it is allowed.
"""

from __future__ import annotations

Pairs = list[tuple[bytes, bytes]]

ADDED_TO_REQUESTS = {
    b"via": "RFC 9110 7.6.3: an intermediary names itself",
    b"x-forwarded-for": "the app would otherwise see 127.0.0.1 as its client",
    b"x-forwarded-proto": "as above, for the scheme",
    b"x-forwarded-host": "as above, for the host the client named",
}
REMOVED_FROM_REQUESTS = {
    b"connection": "RFC 9110 7.6.1: hop by hop",
    b"keep-alive": "hop by hop",
    b"proxy-connection": "hop by hop",
    b"proxy-authorization": "meant for the proxy",
    b"te": "hop by hop",
    b"trailer": "trailers are not kept, see docs/http.md",
    b"upgrade": "hop by hop; a queued request cannot be upgraded",
    b"transfer-encoding": "the body is stored whole, its length is known",
    b"expect": "answered by the proxy, the body is already there",
    b"prefer": "wait and respond-async are addressed to the queue",
}
CHANGED_IN_REQUESTS = {
    b"content-length": "stands where Transfer-Encoding stood",
}
REMOVED_FROM_ANSWERS = {
    b"connection": "hop by hop",
    b"keep-alive": "hop by hop",
    b"proxy-authenticate": "meant for the hop",
    b"trailer": "trailers are not kept",
    b"transfer-encoding": "the answer is stored whole, its length is known",
    b"upgrade": "hop by hop",
}
CHANGED_IN_ANSWERS = {
    b"content-length": "always given, for the stored body",
}
ADDED_TO_ANSWERS = {
    b"openhqm-correlation-id": "names the record; the only header of ours on the app's answer",
}


def request_as_allowed(pairs: Pairs) -> Pairs:
    """Headers of a request with the allowed differences taken out, in order, names as written."""
    ignored = {*ADDED_TO_REQUESTS, *REMOVED_FROM_REQUESTS, *CHANGED_IN_REQUESTS}
    named = {
        token.strip().lower()
        for name, value in pairs
        if name.lower() == b"connection"
        for token in value.split(b",")
    }
    return [(n, v) for n, v in pairs if n.lower() not in ignored and n.lower() not in named]


def answer_as_allowed(pairs: Pairs) -> Pairs:
    """Headers of an answer with the allowed differences taken out, in order, names as written."""
    ignored = {*REMOVED_FROM_ANSWERS, *CHANGED_IN_ANSWERS, *ADDED_TO_ANSWERS}
    named = {
        token.strip().lower()
        for name, value in pairs
        if name.lower() == b"connection"
        for token in value.split(b",")
    }
    return [(n, v) for n, v in pairs if n.lower() not in ignored and n.lower() not in named]
