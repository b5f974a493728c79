"""Which headers reach the app, and as which bytes."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openhqm.errors import BadRequest, SettingsError
from openhqm.headers import Forwarding, remaining_preferences, request_head, strip_hop_by_hop
from openhqm.settings import IngressSettings

SILENT = Forwarding(enabled=False)
HOST = (b"Host", b"app.example")


def head(*pairs, length=None, chunked=False, forwarding=SILENT, peer="192.0.2.7", **more):
    return request_head(
        b"POST", b"/a", pairs, length=length, chunked=chunked, peer=peer, forwarding=forwarding, **more
    )


def lines(raw: bytes) -> list[bytes]:
    return raw.removesuffix(b"\r\n\r\n").split(b"\r\n")[1:]


def test_end_to_end_headers_keep_bytes_case_order_and_duplicates():
    pairs = [HOST, (b"x-Dup", b"1"), (b"X-DUP", b"caf\xe9"), (b"Accept", b""), (b"x-dup", b"3")]

    assert head(*pairs) == (
        b"POST /a HTTP/1.1\r\nHost: app.example\r\nx-Dup: 1\r\nX-DUP: caf\xe9\r\nAccept: \r\nx-dup: 3\r\n\r\n"
    )


@pytest.mark.parametrize(
    "pair",
    [
        (b"Connection", b"keep-alive"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Proxy-Authorization", b"Basic x"),
        (b"Proxy-Connection", b"close"),
        (b"TE", b"trailers"),
        (b"Trailer", b"X-Sum"),
        (b"Upgrade", b"h2c"),
        (b"Expect", b"100-continue"),
        (b"OpenHQM-Priority", b"3"),
        (b"openhqm-callback", b"https://example.com"),
        (b"X_Forwarded_For", b"1.2.3.4"),
        (b"Content_Length", b"9"),
        (b"Prefer", b"wait=5"),
    ],
)
def test_headers_of_one_connection_and_our_own_do_not_travel(pair):
    assert lines(head(HOST, pair)) == [b"Host: app.example"]


def test_connection_removes_what_it_lists_but_never_what_everyone_relies_on():
    listed = (b"Connection", b"close, X-Private, X-Forwarded-For, Host, authorization, Cookie, OpenHQM-Key")
    pairs = [listed, HOST, (b"x-private", b"1"), (b"Authorization", b"t"), (b"X-Forwarded-For", b"9.9.9.9")]

    assert lines(head(*pairs)) == [b"Host: app.example", b"Authorization: t", b"X-Forwarded-For: 9.9.9.9"]
    assert strip_hop_by_hop(pairs) == [HOST, (b"Authorization", b"t"), (b"X-Forwarded-For", b"9.9.9.9")]


@pytest.mark.parametrize(
    ("received", "length", "chunked", "expected"),
    [
        ([(b"content-LENGTH", b"007"), (b"A", b"1")], 7, False, [b"content-LENGTH: 7", b"A: 1"]),
        ([(b"Transfer-Encoding", b"chunked"), (b"A", b"1")], 7, False, [b"Content-Length: 7", b"A: 1"]),
        ([(b"A", b"1")], 0, False, [b"A: 1", b"Content-Length: 0"]),
        ([(b"A", b"1")], None, False, [b"A: 1"]),
        ([(b"Content-Length", b"4")], None, False, []),
        ([(b"transfer-encoding", b"Chunked")], None, True, [b"Transfer-Encoding: chunked"]),
        ([], None, True, [b"Transfer-Encoding: chunked"]),
    ],
)
def test_framing_is_written_anew_where_it_stood(received, length, chunked, expected):
    assert lines(head(HOST, *received, length=length, chunked=chunked)) == [b"Host: app.example", *expected]


def test_a_request_without_host_gets_the_apps():
    forwarding = Forwarding(enabled=False, default_host="127.0.0.1:8080")

    assert lines(head((b"A", b"1"), forwarding=forwarding)) == [b"Host: 127.0.0.1:8080", b"A: 1"]


def test_claims_of_strangers_about_the_client_are_replaced():
    claims = [(b"X-Forwarded-For", b"6.6.6.6"), (b"x-forwarded-port", b"1"), (b"Forwarded", b"for=6.6.6.6")]

    assert lines(head(HOST, *claims, forwarding=Forwarding())) == [
        b"Host: app.example",
        b"X-Forwarded-For: 192.0.2.7",
        b"X-Forwarded-Proto: http",
        b"X-Forwarded-Host: app.example",
        b"Via: 1.1 openhqm",
    ]


def test_claims_of_trusted_proxies_are_kept_and_extended():
    claims = [
        (b"X-Forwarded-For", b"6.6.6.6"),
        (b"X-Forwarded-Proto", b"https"),
        (b"Forwarded", b"for=6.6.6.6"),
    ]
    forwarding = Forwarding(trusted=["192.0.2.0/24", "2001:db8::/32"])

    for peer, node in (("192.0.2.7", b"192.0.2.7"), ("2001:db8::1", b'"[2001:db8::1]"')):
        assert lines(head(HOST, *claims, forwarding=forwarding, peer=peer)) == [
            b"Host: app.example",
            b"X-Forwarded-For: 6.6.6.6, " + peer.encode(),
            b"X-Forwarded-Proto: https",
            b"Forwarded: for=6.6.6.6, for=" + node,
            b"X-Forwarded-Host: app.example",
            b"Via: 1.1 openhqm",
        ]


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("11.0.0.1", False),
        ("", False),
        ("fe80::1%eth0", False),
    ],
)
def test_trust_is_by_network(peer, trusted):
    assert Forwarding(trusted=["10.0.0.0/8"]).trusts(peer) is trusted


@pytest.mark.parametrize(
    ("value", "left"),
    [
        (b"wait=5", b""),
        (b"respond-async, wait=10", b""),
        (b"return=minimal, Wait = 3, handling=lenient", b"return=minimal, handling=lenient"),
        (b'foo="a, wait=3", respond-async;x=1', b'foo="a, wait=3"'),
        (b"waiting=1", b"waiting=1"),
        (b"", b""),
    ],
)
def test_only_the_two_consumed_preferences_go(value, left):
    assert remaining_preferences(value) == left


def test_passed_requests_keep_their_preferences():
    assert lines(head(HOST, (b"Prefer", b"wait=5"), consume_prefer=False)) == [
        b"Host: app.example",
        b"Prefer: wait=5",
    ]


@pytest.mark.parametrize("value", [b"a\r\nEvil: 1", b"a\nEvil: 1", b"a\rb", b"a\0b"])
def test_a_value_that_ends_its_line_is_refused(value):
    with pytest.raises(BadRequest):
        head(HOST, (b"A", value))


token = st.text("ABCDEFXYZabcxyz019-!#$%&'*+.^`|~", min_size=1, max_size=20).map(str.encode)
value = st.binary(max_size=30).map(lambda b: bytes(c for c in b if c == 9 or 32 <= c != 127).strip())


@given(st.lists(st.tuples(token, value), max_size=12), st.one_of(st.none(), st.integers(0, 10**9)))
def test_every_head_parses_to_what_was_recorded(pairs, length):
    """The oracle is h11: the bytes we emit are one request with one Host and at most one framing."""
    raw = head(HOST, *pairs, length=length, forwarding=Forwarding())

    parser = h11.Connection(h11.SERVER)
    parser.receive_data(raw)
    event = parser.next_event()

    assert isinstance(event, h11.Request)
    names = [name.lower() for name, _ in event.headers.raw_items()]
    assert names.count(b"content-length") == (length is not None)
    assert b"transfer-encoding" not in names
    assert (event.method, event.target) == (b"POST", b"/a")


@pytest.mark.parametrize(
    ("ingress", "app_url", "named"),
    [
        ({"trusted_proxies": ["10.0.0.0/99"]}, "http://a", "ingress.trusted_proxies"),
        ({"trusted_proxies": ["proxy.local"]}, "http://a", "ingress.trusted_proxies"),
        ({}, "http://b\u00fccher", "app.url"),
    ],
)
def test_settings_that_cannot_be_used_stop_the_start(ingress, app_url, named):
    with pytest.raises(SettingsError, match=named):
        Forwarding.from_settings(IngressSettings.model_validate(ingress), app_url)
