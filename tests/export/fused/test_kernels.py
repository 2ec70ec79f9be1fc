"""The GPU kernels beside the same mathematics in PyTorch: run by Triton's interpreter without a GPU, compiled on one,
and compiled for each generation of GPUs without being run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.export.fused.compiling import GENERATIONS, compiled, half, multiplies

pytest.importorskip("triton", reason="Triton comes with the GPU build of PyTorch")

ROOT = Path(__file__).parents[3]


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(*shape) * 2 - 1


def heads(n: int, tokens: int, count: int, width: int) -> torch.Tensor:
    """[n,count,tokens,width], the tokens' channels side by side in memory as a projection leaves them."""
    return uniform(n, tokens, count, width).transpose(1, 2)


def attention_inputs(n: int, tokens: int, keys: int, width: int, bias: bool, rotary: bool) -> tuple[Any, ...]:
    q, k, v = heads(n, tokens, 2, width), heads(n, keys, 2, width), heads(n, keys, 2, width)
    angles = uniform(tokens, width // 2) * 3
    hidden = torch.zeros(n, keys)
    hidden[:, keys // 2 :] = -1e4
    return q, k, v, hidden if bias else None, angles.cos() if rotary else None, angles.sin() if rotary else None


def window_inputs(patches: int, window: int, width: int) -> tuple[Any, ...]:
    from export.sub_models.token_order import TokenOrder

    order = TokenOrder(patches, window)
    places, runs = order.padding()
    tokens, angles = patches**2, uniform(window**2, width // 2) * 3
    angles = angles[torch.cat([order.places(), places])]
    qkv = (heads(2, tokens, 3, width) for _ in "qkv")
    biases, tables = (uniform(3, width), uniform(3, width)), (angles.cos(), angles.sin())
    return *qkv, *biases, *tables, torch.tensor(runs, dtype=torch.int32), max(count for _, count, _, _ in runs)


def box_inputs(grid: int) -> tuple[Any, ...]:
    qkv = (heads(2, tokens, 2, 32) for tokens in (21, grid * grid, grid * grid))
    return *qkv, uniform(2, 2, 20, grid), uniform(2, 2, 20, grid)


def bias_inputs(grid: int) -> tuple[Any, ...]:
    low = torch.rand(2, 11)
    low[0, 0] = 1 / grid  # an edge exactly on a coordinate
    return low, torch.rand(2, 11), uniform(32, 2), uniform(32), uniform(4, 32), uniform(4), grid


def upsample_inputs(side: int, channels: int) -> tuple[Any, ...]:
    from export.fused.mask_head import fold_upsampling

    weight = fold_upsampling(uniform(channels, channels, 3, 3))
    index = torch.tensor([1, 0, 1], dtype=torch.int32)
    return uniform(3, side, side, channels), weight, uniform(2, 2 * side, 2 * side, channels), index


def product_inputs(pixels: int, picks: int) -> tuple[Any, ...]:
    return uniform(2, pixels, 32), torch.rand(2, 32) + 0.5, uniform(2, 32), uniform(2, picks, 32), uniform(2, picks)


def eight_bits(*shape: int, largest: float = 8.0) -> torch.Tensor:
    return (uniform(*shape) * largest).to(torch.float8_e4m3fn)


def linear_inputs(rows: int, outputs: int, inputs: int, **ending: Any) -> tuple[Any, ...]:
    scales = torch.tensor([0.02, 400.0])
    gelu, residual, tables = (
        ending.get("gelu", False),
        ending.get("residual", False),
        ending.get("tables", (None, None)),
    )
    beside = uniform(rows, outputs) if residual else None
    return eight_bits(rows, inputs), eight_bits(outputs, inputs), uniform(outputs), scales, gelu, beside, *tables


def turned_inputs(rows: int, tokens: int, heads: int, width: int) -> tuple[Any, ...]:
    angles = uniform(tokens, width // 2) * 3
    return linear_inputs(rows, 3 * heads * width, heads * width, tables=(angles.cos(), angles.sin()))


CASES: dict[str, tuple[str, Callable[[], tuple[Any, ...]]]] = {
    "attention, keys fill the blocks": ("attention", lambda: attention_inputs(2, 70, 256, 32, False, False)),
    "attention, a last block of keys, hidden tokens": (
        "attention",
        lambda: attention_inputs(3, 130, 41, 16, True, False),
    ),
    "attention, turned queries": ("attention", lambda: attention_inputs(2, 36, 36, 64, False, True)),
    "windows of 9 on a map of 14 x 14": ("window_attention", lambda: window_inputs(14, 9, 32)),
    "a window larger than the map": ("window_attention", lambda: window_inputs(5, 9, 16)),
    "boxes on a map of 9 x 9": ("box_attention", lambda: box_inputs(9)),
    "boxes on a map of 16 x 16": ("box_attention", lambda: box_inputs(16)),
    "box bias": ("box_bias", lambda: bias_inputs(9)),
    "upsampling of 9 x 9": ("upsample", lambda: upsample_inputs(9, 32)),
    "upsampling of 16 x 16, wider": ("upsample", lambda: upsample_inputs(16, 64)),
    "planes of 9 x 9": ("planes", lambda: (uniform(2, 9, 9, 70).permute(0, 3, 1, 2),)),
    "planes of 16 x 16, in C order already": ("planes", lambda: (uniform(3, 32, 16, 16),)),
    "attention, result in E4M3": (
        "attention",
        lambda: (*attention_inputs(2, 36, 41, 16, False, False), torch.tensor([300.0])),
    ),
    "norm in E4M3": ("fp8_norm", lambda: (uniform(13, 96) * 3 + 1, torch.rand(96) * 200, uniform(96), 1e-6)),
    "norm in E4M3, cut off": ("fp8_norm", lambda: (uniform(5, 64), torch.rand(64) * 900, uniform(64), 1e-6)),
    "E4M3 product": ("fp8_linear", lambda: linear_inputs(37, 70, 48)),
    "E4M3 product and GELU": ("fp8_linear", lambda: linear_inputs(37, 192, 96, gelu=True)),
    "E4M3 product and residual": ("fp8_linear", lambda: linear_inputs(50, 96, 160, residual=True)),
    "E4M3 product, queries and keys turned": ("fp8_linear", lambda: turned_inputs(45, 9, 2, 16)),
    "masks, one pick": ("mask_product", lambda: product_inputs(200, 1)),
    "masks, more picks than a block": ("mask_product", lambda: product_inputs(130, 40)),
}
IN_FP32 = {"attention": {3, 6}, "fp8_linear": {0, 1, 3}, "fp8_norm": {1, 2}, "box_bias": {0, 1}, "mask_product": {1, 2}}
"""Arguments of an operation that stay as they are whatever the precision: statistics, biases, edges, E4M3."""


def compare(name: str, dtype: torch.dtype, device: str) -> list[float]:
    """|kernel - plain| / |plain| of each output of a case."""
    from export.fused.layers import operation

    called, make = CASES[name]
    torch.manual_seed(len(name))
    inputs = [x.to(device) if isinstance(x, torch.Tensor) else x for x in make()]
    for i, x in enumerate(inputs):
        if isinstance(x, torch.Tensor) and x.is_floating_point() and i not in IN_FP32.get(called, ()):
            inputs[i] = x.to(dtype)
    found, wanted = (operation(called, kernels)(*inputs) for kernels in ("gpu", "plain"))
    if isinstance(found, torch.Tensor):
        found, wanted = (found,), (wanted,)
    else:  # sums over tiles: only their total is defined
        found, wanted = (found[0], found[1].sum(1)), (wanted[0], wanted[1].sum(1))
    return [float((f.float() - w.float()).norm() / w.float().norm()) for f, w in zip(found, wanted, strict=True)]


def mend_interpreter() -> None:
    """Triton's interpreter (3.6) rounds to E4M3 without the carry into the exponent; PyTorch rounds in its place."""
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def converted(x: Any, source: Any, target: Any, rounding: Any) -> Any:
        if str(target) != "fp8e4nv":
            return convert(x, source, target, rounding)
        return torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    interpreter._convert_float = converted


def test_interpreted() -> None:
    """One process for all cases: whether kernels are interpreted is settled when they are defined."""
    script = (
        "import sys, importlib.util, torch; torch.set_num_threads(1); spec ="
        f" importlib.util.spec_from_file_location('cases', {__file__!r}); cases ="
        " importlib.util.module_from_spec(spec); sys.modules['cases'] = cases; spec.loader.exec_module(cases);"
        " cases.mend_interpreter();"
        " [print(name, *cases.compare(name, torch.float32, 'cpu'), sep='\\t') for name in cases.CASES]"
    )
    environment = {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": "/usr/bin:/bin",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    errors = {name: [float(e) for e in rest] for name, *rest in (line.split("\t") for line in done.stdout.splitlines())}
    assert set(errors) == set(CASES)
    assert {name: e for name, e in errors.items() if not max(e) < 2e-6} == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", CASES)
def test_compiled(name: str) -> None:
    eight = "E4M3" in name
    if eight and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU that multiplies E4M3")
    assert max(compare(name, torch.float16, "cuda")) < (2e-2 if eight else 2e-3)


ATTENTION = half("q", "k", "v", "out", "key_bias", "cos", "sin")
IMAGE = dict(WIDTH=64, KEYS=64, WHOLE=True, KEY_BIAS=False, ROTARY=True, EIGHT_BITS=False)
BIAS_WEIGHTS = half("weight1", "bias1", "weight2", "bias2", "out")
KERNELS: dict[str, tuple[str, dict[str, str], dict[str, Any], tuple[int, int]]] = {
    # file of the kernel, types of its arguments, constants, (warps, stages)
    "image attention": ("attention", ATTENTION, IMAGE | dict(QUERIES=128), (8, 3)),
    "window attention": ("attention", ATTENTION, IMAGE | dict(QUERIES=64), (4, 3)),
    **{
        f"attention in padded windows, heads of {width}": (
            "window_attention",
            ATTENTION | half("value_bias", windows_ptr="*i32"),
            dict(WIDTH=width, QUERIES=64, KEYS=64, BLOCKS=blocks),
            (4, 3),
        )
        for width, blocks in ((64, 9), (16, 2))
    },
    "encoder attention": ("attention", ATTENTION, IMAGE | dict(WIDTH=32, QUERIES=64, ROTARY=False), (4, 3)),
    "prompt attention": (
        "attention",
        ATTENTION | dict(key_bias_ptr="*fp32", keys="i64"),
        IMAGE | dict(WIDTH=32, QUERIES=64, KEYS=32, WHOLE=False, KEY_BIAS=True, ROTARY=False),
        (4, 1),
    ),
    "box attention": (
        "box_attention",
        half("q", "k", "v", "out", "rows", "columns"),
        dict(WIDTH=32, QUERIES=64, COLUMNS=128),
        (8, 2),
    ),
    "box bias": (
        "box_bias",
        BIAS_WEIGHTS | dict(low_ptr="*fp32", high_ptr="*fp32", total="i64"),
        dict(ROWS=128, HIDDEN=256, UNITS=32, HEADS=16),
        (4, 3),
    ),
    "upsampling": (
        "upsample",
        half("x", "weight", "skip", "out", index_ptr="*i32", sums_ptr="*fp32"),
        dict(CHANNELS=256, PIXELS=128, OUTPUTS=128, INPUTS=64),
        (4, 3),
    ),
    "planes": ("planes", half("x", "out"), dict(PIXELS=64, CHANNELS=64), (4, 3)),
    "mask product": (
        "mask_product",
        half("x", "query", "offset", "out", scale_ptr="*fp32", shift_ptr="*fp32", picks="i64"),
        dict(CHANNELS=256, PIXELS=128, PICKS=32),
        (4, 3),
    ),
}


@pytest.mark.parametrize(("capability", "most_kib"), GENERATIONS)
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_for_every_generation(name: str, capability: int, most_kib: int) -> None:
    """At real size the kernels become machine code with matrix instructions that fits in a block's shared memory."""
    file, types, constants, options = KERNELS[name]
    made = compiled(file, types, constants, capability, *options)
    assert multiplies(capability, made.asm["ptx"]) is (file != "planes")
    assert made.metadata.shared <= most_kib * 1024
