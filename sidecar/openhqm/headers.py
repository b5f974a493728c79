"""Which headers travel, and the exact bytes of the head that is replayed. Pure.

Before it: ingress has validated the request. After it: `Envelope.head`, or the head that the
pass-through sends at once. Names, case, order, duplicates and bytes of end-to-end headers stay as
they were received; what belongs to one connection, to us, or to an untrusted claim about the
client goes, and framing is written anew from the length of the body we hold.

Source: RFC 9110 section 7.6 (Connection, Via), RFC 9112 section 6 (framing), RFC 7239 (Forwarded).
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache

from openhqm.errors import BadRequest, SettingsError
from openhqm.settings import IngressSettings

Pair = tuple[bytes, bytes]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields that belong to one connection, lower case."""

_END_TO_END = frozenset(
    {
        b"authorization",
        b"content-length",
        b"content-type",
        b"cookie",
        b"forwarded",
        b"host",
        b"idempotency-key",
    }
)
_END_TO_END_PREFIXES = (b"x-forwarded-", b"openhqm-")
_ORDINARY_CONNECTIONS = frozenset({b"close", b"keep-alive", b"Keep-Alive", b"Close", b"upgrade", b"Upgrade"})
_CONSUMED_PREFERENCE = re.compile(
    rb"\s*(?:wait\s*(?:=.*)?|respond-async\s*(?:[=;].*)?)", re.IGNORECASE | re.DOTALL
)
_QUOTED_OR_PLAIN = re.compile(rb'(?:"(?:[^"\\]|\\.)*"|[^",])+')


class _Kind(enum.Enum):
    """What happens to a request header."""

    KEEP = enum.auto()
    DROP = enum.auto()
    CONNECTION = enum.auto()
    LENGTH = enum.auto()
    CODING = enum.auto()
    HOST = enum.auto()
    PREFER = enum.auto()
    CLIENT = enum.auto()
    """A claim about the client: believed only from trusted proxies."""


_KEEP = _Kind.KEEP  # the usual case; looking it up in the enum costs as much as writing the line


def _classify(name: bytes) -> _Kind:
    lower = name.lower()
    if lower in _RULES:
        return _RULES[lower]
    if lower in HOP_BY_HOP or lower.startswith(b"openhqm-") or b"_" in name:
        # CGI and WSGI read X_Y as X-Y: a twin with an underscore could overwrite a header we set.
        return _Kind.DROP
    return _Kind.CLIENT if lower.startswith(b"x-forwarded-") else _Kind.KEEP


_RULES = {
    b"connection": _Kind.CONNECTION,
    b"content-length": _Kind.LENGTH,
    b"transfer-encoding": _Kind.CODING,
    b"host": _Kind.HOST,
    b"prefer": _Kind.PREFER,
    b"forwarded": _Kind.CLIENT,
    b"expect": _Kind.DROP,  # answered by us, after admission
}

# Classifying by the exact spelling saves a lower() and four tests for nearly every header; a fixed
# table, because a cache filled by clients could be grown by them.
_COMMON_NAMES = """
Accept Accept-Charset Accept-Encoding Accept-Language Authorization Cache-Control Connection
Content-Encoding Content-Length Content-Type Cookie DNT Date Expect Forwarded Host Idempotency-Key
If-Match If-Modified-Since If-None-Match Keep-Alive Origin Pragma Prefer Range Referer
Sec-Fetch-Dest Sec-Fetch-Mode Sec-Fetch-Site Traceparent Tracestate Transfer-Encoding User-Agent Via
X-Api-Key X-Correlation-Id X-Forwarded-For X-Forwarded-Host X-Forwarded-Port X-Forwarded-Proto
X-Real-Ip X-Request-Id X-Requested-With
"""
_KINDS = {
    spelling.encode(): _classify(spelling.encode())
    for name in _COMMON_NAMES.split()
    for spelling in (name, name.lower())
}


class Forwarding:
    """What is said about the original client on a replayed request.

    Args:
        enabled: add X-Forwarded-For/-Proto/-Host and Via, and judge received ones; False leaves
            every such header as the client sent it.
        trusted: networks whose own claims are kept and extended.
        default_host: Host of a request that came without one (HTTP/1.0); the app's authority.
    """

    def __init__(self, *, enabled: bool = True, trusted: Iterable[str] = (), default_host: str = "localhost"):
        self.enabled = enabled
        self.default_host = default_host.encode("ascii")
        self._networks = tuple(ipaddress.ip_network(cidr, strict=False) for cidr in trusted)
        self._judge = lru_cache(maxsize=1024)(self._is_inside)

    @classmethod
    def from_settings(cls, ingress: IngressSettings, app_url: str | None) -> Forwarding:
        """Read the settings once; *app_url* names the default Host.

        Raises:
            SettingsError: a trusted proxy is not a network, or the app's host is not ASCII.
        """
        host = app_url.partition("://")[2] if app_url else "localhost"
        try:
            return cls(enabled=ingress.forwarded_headers, trusted=ingress.trusted_proxies, default_host=host)
        except UnicodeEncodeError as exc:
            raise SettingsError("app.url: write the host name in ASCII (xn--...)") from exc
        except ValueError as exc:
            raise SettingsError(f"ingress.trusted_proxies: {exc}") from exc

    def trusts(self, peer: str) -> bool:
        """Whether the claims of *peer*, an IP address, are believed."""
        return bool(self._networks) and self._judge(peer)

    def _is_inside(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:  # a Unix socket has no address
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)


