"""Reads the URLs of Redis stores: where the server is, and how to be let in. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from openhqm.errors import SettingsError

_DEFAULT_PORTS = {"redis": 6379, "sentinel": 26379, "cluster": 6379}
_QUERY = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed store URL.

    Args:
        kind: "redis", "sentinel" or "cluster".
        nodes: where to ask first, in order.
        service: the master's name, for Sentinel.
        tls: files for TLS by the names of the query, None for plain connections.
    """

    kind: str
    nodes: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = None
    tls: dict[str, str] | None = None

    def __str__(self) -> str:
        """Where it is, without credentials."""
        where = self.path or ",".join(f"{host}:{port}" for host, port in self.nodes)
        return f"{self.kind} {where}" + (f" {self.service}" if self.service else "")


def parse_url(url: str) -> Target:
    """Read redis://, rediss://, unix://, redis+sentinel:// and redis+cluster:// URLs.

    A scheme that starts with "rediss" means TLS; the certificate's name is always checked.

    Raises:
        SettingsError: says what is wrong, without repeating credentials.
    """
    scheme, separator, _ = url.partition("://")
    base, _, kind = scheme.partition("+")
    kind = kind or "redis"
    if not separator or base not in ("redis", "rediss", "unix") or kind not in _DEFAULT_PORTS:
        raise SettingsError(f"store.url: {scheme or 'an empty'!s} scheme is not one of Redis")
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    query = dict(parse_qsl(parts.query))
    if unknown := sorted(set(query) - _QUERY):
        raise SettingsError(
            f"store.url: unknown parameter {unknown[0]}; known are {', '.join(sorted(_QUERY))}"
        )
    segments = [unquote(part) for part in parts.path.split("/") if part]
    service = ""
    if kind == "sentinel":
        if not segments:
            raise SettingsError("store.url: redis+sentinel:// needs the master's name as its path")
        service = segments.pop(0)
    is_unix = base == "unix"
    return Target(
        kind=kind,
        nodes=() if is_unix else _nodes(hosts, _DEFAULT_PORTS[kind]),
        path=unquote(parts.path) if is_unix else "",
        service=service,
        db=0 if is_unix else _database(segments, kind),
        username=unquote(username) or None,
        password=unquote(password) if at and password else None,
        tls=query if base == "rediss" else None,
    )


def _nodes(hosts: str, default_port: int) -> tuple[tuple[str, int], ...]:
    nodes = []
    for host in hosts.split(","):
        try:
            parts = urlsplit(f"//{host}")
            nodes.append((parts.hostname or "127.0.0.1", parts.port or default_port))
        except ValueError as exc:
            raise SettingsError(f"store.url: not a host and port: {host}") from exc
    return tuple(nodes)


def _database(segments: Sequence[str], kind: str) -> int:
    if not segments:
        return 0
    if len(segments) > 1 or not segments[0].isdigit():
        raise SettingsError(f"store.url: the database is a number, not {'/'.join(segments)!r}")
    if kind == "cluster" and segments[0] != "0":
        raise SettingsError("store.url: a cluster has database 0 only")
    return int(segments[0])
