"""Linear layers in E4M3, a scale for each tensor, with what follows them computed while the product is on the chip.

A library's product leaves the GELU and the rounding to E4M3, the residual, or the rotary turn to a pass over memory of
its own. Programs stay on the GPU and take one tile of the product after another, so that the next tile's loads are
under way while a tile is finished (Triton's tutorial on persistent matrix products). From Hopper on the copy engine
loads the tiles by tensor descriptors; on Ada, which has none, threads load them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from export.fused.kernels.launch import traced_with_descriptors

LARGEST = tl.constexpr(448.0)  # of E4M3
GELU_OF_FOUR = tl.constexpr(  # on one line: PyTorch writes it into a string of its own when it makes a package
    "{ .reg .b32 a, b, s, t, h, c, d; .reg .b16 e, f;"
    " mov.b32 c, 0x3a623a62; mov.b32 d, 0x28912891; cvt.rn.f16x2.f32 h, $5, $5;"
    " cvt.rn.f16x2.f32 a, $2, $1; cvt.rn.f16x2.f32 b, $4, $3;"
    " mul.rn.f16x2 s, a, a; mul.rn.f16x2 t, b, b;"
    " fma.rn.f16x2 s, s, d, c; fma.rn.f16x2 t, t, d, c;"
    " mul.rn.f16x2 s, s, a; mul.rn.f16x2 t, t, b;"
    " tanh.approx.f16x2 s, s; tanh.approx.f16x2 t, t;"
    " mul.rn.f16x2 a, a, h; mul.rn.f16x2 b, b, h;"
    " fma.rn.f16x2 a, a, s, a; fma.rn.f16x2 b, b, t, b;"
    " cvt.rn.satfinite.e4m3x2.f16x2 e, a; cvt.rn.satfinite.e4m3x2.f16x2 f, b; mov.b32 $0, {e, f}; }"
)
"""GELU of the four numbers $1 to $4, times twice $5, rounded to E4M3: x (1 + tanh(x (c + d x^2))) / 2 in halves, which
have seven bits more than E4M3. It takes less than half of the instructions of the same in fp32."""
PLAIN, GELU, RESIDUAL, ROTARY = 0, 1, 2, 3
SWIZZLED = 128
"""Most bytes of a row of a descriptor's block: Triton makes several of a longer one, a compiled package does not."""


