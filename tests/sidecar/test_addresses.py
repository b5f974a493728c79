"""The guard against forged callback targets: which texts pass, and that nothing denied is ever dialled."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from aiohttp import ClientError, ClientSession, web
from aiohttp.abc import AbstractResolver
from aiohttp.test_utils import TestServer

from openhqm.addresses import AddressDenied, AllowList, check_callback_url, guarded_connector, is_public
from openhqm.errors import BadRequest, SettingsError
from openhqm.settings import CallbackSettings

NAMES = CallbackSettings(allowed_hosts=("hooks.example.com", "*.partner.example", "other.example:8443"))
ANY_HTTP = CallbackSettings(allowed_hosts=("hooks.example.com", "10.1.0.0/16", "fd00::/8"), allow_http=True)

PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.7",
    "203.0.113.7",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::8.8.8.8",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "3fff::1",
    "2a00:1450::5efe:7f00:1",
    "2a00:1450::200:5efe:a9fe:a9fe",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "100.63.255.255",
    "100.128.0.1",
    "172.15.255.255",
    "172.32.0.1",
    "192.0.1.1",
    "223.255.255.255",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2001:4860:4860::8888",
    "2606:4700:4700::1111",
    "2a00:1450:4001:80f::200e",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_address_is_not_public_in_any_notation(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_address_is_public(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("url", "dialled"),
    [
        ("https://hooks.example.com", "https://hooks.example.com/"),
        ("https://hooks.example.com/a?b=c%20d", "https://hooks.example.com/a?b=c%20d"),
        ("HTTPS://Hooks.Example.COM./x", "https://hooks.example.com/x"),
        ("https://hooks.example.com:443/x", "https://hooks.example.com/x"),
        ("https://a.b.partner.example/x", "https://a.b.partner.example/x"),
        ("https://other.example:8443/x", "https://other.example:8443/x"),
    ],
)
def test_listed_host_passes(url, dialled):
    assert check_callback_url(url, NAMES).replace(":443/", "/") == dialled


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example.com",
        "//hooks.example.com/",
        "ftp://hooks.example.com/",
        "file:///etc/passwd",
        "gopher://hooks.example.com:6379/_x",
        "http://hooks.example.com/",
        "https://",
        "https:///x",
        "https://hooks.example.com:22/",
        "https://hooks.example.com:8443/",
        "https://other.example/",
        "https://hooks.example.com:0/",
        "https://hooks.example.com:65536/",
        "https://hooks.example.com:99999/",
        "https://hooks.example.com:-1/",
        "https://hooks.example.com:/",
        "https://user@hooks.example.com/",
        "https://user:pass@hooks.example.com/",
        "https://hooks.example.com@evil.example/",
        "https://hooks.example.com:443@evil.example/",
        "https://evil.example\\@hooks.example.com/",
        "https://evil.example#@hooks.example.com/",
        "https://hooks.example.com#fragment",
        "https://hooks.example.com\\.evil.example/",
        "https://hooks.example.com%2eevil.example/",
        "https://hooks.example.com%00.evil.example/",
        "https://hooks.example.com/\r\nX-Injected: 1",
        "https://hooks.example.com/\tx",
        "https://hooks.example.com/ x",
        " https://hooks.example.com/",
        "https://hooks.example.com/\u00e4",
        "https://h\u00f6oks.example.com/",
        "https://hooks\u3002example.com/",
        "https://evil.example/",
        "https://partner.example/",
        "https://evilpartner.example/",
        "https://hooks.example.com.evil.example/",
        "https://xhooks.example.com/",
        "https://localhost/",
        "https://127.0.0.1/",
        "https://127.1/",
        "https://127.0.1/",
        "https://0x7f.0.0.1/",
        "https://0x7f000001/",
        "https://2130706433/",
        "https://017700000001/",
        "https://0177.0.0.1/",
        "https://127.0.0.1./",
        "https://169.254.169.254/latest/meta-data/",
        "https://2852039166/",
        "https://0xa9fea9fe/",
        "https://[::1]/",
        "https://[::]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:7f00:1]/",
        "https://[64:ff9b::a9fe:a9fe]/",
        "https://[2002:7f00:1::]/",
        "https://[fe80::1%25eth0]/",
        "https://[fd00:ec2::254]/",
        "https://[hooks.example.com]/",
        "https://8.8.8.8/",
    ],
)
def test_anything_else_is_refused_before_it_is_stored(url):
    with pytest.raises(BadRequest, match="callback URL"):
        check_callback_url(url, NAMES)


@pytest.mark.parametrize("url", ["http://10.1.2.3/x", "http://10.1.2.3:9999/x", "http://[fd00::1]:81/x"])
def test_cidr_permits_its_addresses_on_every_port(url):
    assert check_callback_url(url, ANY_HTTP)


@pytest.mark.parametrize(
    "url", ["http://10.2.0.1/", "http://[fc00::1]/", "http://[::ffff:10.1.0.1]/", "http://10.1.513/"]
)
def test_cidr_permits_no_others(url):
    with pytest.raises(BadRequest):
        check_callback_url(url, ANY_HTTP)


def test_no_allow_list_refuses_everything():
    with pytest.raises(BadRequest, match=r"callback\.allowed_hosts"):
        check_callback_url("https://hooks.example.com/", CallbackSettings())


@pytest.mark.parametrize(
    "entry", ["", "*", "*.", "a b", "https://x.example", "x.example/path", "127.1", "10.0.0.0/33"]
)
def test_entry_that_means_nothing_stops_the_start(entry):
    with pytest.raises(SettingsError, match=r"callback\.allowed_hosts"):
        AllowList(CallbackSettings(allowed_hosts=(entry,)))


class Names(AbstractResolver):
    """Answers with the given addresses, one list per look-up."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = 0

    async def resolve(self, host, port=0, family=socket.AF_INET):
        self.asked += 1
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
                "proto": 0,
                "flags": 0,
            }
            for address in addresses
        ]

    async def close(self):
        pass


