"""Reads broker URLs: where the server is, what the queue is called, how to be let in. Pure but for files.

    scheme://user:password@host:port,host:port/queue?parameter=value

Every adapter knows its own parameters; those of TLS are the same for all whose scheme means TLS.
"""

from __future__ import annotations

import ssl
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from openhqm.errors import SettingsError

TLS_PARAMETERS = ("tls_ca", "tls_cert", "tls_key")


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """A URL taken apart.

    Args:
        hosts: at least one.
        queue: the path without its first slash; "" where the URL names none.
    """

    scheme: str
    hosts: tuple[tuple[str, int], ...]
    queue: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    parameters: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        """Where it is, without credentials."""
        where = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{self.scheme}://{where}/{self.queue}"

    def text(self, name: str, default: str = "") -> str:
        return self.parameters.get(name, default)

    def whole(self, name: str, default: int, least: int, most: int) -> int:
        """A parameter that is a whole number.

        Raises:
            SettingsError: it is none, or out of bounds.
        """
        given = self.parameters.get(name, str(default))
        if not (given.isascii() and given.isdigit()) or not least <= int(given) <= most:
            raise SettingsError(
                f"broker.url: {name} must be a whole number from {least} to {most}, not {given!r}"
            )
        return int(given)

    def tls(self) -> ssl.SSLContext:
        """A context that checks certificates and names, with the files the URL names.

        Raises:
            SettingsError: a file cannot be used.
        """
        ca, cert, key = (self.parameters.get(name) for name in TLS_PARAMETERS)
        if key and not cert:
            raise SettingsError("broker.url: tls_key needs tls_cert")
        try:
            context = ssl.create_default_context(cafile=ca)
            if cert:
                context.load_cert_chain(cert, key)
        except (OSError, ssl.SSLError) as exc:
            raise SettingsError(f"broker.url: the TLS files cannot be used: {exc}") from exc
        return context


def parse_url(
    url: str, default_port: int, parameters: Collection[str] = (), *, has_tls: bool = False
) -> BrokerUrl:
    """Take *url* apart.

    Args:
        parameters: names that may stand in the query, besides those of TLS if *has_tls*.

    Raises:
        SettingsError: says what is wrong, without repeating credentials.
    """
    known = {*parameters, *(TLS_PARAMETERS if has_tls else ())}
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(set(query) - known):
        names = ", ".join(sorted(known)) or "none"
        raise SettingsError(f"broker.url: unknown parameter {unknown[0]}; known are {names}")
    return BrokerUrl(
        parts.scheme.lower(),
        tuple(_host(host, default_port) for host in hosts.split(",")),
        unquote(parts.path.removeprefix("/")),
        unquote(username) or None,
        unquote(password) if at and password else None,
        query,
    )


def _host(text: str, default_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        return parts.hostname or "127.0.0.1", parts.port or default_port
    except ValueError as exc:
        raise SettingsError(f"broker.url: not a host and port: {text}") from exc