@triton.jit
def fp8_linear_kernel(
    x,  # E4M3 [rows,INPUTS]: a pointer, or a descriptor of blocks [ROWS,INNER]
    weight,  # E4M3 [OUTPUTS,INPUTS]: a pointer, or a descriptor of blocks [COLUMNS,INNER]
    bias_ptr,  # [OUTPUTS]
    scales_ptr,  # fp32: what the product is multiplied with, and what an E4M3 result is
    residual_ptr,  # [rows,OUTPUTS], or unused
    cos_ptr, sin_ptr,  # [tokens,HALF], or unused
    out,  # [rows,OUTPUTS]: a pointer, or a descriptor of blocks [ROWS,COLUMNS/PARTS]
    rows, tokens,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,  # of a tile of the product
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,  # channels that are multiplied at a time
    GROUP: tl.constexpr,  # rows of tiles that are computed one beside the other, for the cache
    ENDING: tl.constexpr,  # PLAIN, GELU (result E4M3), RESIDUAL, or ROTARY (channels of the first TURNED outputs turn)
    HALF: tl.constexpr,  # pairs of channels of a head
    TURNED: tl.constexpr,
    PARTS: tl.constexpr,  # in which a tile is finished, 1 or 2
    DESCRIPTORS: tl.constexpr,  # of x and weight
    STORES: tl.constexpr,  # by a descriptor
    PACKED: tl.constexpr,  # GELU in halves, two at a time
):  # fmt: skip
    """Every tile whose number is this program's, counted in steps of the number of programs."""
    rows = tl.cast(rows, tl.int32)  # a number that varies from call to call comes as 64 bits in a compiled package
    tiles_down, tiles_across = tl.cdiv(rows, ROWS), (OUTPUTS + COLUMNS - 1) // COLUMNS
    scale, inverse = tl.load(scales_ptr), tl.load(scales_ptr + 1)
    for tile in tl.range(tl.program_id(0), tiles_down * tiles_across, tl.num_programs(0), flatten=True):
        above = tile // (GROUP * tiles_across) * GROUP
        high = min(tiles_down - above, GROUP)
        row = (above + tile % (GROUP * tiles_across) % high) * ROWS
        column = tile % (GROUP * tiles_across) // high * COLUMNS
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range((INPUTS + INNER - 1) // INNER):
            if DESCRIPTORS:
                a, b = x.load([row, step * INNER]), weight.load([column, step * INNER])
            else:
                inner = step * INNER + tl.arange(0, INNER)
                a = _block(x, row + tl.arange(0, ROWS), inner, rows, INPUTS)
                b = _block(weight, column + tl.arange(0, COLUMNS), inner, OUTPUTS, INPUTS)
            total = tl.dot(a, b.T, total)
        if PARTS == 2:
            halves = tl.permute(tl.reshape(total, (ROWS, 2, COLUMNS // 2)), (0, 2, 1))
            left, right = tl.split(halves)
            for part in tl.static_range(2):
                _finish(
                    left if part == 0 else right,
                    *(bias_ptr, residual_ptr, cos_ptr, sin_ptr, out, scale, inverse, row),
                    *(column + part * (COLUMNS // 2), rows, tokens),
                    *(OUTPUTS, ROWS, COLUMNS // 2, ENDING, HALF, TURNED, STORES, PACKED),
                )
        else:
            _finish(
                total,
                *(bias_ptr, residual_ptr, cos_ptr, sin_ptr, out, scale, inverse, row, column, rows, tokens),
                *(OUTPUTS, ROWS, COLUMNS, ENDING, HALF, TURNED, STORES, PACKED),
            )


@triton.jit
def _block(pointer, row, column, rows, COLUMNS: tl.constexpr):
    """Rows and columns of a matrix of `rows` x COLUMNS, zero outside of it."""
    inside = (row[:, None] < rows) & (column[None, :] < COLUMNS)
    return tl.load(pointer + row.to(tl.int64)[:, None] * COLUMNS + column[None, :], mask=inside, other=0.0)


@triton.jit
def _finish(
    total,
    bias_ptr, residual_ptr, cos_ptr, sin_ptr, out,
    scale, inverse, row, column, rows, tokens,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ENDING: tl.constexpr,
    HALF: tl.constexpr,
    TURNED: tl.constexpr,
    STORES: tl.constexpr,
    PACKED: tl.constexpr,
):  # fmt: skip
    """Writes the outputs of a tile [ROWS,COLUMNS] at `row` and `column`, of which `total` is the product."""
    down, across = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
    inside = (down[:, None] < rows) & (across[None, :] < OUTPUTS)
    place = down.to(tl.int64)[:, None] * OUTPUTS + across[None, :]
    y = total * scale + tl.load(bias_ptr + across, mask=across < OUTPUTS, other=0.0).to(tl.float32)[None, :]
    if ENDING == 1:
        if PACKED:
            y = tl.inline_asm_elementwise(GELU_OF_FOUR, "=r" + ",f" * 8, [y, 0.5 * inverse], tl.float8e4nv, True, 4)
        else:
            slope = y * (0.7978845608028654 + 0.035677408136300125 * y * y)  # sqrt(2/pi) * (y + 0.044715 y^3)
            y = y / (1.0 + tl.exp2(-2.8853900817779268 * slope)) * inverse
            y = tl.minimum(tl.maximum(y, -LARGEST), LARGEST)
    if ENDING == 2:
        y += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if ENDING == 3:
        heads: tl.constexpr = COLUMNS // (2 * HALF)
        first, second = tl.split(tl.reshape(y, (ROWS, heads, HALF, 2)))
        pair = tl.arange(0, HALF)
        angle = (down % tokens)[:, None, None] * HALF + pair[None, None, :]
        shown = (down < rows)[:, None, None]
        cos = tl.load(cos_ptr + angle, mask=shown, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + angle, mask=shown, other=0.0).to(tl.float32)
        turns = (column + 2 * HALF * tl.arange(0, heads) < TURNED)[None, :, None]
        cos, sin = tl.where(turns, cos, 1.0), tl.where(turns, sin, 0.0)
        y = tl.reshape(tl.join(first * cos - second * sin, second * cos + first * sin), (ROWS, COLUMNS))
    if STORES:
        out.store([row, column], y.to(out.dtype))
    else:
        tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows, columns and depth of a tile, the parts in which it is finished, warps, and stages of the load pipeline.

    `programs` run on a multiprocessor at a time; `descriptors` load, and with `stores` also write E4M3 results.
    """

    rows: int
    columns: int
    inner: int
    parts: int
    warps: int
    stages: int
    programs: int = 1
    descriptors: bool = True
    stores: bool = False
    packed: bool = True
    group: int = 8


SHALLOW = 2048
"""Inputs up to which a product is so short that finishing a tile shows beside it."""


def tile_of(capability: tuple[int, int], ending: int, inputs: int) -> Tile:
    """The tile of a layer of `inputs` channels for GPUs of that compute capability: the fastest that was measured on
    one H100, and elsewhere one that fits in a block's shared memory.

    On Hopper one program is enough where a tile takes long; where it is soon done (few inputs) and what follows needs
    its time, two smaller programs share a multiprocessor, and one multiplies while the other finishes.
    """
    if capability[0] == 9:
        if inputs <= SHALLOW and ending in (GELU, RESIDUAL):
            return Tile(128, 128, 128, parts=1 if ending == GELU else 2, warps=4, stages=3, programs=2)
        return Tile(128, 256, 128, parts=2, warps=8, stages=3)
    if capability[0] >= 10:
        return Tile(128, 128, 128, parts=1, warps=8, stages=2)
    return Tile(128, 128, 64, parts=1, warps=8, stages=3, descriptors=False)


def launch_fp8_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scales: Tensor,
    gelu: bool = False,
    residual: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """`fp8_linear` with the tile given; otherwise it is `tile_of` the GPU, or a small one for Triton's interpreter."""
    outputs, inputs = weight.shape
    on_gpu = x.device.type == "cuda"
    rows = x.shape[0]
    out = torch.empty(rows, outputs, dtype=x.dtype if gelu else bias.dtype, device=x.device)
    ending = PLAIN if cos is None else ROTARY
    ending = GELU if gelu else RESIDUAL if residual is not None else ending
    if tile is None:
        tile = tile_of(torch.cuda.get_device_capability(x.device), ending, inputs) if on_gpu else INTERPRETED
    columns, inner = min(tile.columns, _power(outputs)), min(tile.inner, max(32, _power(inputs)))
    operands: tuple[Tensor | TensorDescriptor, ...] = x, weight
    if tile.descriptors:
        operands = (
            TensorDescriptor.from_tensor(x, [tile.rows, inner]),
            TensorDescriptor.from_tensor(weight, [columns, inner]),
        )
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if on_gpu else 3
    unused = bias
    stores = tile.stores and gelu and columns // tile.parts <= SWIZZLED
    traced_with_descriptors(fp8_linear_kernel)[(processors * tile.programs,)](
        *operands,
        *(bias, scales, *(unused if t is None else t for t in (residual, cos, sin))),
        TensorDescriptor.from_tensor(out, [tile.rows, columns // tile.parts]) if stores else out,
        *(rows, 1 if cos is None else cos.shape[0]),
        OUTPUTS=outputs,
        INPUTS=inputs,
        ROWS=tile.rows,
        COLUMNS=columns,
        INNER=inner,
        GROUP=tile.group,
        ENDING=ending,
        HALF=1 if cos is None else cos.shape[1],
        TURNED=outputs // 3 * 2,
        PARTS=tile.parts,
        DESCRIPTORS=tile.descriptors,
        STORES=stores,
        PACKED=tile.packed,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


INTERPRETED = Tile(16, 64, 32, parts=2, warps=4, stages=1, descriptors=False, packed=False)


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()


@torch.library.triton_op("sam3::fp8_linear", mutates_args={})
def fp8_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scales: Tensor,
    gelu: bool,
    residual: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
) -> Tensor:
    """x [n,I] times weight [O,I], both E4M3, times `scales[0]`, plus bias [O] -> [n,O] in the dtype of the bias.

    What follows the product is at most one of: `gelu` (the tanh form), whose result times `scales[1]` is rounded to
    E4M3, `residual` of n*O added, or rotary positions: `cos` and `sin` [t,d/2] turn outputs that are queries, keys and
    values [3*heads*d] of runs of t tokens, where channels 2i and 2i + 1 of a query's or key's head are a pair. All
    contiguous; I is a multiple of 16, d a power of two. x must not be a view of another shape: PyTorch (2.11) cannot
    compile a package with the descriptor of one. Needs compute capability 8.9.
    """
    return launch_fp8_linear(x, weight, bias, scales, gelu, residual, cos, sin)
