"""Mask logits: the mask head's last map, group-normalised and rectified, times the queries.

The map is the model's largest tensor (1296 MB for 32 pairs at 1008). A normalisation of its own would read and write it
once more; here it is applied as the map is read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from export.fused.kernels.launch import traced

PIXELS = 128
"""Pixels of a block."""


@triton.jit
def mask_product_kernel(
    x_ptr,  # [M,pixels,CHANNELS]
    scale_ptr,  # fp32 [M,CHANNELS]
    shift_ptr,
    query_ptr,  # [M,picks,CHANNELS]
    offset_ptr,  # [M,picks]
    out_ptr,  # [M,picks,pixels]
    pixels,
    picks,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    PICKS: tl.constexpr,
):
    """PIXELS pixels of one row times PICKS of its queries."""
    row = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    pick = tl.program_id(2) * PICKS + tl.arange(0, PICKS)
    channel = tl.arange(0, CHANNELS)
    inside, picked = pixel < pixels, pick < picks
    x = tl.load(x_ptr + (row * pixels + pixel[:, None]) * CHANNELS + channel[None, :], mask=inside[:, None], other=0.0)
    scale, shift = tl.load(scale_ptr + row * CHANNELS + channel), tl.load(shift_ptr + row * CHANNELS + channel)
    normed = tl.maximum(x.to(tl.float32) * scale[None, :] + shift[None, :], 0.0).to(x.dtype)
    queries = tl.load(
        query_ptr + (row * picks + pick[None, :]) * CHANNELS + channel[:, None], mask=picked[None, :], other=0.0
    )  # [CHANNELS,PICKS]
    logits = tl.dot(normed, queries)
    logits += tl.load(offset_ptr + row * picks + pick, mask=picked, other=0.0).to(tl.float32)[None, :]
    place = (row * picks + pick[:, None]) * pixels + pixel[None, :]
    tl.store(out_ptr + place, tl.trans(logits).to(out_ptr.dtype.element_ty), mask=picked[:, None] & inside[None, :])


def launch_mask_product(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    queries: Tensor,
    offset: Tensor,
    blocks: tuple[int, int, int] = (PIXELS, 32, 4),
) -> Tensor:
    """`mask_product` with the block sizes (pixels, picks, warps) given."""
    rows, pixels, channels = x.shape
    picks = queries.shape[1]
    out = torch.empty(rows, picks, pixels, dtype=x.dtype, device=x.device)
    pixel_block, pick_block, warps = blocks
    traced(mask_product_kernel)[(triton.cdiv(pixels, pixel_block), rows, triton.cdiv(picks, pick_block))](
        x,
        scale,
        shift,
        queries,
        offset,
        out,
        pixels,
        picks,
        CHANNELS=channels,
        PIXELS=pixel_block,
        PICKS=pick_block,
        num_warps=warps,
    )
    return out


@torch.library.triton_op("sam3::mask_product", mutates_args={})
def mask_product(x: Tensor, scale: Tensor, shift: Tensor, queries: Tensor, offset: Tensor) -> Tensor:
    """relu(x*scale + shift) times queries, plus offset: x [M,P,C], scale and shift fp32 [M,C], queries [M,T,C], offset
    [M,T], all contiguous -> [M,T,P] in the dtype of x. C is a power of two, 16 or more.
    """
    return launch_mask_product(x, scale, shift, queries, offset)
