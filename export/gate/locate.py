"""The search for the first layer of a sub-model whose output is off, after the sub-model has failed the gate.

The sub-model is built once more with every layer's output as an output of the graph, run on the gate's own frames, and
compared layer by layer with the same sub-model in fp32 PyTorch, which the tests hold to `Sam3Model`. More outputs can
change what an engine fuses: if no layer is off then, the sentence says so.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Sam3Model

from ensemble.gate.compare import compare
from ensemble.gate.limits import limits_of
from ensemble.records import ModelSpec
from ensemble.records import TensorSpec as Record
from ensemble.spec import FLOAT_DTYPES, Variant
from export.engines.engine import Tool
from export.sub_models.parts import Style, make_part
from export.sub_models.precision import torch_precision

LAYERS = {"vision_encoder": "blocks", "text_encoder": "layers"}
"""Parts that can be looked into, and the attribute that holds their layers."""


class Probe(nn.Module):
    """A sub-model whose outputs are followed by those of its layers, in their order."""

    def __init__(self, module: nn.Module, layers: str) -> None:
        super().__init__()
        self.module, self.layers = module, layers

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        seen: list[Tensor] = []  # not an attribute: the exporter allows no tensors to be left behind
        hooks = [
            layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
            for layer in getattr(self.module, self.layers)
        ]
        found = self.module(x)
        for hook in hooks:
            hook.remove()
        return (*((found,) if isinstance(found, Tensor) else found), *seen)


def first_layer_off(tool: Tool, model: Sam3Model, variant: Variant, part: str, feed: Mapping[str, np.ndarray]) -> str:
    """A sentence that names the first layer of `part` whose cosine with fp32 on `feed` (the part's inputs) is below the
    gate's limit."""
    record: ModelSpec = getattr(variant, part)
    limit = limits_of(variant).cosine
    wanted = Probe(make_part(part, model, Style("explicit", "plain"), "fp32"), LAYERS[part])
    with torch.no_grad():
        truth = wanted(*(torch.from_numpy(feed[t.name]) for t in record.inputs))[len(record.outputs) :]
    names = [f"{LAYERS[part]}_{i}" for i in range(len(truth))]
    axis, dtype = record.outputs[0].dims[0], FLOAT_DTYPES[variant.precision]
    layers = (Record(name, dtype, (axis, *t.shape[1:])) for name, t in zip(names, truth, strict=True))
    probed = dataclasses.replace(record, outputs=(*record.outputs, *layers))
    module = Probe(make_part(part, model, tool.engine.style, torch_precision(variant)), LAYERS[part])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / tool.engine.spec.artifact
        tool.build(module, probed, variant, path)
        assert tool.open is not None, "what failed the gate has been run"
        run = tool.open(path)
        try:
            found = run(feed)
        finally:
            getattr(run, "close", lambda: None)()
    for name, reference in zip(names, truth, strict=True):
        cosine, _ = compare(found[name], reference.numpy())
        if not cosine >= limit:
            return f"the first layer of {record.name} that is off is {name}, with cosine {cosine:.6f}"
    return (
        f"no layer of {record.name} is off when all are outputs, so the fault lies behind {names[-1]} or in how the"
        " engine joins layers"
    )
