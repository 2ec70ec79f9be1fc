"""The sub-models for one GPU: they compute what the plain ones do, export with their kernels inside, and run as
packages compiled ahead of time."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Sam3Model

from ensemble.engines.aoti import AotiRunner
from ensemble.spec import Checkpoint, Variant
from export.engines.aoti import PackageError, build_apart, build_package, dynamic_shapes, open_package
from export.engines.engine import EngineError
from export.engines.onnx import sample_inputs
from export.engines.registry import ready
from export.fused.parts import make_fused_part
from export.sub_models.parts import Style, make_part
from export.sub_models.token_order import TokenOrder

ROOT = Path(__file__).parents[3]
PLAIN = Style("fused", "plain")
RECORD = Checkpoint("small", image_size=112, hidden_size=64, num_queries=20)
FUSED = ("vision_encoder", "decoder", "mask_head")


def variant(resolution: int, precision: str = "fp32") -> Variant:
    return Variant(resolution, 20, precision, max_batch=4, max_pairs=16, checkpoint=RECORD)


def inputs(part: str, resolution: int, **sizes: int) -> dict[str, torch.Tensor]:
    """Random inputs by the record, with indices and masks that make sense."""
    torch.manual_seed(sum(sizes.values()))
    limits = {
        "image_index": sizes.get("images", 1),
        "pair_index": sizes.get("pairs", 1),
        "query_index": 20,
        "input_ids": 200,
        "prompt_mask": 2,
    }
    found = {}
    for tensor in getattr(variant(resolution), part).inputs:
        shape = tensor.shape(**sizes)
        if tensor.dtype == "FP32":
            found[tensor.name] = torch.randn(shape)
        else:
            dtype = torch.uint8 if tensor.dtype == "UINT8" else torch.int32
            found[tensor.name] = torch.randint(0, limits.get(tensor.name, 256), shape, dtype=dtype)
    if "prompt_mask" in found:
        found["prompt_mask"][:, :3] = 1
    return found


def outputs(module: torch.nn.Module, arguments: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    result = module(*arguments.values())
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("part", FUSED)
@pytest.mark.parametrize("resolution", [112, 126], ids=["windows fill the map", "windows are padded"])
def test_fused_part_equals_wrapper(
    part: str, resolution: int, sized: Callable[[int], Sam3Model], error: Callable[..., float]
) -> None:
    arguments = inputs(part, resolution, images=3, pairs=5, tokens=37, rows=4, picks=3)
    wanted = outputs(make_part(part, sized(resolution), PLAIN, "fp32"), arguments)
    found = outputs(make_fused_part(part, sized(resolution), "fp32", "plain"), arguments)
    assert [f.shape for f in found] == [w.shape for w in wanted]
    assert all(f.is_contiguous() for f in found)
    for f, w in zip(found, wanted, strict=True):
        assert error(f.double(), w.double()) < 1e-5


@pytest.mark.parametrize(
    ("patches", "window", "filled"), [(8, 4, True), (9, 4, False), (4, 4, True), (10, 6, False), (3, 4, False)]
)
def test_token_order_is_a_permutation_that_maps_back(patches: int, window: int, filled: bool) -> None:
    order = TokenOrder(patches, window)
    raster = order.raster()
    assert order.filled is filled
    assert sorted(raster.tolist()) == list(range(patches**2))
    assert order.to_map(raster[None, :, None].float(), 0).flatten().tolist() == list(range(patches**2))
    fine = torch.arange(4 * patches**2).reshape(patches, 2, patches, 2).permute(0, 2, 1, 3).reshape(-1, 4)[raster]
    assert order.to_map(fine[None].float(), 1).flatten().tolist() == list(range(4 * patches**2))
    pixels = torch.arange(3 * (2 * patches) ** 2).reshape(1, 3, 2 * patches, 2 * patches)
    cut = torch.nn.functional.unfold(pixels.float(), 2, stride=2)[0].T[raster]
    assert torch.equal(order.patches_of(pixels, 2)[0].float(), cut)


def test_padding_of_windows_that_do_not_fill_the_map() -> None:
    """A map of 5 x 5 with windows of 3: places in a window of 3 x 3 are 0 to 8."""
    order = TokenOrder(5, 3)
    places, runs = order.padding()
    assert runs == [(0, 9, 0, 0), (9, 6, 0, 3), (15, 6, 3, 3), (21, 4, 6, 5)]
    assert places.tolist() == [2, 5, 8, 6, 7, 8, 2, 5, 6, 7, 8]
    assert order.places().tolist() == [*range(9), 0, 1, 3, 4, 6, 7, *range(6), 0, 1, 3, 4]
    own, held = order.slots()
    assert held.reshape(4, 3, 3)[3].tolist() == [[21, 22, 25], [23, 24, 25], [25, 25, 25]]
    assert held[own].tolist() == list(range(25))


@pytest.mark.parametrize(
    ("part", "resolution", "kernels"),
    [
        ("vision_encoder", 112, {"attention": 4, "window_attention": 0, "planes": 3}),
        ("vision_encoder", 126, {"attention": 2, "window_attention": 2, "planes": 3}),
        ("decoder", 112, {"attention": 8, "box_attention": 2, "box_bias": 4}),
        ("mask_head", 112, {"attention": 1, "upsample": 2, "mask_product": 1}),
    ],
)
def test_export_records_the_kernels(
    part: str, resolution: int, kernels: dict[str, int], sized: Callable[[int], Sam3Model]
) -> None:
    """Exported with every axis free, without a GPU: tracing looks at shapes only."""
    pytest.importorskip("triton", reason="Triton comes with the GPU build of PyTorch")
    record = getattr(variant(resolution, "fp16"), part)
    samples = sample_inputs(record)
    shapes = tuple(dynamic_shapes(record, samples).values())
    program = torch.export.export(
        make_fused_part(part, sized(resolution), "fp16", "gpu"), tuple(samples.values()), dynamic_shapes=shapes
    )
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    counted = {name: calls.count(f"sam3.{name}.default") for name in kernels}
    assert counted == kernels
    assert not [name for name in calls if "scaled_dot_product" in name]


def test_gpu_kernels_are_refused_where_they_cannot_run(sized: Callable[[int], Sam3Model]) -> None:
    with pytest.raises(ValueError, match="GPU kernels compute in fp16, got precision 'fp32'"):
        make_fused_part("decoder", sized(112), "fp32", "gpu")


class FakeTensor:
    """What Triton hands to a model: a name and values on the host, or on a GPU behind DLPack."""

    def __init__(self, value: torch.Tensor, on_gpu: bool) -> None:
        self.value, self.on_gpu = value, on_gpu

    def name(self) -> str:
        return "pred_logits"

    def is_cpu(self) -> bool:
        return not self.on_gpu

    def as_numpy(self) -> np.ndarray:
        assert not self.on_gpu, "Triton cannot do that"
        return self.value.numpy()

    def to_dlpack(self) -> Any:
        return torch.utils.dlpack.to_dlpack(self.value)


@pytest.fixture
def sub_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """The adapter between Triton's tensors and an engine's, which is imported inside Triton otherwise."""
    backend = types.ModuleType("triton_python_backend_utils")
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    yield importlib.import_module("ensemble.sub_model")
    for name in ("ensemble.sub_model", "ensemble.triton_io"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def package(sized: Callable[[int], Sam3Model], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mask head, the part with most axes, compiled for the CPU."""
    path = tmp_path_factory.mktemp("aoti") / "model.pt2"
    module = make_fused_part("mask_head", sized(56), "fp32", "plain")
    build_apart(module, variant(56).mask_head, variant(56), path, "cpu")
    assert [file.name for file in path.parent.iterdir()] == ["model.pt2"]
    return path