@pytest.fixture
async def internal():
    """A server on loopback that nobody may reach, and what reached it."""
    reached = []

    async def answer(request):
        reached.append(request.path_qs)
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        server.reached = reached
        yield server


async def post(url, settings, resolver=None):
    connector = guarded_connector(AllowList(settings).permits_address, resolver)
    async with ClientSession(connector=connector) as session, session.post(url) as reply:
        return reply.status


@pytest.mark.parametrize("address", [a for a in PRIVATE if "%" not in a])
async def test_name_that_means_a_private_address_is_not_dialled(address, monkeypatch):
    dialled = []
    monkeypatch.setattr(socket, "socket", lambda *info: dialled.append(info))

    with pytest.raises(ClientError):
        await post("http://hooks.example.com/", NAMES, Names([address]))

    assert dialled == []


async def test_name_is_looked_up_once_and_that_address_dialled(internal):
    """A name server that first answers with something public gains nothing by answering otherwise later."""
    settings = CallbackSettings(allowed_hosts=("hooks.example.com", "127.0.0.1/32"), allow_http=True)
    rebinding = Names(["127.0.0.1"], ["10.0.0.1"])

    assert await post(f"http://hooks.example.com:{internal.port}/", settings, rebinding) == 200
    assert rebinding.asked == 1


async def test_denied_addresses_among_permitted_ones_are_left_out(internal):
    settings = CallbackSettings(allowed_hosts=("hooks.example.com", "127.0.0.1/32"), allow_http=True)
    names = Names(["10.0.0.1", "169.254.169.254", "127.0.0.1", "::1"])

    assert await post(f"http://hooks.example.com:{internal.port}/", settings, names) == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "[::ffff:127.0.0.1]"])
async def test_literal_address_passes_the_same_wall(internal, host):
    """Literals are never looked up; the socket factory sees them all the same."""
    with pytest.raises(ClientError) as caught:
        await post(f"http://{host}:{internal.port}/", ANY_HTTP)

    assert isinstance(caught.value.__cause__ or caught.value, (AddressDenied, ClientError))
    assert internal.reached == []
