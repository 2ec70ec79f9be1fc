"""Milliseconds of this project's GPU kernels beside the library calls that they replace, at the sizes of eight frames
(32 pairs) at 1008.

Inputs are random in half precision; times are medians by CUDA events, errors are relative to plain PyTorch in fp32. How
fast whole parts are, `sam3-perf bench engines` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from export.fused import plain
from perf import record
from perf.bench.timing import median_ms, require_gpu
from perf.console import make_parser

EXAMPLES = """example:
  sam3-perf bench kernels --output build/perf/kernels.json"""
FRAMES, PAIRS, GRID, WIDTH = 8, 32, 72, 256

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """0: measured; 2: there is no GPU."""
    parser = make_parser("bench kernels", __doc__, EXAMPLES)
    record.add_output(parser)
    options = parser.parse_args(argv)
    require_gpu(parser)
    torch.manual_seed(0)
    rows: list[Row] = []
    with torch.no_grad():
        for measure in (attention, box_attention, box_bias, upsampling, planes, mask_product, products):
            rows += measure()
            torch.cuda.empty_cache()
    data = record.new(parser.prog, argv, cuda=torch.version.cuda) | {"rows": rows}
    record.publish(options.output, data, "fp16, one GPU")
    return 0


def row(what: str, by: str, call: Callable[[], Any], wanted: Tensor | None = None, found: Tensor | None = None) -> Row:
    """One measurement; the error is |found - wanted| / |wanted|, None where nothing is compared."""
    milliseconds = median_ms(recorded(call), "cuda", warmup=25, repeat=100)
    error = None
    if wanted is not None and found is not None:
        error = float((found.float() - wanted.float()).norm() / wanted.float().norm())
    return {"what": what, "by": by, "ms": round(milliseconds, 4), "error": error}


def recorded(call: Callable[[], Any]) -> Callable[[], Any]:
    """`call` as a CUDA graph: what Python takes to start a kernel is more than some of them take to run, and compiled
    packages start them without it."""
    call()  # what is made once is made outside the graph
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def half(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device="cuda") * scale).half()


def heads(n: int, tokens: int, count: int, width: int, scale: float = 1.0) -> Tensor:
    """[n,count,tokens,width] with a token's channels side by side, as a projection leaves them."""
    return half(n, tokens, count, width, scale=scale).transpose(1, 2)


def attention() -> list[Row]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from export.fused.kernels.attention import launch_attention

    rows = []
    for what, (n, count, tokens, keys, width) in {
        "image transformer, global": (FRAMES, 16, GRID**2, GRID**2, 64),
        "image transformer, windows": (FRAMES * 9, 16, 24**2, 24**2, 64),
        "DETR encoder, 32 pairs": (PAIRS, 8, GRID**2, GRID**2, 32),
        "prompt tokens, 32 pairs": (PAIRS, 8, GRID**2, 32, 32),
    }.items():
        q = heads(n, tokens, count, width, scale=0.5 * width**-0.5)
        k, v = (heads(n, keys, count, width) for _ in range(2))
        wanted = plain.attention(q[:1], k[:1], v[:1], None, None, None)
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):

            def library() -> Tensor:
                with sdpa_kernel([backend]):  # noqa: B023
                    return F.scaled_dot_product_attention(q, k, v, scale=1.0)  # noqa: B023

            rows.append(row(what, backend.name.lower(), library, wanted, library()[:1].transpose(1, 2).flatten(2)))
        mine = lambda: launch_attention(q, k, v, None, None, None)  # noqa: B023, E731
        rows.append(row(what, "kernel", mine, wanted, mine()[:1]))
    return rows + turned_attention()


def turned_attention() -> list[Row]:
    """The image transformer's attention as it is called there, on a joined projection: queries turned inside the
    kernel, or before it."""
    from export.fused.kernels.attention import launch_attention

    rows = []
    for what, (n, tokens) in {"global": (FRAMES, GRID**2), "windows": (FRAMES * 9, 24**2)}.items():
        joined = half(n, tokens, 3, 16, 64, scale=0.3)
        q, k, v = (joined[:, :, i].transpose(1, 2) for i in range(3))
        angles = torch.rand(tokens, 32, device="cuda") * 3
        cos, sin = angles.cos(), angles.sin()
        ready, k = plain.turn(q, cos, sin), plain.turn(k, cos, sin)
        wanted = plain.attention(q[:1], k[:1], v[:1], None, cos, sin)
        for by, arguments in {
            "inside the kernel": (q, k, v, None, cos, sin),
            "before it": (ready, k, v, None, None, None),
        }.items():
            call = lambda: launch_attention(*arguments)  # noqa: B023, E731
            about = f"image transformer, {what}, joined projection"
            rows.append(row(about, f"kernel, queries turned {by}", call, wanted, call()[:1]))
    return rows


