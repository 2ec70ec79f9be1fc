"""A model of the GPU memory that a server takes, in megabytes by purpose.

    megabytes = weights + base + activations + buffers of the frames under way + unfused attention scores + Triton's
    pool + what is remembered of the objects of videos

Activations are those of the plan's largest batch, which TensorRT reserves at the start; PyTorch's packages take them as
frames and pairs come, and keep them. Base (CUDA contexts and libraries) and activations can only be measured: they are
a `Footprint` that names its source. The rest is computed from sizes. The server's start check and `sam3-perf capacity`
both read this module, so they cannot disagree. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from ensemble.server.architecture import SAM3, Architecture
from ensemble.spec import MB as MB
from ensemble.spec import Variant
from ensemble.tracker_interfaces import sizes as tracker_sizes

UNITS = {"": MB, "MB": MB, "M": MB, "MIB": MB, "GB": 2**30, "G": 2**30, "GIB": 2**30}
FUSED_TILE = 64
"""Rows of a tile of fused attention kernels. See `score_bytes`."""
TRITON_CONTEXT_MB = 520.0
"""What the server's own process takes of a GPU, measured on an H100; its models are processes of their own."""
BESIDE_MB, LARGER_FRAMES_MB = 500.0, 140.0
"""What the engine model's process takes beside PyTorch's memory while it works: decoded files and pictures, kernels
that are loaded at their first use. Measured on an H100 with packages for 672 and frames of 1080p; and what larger
frames may take more (`preprocess/cpu.py` bounds it)."""
DEFAULT_POOL_MB = 64.0
"""Triton's own `--cuda-memory-pool-byte-size`."""


def parse_mb(text: str) -> float:
    """`8GB`, `8192MB` or `8192` as megabytes, as vendors and nvidia-smi count memory: 1 GB is 1024 MB. Raises
    ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in UNITS or not float(match[1]):
        raise ValueError(f"expected an amount of memory as in 8GB or 8192MB, got {text!r}")
    return float(match[1]) * UNITS[match[2].upper()] / MB


@dataclass(frozen=True, slots=True)
class Footprint:
    """What only a measurement tells: megabytes beside the weights, and megabytes of activations per 1000 patches and
    frame, and per 1000 patches and pair of a frame and a class where those count."""

    base_mb: float
    activation_mb: float
    source: str
    pair_mb: float = 0.0


RTX_5090 = Footprint(937.1, 104.8, "fitted by sam3-perf to a published table of TensorRT FP16 plans on an RTX 5090")
FOOTPRINTS = {
    "tensorrt": RTX_5090,
    # Each model and each front instance is a process with a CUDA context, libraries and an allocator of its own.
    "aoti": Footprint(5_202.7, 72.2, "fitted by sam3-perf to perf/results/h200/sweep.json", pair_mb=13.1),
}
"""By engine that runs on a GPU, each sub-model as a model of Triton's own."""
ONE_PROCESS = Footprint(1_600.0, 45.0, "from perf/results/h100/end_to_end.json, where it is within 5 %", pair_mb=6.0)
"""Compiled packages in the engine model: the contexts of Triton and of the one process, libraries, graphs, decoder."""
PLANS_PROCESS = Footprint(
    2 * TRITON_CONTEXT_MB + BESIDE_MB,
    RTX_5090.activation_mb,
    "two CUDA contexts and decoding as on an H100; scratch as the plans' builds say, or as fitted to a published table"
    " of plans on an RTX 5090; no card has confirmed it",
)
"""TensorRT plans in the engine model. Their contexts share scratch memory: that of the plan that needs most."""
ONE_PROCESS_PLANS = ("tensorrt_rtx", "tensorrt")
"""Engines of plans, where the engine model runs them."""
MASK_CALL_ROWS = 16
"""Rows of a mask-head call, as `pipeline.MASK_ROWS`: its logits are there even where only bits are wanted."""


TRACKER_MB = 33.0
"""Megabytes that the tracker computes in, for a thousand patches and each object of a call. From
perf/results/h200/video.json: between one and eight objects of a call, at each of four resolutions, within 1 %."""


def footprint_of(engine: str, model_each: bool) -> Footprint:
    """Of an engine: with each sub-model as a model of Triton's own (`model_each`), or all in one process."""
    if model_each and engine in FOOTPRINTS:
        return FOOTPRINTS[engine]
    return PLANS_PROCESS if engine in ONE_PROCESS_PLANS else ONE_PROCESS