def test_package_reads_maps_in_any_memory_format(package: Path) -> None:
    arguments = inputs("mask_head", 56, images=2, pairs=3, tokens=32, rows=3, picks=2)
    turned = {
        name: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for name, t in arguments.items()
    }
    assert not turned["fpn_0"].is_contiguous()
    runner = AotiRunner(package, None)
    assert torch.equal(runner(turned)["mask_logits"], runner(arguments)["mask_logits"])


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((1, 3, 4), (99, 4, 1)), ((2, 1, 4), (4, 77, 1)), ((2, 3, 4), (12, 1, 3)), ((1, 1, 1), (5, 6, 7))],
    ids=["odd stride of a batch of one", "of an inner axis of one", "turned", "a single value"],
)
def test_outputs_have_the_strides_that_triton_compares(
    shape: tuple[int, ...], strides: tuple[int, ...], sub_model: types.ModuleType
) -> None:
    odd = torch.randn(200).as_strided(shape, strides)
    found = sub_model.to_triton(odd)
    assert found.stride() == torch.empty(shape).stride()
    assert torch.equal(found, odd)


def test_a_gpu_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(EngineError, match=r"capability 8\.0 or later, Tesla T4 has 7\.5; use --engine tensorrt or"):
        ready("aoti")


def test_a_package_that_cannot_be_made_is_explained(sized: Callable[[int], Sam3Model], tmp_path: Path) -> None:
    module = make_fused_part("text_encoder", sized(56), "fp32", "plain")
    with pytest.raises(PackageError, match=r"sam3_text_encoder: .*expected outputs .*FP16.* got .*FP32"):
        build_apart(module, variant(56).text_encoder, variant(56, "fp16"), tmp_path / "model.pt2", "cpu")


