"""INT8 as GPUs get it, judged on a processor: the graphs that plans are built from, run by ONNX Runtime.

They hold the same Q/DQ pairs, scales and fp16 products, so what they lose is what a plan loses. Their speed on a
processor says nothing of a plan's, and is not told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onnx import TensorProto, load_model
from torch import nn

from ensemble.gate.compare import compare
from ensemble.gate.limits import IN_INT8
from ensemble.spec import MB, Variant
from export.calibration_options import METHODS
from export.checkpoint import Source, at_size, load
from export.engines.int8_calibrated import in_int8, quantise_noted
from export.engines.onnx import export_onnx
from export.engines.onnxruntime import onnx_session
from export.engines.tensorrt.engine import ENGINE
from export.gate.frames import drawn_frames, gate_samples
from export.gate.reference import all_expected_outputs
from export.gate.verify import Run
from export.slim import figures
from export.slim.int8_inputs import calibration_inputs, calibration_scenes
from export.sub_models.parts import PARTS, make_part
from export.tiny import CHECKPOINT
from export.tiny.evaluate import held_out, judge
from perf.bench.in_process import answering

FRAMES = 4
"""Drawn frames, other ones than those of the calibration, that the cosine is of."""


def rows_of_graphs(
    scheme: str, resolutions: Sequence[int], scenes: int, device: str, work: Path
) -> Iterator[dict[str, Any]]:
    """A row for each resolution, as they come. Raises ValueError where the device is no processor."""
    if device != "cpu":
        raise ValueError(f"expected --device cpu for {scheme}, whose graphs ONNX Runtime runs, got {device}")
    if not scenes:
        raise ValueError(f"expected --scenes 1 or more for {scheme}, of which accuracy is all that is measured, got 0")
    source = load(str(CHECKPOINT))
    for resolution in resolutions:
        variant = Variant(resolution, source.record.num_queries, "int8_fp16", checkpoint=source.record)
        folder = work / f"graphs-{resolution}"
        told = write_graphs(source, variant, folder)
        files = {part: folder / f"{part}.onnx" for part in PARTS}
        runs = {part: onnx_session(path) for part, path in files.items()}
        source.tokenizer.save(str(folder / "tokenizer.json"))
        with answering(variant, runs, folder / "tokenizer.json") as answer:
            cases = list(held_out(scenes))
            found = judge(zip(cases, answer(cases), strict=True))
        yield {
            "scheme": scheme,
            "resolution": resolution,
            "size_mb": round(sum(stored_bytes(path) for path in files.values()) / MB, 2),
            "cosine": least_cosine(source, variant, runs["vision_encoder"]),
            "largest_error": max(one["largest_error"] for one in told.values()),
            "layers_in_fp16": sum(len(one["in_fp16"]) for one in told.values()),
            **figures.row(scheme, resolution, scenes, found),
        }


def write_graphs(source: Source, variant: Variant, folder: Path) -> dict[str, dict[str, Any]]:
    """The graph of every sub-model as `<part>.onnx`, calibrated on drawn scenes as `sam3-export` does it; of those in
    INT8, what a manifest says."""
    sized = at_size(source.model, variant.resolution, variant.queries)
    inputs = calibration_inputs(calibration_scenes((), (), variant.resolution), source, sized, variant)
    told: dict[str, dict[str, Any]] = {}
    for part in PARTS:
        module: nn.Module = make_part(part, sized, ENGINE.style, "fp16")
        if part in IN_INT8:
            module = in_int8(module, inputs[part], METHODS[0])
        path = export_onnx(module, getattr(variant, part), folder / f"{part}.onnx")
        if said := quantise_noted(module, path):
            told[part] = said["int8"]
    return told


def stored_bytes(path: Path) -> int:
    """Of a graph's constants, where those in front of QuantizeLinear are stored as what it makes of them."""
    graph = load_model(path).graph
    eight = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    width = {TensorProto.FLOAT16: 2, TensorProto.INT8: 1, TensorProto.INT64: 8}
    total = 0
    for tensor in graph.initializer:
        count = 1
        for size in tensor.dims:
            count *= size
        total += count * (1 if tensor.name in eight else width.get(tensor.data_type, 4))
    return total


def least_cosine(source: Source, variant: Variant, see: Run) -> float:
    """The lowest cosine of a feature map of the vision encoder with `Sam3Model`'s in fp32."""
    sized = at_size(source.model, variant.resolution, variant.queries)
    samples = gate_samples(drawn_frames(FRAMES, variant.resolution), source.tokenizer, variant)[:1]
    truth = all_expected_outputs(sized, samples)[0]
    found = see({"pixel_values": samples[0].pixel_values})
    return round(min(compare(value, truth[name])[0] for name, value in found.items()), 6)