@dataclass(frozen=True, slots=True)
class Need:
    """Megabytes on the GPU by purpose."""

    weights: float = 0.0
    base: float = 0.0
    activations: float = 0.0
    features: float = 0.0  # of the frames under way, with their pixels and the masks of one class
    scores: float = 0.0
    pool: float = 0.0
    videos: float = 0.0  # what is remembered of their objects

    @property
    def total(self) -> float:
        return sum(getattr(self, f.name) for f in fields(self))

    def __add__(self, other: Need) -> Need:
        return Need(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __str__(self) -> str:
        names = {"base": "CUDA context and libraries", "scores": "attention scores", "pool": "memory pool"}
        names |= {"videos": "objects of videos"}
        parts = ((names.get(f.name, f.name), getattr(self, f.name)) for f in fields(self))
        return f"{self.total:,.0f} MB (" + ", ".join(f"{name} {mb:,.0f}" for name, mb in parts if mb) + ")"


def need(
    footprint: Footprint,
    resolution: int,
    frames: int,
    a: Architecture = SAM3,
    queries: int | None = None,
    *,
    plan_batch: int,
    pairs: int = 0,
    element: int = 2,
    fused: bool | None = None,
) -> Need:
    """Of one resolution without a pool: `frames` under way, activations for `plan_batch` frames and `pairs` pairs,
    `element` bytes a number; `fused` as in `score_bytes`."""
    load = footprint.activation_mb * plan_batch + footprint.pair_mb * pairs
    activations = load * a.patches(resolution) / 1e3 * element / 2
    return Need(
        weights=weight_bytes(a, element) / MB,
        base=footprint.base_mb,
        activations=activations,
        features=buffer_bytes(resolution, frames, a, queries, element) / MB,
        scores=score_bytes(resolution, frames, a, fused=fused) / MB,
    )


def server_need(variants: Sequence[Variant], engine: str, weights_mb: float, pool_mb: float) -> Need:
    """Of a server with these variants under full load, their largest batch under way in each. `weights_mb` are the
    artifacts' own sizes."""
    total = Need()
    for variant in variants:
        sizes, element = _sizes(variant)
        # The packages' processes hold the buffers of a batch in every front instance; those of plans are in Triton's
        # pool.
        batches = variant.front_instances if engine == "aoti" else 1
        total += need(
            FOOTPRINTS[engine],
            variant.resolution,
            variant.max_batch * batches,
            sizes,
            variant.queries,
            plan_batch=variant.max_batch,
            pairs=variant.max_pairs,
            element=element,
            fused=True if engine == "aoti" else None,  # PyTorch's kernels never store scores
        )
    # Triton's TensorRT backend has one CUDA context for all models; packages run in processes of their own, resolution
    # by resolution.
    base = FOOTPRINTS[engine].base_mb if engine == "tensorrt" else total.base
    return Need(weights_mb, base, total.activations, total.features, total.scores, pool_mb)


def engine_model_need(
    variants: Sequence[Variant],
    weights_mb: float,
    engine: str = "aoti",
    scratch_mb: float | None = None,
    trackers: Sequence[Variant] = (),
) -> Need:
    """Of a server whose sub-models are in the engine model, under full load: one batch is computed at a time, and what
    it took is there for the next, of whichever resolution. `weights_mb` are the artifacts' own sizes; `scratch_mb` is
    what the largest plan computes in, where its build noted that; `trackers` follow the objects of videos."""
    if engine in ONE_PROCESS_PLANS:
        scratch = max(_plan_scratch_mb(v) for v in variants) if scratch_mb is None else scratch_mb
        between = max(_batch_bytes(v) + _mask_bytes(v) for v in variants)
        between += max((part.largest_bytes for v in trackers for part in v.tracker_parts), default=0)
        return Need(weights_mb, PLANS_PROCESS.base_mb, scratch, between / MB)
    computed_in = [*map(_activations_mb, variants), *map(_tracker_mb, trackers)]
    return Need(weights_mb, ONE_PROCESS.base_mb, max(computed_in))


def least_engine_model_need(
    variants: Sequence[Variant],
    weights_mb: float,
    engine: str = "aoti",
    scratch_mb: float | None = None,
    trackers: Sequence[Variant] = (),
) -> Need:
    """The same with one frame, one pair and one object at a time, into which the engine model splits its work where
    memory is short, and with what it sets aside for larger frames there (`engines/device.py`). Plans reserve the
    scratch of their largest batch all the same."""
    if engine in ONE_PROCESS_PLANS and scratch_mb is None:
        scratch_mb = max(_plan_scratch_mb(v) for v in variants)
    single = [replace(variant, max_batch=1, max_pairs=1) for variant in variants]
    alone = [replace(v, tracker=replace(tracker_sizes(v), max_objects=1)) for v in trackers]
    least = engine_model_need(single, weights_mb, engine, scratch_mb, alone)
    return replace(least, base=least.base + LARGER_FRAMES_MB)


def _activations_mb(v: Variant) -> float:
    sizes, element = _sizes(v)
    load = ONE_PROCESS.activation_mb * v.max_batch + ONE_PROCESS.pair_mb * v.max_pairs
    return load * sizes.patches(v.resolution) / 1e3 * element / 2


def _tracker_mb(v: Variant) -> float:
    sizes, element = _sizes(v)
    return TRACKER_MB * tracker_sizes(v).max_objects * sizes.patches(v.resolution) / 1e3 * element / 2


def _plan_scratch_mb(v: Variant) -> float:
    sizes, element = _sizes(v)
    return PLANS_PROCESS.activation_mb * v.max_batch * sizes.patches(v.resolution) / 1e3 * element / 2


def _mask_bytes(v: Variant) -> float:
    """Logits of the largest mask-head call."""
    sizes, element = _sizes(v)
    return min(MASK_CALL_ROWS, v.max_pairs) * v.max_picks * 16 * sizes.patches(v.resolution) * element


def pool_mb(variants: Sequence[Variant]) -> float:
    """Triton's CUDA pool for tensors on their way between models: twice those of the largest batch in every front
    instance, since a tensor is there as an output and again as an input. They are the frames' pixels and features, and
    the decoder's memory of as many pairs as it takes.

    Measured on an H200: with the default of 64 MB the same calls took ten times as long; with features alone counted,
    two batches under way did not fit.
    """
    return max(DEFAULT_POOL_MB, sum(2 * v.front_instances * _batch_bytes(v) for v in variants) / MB)


def _sizes(v: Variant) -> tuple[Architecture, int]:
    """Sizes of its checkpoint, and bytes of a number between the models."""
    return Architecture.of(v.checkpoint), 4 if v.precision in ("fp32", "int8") else 2


def _batch_bytes(v: Variant) -> float:
    """Of the largest batch between the models."""
    sizes, element = _sizes(v)
    pixels = v.max_batch * 3 * v.resolution**2
    memory = v.max_pairs * sizes.patches(v.resolution) * sizes.fpn * element
    return pixels + memory + feature_bytes(v.resolution, v.max_batch, sizes, element)


# ---- bytes
def weight_bytes(a: Architecture = SAM3, element: int = 2, precision: str = "") -> float:
    """Of all weights, `element` bytes each; in fp8 the linear layers of the vision encoder's blocks take one byte, as
    `export/fused/fp8_block.py` stores them (E4M3 with a few scales a layer)."""
    blocks = a.layers * (4 * a.width**2 + 2 * a.width * a.mlp) if precision == "fp8" else 0
    return a.parameters * element - blocks * (element - 1)


def text_encoder_bytes(a: Architecture = SAM3, element: int = 2) -> float:
    """Of the weights: the part that a server with little GPU memory keeps on the CPU. Norms and biases are left out."""
    layer = 4 * a.text_width**2 + 2 * a.text_width * a.text_mlp
    return (a.text_layers * layer + a.checkpoint.vocabulary_size * a.text_width) * element


def feature_bytes(resolution: int, frames: int, a: Architecture = SAM3, element: int = 2) -> float:
    """The feature pyramid of `frames` frames, which lives from the vision encoder to the last mask: 256 channels at 4p,
    2p and p."""
    return frames * 21 * a.patches(resolution) * a.fpn * element


def buffer_bytes(
    resolution: int, frames: int, a: Architecture = SAM3, queries: int | None = None, element: int = 2
) -> float:
    """What a pipeline with its own buffers keeps for `frames` frames: features, input in fp32, masks of one class in
    fp32."""
    n = a.patches(resolution)
    return (
        feature_bytes(resolution, frames, a, element)
        + frames * (3 * resolution**2 + (queries or a.queries) * 16 * n) * 4
    )


def score_bytes(resolution: int, frames: int, a: Architecture = SAM3, *, fused: bool | None = None) -> float:
    """Attention scores of a global layer before and after softmax, heads x n x n in fp16: nothing where the kernel is
    fused, gigabytes where it is not.

    `fused` None decides by a rule that was chosen with the published table in sight: fused where n is a multiple of 64.
    840 (n = 3600) is the only one of the four resolutions where it is not, and the only one whose memory grows by
    gigabytes with eight cameras; two copies of the scores are that growth to 2 %.
    """
    n = a.patches(resolution)
    fused = n % FUSED_TILE == 0 if fused is None else fused
    return 0.0 if fused else 2 * frames * a.heads * n * n * 2
