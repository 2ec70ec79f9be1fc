"""The inputs and outputs of every model that serves a variant: SAM3's five sub-models and the front model.

Written once, here: names, dtypes, which dimensions vary, and which outputs the pipeline reads. `Variant` in
`ensemble/spec.py` hands them out as `variant.decoder` and so on. Standard library only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ensemble import tracker_interfaces
from ensemble.records import Axis, ModelSpec, TensorSpec

if TYPE_CHECKING:
    from ensemble.spec import Variant

STAGES = ("decode", "queue", "text", "vision", "geometry", "decoder", "masks", "pack", "total")
"""Order of `stage_ms`: milliseconds that a frame spent in each stage, its batch's other frames included; `queue` is the
wait for the batches before it, once the frame has left Triton's own queue."""
ENGINE_MODEL = "sam3_engine"
"""Name of the Triton model that holds all sub-models of a server in one process a GPU."""


def vision_encoder(v: Variant) -> ModelSpec:
    """Frames -> feature pyramid, and for videos what the tracker makes its own of. uint8 RGB in; normalisation is
    inside."""
    b, r, c, p, f = (
        v.axes["images"],
        v.resolution,
        v.checkpoint.hidden_size,
        v.patches,
        v.float_dtype,
    )
    return ModelSpec(
        v.model_name("vision_encoder"),
        "vision_encoder",
        inputs=(TensorSpec("pixel_values", "UINT8", (b, 3, r, r)),),
        outputs=(
            TensorSpec("fpn_0", f, (b, c, 4 * p, 4 * p), host=False),
            TensorSpec("fpn_1", f, (b, c, 2 * p, 2 * p), host=False),
            TensorSpec("fpn_2", f, (b, c, p, p), host=False),
            *((tracker_interfaces.hidden(v),) if v.tracker else ()),
        ),
    )


def text_encoder(v: Variant) -> ModelSpec:
    """Token ids (right-padded) -> text features. Attention is causal, so padding needs no mask here."""
    n, length = v.axes["prompts"], v.checkpoint.context_length
    return ModelSpec(
        v.model_name("text_encoder"),
        "text_encoder",
        inputs=(TensorSpec("input_ids", "INT32", (n, length)),),
        outputs=(TensorSpec("text_features", v.float_dtype, (n, length, v.checkpoint.hidden_size)),),
    )


def text_encoder_cpu(v: Variant) -> ModelSpec:
    """The text encoder for a GPU with little memory: it runs on the CPU, where 32 bits are as fast as 16."""
    return replace(text_encoder(replace(v, precision="fp32")), name="sam3_text_encoder_cpu")


def geometry_encoder(v: Variant) -> ModelSpec:
    """Exemplar boxes -> prompt features; token 0 is the class token, token k+1 is box k.

    `boxes` are cxcywh in 0..1; `box_labels` 1 positive, 0 negative, -10 padding. Attention mask of the result: 1
    for token 0 and each real box.
    """
    b, n, k = v.axes["images"], v.axes["pairs"], v.max_boxes
    c, p, f = v.checkpoint.hidden_size, v.patches, v.float_dtype
    return ModelSpec(
        v.model_name("geometry_encoder"),
        "geometry_encoder",
        inputs=(
            TensorSpec("fpn_2", f, (b, c, p, p), host=False),
            TensorSpec("image_index", "INT32", (n,)),
            TensorSpec("boxes", "FP32", (n, k, 4)),
            TensorSpec("box_labels", "INT32", (n, k)),
        ),
        outputs=(TensorSpec("geometry_features", f, (n, k + 1, c)),),
    )


def decoder(v: Variant) -> ModelSpec:
    """N (image, class) pairs in one call: features of B images enter once, `image_index` says whose they are.

    `pred_boxes` are xyxy in 0..1 of the frame. `memory` is the text-conditioned DETR-encoder output, kept for the
    mask head.
    """
    b, n, s = v.axes["images"], v.axes["pairs"], v.axes["tokens"]
    c, p, q, f = v.checkpoint.hidden_size, v.patches, v.queries, v.float_dtype
    return ModelSpec(
        v.model_name("decoder"),
        "decoder",
        inputs=(
            TensorSpec("fpn_2", f, (b, c, p, p), host=False),
            TensorSpec("image_index", "INT32", (n,)),
            TensorSpec("prompt_features", f, (n, s, c)),
            TensorSpec("prompt_mask", "INT32", (n, s)),
        ),
        outputs=(
            TensorSpec("pred_logits", "FP32", (n, q)),
            TensorSpec("pred_boxes", "FP32", (n, q, 4)),
            TensorSpec("presence_logits", "FP32", (n, 1)),
            TensorSpec("query_features", f, (n, q, c), host=False),
            TensorSpec("memory", f, (n, p * p, c), host=False),
        ),
    )


