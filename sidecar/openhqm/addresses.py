"""Which URLs and addresses a callback may go to: the guard against server-side request forgery.

Callback URLs come from clients. `AllowList.check_url` judges the text when a request is accepted, and
again before each delivery; `guarded_connector` judges the address at the moment it is dialled. The name
is looked up once and exactly the addresses that passed are dialled, so a name that answers differently
the second time gains nothing. Both walls must be passed:

    host in `callback.allowed_hosts`  AND  address public, or inside an allowed CIDR

The lists are our own: `ipaddress.is_global` is true for NAT64 and 6to4 forms of private addresses, and
`is_private` false for shared address space (RFC 6598).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import TCPConnector, ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from openhqm.errors import BadRequest, SettingsError
from openhqm.settings import CallbackSettings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Permits = Callable[[str], bool]

# Everything IANA reserves, and 168.63.129.16, which answers for the platform on Azure.
# Source: https://www.iana.org/assignments/iana-ipv4-special-registry
_DENIED_IPV4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
# Of IPv6 only the global unicast block is public, less what is reserved inside it: protocol assignments
# (Teredo among them), documentation, 6to4. Loopback, link and site local, ULA (fd00:ec2::254 among them),
# multicast and IPv4-compatible addresses lie outside the block.
# Source: https://www.iana.org/assignments/iana-ipv6-special-registry
_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
_DENIED_IPV6 = tuple(
    ipaddress.IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)

# Only what every parser reads alike: the authority has no user info, backslash, percent sign or space.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<rest>[/?][!-\[\]-~]*)?",
    re.IGNORECASE | re.ASCII,
)
_DEFAULT_PORTS = {"https": 443, "http": 80}


class AddressDenied(OSError):
    """The address must not be dialled; an OSError, so that aiohttp reports it as a failed connection."""


def is_public(address: Address) -> bool:
    """Whether *address* is on the public internet, also when an IPv4 address inside it decides that."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _DENIED_IPV4)
    embedded = _embedded_ipv4(address)
    if embedded is not None and not is_public(embedded):
        return False
    if address.ipv4_mapped is not None or address in _NAT64:
        return True
    return address in _GLOBAL_IPV6 and not any(address in network for network in _DENIED_IPV6)


def _embedded_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that packets to *address* may reach: mapped, NAT64 or ISATAP."""
    number = int(address)
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64 or (number >> 32) & 0xFFFFFFFF in _ISATAP:
        return ipaddress.IPv4Address(number & 0xFFFFFFFF)
    return None


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of `callback.allowed_hosts`, read."""

    name: str = ""
    network: Network | None = None
    port: int | None = None
    any_port: bool = False

    def allows_host(self, host: str) -> bool:
        address = _literal(host)
        if address is not None:
            return self.network is not None and address in self.network
        if self.name.startswith("*."):
            return host.endswith(self.name[1:])
        return host == self.name

    def allows_port(self, port: int, default_port: int) -> bool:
        """A name allows its scheme's port or the one it says, `*` for all; a CIDR, made of the
        operator's own addresses, allows all."""
        return self.any_port or port == (self.port or default_port)


class AllowList:
    """What `callback.*` permits.

    Raises:
        SettingsError: an entry of `callback.allowed_hosts` is neither a name nor a CIDR.
    """

    def __init__(self, settings: CallbackSettings) -> None:
        self._entries = [_read_entry(text) for text in settings.allowed_hosts]
        self._networks = [entry.network for entry in self._entries if entry.network is not None]
        self._allow_http = settings.allow_http

    def check_url(self, url: str) -> str:
        """Return *url* as it will be dialled.

        Raises:
            BadRequest: says what is wrong with it.
        """
        match = _URL.fullmatch(url)
        if match is None:
            raise BadRequest(
                "the callback URL must be https://host[:port]/path in ASCII, without user or password"
            )
        scheme, host = match["scheme"].lower(), match["host"].lower().rstrip(".")
        if scheme == "http" and not self._allow_http:
            raise BadRequest("the callback URL must use https")
        if _literal(host) is None and _looks_numeric(host):
            raise BadRequest("the callback URL's host is an IP address in a notation that is not accepted")
        port = int(match["port"] or _DEFAULT_PORTS[scheme])
        if not 1 <= port <= 65535:
            raise BadRequest("the callback URL's port must be 1 to 65535")
        entries = [entry for entry in self._entries if entry.allows_host(host)]
        if not entries:
            raise BadRequest("the callback URL's host is not in callback.allowed_hosts")
        if not any(entry.allows_port(port, _DEFAULT_PORTS[scheme]) for entry in entries):
            raise BadRequest("the callback URL's port is not allowed for its host")
        return str(URL(f"{scheme}://{host}:{port}{match['rest'] or '/'}", encoded=True))

    def permits_address(self, text: str) -> bool:
        """Whether a connection to the address *text* may be made."""
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        if any(address in network for network in self._networks):
            return True
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return is_public(address) or any(address in network for network in self._networks)


def check_callback_url(url: str, settings: CallbackSettings) -> str:
    """Return *url* if a callback may go there; callers with many URLs keep an `AllowList`.

    Raises:
        BadRequest: says what is wrong with it.
    """
    return AllowList(settings).check_url(url)


def _read_entry(text: str) -> _Entry:
    try:
        return _Entry(network=ipaddress.ip_network(text, strict=False), any_port=True)
    except ValueError:
        pass
    match = re.fullmatch(
        r"(?P<name>(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)(?::(?P<port>\d{1,5}|\*))?", text.lower()
    )
    if match is None or _looks_numeric(match["name"]):
        raise SettingsError(f"callback.allowed_hosts: {text!r} is not a CIDR, host[:port] or *.suffix[:port]")
    any_port = match["port"] == "*"
    port = int(match["port"]) if match["port"] and not any_port else None
    return _Entry(match["name"], port=port, any_port=any_port)


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _looks_numeric(host: str) -> bool:
    """Whether resolvers might read *host* as an IPv4 number: 127.1, 0x7f.1, 017700000001."""
    last = host.rsplit(".", 1)[-1]
    return host.startswith("[") or re.fullmatch(r"\d+|0x[0-9a-f]*", last) is not None


class GuardedResolver(AbstractResolver):
    """Returns only addresses that may be dialled.

    Args:
        permits: the judge, as `AllowList.permits_address`.
        inner: does the look-up; the system's resolver if not given.
    """

    def __init__(self, permits: Permits, inner: AbstractResolver | None = None) -> None:
        self._permits = permits
        self._inner = inner or ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        permitted = [result for result in found if self._permits(result["host"])]
        if not permitted:
            raise AddressDenied(f"{host} has no address that a callback may go to")
        return permitted

    async def close(self) -> None:
        await self._inner.close()


def guarded_connector(permits: Permits, resolver: AbstractResolver | None = None) -> TCPConnector:
    """Return a connector that dials no address *permits* denies, whatever the URL says.

    The resolver filters look-ups; the socket factory sees every address on its way to `connect`,
    literal ones too, which are never looked up.
    """

    def open_socket(info: Sequence[Any]) -> socket.socket:
        family, kind, protocol, _, address = info
        if not permits(address[0]):
            raise AddressDenied("the address is not one that a callback may go to")
        return socket.socket(family, kind, protocol)

    return TCPConnector(
        resolver=GuardedResolver(permits, resolver),
        socket_factory=open_socket,
        use_dns_cache=False,
        force_close=True,
    )
