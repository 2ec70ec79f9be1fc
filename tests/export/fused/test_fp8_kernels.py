"""The kernels for E4M3 compile at real size for every generation that has E4M3, with the tiles that are used there."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton comes with the GPU build of PyTorch")

from tests.export.fused.compiling import GENERATIONS, compiled, half, multiplies

WITH_E4M3 = tuple(generation for generation in GENERATIONS if generation.values[0] >= 89)
LAYERS = {  # ending, outputs, inputs
    "queries, keys and values": (3, 3072, 1024),
    "output": (2, 1024, 1024),
    "fc1": (1, 4736, 1024),
    "fc2": (2, 1024, 4736),
    "nothing after it": (0, 3072, 1024),
}


@pytest.mark.parametrize(("capability", "most_kib"), WITH_E4M3)
@pytest.mark.parametrize("layer", LAYERS)
def test_linear_layers(layer: str, capability: int, most_kib: int) -> None:
    from export.fused.kernels.fp8_linear import GELU, tile_of

    ending, outputs, inputs = LAYERS[layer]
    tile = tile_of(divmod(capability, 10), ending, inputs)
    block = "tensordesc<fp8e4nv[{}, {}]>" if tile.descriptors else "*fp8e4nv"
    stores = tile.stores and ending == GELU
    types = half("bias", "residual", "cos", "sin", scales_ptr="*fp32", rows="i64") | {
        "x": block.format(tile.rows, tile.inner),
        "weight": block.format(tile.columns, tile.inner),
        "out": "*fp8e4nv" if ending == GELU else "*fp16",
    }
    if stores:
        types["out"] = block.format(tile.rows, tile.columns // tile.parts)
    constants = dict(OUTPUTS=outputs, INPUTS=inputs, ENDING=ending, HALF=32, TURNED=2048)
    constants |= dict(ROWS=tile.rows, COLUMNS=tile.columns, INNER=tile.inner, GROUP=tile.group)
    constants |= dict(PARTS=tile.parts, DESCRIPTORS=tile.descriptors, STORES=stores, PACKED=tile.packed)
    made = compiled("fp8_linear", types, constants, capability, tile.warps, tile.stages)
    assert multiplies(capability, made.asm["ptx"])
    assert ("cp.async.bulk.tensor" in made.asm["ptx"]) is tile.descriptors
    assert made.metadata.shared <= most_kib * 1024
    assert made.metadata.global_scratch_size == 0, "a compiled package has no room for each program's scratch"


@pytest.mark.parametrize(("capability", "most_kib"), WITH_E4M3)
def test_norm_and_attention(capability: int, most_kib: int) -> None:
    norm = half("x", weight_ptr="*fp32", bias_ptr="*fp32", out_ptr="*fp8e4nv")
    constants = dict(CHANNELS=1024, BLOCK=1024, ROWS=4, EPSILON=1e-6)
    assert "e4m3x2" in compiled("fp8_norm", norm, constants, capability, 4, 3).asm["ptx"]
    attention = half("q", "k", "v", "key_bias", "cos", "sin", inverse_ptr="*fp32", out_ptr="*fp8e4nv")
    constants = dict(WIDTH=64, QUERIES=128, KEYS=64, WHOLE=True, KEY_BIAS=False, ROTARY=False, EIGHT_BITS=True)
    made = compiled("attention", attention, constants, capability, 8, 3)
    assert "e4m3x2" in made.asm["ptx"]
    assert made.metadata.shared <= most_kib * 1024


def test_assembly_survives_the_way_into_a_package() -> None:
    """PyTorch (2.11) writes a kernel's source and constants into a string: a line break within one ends it there."""
    from export.fused.kernels.fp8_linear import GELU_OF_FOUR

    assert "\n" not in GELU_OF_FOUR.value