def mask_head(v: Variant) -> ModelSpec:
    """Masks of chosen queries of chosen pairs: row m is pair `pair_index[m]` of the decoder call, its picks are
    `query_index[m]`.

    `mask_logits` [M,T,4p,4p] are for whoever wants them; `mask_bits` are the logits above 0, packed along x, most
    significant bit first.
    """
    b, n, s, m, t = (v.axes[a] for a in ("images", "pairs", "tokens", "rows", "picks"))
    c, p, q, f = v.checkpoint.hidden_size, v.patches, v.queries, v.float_dtype
    return ModelSpec(
        v.model_name("mask_head"),
        "mask_head",
        inputs=(
            TensorSpec("fpn_0", f, (b, c, 4 * p, 4 * p), host=False),
            TensorSpec("fpn_1", f, (b, c, 2 * p, 2 * p), host=False),
            TensorSpec("memory", f, (n, p * p, c), host=False),
            TensorSpec("query_features", f, (n, q, c), host=False),
            TensorSpec("prompt_features", f, (n, s, c)),
            TensorSpec("prompt_mask", "INT32", (n, s)),
            TensorSpec("image_index", "INT32", (m,)),
            TensorSpec("pair_index", "INT32", (m,)),
            TensorSpec("query_index", "INT32", (m, t)),
        ),
        outputs=(
            TensorSpec("mask_logits", f, (m, t, 4 * p, 4 * p), host=False),
            TensorSpec("mask_bits", "UINT8", (m, t, 4 * p, v.mask_row_bytes)),
        ),
    )


def front(v: Variant) -> ModelSpec:
    """What a client sends and gets; every tensor has a leading batch dimension of 1 on the wire (one frame a
    request).

    Triton batches requests that name the same inputs, so a client that always sends all of them (empty where
    unused) batches best.
    """
    many = Axis("n", 0, 1, 2**31 - 1)
    height, width = Axis("height", 0, 1080, 2**31 - 1), Axis("width", 0, 1920, 2**31 - 1)
    found = Axis("detections", 0, 8, 2**31 - 1)
    return ModelSpec(
        v.front_name,
        "front",
        inputs=(
            TensorSpec("image", "BYTES", (1,), optional=True),  # JPEG, PNG or WebP file; empty if `frame` is given
            TensorSpec("frame", "UINT8", (height, width, 3), optional=True),  # RGB; empty if `image` is given
            TensorSpec("classes", "BYTES", (many,), optional=True),  # UTF-8
            TensorSpec("boxes", "FP32", (many, 4), optional=True),  # exemplars, xyxy in 0..1 of the frame
            TensorSpec("box_labels", "INT32", (many,), optional=True),  # 1 like this, 0 unlike this
            TensorSpec("box_classes", "INT32", (many,), optional=True),  # index into `classes`
            TensorSpec("threshold", "FP32", (1,), optional=True),
            TensorSpec("mask_format", "BYTES", (1,), optional=True),  # one of MASK_FORMATS
            TensorSpec("max_detections", "INT32", (1,), optional=True),
        ),
        outputs=(
            # xyxy in 0..1 of the frame; SAM3's own may reach a little beyond it
            TensorSpec("boxes", "FP32", (found, 4)),
            TensorSpec("scores", "FP32", (found,)),  # descending
            TensorSpec("class_ids", "INT32", (found,)),  # index into `classes`
            TensorSpec("presence", "FP32", (many,)),  # probability that each class is in the frame
            # empty unless asked for
            TensorSpec("mask_bits", "UINT8", (found, v.mask_size, v.mask_row_bytes)),
            # COCO compressed RLE of size [4p, 4p]; empty unless asked for
            TensorSpec("mask_rle", "BYTES", (found,)),
            TensorSpec("frame_size", "INT32", (2,)),  # height, width after EXIF orientation
            TensorSpec("stage_ms", "FP32", (len(STAGES),)),  # milliseconds, in the order of STAGES
            TensorSpec("batch", "INT32", (1,)),  # frames that shared this execution
        ),
        ragged=True,
        front_batch=v.max_batch,
    )