def box_attention() -> list[Row]:
    from export.fused.kernels.box_attention import launch_box_attention

    q, k, v = heads(PAIRS, 201, 8, 32, scale=0.2), heads(PAIRS, GRID**2, 8, 32), heads(PAIRS, GRID**2, 8, 32)
    lines, columns = half(PAIRS, 8, 200, GRID), half(PAIRS, 8, 200, GRID)

    def library() -> Tensor:
        bias = F.pad((lines.unsqueeze(4) + columns.unsqueeze(3)).flatten(3), (0, 0, 1, 0))
        return F.scaled_dot_product_attention(q, k, v, bias, scale=1.0).transpose(1, 2).flatten(2)

    what = "box attention, 32 pairs"
    wanted = plain.box_attention(q, k, v, lines, columns)
    rows = [row(what, "bias tensor and scaled_dot_product_attention", library, wanted, library())]
    for blocks in ((64, 4, 2), (64, 8, 2), (128, 8, 2), (64, 4, 3)):
        mine = lambda: launch_box_attention(q, k, v, lines, columns, blocks)  # noqa: B023, E731
        rows.append(row(what, f"kernel {blocks}", mine, wanted, mine()))
    return rows


def box_bias() -> list[Row]:
    from export.fused.kernels.box_bias import launch_box_bias

    low, high = torch.rand(PAIRS, 200, device="cuda"), torch.rand(PAIRS, 200, device="cuda")
    arguments = (low, high, half(256, 2), half(256), half(8, 256, scale=0.06), half(8), GRID)
    wanted = plain.box_bias(*arguments)
    rows = [row("box bias, one axis, 32 pairs", "PyTorch in fp32", lambda: plain.box_bias(*arguments))]
    for blocks in ((128, 32, 4), (64, 32, 4), (128, 16, 4), (128, 64, 8)):
        mine = lambda: launch_box_bias(*arguments, blocks)  # noqa: B023, E731
        rows.append(row("box bias, one axis, 32 pairs", f"kernel {blocks}", mine, wanted, mine()))
    return rows


def upsampling() -> list[Row]:
    from export.fused.kernels.upsample import launch_upsample
    from export.fused.mask_head import fold_upsampling

    weight = torch.randn(WIDTH, WIDTH, 3, 3, device="cuda") / 48
    folded, filters = fold_upsampling(weight).half(), weight.half().contiguous(memory_format=torch.channels_last)
    index = torch.arange(PAIRS, device="cuda", dtype=torch.int32) // (PAIRS // FRAMES)
    rows = []
    for side in (GRID, 2 * GRID):
        x, skip = half(PAIRS, side, side, WIDTH), half(FRAMES, 2 * side, 2 * side, WIDTH)
        wanted = plain.upsample(x[:1], folded, skip, index[:1])[0]
        mine = lambda: launch_upsample(x, folded, skip, index)  # noqa: B023, E731
        what = f"upsampling convolution, sum and statistics, {side} to {2 * side}, 32 pairs"
        rows.append(row(what, "kernel", mine, wanted, mine()[0][:1]))
        conv = lambda: F.conv2d(skip.permute(0, 3, 1, 2), filters, padding=1)  # noqa: B023, E731
        rows.append(row(f"3x3 convolution of the skip map at {2 * side}, 8 frames", "cuDNN", conv))
    return rows


def planes() -> list[Row]:
    from export.fused.kernels.planes import launch_planes

    rows = []
    for side in (GRID, 2 * GRID, 4 * GRID):
        x = half(FRAMES, side, side, WIDTH).permute(0, 3, 1, 2)
        what = f"channels-last map of {side} into C order, 8 frames"
        rows.append(row(what, "PyTorch", x.contiguous))
        mine = lambda: launch_planes(x)  # noqa: B023, E731
        rows.append(row(what, "kernel", mine, x, mine()))
    return rows


def mask_product() -> list[Row]:
    from export.fused.kernels.mask_product import launch_mask_product

    x = half(PAIRS, 16 * GRID**2, WIDTH)
    scale, shift = torch.rand(PAIRS, WIDTH, device="cuda"), torch.randn(PAIRS, WIDTH, device="cuda")
    queries, offset = half(PAIRS, 20, WIDTH, scale=0.06), half(PAIRS, 20)
    wanted = plain.mask_product(x[:1], scale[:1], shift[:1], queries[:1], offset[:1])
    mine = lambda: launch_mask_product(x, scale, shift, queries, offset)  # noqa: E731
    return [row("group normalisation, ReLU and 20 masks, 32 pairs", "kernel", mine, wanted, mine()[:1])]


def products() -> list[Row]:
    """The image transformer's matrix products: what no kernel of this project can change."""
    rows, tokens = [], FRAMES * GRID**2
    for what, (inputs, outputs, gelu) in {
        "queries, keys, values": (1024, 3072, False),
        "projection": (1024, 1024, False),
        "fc1 with GELU": (1024, 4736, True),
        "fc2": (4736, 1024, False),
    }.items():
        x, weight, bias = half(tokens, inputs), half(outputs, inputs, scale=0.03), half(outputs)
        if gelu:
            call = lambda: torch._addmm_activation(bias, x, weight.t(), use_gelu=True)  # noqa: B023, E731
        else:
            call = lambda: F.linear(x, weight, bias)  # noqa: B023, E731
        rows.append(row(f"image transformer, {what}, 8 frames", "cuBLAS", call))
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