def strip_hop_by_hop(pairs: Iterable[Pair], unwanted: AbstractSet[bytes] = HOP_BY_HOP) -> list[Pair]:
    """Return the end-to-end headers of a request or an answer, in order and untouched.

    Content-Length stays; who re-frames the body replaces it. `Connection` cannot remove a header
    that all recipients rely on (CVE-2024-45410 and its kin).

    Args:
        unwanted: HOP_BY_HOP, or more than that.
    """
    kept: list[Pair] = []
    listed: set[bytes] = set()
    for pair in pairs:
        lower = pair[0].lower()
        if lower not in unwanted:
            kept.append(pair)
        elif lower == b"connection":
            listed.update(connection_options(pair[1]))
    return [pair for pair in kept if pair[0].lower() not in listed] if listed else kept


def connection_options(value: bytes) -> set[bytes]:
    """Return the header names, lower case, that one Connection value removes."""
    if value in _ORDINARY_CONNECTIONS:
        return set()
    options = {option.strip(b" \t").lower() for option in value.split(b",")}
    return {o for o in options - _END_TO_END if o and not o.startswith(_END_TO_END_PREFIXES)}


def request_head(
    method: bytes,
    target: bytes,
    pairs: Sequence[Pair],
    *,
    length: int | None,
    chunked: bool = False,
    peer: str,
    forwarding: Forwarding,
    consume_prefer: bool = True,
) -> bytes:
    """Return the head to send to the app: request line, headers, empty line.

    Args:
        pairs: the raw headers as received, hop-by-hop ones included.
        length: of the body that follows; written where framing stood, or at the end if it stood
            nowhere. None: no body and no framing.
        chunked: frame the body as chunked instead; *length* is None then.
        peer: address of the original client, "" if unknown.
        consume_prefer: remove the two preferences that a queued request answers itself.

    Raises:
        BadRequest: the bytes would not be one well-formed head; a parser let something through.
    """
    host = forwarding.default_host
    framing = b"%d" % length if length is not None else None
    lines = [b"%b %b HTTP/1.1" % (method, target)]
    listed: set[bytes] = set()
    claims: list[Pair] = []
    has_host = False
    for name, value in pairs:
        kind = _KINDS.get(name) or _classify(name)
        if kind is _KEEP:
            lines.append(b"%b: %b" % (name, value))
        elif kind is _Kind.LENGTH or kind is _Kind.CODING:
            if framing is not None:
                lines.append(b"%b: %b" % (name if kind is _Kind.LENGTH else b"Content-Length", framing))
                framing = None
            elif chunked:
                lines.append(b"Transfer-Encoding: chunked")
                chunked = False
        elif kind is _Kind.HOST:
            host, has_host = value, True
            lines.append(b"%b: %b" % (name, value))
        elif kind is _Kind.CONNECTION:
            listed |= connection_options(value)
        elif kind is _Kind.CLIENT:
            claims.append((name, value))
        elif kind is _Kind.PREFER:
            left = remaining_preferences(value) if consume_prefer else value
            if left:
                lines.append(b"%b: %b" % (name, left))
    if not has_host:
        lines.insert(1, b"Host: " + host)
    if listed:
        lines[1:] = [line for line in lines[1:] if line.partition(b":")[0].lower() not in listed]
    if framing is not None:
        lines.append(b"Content-Length: " + framing)
    elif chunked:
        lines.append(b"Transfer-Encoding: chunked")
    if forwarding.enabled:
        lines += _client_lines(claims, peer, host, forwarding.trusts(peer))
    else:
        lines += [b"%b: %b" % claim for claim in claims]
    return _joined(lines)


def _client_lines(claims: list[Pair], peer: str, host: bytes, trusted: bool) -> list[bytes]:
    """Say who the client is, keeping what a trusted proxy said before us."""
    address = peer.encode("ascii") or b"unknown"
    if not trusted or not claims:
        return [
            b"X-Forwarded-For: " + address,
            b"X-Forwarded-Proto: http",
            b"X-Forwarded-Host: " + host,
            b"Via: 1.1 openhqm",
        ]
    chain: dict[bytes, list[bytes]] = {}
    for name, value in claims:
        chain.setdefault(name.lower(), []).append(value)
    chain.setdefault(b"x-forwarded-for", []).append(address)
    chain.setdefault(b"x-forwarded-proto", [b"http"])
    chain.setdefault(b"x-forwarded-host", [host])
    if b"forwarded" in chain:
        node = b'"[%b]"' % address if b":" in address else address
        chain[b"forwarded"].append(b"for=" + node)
    return [b"%b: %b" % (name.title(), b", ".join(values)) for name, values in chain.items()] + [
        b"Via: 1.1 openhqm"
    ]


def remaining_preferences(value: bytes) -> bytes:
    """Return a Prefer value without `wait` and `respond-async` (RFC 7240), b"" if none is left."""
    preferences = [p.strip(b" \t") for p in _QUOTED_OR_PLAIN.findall(value)]
    return b", ".join(p for p in preferences if p and not _CONSUMED_PREFERENCE.fullmatch(p))


def _joined(lines: list[bytes]) -> bytes:
    """Join head lines, and prove that nothing inside them ends a line or the head."""
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    if len(head) - len(head.translate(None, b"\r\n\0")) != 2 * (len(lines) + 1):
        raise BadRequest("a header contains a line break or a NUL")
    return head