@pytest.mark.parametrize(
    "sizes", [(1, 1, 32, 1, 1), (3, 5, 41, 4, 20), (2, 16, 33, 16, 2)], ids=["ones", "several", "largest"]
)
def test_package_runs_at_every_size(
    package: Path, sizes: tuple[int, ...], sized: Callable[[int], Sam3Model], error: Callable[..., float]
) -> None:
    arguments = inputs("mask_head", 56, **dict(zip(("images", "pairs", "tokens", "rows", "picks"), sizes, strict=True)))
    logits, bits = outputs(make_part("mask_head", sized(56), PLAIN, "fp32"), arguments)
    found = open_package(package, None)({name: tensor.numpy() for name, tensor in arguments.items()})
    assert list(found) == ["mask_logits", "mask_bits"]
    assert error(torch.from_numpy(found["mask_logits"]), logits) < 1e-5
    clear = (logits.abs() > 1e-4).numpy()  # a logit of nothing may fall on either side
    unpacked = [np.unpackbits(b, axis=-1)[..., : logits.shape[-1]] for b in (found["mask_bits"], bits.numpy())]
    assert (unpacked[0] == unpacked[1])[clear].all()
    assert np.array_equal(np.packbits(found["mask_logits"] > 0, axis=-1), found["mask_bits"])


@pytest.mark.parametrize("part", ["text_encoder", "geometry_encoder"])
def test_package_runs_in_a_process_without_the_export(
    part: str, sized: Callable[[int], Sam3Model], error: Callable[..., float], tmp_path: Path
) -> None:
    """One output, which the compiled function returns bare; and a process that has imported nothing but the runner:
    no operator of torchvision's is left."""
    module = make_fused_part(part, sized(56), "fp32", "plain")
    build_package(module, getattr(variant(56), part), tmp_path / "model.pt2", "cpu")
    arguments = inputs(part, 56, images=2, pairs=3, prompts=3)
    if "boxes" in arguments:
        arguments |= {
            "boxes": torch.rand(3, 8, 4) * 0.3 + 0.3,
            "box_labels": torch.tensor([[1] * 4 + [-10] * 4] * 3, dtype=torch.int32),
        }
    (wanted,) = outputs(module, arguments)
    torch.save(arguments, tmp_path / "inputs.pt")
    script = (
        "import sys, torch; from pathlib import Path; from ensemble.engines.aoti import AotiRunner; folder"
        " = Path(sys.argv[1]); (result,) = AotiRunner(folder / 'model.pt2', None)(torch.load(folder /"
        " 'inputs.pt')).values(); torch.save(result, folder / 'result.pt'); assert not {'export',"
        " 'torchvision'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert error(torch.load(tmp_path / "result.pt"), wanted) < 1e-5


def test_runner_takes_tensors_where_they_lie_and_returns_host_outputs_as_arrays(
    package: Path, sub_model: types.ModuleType
) -> None:
    runner = AotiRunner(package, None)
    arguments = inputs("mask_head", 56, images=2, pairs=3, tokens=32, rows=2, picks=2)
    tensors = {name: FakeTensor(value, on_gpu=value.is_floating_point()) for name, value in arguments.items()}
    taken = {name: sub_model.from_triton(tensor) for name, tensor in tensors.items()}
    found = runner.run(taken, ["mask_bits", "mask_logits"])
    bits, logits = found["mask_bits"], found["mask_logits"]
    assert isinstance(bits, np.ndarray), "the pipeline reads mask_bits"
    assert isinstance(logits, torch.Tensor), "nobody on the host reads mask_logits"
    assert np.array_equal(np.packbits(logits.numpy() > 0, axis=-1), bits)
