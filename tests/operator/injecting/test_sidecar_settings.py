"""What an AsyncProxy's spec becomes for its sidecars; read back the way the sidecar reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from openhqm.settings import Settings, load
from openhqm_operator.api.spec import Spec
from openhqm_operator.injecting.sidecar_settings import problem_of, render_settings


def spec(**fields: Any) -> Spec:
    return Spec.model_validate({"targetRef": {"kind": "Deployment", "name": "legacy"}} | fields)


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """The settings a sidecar gets from a spec, its file and one Secret's variable included."""

    def read(**fields: Any) -> Settings:
        path = tmp_path / "settings.yaml"
        path.write_text(yaml.safe_dump(render_settings(spec(**fields), namespace="shop", name="legacy")))
        return load(config=path, environ={"OPENHQM_STORE__URL": "redis://:secret@store"})

    return read


def test_a_plain_proxy_has_a_queue_of_its_own_and_all_defaults(read: Any) -> None:
    settings = read()

    assert settings.queue.name == "shop.legacy"
    assert settings.egress == Settings().egress
    assert settings.routes == ()


def test_a_long_name_still_makes_a_queue() -> None:
    rendered = render_settings(spec(), namespace="n" * 63, name="p" * 253)

    assert Settings.model_validate(rendered).queue.name.startswith("n" * 63 + ".ppp")


def test_settings_are_spelled_as_the_sidecar_spells_them(read: Any) -> None:
    settings = read(
        settings={
            "egress": {"concurrency": 2, "appTimeoutSeconds": 7},
            "retry": {"statuses": [503]},
            "drain": {"timeoutSeconds": 60},
            "ingress": {"trustedProxies": ["10.0.0.0/8"]},
        }
    )

    assert (settings.egress.concurrency, settings.egress.app_timeout_seconds) == (2, 7.0)
    assert settings.retry.statuses == (503,)
    assert settings.drain.timeout_seconds == 60.0
    assert settings.ingress.trusted_proxies == ("10.0.0.0/8",)


def test_routes_keep_their_order_and_conditions(read: Any) -> None:
    match = {"methods": ["POST"], "prefix": "/jobs", "headers": [{"name": "X-Async", "exact": "1"}]}

    first, second = read(
        routes=[
            {"match": match, "action": "Queue", "waitSeconds": 5, "delivery": "Repeat", "priority": 0},
            {"action": "Pass"},
        ]
    ).routes

    assert (first.action, first.wait_seconds, first.delivery, first.priority) == ("queue", 5.0, "repeat", 0)
    assert (first.match.methods, first.match.prefix) == (("POST",), "/jobs")
    assert (first.match.headers[0].name, first.match.headers[0].exact) == ("X-Async", "1")
    assert second.action == "pass"


def test_shadow_and_percent_are_the_sidecar_s(read: Any) -> None:
    assert read(intercept={"shadow": True}).intercept.shadow is True
    assert read(intercept={"percent": 5}).intercept.percent == 5
    assert "intercept" not in render_settings(spec(), namespace="shop", name="legacy")


def test_a_paused_proxy_sends_nothing(read: Any) -> None:
    settings = read(paused=True, settings={"egress": {"concurrency": 2}})

    assert (settings.egress.paused, settings.egress.concurrency) == (True, 2)


@pytest.mark.parametrize("place", ["header", "cookie", "path", "json"])
def test_the_ordering_key_is_where_the_proxy_says(read: Any, place: str) -> None:
    value = {"json": "/order/customer", "path": "^/orders/([^/]+)"}.get(place, "X-Customer")

    key = read(key={place: value}).queue.key

    assert key.model_dump(exclude_none=True, by_alias=True) == {place: value}


@pytest.mark.parametrize("text", ["/${OPENHQM_STORE__URL}", "/$${HOME}", "/a${1}$", "/$"])
def test_text_is_never_expanded(read: Any, text: str) -> None:
    """Or a path condition could be made to hold the store's password."""
    [route] = read(routes=[{"match": {"path": text}, "action": "Pass"}]).routes

    assert route.match.path == text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"routes": [{"match": {"regex": "("}, "action": "Queue"}]}, "not a regular expression"),
        ({"key": {"path": "/no/group"}}, "queue.key.path: needs a group"),
        ({"broker": {"secretRef": {"name": "kafka"}}}, "this version has no brokers"),
        ({"routes": [{"match": {"regex": r"\N{BULLET}"}, "action": "Queue"}]}, "matched against bytes"),
    ],
)
def test_says_why_sidecars_would_refuse_a_spec(fields: dict[str, Any], words: str) -> None:
    assert words in str(problem_of(spec(**fields)))


def test_has_nothing_to_say_of_a_good_spec() -> None:
    assert problem_of(spec(routes=[{"match": {"regex": "/jobs/.*"}, "action": "Queue"}])) is None
