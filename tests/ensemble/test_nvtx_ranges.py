"""Stages are marked where that is asked for, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from ensemble import nvtx_ranges
from ensemble.pipeline import Pipeline
from ensemble.spec import Variant


def test_nothing_is_marked_unless_asked_for(monkeypatch):
    monkeypatch.delenv(nvtx_ranges.VARIABLE, raising=False)
    assert nvtx_ranges.from_environment() is nvtx_ranges.unmarked
    monkeypatch.setenv(nvtx_ranges.VARIABLE, "0")
    assert nvtx_ranges.from_environment() is nvtx_ranges.unmarked


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setenv(nvtx_ranges.VARIABLE, "1")
    monkeypatch.setitem(sys.modules, "nvtx", None)  # as Python does for what cannot be imported
    with pytest.raises(RuntimeError, match=r"SAM3_NVTX=1 needs the nvtx package .* pip install nvtx"):
        nvtx_ranges.from_environment()


def test_every_stage_of_a_frame_is_marked_in_order():
    marked: list[str] = []

    @contextmanager
    def annotate(stage: str) -> Iterator[None]:
        marked.append(stage)
        yield

    variant = Variant(resolution=28)
    pipeline = Pipeline(variant, lambda model, inputs, outputs: dict.fromkeys(outputs), annotate=annotate)
    assert pipeline.run([], np.zeros((1, 3, 28, 28), np.uint8)) == []
    assert marked == ["text", "vision", "geometry", "pack"], "no classes, so nothing to decode"
