"""Engines side by side, on the small checkpoint and the CPU: every part and case has a row, compared with fp32."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Sam3Model

from ensemble.spec import Variant
from export.checkpoint import load
from export.sub_models.parts import Style, make_part
from perf.bench.engines import cases, plans
from perf.bench.engines import cli as engines
from perf.bench.engines.candidates import TIMED_PARTS

RESOLUTION = 84


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Sam3Model:
    return load(str(checkpoint)).model


@pytest.mark.parametrize("engine", ["wrappers", "fused", "transformers"])
def test_engines_are_compared_with_the_same_computation_in_fp32(engine: str, model: Sam3Model) -> None:
    """The command's measurements: fp16 is close to fp32."""
    options = argparse.Namespace(
        resolution=[RESOLUTION],
        batches=[2],
        classes=[2],
        present=[1.0, 0.5],
        engines=[engine],
        repository=None,
        profile=None,
    )
    with torch.no_grad():
        rows = list(engines.measure(model, options, "cpu", time.monotonic() + 3600))
    parts = [(row["part"], row["present"]) for row in rows]
    text = [] if engine == "transformers" else [("text_encoder", 1.0)]
    assert parts == [("vision_encoder", 1.0), *text, ("decoder+masks", 1.0), ("decoder+masks", 0.5)]
    assert all(row["ms_per_frame"] > 0 for row in rows)
    assert min(row["cosine"] for row in rows) > 0.999, rows
    assert set(cases.COLUMNS) <= set(rows[0])


def test_an_engine_that_fails_is_left_out(model: Sam3Model, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = argparse.Namespace(
        resolution=[RESOLUTION], batches=[1], classes=[1], present=[1.0], engines=["aoti", "wrappers"]
    )
    options.repository, options.profile = tmp_path, None
    with torch.no_grad():
        rows = list(engines.measure(model, options, "cpu", time.monotonic() + 3600))
    assert {row["engine"] for row in rows} == {"wrappers"}
    assert f"aoti at {RESOLUTION} failed" in caplog.text


def test_no_case_begins_when_time_is_up(model: Sam3Model) -> None:
    options = argparse.Namespace(
        resolution=[RESOLUTION], batches=[1], classes=[1], present=[1.0], engines=["wrappers"], repository=None
    )
    with torch.no_grad():
        assert list(engines.measure(model, options, "cpu", time.monotonic() - 1)) == []


class Plan:
    """A plan whose answers PyTorch computes, by the names of the specification; an execution takes 2 ms."""

    def __init__(self, module: Callable[..., Any], inputs: list[str], outputs: list[str]) -> None:
        self.module, self.inputs, self.outputs, self.timed = module, inputs, outputs, 0

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert set(feed) == set(self.inputs), "what the plan is built for, and nothing else"
        given = (torch.from_numpy(feed[name]) for name in self.inputs)
        found = self.module(*(t.float() if t.is_floating_point() else t for t in given))
        found = found if isinstance(found, tuple) else (found,)
        return {name: tensor.numpy() for name, tensor in zip(self.outputs, found, strict=True)}

    def time(self, feed: Mapping[str, np.ndarray], warm_up: int, repeats: int) -> dict[str, Any]:
        self.timed += 1
        return {"ms": 2.0, "spread_ms": (1.0, 3.0), "activation_mb": 5.0}


@pytest.fixture
def clock(model: Sam3Model) -> plans.Clock:
    sized = cases.sized(model, RESOLUTION)
    variant = Variant(RESOLUTION, queries=50)
    made = {}
    for part in TIMED_PARTS:
        spec = getattr(variant, part)
        names = [tensor.name for tensor in spec.inputs], [tensor.name for tensor in spec.outputs]
        made[part] = Plan(make_part(part, sized, Style("fused", "plain"), "fp32"), *names)
    return plans.Clock(made, repeats=3)  # type: ignore[arg-type]


def test_plans_answer_the_same_cases(model: Sam3Model, clock: plans.Clock) -> None:
    """Two frames of 20 classes are 40 pairs, more than a call takes: two calls of the decoder and two of the mask
    head."""
    with torch.no_grad():
        truth = cases.Truth(model, RESOLUTION, 2, "cpu")
        found = []
        for case in cases.cases(truth, [2], [1, 20], [0.0, 0.5], prompts=3):
            calls, outputs = plans.answer(clock, case)
            cosines = case.cosines(plans.tensors(outputs, "cpu"))
            assert min(cosines.values()) > 0.999
            found.append((case.part, case.classes, case.present, [part for part, _ in calls], clock.measured(calls)))
    both = ["decoder", "mask_head"]
    assert [one[:4] for one in found] == [
        ("vision_encoder", 0, 1.0, ["vision_encoder"]),
        ("text_encoder", 3, 1.0, ["text_encoder"]),
        ("decoder+masks", 1, 0.0, ["decoder"]),
        ("decoder+masks", 1, 0.5, both),
        ("decoder+masks", 20, 0.0, ["decoder", "decoder"]),
        ("decoder+masks", 20, 0.5, both + both),
    ]
    assert found[-1][4] == (8.0, (4.0, 12.0), 10.0), "times add up, and each part has its activations once"


@pytest.mark.parametrize("part", TIMED_PARTS)
def test_every_plan_gets_its_own_inputs_to_be_profiled(model: Sam3Model, clock: plans.Clock, part: str) -> None:
    with torch.no_grad():
        truth = cases.Truth(model, RESOLUTION, 1, "cpu")
        feed = plans.last_feed(part, clock, truth, 1)
    assert set(feed) == set(clock.plans[part].inputs)  # type: ignore[attr-defined]


def test_a_row_is_of_a_frame(model: Sam3Model) -> None:
    with torch.no_grad():
        case = next(cases.cases(cases.Truth(model, RESOLUTION, 2, "cpu"), [2], [1], [1.0]))
    row = replace(case, wanted={}).row("some", RESOLUTION, {"a": 0.5, "b": 1.0}, 3.0, 7.04, spread_ms=(1, 2))
    assert (row["ms_per_frame"], row["cosine"], row["peak_mb"], row["spread_ms"]) == (1.5, 0.5, 7.0, (1, 2))