def engine() -> ModelSpec:
    """What a front model hands over to the engine model: a batch of frames, F files one after the other or frames that
    are scaled already, and all their class names; and what comes back. `ensemble/handover.py` reads and writes it.
    """
    any_size = 2**31 - 1
    frames, names, length = Axis("frames", 1, 8, any_size), Axis("names", 1, 32, any_size), Axis("length", 1, 32, 32)
    data, scaled, side = Axis("bytes", 0, 1, any_size), Axis("scaled", 0, 8, any_size), Axis("side", 1, 1008, any_size)
    boxes, found, masks = Axis("boxes", 0, 1, any_size), Axis("found", 0, 8, any_size), Axis("masks", 0, 8, any_size)
    height, row = Axis("mask_height", 1, 288, any_size), Axis("mask_row", 1, 36, any_size)
    stages, seeds, hidden = Axis("stages", 1, 9, 32), Axis("seeds", 0, 8, any_size), Axis("hidden", 0, 1, any_size)
    closed = Axis("closed", 0, 1, any_size)
    return ModelSpec(
        ENGINE_MODEL,
        "engine",
        inputs=(
            TensorSpec("front", "BYTES", (1,)),  # name of the front model whose variant is meant
            TensorSpec("files", "UINT8", (data,)),  # JPEG files, one after the other
            TensorSpec("file_bytes", "INT32", (frames,)),  # 0: the frame is in `scaled`
            TensorSpec("scaled", "UINT8", (scaled, side, side, 3)),  # RGB at the variant's resolution
            TensorSpec("frame_sizes", "INT32", (frames, 2)),  # height, width before scaling; 0 of files
            TensorSpec("names_per_frame", "INT32", (frames,)),
            TensorSpec("input_ids", "INT32", (names, length)),
            TensorSpec("token_mask", "INT32", (names, length)),
            TensorSpec("threshold", "FP32", (frames,)),
            TensorSpec("max_detections", "INT32", (frames,)),
            TensorSpec("wants_masks", "UINT8", (frames,)),
            TensorSpec("boxes", "FP32", (boxes, 4)),  # exemplars, cxcywh in 0..1
            TensorSpec("box_labels", "INT32", (boxes,)),  # 1 like this, 0 unlike this
            TensorSpec("box_names", "INT32", (boxes,)),  # index into the batch's names
            # Of a video front model alone; see `ensemble/video/handover.py`.
            TensorSpec("sessions", "INT64", (frames,), optional=True),  # bits of Triton's sequence id
            TensorSpec("session_flags", "INT32", (frames,), optional=True),  # 1 the session begins, 2 it ends
            TensorSpec("detect_every", "INT32", (frames,), optional=True),
            TensorSpec("max_objects", "INT32", (frames,), optional=True),
            TensorSpec("first_id", "INT64", (frames,), optional=True),
            TensorSpec("seeds_per_frame", "INT32", (frames,), optional=True),
            TensorSpec("seed_ids", "INT64", (seeds,), optional=True),
            TensorSpec("seed_classes", "INT32", (seeds,), optional=True),
            TensorSpec("seed_masks", "UINT8", (seeds, height, row), optional=True),
            TensorSpec("closed", "INT64", (closed,), optional=True),  # sessions that end without a frame
        ),
        outputs=(
            TensorSpec("status", "INT32", (frames,)),  # 0 answered, 1 the frame cannot be read, 2 the server failed
            TensorSpec("messages", "BYTES", (frames,)),
            TensorSpec("found", "INT32", (frames,)),
            TensorSpec("boxes", "FP32", (found, 4)),
            TensorSpec("scores", "FP32", (found,)),
            TensorSpec("class_ids", "INT32", (found,)),
            TensorSpec("presence", "FP32", (names,)),
            TensorSpec("mask_bits", "UINT8", (masks, height, row)),
            TensorSpec("frame_sizes", "INT32", (frames, 2)),
            TensorSpec("stage_ms", "FP32", (frames, stages)),
            # Of a video front model alone.
            TensorSpec("track_ids", "INT64", (found,)),
            TensorSpec("track_scores", "FP32", (found,)),
            TensorSpec("track_states", "INT32", (found,)),
            TensorSpec("hidden_per_frame", "INT32", (frames,)),
            TensorSpec("hidden_ids", "INT64", (hidden,)),
            TensorSpec("frame_index", "INT32", (frames,)),
            TensorSpec("dropped_objects", "INT32", (frames,)),
            TensorSpec("session_bytes", "INT64", (frames,)),
        ),
    )


VIDEO_OUTPUTS = (
    *("track_ids", "track_scores", "track_states", "hidden_per_frame", "hidden_ids"),
    *("frame_index", "dropped_objects", "session_bytes"),
)
"""Outputs of the engine model that only a video front model asks for."""
