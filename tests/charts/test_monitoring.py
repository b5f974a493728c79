"""Alerts and dashboard ask for figures that the processes have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from tests.charts.rendering import CHART, find, rendered

ROOT = CHART.parents[1]
SOURCES = [
    *(ROOT / "sidecar" / "openhqm").glob("*.py"),
    *(ROOT / "operator" / "openhqm_operator").rglob("*.py"),
]
_SUFFIX = re.compile(r"_(total|bucket|sum|count|info)$")


def known_figures() -> set[str]:
    """Names as the code writes them, without what Prometheus' text format adds."""
    text = "\n".join(path.read_text() for path in SOURCES)
    whole = set(re.findall(r'"(openhqm_[a-z_]+)"', text))
    operator = (ROOT / "operator" / "openhqm_operator" / "operator_metrics.py").read_text()
    return whole | {f"openhqm_operator_{name}" for name in re.findall(r'_gauge\("([a-z_]+)"', operator)}


def figures_in(expressions: list[str]) -> set[str]:
    found = set()
    for expression in expressions:
        found |= {_SUFFIX.sub("", name) for name in re.findall(r"\bopenhqm_[a-z_]+", expression)}
    return found


def alerts() -> list[dict]:
    rule = next(obj for obj in rendered("everything") if obj["kind"] == "PrometheusRule")
    return [alert for group in rule["spec"]["groups"] for alert in group["rules"]]


def panels() -> list[dict]:
    config = find(rendered("everything"), "ConfigMap", "openhqm-dashboard")
    return [panel for panel in json.loads(config["data"]["openhqm.json"])["panels"] if panel["type"] != "row"]


def test_alerts_ask_for_figures_there_are() -> None:
    assert figures_in([alert["expr"] for alert in alerts()]) <= known_figures()


def test_alerts_say_what_is_wrong_and_what_to_look_at() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"]["summary"], alert["alert"]
        assert len(alert["annotations"]["description"]) > 30, alert["alert"]
        assert "@" not in alert["expr"], "a name that was not put in"


def test_panels_ask_for_figures_there_are() -> None:
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]

    assert figures_in(expressions) <= known_figures()


def test_panels_explain_themselves_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_alerts_can_be_read_without_helm() -> None:
    text = Path(CHART / "files" / "alerts.yaml").read_text()

    assert [group["name"] for group in yaml.safe_load(text)] == ["openhqm.sidecars", "openhqm.control-plane"]
