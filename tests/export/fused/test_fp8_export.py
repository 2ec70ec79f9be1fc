"""What an export records of a vision encoder in FP8: which kernels, and that tensors reach them without a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import Sam3Model

from ensemble.spec import Checkpoint, Variant
from export.engines.aoti import dynamic_shapes
from export.engines.onnx import sample_inputs
from export.fused.fp8_block import Maxima
from export.fused.parts import make_fused_part
from export.slim.calibration import Calibration
from export.slim.fp8 import in_fp8

triton = pytest.importorskip("triton", reason="Triton comes with the GPU build of PyTorch")


def exported(model: Sam3Model, resolution: int) -> torch.export.ExportedProgram:
    """The encoder with its last block in fp16, exported with a free number of frames."""
    calibration = Calibration((Maxima(4.0, 4.0, 4.0, 4.0),) * 4, (0.01, 0.01, 0.01, 1.0))
    encoder = in_fp8(make_fused_part("vision_encoder", model, "fp16", "gpu"), calibration)
    record = Variant(resolution, 20, "fp8", checkpoint=Checkpoint("random", hidden_size=64)).vision_encoder
    samples = sample_inputs(record)
    shapes = tuple(dynamic_shapes(record, samples).values())
    return torch.export.export(encoder, tuple(samples.values()), dynamic_shapes=shapes)


@pytest.mark.parametrize(
    ("resolution", "kernels"),
    [
        pytest.param(112, {"attention": 4, "window_attention": 0}, id="windows fill the map"),
        pytest.param(126, {"attention": 2, "window_attention": 2}, id="windows are padded"),
    ],
)
def test_every_linear_layer_of_an_fp8_block_is_a_kernel(
    resolution: int, kernels: dict[str, int], sized: Callable[[int], Sam3Model]
) -> None:
    program = exported(sized(resolution), resolution)
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    kernels = kernels | {"fp8_norm": 6, "fp8_linear": 12}
    assert {name: calls.count(f"sam3.{name}.default") for name in kernels} == kernels
    dtypes = [tensor.dtype for tensor in program.state_dict.values()]
    assert dtypes.count(torch.float8_e4m3fn) == 12


@pytest.fixture
def a_gpu_to_compile_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch compiles a kernel for the GPU that is there, to see what it writes to."""
    from triton.backends.compiler import GPUTarget

    class Hopper:
        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

    monkeypatch.setattr(triton.runtime.driver, "_active", Hopper())
    monkeypatch.setattr("torch.utils._triton.has_triton_tensor_descriptor_host_tma", lambda: True)


def test_descriptors_are_recorded_and_nothing_is_copied(
    a_gpu_to_compile_for: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch copies every argument of a kernel that it does not understand, weights too."""
    from torch._functorch.aot_autograd import aot_export_module

    from export.fused.kernels import fp8_linear as kernel
    from export.fused.kernels.fp8_norm import fp8_norm

    tile = kernel.tile_of((9, 0), kernel.PLAIN, 256)
    monkeypatch.setattr(kernel, "INTERPRETED", tile)

    class Mlp(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, shape in {"first": (512, 256), "second": (256, 512)}.items():
                self.register_buffer(name, torch.randn(shape).to(torch.float8_e4m3fn))
                self.register_buffer(f"{name}_bias", torch.randn(shape[0]).half())
            self.register_buffer("scales", torch.ones(16))
            self.register_buffer("norm", torch.ones(256))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            hidden = fp8_norm(x, self.norm, self.norm, 1e-6)
            hidden = kernel.fp8_linear(hidden, self.first, self.first_bias, self.scales, True, None, None, None)
            last = self.second, self.second_bias, self.scales
            return (kernel.fp8_linear(hidden, *last, False, x, None, None),)

    graph, _ = aot_export_module(Mlp(), [torch.randn(300, 256).half()], trace_joint=False)
    calls = [node.kwargs for node in graph.graph.nodes if "triton_kernel_wrapper" in str(node.target)]
    assert len(calls) == 3
    for call in calls[1:]:
        blocks = {name: list(block[1][0]) for name, block in call["tma_descriptor_metadata"].items()}
        assert blocks["x"] == [tile.rows, tile.inner]
        assert blocks["weight"] == [tile.columns, tile.inner]
        assert list(call["tensors_to_clone"]) == ["out"]
