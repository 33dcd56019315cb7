"""Dashboards and alerts ask for metrics that exist, and every alert has its test.

promtool itself checks the rules and runs their tests in `make check-deploy`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.metrics import all_metrics, series

DEPLOY = Path(__file__).parents[2] / "deploy"
OBSERVABILITY = DEPLOY / "observability"
DASHBOARDS = sorted((OBSERVABILITY / "dashboards").glob("*.json"))
OTHERS = {"process_resident_memory_bytes"}
"""Series of the Prometheus client itself."""
METRIC = re.compile(r"\b(?:pigeon|process)_[a-z_]+")
SELECTOR = re.compile(r"\b(pigeon_[a-z_]+)\{([^}]*)\}")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((OBSERVABILITY / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> Iterator[tuple[str, str]]:
    """Where a query is, and the query."""
    yield from ((rule["alert"], rule["expr"]) for rule in rules())
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            yield from ((f"{path.stem}: {panel['title']}", target["expr"]) for target in panel["targets"])


def test_every_series_that_is_asked_for_exists() -> None:
    known = series() | OTHERS
    asked = {(place, name) for place, query in queries() for name in METRIC.findall(query)}
    assert len(asked) > 50
    assert not [(place, name) for place, name in sorted(asked) if name not in known]


def test_labels_that_are_asked_for_exist() -> None:
    labels = {name: set(one.labels) for one in all_metrics() for name in one.scraped}
    for place, query in queries():
        for name, selector in SELECTOR.findall(query):
            asked = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selector))
            assert asked <= labels[name], f"{place}: {name} has {labels[name]}"


def test_every_metric_of_the_night_and_the_loop_is_on_a_dashboard() -> None:
    text = "".join(path.read_text() for path in DASHBOARDS)
    ours = {one.name for one in all_metrics() if one.part == "generator.metrics.names"}
    shown_otherwise = {"pigeon_night_date_timestamp_seconds", "pigeon_night_drawing_seconds"}
    shown_otherwise |= {"pigeon_night_started_timestamp_seconds", "pigeon_night_progress_timestamp_seconds"}
    shown_otherwise |= {"pigeon_unannounced_nights"}  # an alert
    assert {name for name in ours if name not in text} == shown_otherwise


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_lies_on_grafanas_grid_without_overlaps(path: Path) -> None:
    board = json.loads(path.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["targets"]
        assert panel["datasource"]["uid"] == "${datasource}"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_every_alert_has_a_test_in_which_it_is_quiet_and_one_in_which_it_fires() -> None:
    tests = yaml.safe_load((OBSERVABILITY / "alerts_test.yml").read_text())["tests"]
    outcomes: dict[str, set[bool]] = {}
    for test in tests:
        for moment in test["alert_rule_test"]:
            outcomes.setdefault(moment["alertname"], set()).add(bool(moment.get("exp_alerts")))
    assert outcomes == {rule["alert"]: {True, False} for rule in rules()}


def test_every_alert_says_what_is_wrong_how_bad_and_where_to_read_on() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["annotations"]["runbook"] == f"deploy/runbook.md#{rule['alert'].lower()}"
