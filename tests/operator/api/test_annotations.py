"""Annotations of a workload become a spec, or every problem at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openhqm_operator.api.annotations import (
    SETTINGS,
    AnnotationsInvalid,
    is_enabled,
    is_forced,
    read_annotations,
    render_table,
)
from openhqm_operator.api.spec import Spec

DOCS = Path(__file__).parents[3] / "docs" / "kubernetes.md"
TARGET = {"targetRef": {"kind": "Deployment", "name": "legacy"}}
QUEUED = {"methods": ["POST", "PUT", "PATCH", "DELETE"]}


def read(kind: str = "Deployment", **given: str) -> dict[str, Any]:
    annotations = {f"openhqm.io/{name.replace('_', '-')}": value for name, value in given.items()}
    return read_annotations(annotations | {"openhqm.io/enabled": "true"}, kind, "legacy")


def problems(kind: str = "Deployment", **given: str) -> tuple[str, ...]:
    with pytest.raises(AnnotationsInvalid) as caught:
        read(kind, **given)
    return caught.value.problems


def test_enabled_alone_asks_for_nothing_but_the_defaults() -> None:
    assert read() == TARGET


@pytest.mark.parametrize(
    ("annotation", "value", "asked"),
    [
        ("port", "http", {"port": "http"}),
        ("port", "8080", {"port": 8080}),
        ("intercept", "Redirect", {"intercept": {"type": "Redirect"}}),
        ("shadow", "true", {"intercept": {"shadow": True}}),
        ("percent", "5", {"intercept": {"percent": 5}}),
        ("concurrency", "4", {"settings": {"egress": {"concurrency": 4}}}),
        ("timeout", " 30 ", {"settings": {"egress": {"appTimeoutSeconds": 30}}}),
        ("rate", "0", {"settings": {"egress": {"ratePerSecond": 0}}}),
        ("max-attempts", "1", {"settings": {"retry": {"maxAttempts": 1}}}),
        ("max-age", "0", {"settings": {"queue": {"maxAgeSeconds": 0}}}),
        ("max-backlog", "1000", {"settings": {"queue": {"maxBacklog": 1000}}}),
        ("max-replicas", "5", {"scaling": {"mode": "Native", "maxReplicas": 5}}),
        ("store-secret", "redis", {"store": {"secretRef": {"name": "redis"}}}),
        ("store-secret", "redis/dsn", {"store": {"secretRef": {"name": "redis", "key": "dsn"}}}),
        ("readiness", "App", {"readiness": "App"}),
        ("rollout", "OnNextDeploy", {"rollout": "OnNextDeploy"}),
        ("paused", "true", {"paused": True}),
        ("wait", "20", {"routes": [{"match": QUEUED, "action": "Queue", "waitSeconds": 20}]}),
        ("delivery", "Repeat", {"routes": [{"match": QUEUED, "action": "Queue", "delivery": "Repeat"}]}),
        ("pass", "/metrics", {"routes": [{"match": {"prefix": "/metrics"}, "action": "Pass"}]}),
    ],
)
def test_each_annotation_sets_its_field(annotation: str, value: str, asked: dict[str, Any]) -> None:
    spec = read(**{annotation: value})

    assert spec == TARGET | asked
    Spec.model_validate(spec)


def test_several_annotations_share_a_part_of_the_spec() -> None:
    spec = read(max_replicas="5", min_replicas="2", drain_seconds="10", idle_after="60")

    assert spec["scaling"] == {
        "mode": "Native",
        "maxReplicas": 5,
        "minReplicas": 2,
        "drainSeconds": 10,
        "idleAfterSeconds": 60,
    }


def test_what_is_to_be_queued_alone_comes_between_what_passes_and_the_rest() -> None:
    spec = read(queue="POST /jobs, /reports", **{"pass": "/jobs/preview"}, wait="3")

    assert spec["routes"] == [
        {"match": {"prefix": "/jobs/preview"}, "action": "Pass"},
        {"match": {"methods": ["POST"], "prefix": "/jobs"}, "action": "Queue", "waitSeconds": 3},
        {"match": {"prefix": "/reports"}, "action": "Queue", "waitSeconds": 3},
        {"match": {}, "action": "Pass"},
    ]


@pytest.mark.parametrize(
    ("annotation", "value", "said"),
    [
        ("concurrency", "many", 'openhqm.io/concurrency: "many" is not a whole number (allowed: a whole'),
        ("concurrency", "0", 'openhqm.io/concurrency: "0" is out of bounds (allowed: a whole number, 1 or'),
        ("percent", "101", 'openhqm.io/percent: "101" is out of bounds (allowed: 0 to 100)'),
        ("wait", "-1", 'openhqm.io/wait: "-1" is out of bounds (allowed: whole seconds, 0 or more)'),
        ("shadow", "yes", 'openhqm.io/shadow: "yes" is neither "true" nor "false"'),
        ("port", "0", 'openhqm.io/port: "0" is not from 1 to 65535'),
        ("port", "Web_Port", 'openhqm.io/port: "Web_Port" is not the name of a containerPort'),
        ("intercept", "redirect", "not one of them, did you mean Redirect? (allowed: Auto, NamedPort,"),
        ("pass", "metrics", 'not a list of path prefixes: "metrics"'),
        ("pass", "get /metrics", "not a list of path prefixes"),
        ("store-secret", "Bad_Name", "openhqm.io/store-secret"),
        ("max-replica", "3", "openhqm.io/max-replica is not known, did you mean openhqm.io/max-replicas?"),
        ("colour", "3", "openhqm.io/colour is not known"),
        ("force-eject", "now", 'openhqm.io/force-eject: "now" is neither "true" nor "false"'),
        ("min-replicas", "2", "has no effect without openhqm.io/max-replicas"),
    ],
)
def test_a_problem_names_the_annotation_and_what_is_allowed(annotation: str, value: str, said: str) -> None:
    (problem,) = problems(**{annotation: value})

    assert said in problem
    assert annotation in problem


def test_all_problems_are_told_at_once() -> None:
    found = problems(concurrency="many", percent="500", colour="red")

    assert [problem.split(":")[0].split(" ")[0] for problem in found] == [
        "openhqm.io/colour",
        "openhqm.io/concurrency",
        "openhqm.io/percent",
    ]


def test_what_rules_across_fields_refuse_is_told_in_the_words_of_annotations() -> None:
    assert problems(max_replicas="1", min_replicas="2") == (
        "openhqm.io/min-replicas must not exceed openhqm.io/max-replicas",
    )
    assert "leave openhqm.io/percent at 100" in problems(shadow="true", percent="50")[0]
    assert "DaemonSet" in problems("DaemonSet", max_replicas="3")[0]


def test_a_long_value_is_not_repeated_whole() -> None:
    (problem,) = problems(port="x" * 100_000)

    assert len(problem) < 250


def test_other_people_s_annotations_are_none_of_our_business() -> None:
    assert read_annotations({"example.com/port": "x"}, "Deployment", "legacy") == TARGET


def test_only_true_enables() -> None:
    assert is_enabled({"openhqm.io/enabled": "true"}) is True
    assert is_enabled({"openhqm.io/enabled": "True"}) is None
    assert is_enabled({"openhqm.io/enabled": "false"}) is False
    assert is_enabled({}) is False
    assert is_forced({"openhqm.io/force-eject": "true"})


def test_the_docs_show_the_table() -> None:
    assert render_table() in DOCS.read_text(), "paste `annotations.render_table()` into docs/kubernetes.md"


def test_every_annotation_has_a_meaning() -> None:
    assert all(setting.allowed and setting.meaning for setting in SETTINGS)
