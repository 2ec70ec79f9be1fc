"""The settings are read from what is deployed, and the published simulation is of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from perf.scale import settings
from perf.scale.autoscaler import Policy, Rules
from perf.scale.cli import table

ROOT = Path(__file__).parents[3]
PUBLISHED = json.loads((ROOT / "perf" / "results" / "cpu" / "scale.json").read_text())


def scaled_object(**changed: str) -> dict:
    """Changes are made to the first trigger."""
    trigger = {
        "type": "prometheus",
        "metricType": "Value",
        "metadata": {"query": "sum(sam3:wait) / sum(rate(worked[1m]))", "threshold": "0.3"},
    }
    oldest = {"query": "avg(clamp_max(max_over_time(sam3_oldest_frame_seconds[90s]), 3))", "threshold": "2"}
    down = {"stabilizationWindowSeconds": 600, "policies": [{"type": "Percent", "value": 10, "periodSeconds": 120}]}
    up = {"policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]}
    behavior = {"scaleUp": up, "scaleDown": down}
    spec = {
        "minReplicaCount": 2,
        "maxReplicaCount": 9,
        "triggers": [trigger | changed, trigger | {"metadata": oldest}],
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": behavior}},
    }
    return {"kind": "ScaledObject", "spec": spec}


def test_a_scaled_object_is_read(tmp_path):
    rules = [{"record": "sam3:wait", "expr": "sum(rate(waited[2m]))"}, {"alert": "Slow", "expr": "rate(waited[9m])"}]
    other = {"kind": "PrometheusRule", "spec": {"groups": [{"rules": rules}]}}
    (tmp_path / "monitoring.yaml").write_text(yaml.safe_dump_all([other, scaled_object()]))
    found = settings.deployed(tmp_path)
    assert found.triggers == (
        settings.Trigger(settings.WAIT, 0.3, 120),
        settings.Trigger(settings.OLDEST, 2.0, 90, 3.0),
    )
    assert (found.behavior.least, found.behavior.most) == (2, 9)
    assert found.behavior.up == Rules(0, (Policy("Pods", 2, 60),))
    assert found.behavior.down == Rules(600, (Policy("Percent", 10, 120),))


def test_an_average_over_pods_is_refused():
    with pytest.raises(settings.SettingsError, match="metricType Value, got AverageValue"):
        settings.read(scaled_object(metricType="AverageValue"), {})


def test_a_query_of_an_unknown_time_is_refused():
    with pytest.raises(settings.SettingsError, match="expected a query over a time"):
        settings.read(scaled_object(metadata={"query": "sum(sam3:wait)", "threshold": "1"}), {})


def test_two_scaled_objects_are_refused(tmp_path):
    (tmp_path / "two.yaml").write_text(yaml.safe_dump_all([scaled_object(), scaled_object()]))
    with pytest.raises(settings.SettingsError, match="expected one ScaledObject, got 2"):
        settings.deployed(tmp_path)


def test_the_published_simulation_is_of_what_is_deployed():
    deployed = json.loads(json.dumps(asdict(settings.deployed())))
    assert PUBLISHED["chosen"] == deployed, "simulate again: the command is in perf/results/cpu/scale.json"


def test_the_page_shows_the_published_table():
    assert table(PUBLISHED["rows"]).markdown() in (ROOT / "docs" / "scale.md").read_text()


def test_the_chosen_settings_are_better_than_the_worse_ones():
    chosen, *worse = PUBLISHED["rows"][:3]
    assert all(chosen["p99_ms"] < row["p99_ms"] for row in worse)
    assert all(chosen["dropped_percent"] < row["dropped_percent"] for row in worse)
