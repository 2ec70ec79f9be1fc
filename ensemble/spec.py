"""The one source of names, shapes and dtypes.

A `Variant` (resolution, queries, precision, limits, checkpoint) goes in; the `ModelSpec` records of everything Triton
serves for it come out. ONNX names and dynamic axes, the TensorRT profile, `config.pbtxt`, the requests between models,
perf_analyzer's input and the documentation tables are all read from these records, so a name, a shape or a dtype is
spelled once. Standard library only: every room may import this one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

RESOLUTIONS = (1008, 840, 672, 560)
"""Resolutions (pixels a side) of the committed repository; any multiple of the patch size can be exported."""

MAX_CLASSES = 100
"""Class names in one request."""
MAX_PROMPT_CHARACTERS = 300
"""Characters in one class name; the text encoder reads 32 tokens, so anything longer is a mistake."""
MAX_IMAGE_PIXELS = 50_000_000
"""Pixels of one decoded frame. 8K video is 33 million; a decompression bomb is more."""
MAX_IMAGE_BYTES = 48 * 1024 * 1024
"""Bytes of one encoded frame; Triton itself refuses HTTP bodies above 64 MB."""

MASK_FORMATS = ("none", "bits", "rle")
STAGES = ("decode", "text", "vision", "geometry", "decoder", "masks", "pack", "total")
"""Order of `stage_ms`: milliseconds that a frame spent in each stage of the front model, the wait for its batch's other
frames and for a turn (`ensemble/engines/turns.py`) included."""
DEFAULT_THRESHOLD = 0.5
DEFAULT_MAX_DETECTIONS = 100

FLOAT_DTYPES = {"fp32": "FP32", "fp16": "FP16", "int8": "FP16", "fp8": "FP16"}
"""Dtype of the features between sub-models, by precision of the sub-models' arithmetic."""
ENGINES = ("tensorrt", "onnxruntime", "aoti")
ARTIFACTS = {"tensorrt": "model.plan", "onnxruntime": "model.onnx", "aoti": "model.pt2"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The sizes that a checkpoint fixes. Defaults are `facebook/sam3` (transformers' `Sam3Config()`)."""

    name: str = "facebook/sam3"
    image_size: int = 1008  # pixels a side that it was trained at
    patch_size: int = 14  # pixels
    hidden_size: int = 256  # width of FPN, prompts and queries
    num_queries: int = 200
    context_length: int = 32  # tokens of one prompt


@dataclass(frozen=True, slots=True)
class Axis:
    """A dimension that varies from call to call: its name, and the smallest, usual and largest size."""

    name: str
    minimum: int
    optimum: int
    maximum: int


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output. `dtype` is Triton's name. `host` says that the front model reads the values; the rest stay
    where they were made."""

    name: str
    dtype: str
    dims: tuple[int | Axis, ...]
    host: bool = True
    optional: bool = False

    def shape(self, **sizes: int) -> tuple[int, ...]:
        """The shape with each axis at `sizes[axis.name]`, or at its optimum where none is given."""
        return tuple(sizes.get(d.name, d.optimum) if isinstance(d, Axis) else d for d in self.dims)

    @property
    def axes(self) -> dict[int, Axis]:
        """Position -> axis, for the dimensions that vary."""
        return {i: d for i, d in enumerate(self.dims) if isinstance(d, Axis)}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One Triton model: name, part of SAM3 it is (`front` for the front model), inputs and outputs."""

    name: str
    part: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ragged: bool = False  # requests of different shapes share a batch (front model only)
    front_batch: int = 0

    @property
    def batch_axis(self) -> Axis | None:
        """The axis that leads every tensor, if there is one: then it is Triton's batch dimension."""
        leading = {t.dims[0] if t.dims else None for t in (*self.inputs, *self.outputs)}
        first, *rest = leading
        return first if not rest and isinstance(first, Axis) else None

    @property
    def max_batch_size(self) -> int:
        """Triton's `max_batch_size`; 0 where images and pairs are separate axes."""
        axis = self.batch_axis
        return self.front_batch or (axis.maximum if axis else 0)

    def input(self, name: str) -> TensorSpec:
        return _named(self.inputs, name, self.name)

    def output(self, name: str) -> TensorSpec:
        return _named(self.outputs, name, self.name)


def _named(tensors: tuple[TensorSpec, ...], name: str, model: str) -> TensorSpec:
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    raise KeyError(f"{model} has no tensor {name!r}; it has {', '.join(t.name for t in tensors)}")


@dataclass(frozen=True)
class Variant:
    """One deployable configuration: everything else is derived from it.

    `resolution` is in pixels a side; `queries` is how many object queries the decoder keeps (at most the checkpoint's);
    `precision` is one of `FLOAT_DTYPES`; `max_batch` is frames per vision-encoder call; `max_pairs` is (image, class)
    pairs per decoder call; `max_boxes` is exemplar boxes per class; `max_picks` is selected queries per mask-head row.
    `front_instances` front models work side by side, so that one decodes and packs while the other's frames are on the
    GPU; `queue_delay_us` is how long Triton's dynamic batcher waits for more frames.
    """

    resolution: int = 1008
    queries: int = 200
    precision: str = "fp16"
    max_batch: int = 8
    max_pairs: int = 32
    max_boxes: int = 8
    max_picks: int = 20
    front_instances: int = 2
    queue_delay_us: int = 5000
    checkpoint: Checkpoint = field(default_factory=Checkpoint)

    def __post_init__(self) -> None:
        check_resolution(self.resolution, self.checkpoint.patch_size)
        if not 1 <= self.queries <= self.checkpoint.num_queries:
            raise ValueError(
                f"queries must be 1 to {self.checkpoint.num_queries} (what {self.checkpoint.name} was trained with),"
                f" got {self.queries}"
            )
        if self.precision not in FLOAT_DTYPES:
            raise ValueError(f"precision must be one of {', '.join(FLOAT_DTYPES)}, got {self.precision!r}")
        for name in ("max_batch", "max_pairs", "max_boxes", "max_picks", "front_instances"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.queue_delay_us < 0:
            raise ValueError(f"queue_delay_us must be 0 or more, got {self.queue_delay_us}")

    # ---- sizes
    @property
    def patches(self) -> int:
        """p: patches a side; the FPN levels are 4p, 2p and p wide."""
        return self.resolution // self.checkpoint.patch_size

    @property
    def mask_size(self) -> int:
        """Pixels a side of a mask: 4p."""
        return 4 * self.patches

    @property
    def mask_row_bytes(self) -> int:
        """Bytes of one packed mask row: 4p bits, most significant bit first, padded with zeros to whole bytes."""
        return -(-self.mask_size // 8)

    @property
    def float_dtype(self) -> str:
        return FLOAT_DTYPES[self.precision]

    # ---- names
    @property
    def _suffix(self) -> str:
        return f"_{self.precision}" if self.precision in ("int8", "fp8") else ""

    @property
    def front_name(self) -> str:
        return f"sam3_r{self.resolution}{self._suffix}"

    def model_name(self, part: str) -> str:
        """`sam3_<part>[_r<resolution>][_q<queries>][_<precision>]`; the text encoder has no resolution: one serves
        all."""
        if part == "text_encoder":
            return "sam3_text_encoder"
        queries = f"_q{self.queries}" if part in ("decoder", "mask_head") else ""
        return f"sam3_{part}_r{self.resolution}{queries}{self._suffix}"

    # ---- axes
    @cached_property
    def _axes(self) -> dict[str, Axis]:
        text = self.checkpoint.context_length
        return {
            "images": Axis("images", 1, self.max_batch, self.max_batch),
            "prompts": Axis("prompts", 1, min(4, self.max_pairs), self.max_pairs),
            "pairs": Axis("pairs", 1, self.max_pairs, self.max_pairs),
            "tokens": Axis("tokens", text, text, text + self.max_boxes + 1),
            "rows": Axis("rows", 1, min(8, self.max_pairs), self.max_pairs),
            "picks": Axis("picks", 1, min(4, self.max_picks), self.max_picks),
        }

    # ---- sub-models
    @cached_property
    def vision_encoder(self) -> ModelSpec:
        """Frames -> feature pyramid. uint8 RGB in; normalisation is inside."""
        b, r, c, p, f = (
            self._axes["images"],
            self.resolution,
            self.checkpoint.hidden_size,
            self.patches,
            self.float_dtype,
        )
        return ModelSpec(
            self.model_name("vision_encoder"),
            "vision_encoder",
            inputs=(TensorSpec("pixel_values", "UINT8", (b, 3, r, r)),),
            outputs=(
                TensorSpec("fpn_0", f, (b, c, 4 * p, 4 * p), host=False),
                TensorSpec("fpn_1", f, (b, c, 2 * p, 2 * p), host=False),
                TensorSpec("fpn_2", f, (b, c, p, p), host=False),
            ),
        )

    @cached_property
    def text_encoder(self) -> ModelSpec:
        """Token ids (right-padded) -> text features. Attention is causal, so padding needs no mask here."""
        n, length = self._axes["prompts"], self.checkpoint.context_length
        return ModelSpec(
            self.model_name("text_encoder"),
            "text_encoder",
            inputs=(TensorSpec("input_ids", "INT32", (n, length)),),
            outputs=(TensorSpec("text_features", self.float_dtype, (n, length, self.checkpoint.hidden_size)),),
        )

    @cached_property
    def geometry_encoder(self) -> ModelSpec:
        """Exemplar boxes -> prompt features; token 0 is the class token, token k+1 is box k.

        `boxes` are cxcywh in 0..1; `box_labels` 1 positive, 0 negative, -10 padding. Attention mask of the result: 1
        for token 0 and each real box.
        """
        b, n, k, c, p, f = (
            self._axes["images"],
            self._axes["pairs"],
            self.max_boxes,
            self.checkpoint.hidden_size,
            self.patches,
            self.float_dtype,
        )
        return ModelSpec(
            self.model_name("geometry_encoder"),
            "geometry_encoder",
            inputs=(
                TensorSpec("fpn_2", f, (b, c, p, p), host=False),
                TensorSpec("image_index", "INT32", (n,)),
                TensorSpec("boxes", "FP32", (n, k, 4)),
                TensorSpec("box_labels", "INT32", (n, k)),
            ),
            outputs=(TensorSpec("geometry_features", f, (n, k + 1, c)),),
        )

    @cached_property
    def decoder(self) -> ModelSpec:
        """N (image, class) pairs in one call: features of B images enter once, `image_index` says whose they are.

        `pred_boxes` are xyxy in 0..1 of the frame. `memory` is the text-conditioned DETR-encoder output, kept for the
        mask head.
        """
        b, n, s, c, p, q, f = (
            self._axes["images"],
            self._axes["pairs"],
            self._axes["tokens"],
            self.checkpoint.hidden_size,
            self.patches,
            self.queries,
            self.float_dtype,
        )
        return ModelSpec(
            self.model_name("decoder"),
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

    @cached_property
    def mask_head(self) -> ModelSpec:
        """Masks of chosen queries of chosen pairs: row m is pair `pair_index[m]` of the decoder call, its picks are
        `query_index[m]`.

        `mask_logits` [M,T,4p,4p] are for whoever wants them; `mask_bits` are the logits above 0, packed along x, most
        significant bit first.
        """
        b, n, s, m, t = (self._axes[a] for a in ("images", "pairs", "tokens", "rows", "picks"))
        c, p, q, f = self.checkpoint.hidden_size, self.patches, self.queries, self.float_dtype
        return ModelSpec(
            self.model_name("mask_head"),
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
                TensorSpec("mask_bits", "UINT8", (m, t, 4 * p, self.mask_row_bytes)),
            ),
        )

    @cached_property
    def sub_models(self) -> tuple[ModelSpec, ...]:
        """The five sub-models, in the order in which a frame meets them."""
        return (self.vision_encoder, self.text_encoder, self.geometry_encoder, self.decoder, self.mask_head)

    @cached_property
    def front(self) -> ModelSpec:
        """What a client sends and gets; every tensor has a leading batch dimension of 1 on the wire (one frame a
        request).

        Triton batches requests that name the same inputs, so a client that always sends all of them (empty where
        unused) batches best.
        """
        many = Axis("n", 0, 1, 2**31 - 1)
        height, width = Axis("height", 0, 1080, 2**31 - 1), Axis("width", 0, 1920, 2**31 - 1)
        found = Axis("detections", 0, 8, 2**31 - 1)
        return ModelSpec(
            self.front_name,
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
                TensorSpec(
                    "boxes", "FP32", (found, 4)
                ),  # xyxy in 0..1 of the frame; SAM3's own may reach a little beyond it
                TensorSpec("scores", "FP32", (found,)),  # descending
                TensorSpec("class_ids", "INT32", (found,)),  # index into `classes`
                TensorSpec("presence", "FP32", (many,)),  # probability that each class is in the frame
                TensorSpec(
                    "mask_bits", "UINT8", (found, self.mask_size, self.mask_row_bytes)
                ),  # empty unless asked for
                TensorSpec(
                    "mask_rle", "BYTES", (found,)
                ),  # COCO compressed RLE of size [4p, 4p]; empty unless asked for
                TensorSpec("frame_size", "INT32", (2,)),  # height, width after EXIF orientation
                TensorSpec("stage_ms", "FP32", (len(STAGES),)),  # milliseconds, in the order of STAGES
                TensorSpec("batch", "INT32", (1,)),  # frames that shared this execution
            ),
            ragged=True,
            front_batch=self.max_batch,
        )

    # ---- plain data
    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Variant:
        """The inverse of `to_dict`; raises TypeError on unknown fields, ValueError on values that cannot be."""
        return cls(**{**data, "checkpoint": Checkpoint(**data.get("checkpoint", {}))})


def check_resolution(resolution: int, patch_size: int = 14) -> None:
    """Raises ValueError, naming the nearest that work, unless `resolution` is a positive multiple of the patch size."""
    if resolution >= patch_size and resolution % patch_size == 0:
        return
    lower = max(patch_size, resolution // patch_size * patch_size)
    nearest = sorted({lower, lower + patch_size} if resolution > 0 else {patch_size})
    raise ValueError(
        f"resolution must be a multiple of {patch_size}, got {resolution}; nearest: {', '.join(map(str, nearest))}"
    )


def is_front_name(name: str) -> bool:
    """Whether a model name is a front model's, `sam3_r<resolution>` with or without a precision."""
    head, _, precision = name.removeprefix("sam3_r").partition("_")
    return name.startswith("sam3_r") and head.isdigit() and precision in ("", *FLOAT_DTYPES)
