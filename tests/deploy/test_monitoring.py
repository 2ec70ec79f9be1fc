"""What operators get for Prometheus, Grafana and KEDA, as Prometheus' own tools and kustomize read it."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import yaml

from tests.conftest import ROOT
from tests.deploy.monitoring import COMPONENT, PROMETHEUS, prometheus_folder

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Debian's package prometheus")


def told(*command, cwd=None):
    """The output of a command that has to succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules(kind):
    groups = yaml.safe_load((COMPONENT / "rules.yaml").read_text())["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def test_the_configuration_of_prometheus(tmp_path):
    told("promtool", "check", "config", "prometheus.yml", cwd=prometheus_folder(tmp_path))


def test_the_rules(tmp_path):
    """Every alert fires when it should, in `rules_test.yaml`."""
    told("promtool", "test", "rules", "rules_test.yaml", cwd=prometheus_folder(tmp_path))
    cases = yaml.safe_load((PROMETHEUS / "rules_test.yaml").read_text())["tests"]
    fired = {alert["alertname"] for case in cases for alert in case.get("alert_rule_test", ()) if "exp_alerts" in alert}
    assert fired == {rule["alert"] for rule in rules("alert")}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs Debian's package kubernetes-client")
def test_the_component_goes_with_the_servers_that_kubernetes_runs(tmp_path):
    """What it names is there: the service and its port, the deployment, the namespace."""
    deployed = shutil.copytree(ROOT / "deploy" / "kubernetes", tmp_path / "kubernetes")
    overlay = deployed / "overlays" / "watched"
    overlay.mkdir()
    parts = {"resources": ["../../base"], "components": ["../../components/monitoring"]}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(parts))
    made = list(yaml.safe_load_all(told("kubectl", "kustomize", str(overlay))))
    found = {(one["kind"], one["metadata"]["name"]): one for one in made}
    monitor, scaled = found["ServiceMonitor", "server"], found["ScaledObject", "server"]
    service, deployment = found["Service", "server"], found["Deployment", scaled["spec"]["scaleTargetRef"]["name"]]
    labels = service["metadata"]["labels"]
    assert labels.items() >= monitor["spec"]["selector"]["matchLabels"].items()
    assert labels[monitor["spec"]["jobLabel"]] == "sam3"
    assert monitor["spec"]["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
    together = (monitor, scaled, service, deployment, found["PrometheusRule", "server"])
    assert {one["metadata"]["namespace"] for one in together} == {"sam3"}


def test_each_alert_has_its_remedy_in_the_manual():
    text = (ROOT / "docs" / "scale.md").read_text()
    described = re.findall(r"^\| `(Sam3\w+)` \| \S", text, re.MULTILINE)
    assert described == [rule["alert"] for rule in rules("alert")]
