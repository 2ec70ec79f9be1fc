"""Runs a sub-model that Triton serves as a model of its own, by a call between models (BLS) of the python backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ensemble.records import ModelSpec
from ensemble.triton_io import call_model, to_numpy


def call_sub_model(model: ModelSpec, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
    """`pipeline.Call` over BLS: arrays are wrapped, those on a GPU where they lie; handles of an earlier call are
    passed on as they are. Raises `triton_io.CallError`."""
    answered = call_model(model.name, inputs, outputs)
    return {
        name: to_numpy(tensor, model.name) if model.output(name).host else tensor for name, tensor in answered.items()
    }
