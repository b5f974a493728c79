"""What clients may ask for, and how refusals name it."""

import pytest

from openhqm.control import NO_CONTROL, idempotency_scope, read_control, read_prefer
from openhqm.errors import BadRequest


def test_a_request_without_control_headers_asks_for_nothing():
    assert read_control([(b"Host", b"a"), (b"Origin", b"b"), (b"Pragma", b"c")]) is NO_CONTROL


def test_every_control_header_is_read():
    control = read_control(
        [
            (b"openhqm-PRIORITY", b"9"),
            (b"OpenHQM-Delay", b"1.5"),
            (b"OpenHQM-Not-Before", b"2030-01-31T12:00:00.5+01:00"),
            (b"OpenHQM-Deadline", b"2030-02-01T00:00:00Z"),
            (b"OpenHQM-Key", b"order-\xff"),
            (b"OpenHQM-Callback", b"https://example.com/hook"),
            (b"Idempotency-Key", b'"abc"'),
            (b"Prefer", b"respond-async, wait=10"),
        ]
    )

    assert (control.priority, control.delay_seconds) == (9, 1.5)
    assert (control.not_before, control.deadline) == (1896087600.5, 1896134400.0)
    assert (control.key, control.callback) == (b"order-\xff", "https://example.com/hook")
    assert control.idempotency_key == b'"abc"'
    assert (control.respond_async, control.wait_seconds) == (True, 10.0)


def test_a_deadline_may_be_relative():
    control = read_control([(b"OpenHQM-Deadline", b"90")])

    assert (control.deadline, control.deadline_seconds) == (None, 90.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OpenHQM-Priority", b"high"),
        ("OpenHQM-Priority", b"10"),
        ("OpenHQM-Priority", b"-1"),
        ("OpenHQM-Priority", b""),
        ("OpenHQM-Priority", "٣".encode()),
        ("OpenHQM-Delay", b"soon"),
        ("OpenHQM-Delay", b"-1"),
        ("OpenHQM-Delay", b"1e3"),
        ("OpenHQM-Delay", b"nan"),
        ("OpenHQM-Not-Before", b"2030-01-31"),
        ("OpenHQM-Not-Before", b"2030-13-31T12:00:00Z"),
        ("OpenHQM-Not-Before", b"2030-01-31T12:00:00"),
        ("OpenHQM-Not-Before", b"2030-01-31T12:00:00\xff"),
        ("OpenHQM-Deadline", b"0"),
        ("OpenHQM-Deadline", b"tomorrow"),
        ("OpenHQM-Key", b""),
        ("OpenHQM-Key", b"k" * 513),
        ("OpenHQM-Callback", b""),
        ("OpenHQM-Not-Before", b"9999-12-31T23:59:59-23:59"),
        ("OpenHQM-Not-Before", b"9999-12-31T23:59:59.999999Z"),
        ("OpenHQM-Deadline", b"0001-01-01T00:00:00+23:59"),
        ("OpenHQM-Callback", b"https://ex\xc3\xa4mple.com"),
        ("Idempotency-Key", b""),
        ("OpenHQM-Prioritty", b"3"),
    ],
)
def test_a_value_that_cannot_be_read_is_refused_by_name(name, value):
    with pytest.raises(BadRequest, match=name):
        read_control([(name.encode(), value)])


def test_a_control_header_sent_twice_is_refused():
    with pytest.raises(BadRequest, match="OpenHQM-Key"):
        read_control([(b"OpenHQM-Key", b"a"), (b"openhqm-key", b"b")])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (None, False)),
        ([b"wait=5"], (5.0, False)),
        ([b'WAIT = "5"; x=1'], (5.0, False)),
        ([b"respond-async", b"wait=1, wait=9"], (1.0, True)),
        ([b"wait=soon, return=minimal"], (None, False)),
    ],
)
def test_preferences_that_cannot_be_read_are_ignored(values, expected):
    assert read_prefer(values) == expected


def test_scopes_of_different_callers_paths_and_keys_differ():
    parts = [
        (b"", b"POST", b"/a", b"k"),
        (b"alice", b"POST", b"/a", b"k"),
        (b"", b"PUT", b"/a", b"k"),
        (b"", b"POST", b"/a?x", b"k"),
        (b"", b"POST", b"/a", b"k2"),
        (b"", b"POST", b"/ak", b""),
    ]

    scopes = {idempotency_scope(*part) for part in parts}

    assert len(scopes) == len(parts)
    assert {len(scope) for scope in scopes} == {32}
