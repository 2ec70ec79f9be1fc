"""Prometheus as an operator starts it, for tests: the rules of `deploy/kubernetes/` beside `deploy/prometheus/`."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.conftest import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
COMPONENT = ROOT / "deploy" / "kubernetes" / "components" / "monitoring"


def prometheus_folder(folder: Path) -> Path:
    """`folder` with a copy of `deploy/prometheus/` and the rules that its configuration names, made as it says."""
    shutil.copytree(PROMETHEUS, folder, dirs_exist_ok=True)
    _, _, spec = (COMPONENT / "rules.yaml").read_text().partition("\nspec:\n")
    (folder / "sam3.rules.yaml").write_text(spec)
    return folder
