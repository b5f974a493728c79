"""Which action a request takes."""

import pytest

from openhqm.errors import SettingsError
from openhqm.routes import Action, Routes
from openhqm.settings import InterceptSettings, RouteSettings

HOST = (b"Host", b"a")


def rule(action="queue", *, wait_seconds=0.0, delivery="decide", priority=None, **match) -> RouteSettings:
    return RouteSettings.model_validate(
        {
            "match": match,
            "action": action,
            "wait_seconds": wait_seconds,
            "delivery": delivery,
            "priority": priority,
        }
    )


@pytest.mark.parametrize(
    ("method", "action"),
    [
        (b"POST", Action.QUEUE),
        (b"PUT", Action.QUEUE),
        (b"PATCH", Action.QUEUE),
        (b"DELETE", Action.QUEUE),
        (b"GET", Action.PASS),
        (b"HEAD", Action.PASS),
        (b"OPTIONS", Action.PASS),
        (b"PROPFIND", Action.PASS),
    ],
)
def test_without_rules_methods_that_change_things_queue(method, action):
    assert Routes().decide(method, b"/", [HOST]).action is action


def test_what_cannot_be_replayed_passes():
    routes = Routes([rule("queue", prefix="/ws")])

    assert routes.decide(b"GET", b"/ws", [HOST], upgrade=True).action is Action.PASS
    assert routes.decide(b"POST", b"/other", [(b"accept", b"text/event-stream")]).action is Action.PASS
    assert routes.decide(b"POST", b"/ws", [(b"Accept", b"text/event-stream")]).action is Action.QUEUE


@pytest.mark.parametrize(
    ("match", "target", "pairs", "matches"),
    [
        ({"path": "/a"}, b"/a", [], True),
        ({"path": "/a"}, b"/a?x=/b", [], True),
        ({"path": "/a"}, b"/a/", [], False),
        ({"path": "/a"}, b"/%61", [], False),
        ({"prefix": "/a/"}, b"/a/b", [], True),
        ({"prefix": "/a/"}, b"/x/../a/b", [], False),
        ({"regex": "/a/[0-9]+"}, b"/a/12", [], True),
        ({"regex": "/a/[0-9]+"}, b"/a/12/b", [], False),
        ({"methods": ["GET"]}, b"/", [], True),
        ({"methods": ["POST"]}, b"/", [], False),
        ({"headers": [{"name": "X-Mode"}]}, b"/", [(b"x-mode", b"")], True),
        ({"headers": [{"name": "X-Mode", "exact": "slow"}]}, b"/", [(b"X-MODE", b"slow")], True),
        ({"headers": [{"name": "X-Mode", "exact": "slow"}]}, b"/", [(b"X-MODE", b"fast")], False),
        ({"path": "/a", "headers": [{"name": "X-Mode"}]}, b"/a", [], False),
        ({}, b"/anything", [], True),
    ],
)
def test_all_conditions_of_a_rule_must_hold_on_the_raw_bytes(match, target, pairs, matches):
    decision = Routes([rule("reject", **match)]).decide(b"GET", target, pairs)

    assert (decision.action is Action.REJECT) is matches


def test_the_first_matching_rule_wins_and_brings_its_overrides():
    routes = Routes(
        [
            rule("queue", path="/slow", wait_seconds=5, delivery="repeat", priority=9),
            rule("reject", prefix="/slow"),
            rule("shadow", prefix="/"),
        ]
    )

    slow = routes.decide(b"GET", b"/slow", [])

    assert (slow.action, slow.wait_seconds, slow.repeat, slow.priority) == (Action.QUEUE, 5.0, True, 9)
    assert routes.decide(b"GET", b"/slower", []).action is Action.REJECT
    assert routes.decide(b"POST", b"/other", []).action is Action.SHADOW


def test_a_regular_expression_that_bytes_cannot_match_stops_the_start():
    with pytest.raises(SettingsError, match=r"routes: match\.regex"):
        Routes([rule("queue", regex="/\\u00e9")])


def queue_actions(**intercept: object) -> list[Action]:
    routes = Routes(
        [
            rule("queue", prefix="/q", wait_seconds=3.0),
            rule("pass", prefix="/p"),
            rule("reject", prefix="/r"),
        ],
        InterceptSettings.model_validate(intercept),
    )
    return [routes.decide(b"POST", path, [HOST]).action for path in (b"/q", b"/p", b"/r", b"/other")]


@pytest.mark.parametrize(
    ("intercept", "queued"),
    [
        ({}, Action.QUEUE),
        ({"percent": 1}, Action.QUEUE),
        ({"percent": 0}, Action.PASS),
        ({"shadow": True}, Action.SHADOW),
        ({"shadow": True, "percent": 0}, Action.SHADOW),
    ],
)
def test_shadow_and_a_share_of_nothing_change_queue_alone(
    intercept: dict[str, object], queued: Action
) -> None:
    """A share between decides request by request, see test_share.py."""
    assert queue_actions(**intercept) == [queued, Action.PASS, Action.REJECT, queued]


def test_an_upgrade_is_not_counted_as_what_would_be_queued() -> None:
    routes = Routes([rule("queue", prefix="/ws")], InterceptSettings(shadow=True))

    assert routes.decide(b"GET", b"/ws", [HOST], upgrade=True).action is Action.PASS
