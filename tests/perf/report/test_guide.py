"""docs/resolution.md: its numbers are the generated ones, and what is written by hand agrees with them."""

from __future__ import annotations

import json

import pytest

from ensemble.server.memory import MB, pool_mb, score_bytes
from ensemble.spec import Variant
from perf.capacity.calibrate import fit
from perf.capacity.model import vision_flops
from perf.capacity.published import RTX_5090
from perf.report import guide

GB = 1024
"""Megabytes in a gigabyte."""


def test_the_committed_page_is_up_to_date(capsys):
    assert guide.main(["--check"]) == 0, "run sam3-perf guide"
    assert json.loads(capsys.readouterr().out)["up_to_date"] is True
    text = guide.PAGE.read_text()
    assert all(f"<!-- {name} -->" in text for name in guide.SECTIONS)


def test_sentences_by_hand_agree_with_the_model():
    assert vision_flops(672) / vision_flops(728) == pytest.approx(2 / 3, abs=0.01), "a third of the arithmetic"
    calibration = fit(RTX_5090)
    fused = calibration.memory_mb(1008, 8, 4)
    assert fused is not None
    fused += pool_mb([Variant(1008)])
    assert pool_mb([Variant(1008)]) / GB == pytest.approx(2.1, abs=0.05)
    assert fused / GB == pytest.approx(9.4, abs=0.05)
    assert (fused + score_bytes(1008, 8, fused=False) / MB) / GB == pytest.approx(22.2, abs=0.1)
    one = calibration.memory_mb(1008, 1, 4, plan_batch=1)
    assert one is not None
    assert (one + pool_mb([Variant(1008, max_batch=1)])) / GB == pytest.approx(3.6, abs=0.05)


def test_only_what_is_between_markers_changes(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- windows -->\nold\n<!-- /windows -->\nafter\n")
    assert guide.main(["--page", str(page), "--check"]) == 1
    assert page.read_text().count("old") == 1, "--check changes nothing"
    assert guide.main(["--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- windows -->\n**Vision encoder")
    assert text.endswith("<!-- /windows -->\nafter\n")
    assert guide.main(["--page", str(page), "--check"]) == 0
    capsys.readouterr()


def test_an_unknown_table_is_named(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("<!-- weather -->\n<!-- /weather -->\n")
    assert guide.main(["--page", str(page)]) == 2
    assert "got 'weather'" in capsys.readouterr().err
