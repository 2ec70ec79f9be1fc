"""The one source of names, shapes and dtypes.

A `Variant` (resolution, queries, precision, limits, checkpoint) has the `ModelSpec` records of everything that Triton
serves for it. ONNX names and dynamic axes, the TensorRT profile, `config.pbtxt`, the requests between models,
perf_analyzer's input and the documentation tables are all read from these records, so a name, a shape or a dtype is
spelled once. Standard library only: every room may import this one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from ensemble import interfaces, tracker_interfaces
from ensemble.checkpoint import Checkpoint as Checkpoint
from ensemble.checkpoint import Layers as Layers
from ensemble.interfaces import STAGES as STAGES
from ensemble.records import Axis, ModelSpec

RESOLUTIONS = (1008, 840, 672, 560)
"""Resolutions (pixels a side) of the committed repository; any multiple of the patch size can be exported."""

MB = 2**20
"""Bytes in a megabyte, as nvidia-smi counts it."""

MAX_CLASSES = 100
"""Class names in one request."""
MAX_PROMPT_CHARACTERS = 300
"""Characters in one class name; the text encoder reads 32 tokens, so anything longer is a mistake."""
MAX_IMAGE_PIXELS = 50_000_000
"""Pixels of one decoded frame. 8K video is 33 million; a decompression bomb is more."""
MAX_IMAGE_BYTES = 48 * 1024 * 1024
"""Bytes of one encoded frame; Triton itself refuses HTTP bodies above 64 MB."""

MASK_FORMATS = ("none", "bits", "rle")
DEFAULT_THRESHOLD = 0.5
DEFAULT_MAX_DETECTIONS = 100

FLOAT_DTYPES = {"fp32": "FP32", "fp16": "FP16", "int8": "FP32", "int8_fp16": "FP16", "fp8": "FP16"}
"""Dtype of the features between sub-models, by precision of the sub-models' arithmetic. INT8 is beside fp32 on
processors and beside fp16 on GPUs; `EngineSpec.exact` says which an engine makes."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What runs the sub-models: its artifact's file name, Triton's backend for it, and whether it needs a GPU.

    `precision` is what is exported where nobody asks for another, `precisions` are all that it makes; `preprocess` says
    where the front model decodes and resizes (a mode of `ensemble/preprocess/gpu.py`): only an engine on a GPU reads
    the pixels there.
    """

    name: str
    artifact: str
    backend: str
    on_gpu: bool
    precision: str
    preprocess: str
    precisions: tuple[str, ...] = ("fp32", "fp16")

    @property
    def shares_gpu(self) -> bool:
        """Whether its sub-models run on a GPU in the engine model's process."""
        return self.on_gpu and self.backend == "python"

    def exact(self, precision: str) -> str:
        """What a variant calls a precision of `precisions`."""
        return "int8_fp16" if precision == "int8" and self.on_gpu else precision


ENGINES = {
    engine.name: engine
    for engine in (
        EngineSpec("tensorrt", "model.plan", "tensorrt", True, "fp16", "auto", ("fp32", "fp16", "int8")),
        EngineSpec("tensorrt_rtx", "model.rtx", "python", True, "fp16", "auto", ("fp32", "fp16", "int8", "fp8")),
        EngineSpec("onnxruntime", "model.onnx", "python", False, "fp32", "cpu", ("fp32", "fp16", "int8")),
        EngineSpec("aoti", "model.pt2", "python", True, "fp16", "auto", ("fp32", "fp16", "fp8")),
    )
}


def find_engine(name: str) -> EngineSpec:
    """The engine of that name. Raises ValueError where there is none."""
    if name not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    return ENGINES[name]


@dataclass(frozen=True, slots=True)
class Tracker:
    """The sizes of a checkpoint's tracker, and the limit of its calls. Defaults are those of `facebook/sam3`."""

    trunk_size: int = 1024  # width of the image transformer, which the tracker's own neck reads
    hidden_size: int = 256  # width of its features and pointers
    max_objects: int = 8  # objects in one call


@dataclass(frozen=True)
class Variant:
    """One deployable configuration: everything else is derived from it.

    `resolution` is in pixels a side; `queries` is how many object queries the decoder keeps (at most the checkpoint's);
    `precision` is one of `FLOAT_DTYPES`; `max_batch` is frames per vision-encoder call; `max_pairs` is (image, class)
    pairs per decoder call; `max_boxes` is exemplar boxes per class; `max_picks` is selected queries per mask-head row.
    `front_instances` front models work side by side, so that one decodes and packs while the other's frames are on the
    GPU; `queue_delay_us` is how long Triton's dynamic batcher waits for more frames. With a `tracker` there are
    `tracker_parts` for videos, and the vision encoder has one output more.
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
    tracker: Tracker | None = None

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
        if self.tracker and self.tracker.max_objects < 1:
            raise ValueError(f"max_objects must be at least 1, got {self.tracker.max_objects}")

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
        eight = self.precision.partition("_")[0]
        return f"_{eight}" if eight in ("int8", "fp8") else ""

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
    def axes(self) -> dict[str, Axis]:
        text = self.checkpoint.context_length
        return {
            "images": Axis("images", 1, self.max_batch, self.max_batch),
            "prompts": Axis("prompts", 1, min(4, self.max_pairs), self.max_pairs),
            "pairs": Axis("pairs", 1, self.max_pairs, self.max_pairs),
            "tokens": Axis("tokens", text, text, text + self.max_boxes + 1),
            "rows": Axis("rows", 1, min(8, self.max_pairs), self.max_pairs),
            "picks": Axis("picks", 1, min(4, self.max_picks), self.max_picks),
        }

    # ---- models
    @cached_property
    def vision_encoder(self) -> ModelSpec:
        return interfaces.vision_encoder(self)

    @cached_property
    def text_encoder(self) -> ModelSpec:
        return interfaces.text_encoder(self)

    @cached_property
    def text_encoder_cpu(self) -> ModelSpec:
        return interfaces.text_encoder_cpu(self)

    @cached_property
    def geometry_encoder(self) -> ModelSpec:
        return interfaces.geometry_encoder(self)

    @cached_property
    def decoder(self) -> ModelSpec:
        return interfaces.decoder(self)

    @cached_property
    def mask_head(self) -> ModelSpec:
        return interfaces.mask_head(self)

    @cached_property
    def sub_models(self) -> tuple[ModelSpec, ...]:
        """The five sub-models, in the order in which a frame meets them."""
        return (self.vision_encoder, self.text_encoder, self.geometry_encoder, self.decoder, self.mask_head)

    @cached_property
    def tracker_neck(self) -> ModelSpec:
        return tracker_interfaces.tracker_neck(self)

    @cached_property
    def tracker_step(self) -> ModelSpec:
        return tracker_interfaces.tracker_step(self)

    @cached_property
    def memory_encoder(self) -> ModelSpec:
        return tracker_interfaces.memory_encoder(self)

    @cached_property
    def tracker_seed(self) -> ModelSpec:
        return tracker_interfaces.tracker_seed(self)

    @cached_property
    def tracker_parts(self) -> tuple[ModelSpec, ...]:
        """The tracker's four sub-models, in the order in which a frame meets them; none without a tracker."""
        if self.tracker is None:
            return ()
        return (self.tracker_neck, self.tracker_step, self.memory_encoder, self.tracker_seed)

    @cached_property
    def front(self) -> ModelSpec:
        """What a client sends and gets."""
        return interfaces.front(self)

    # ---- plain data
    def to_dict(self) -> dict[str, Any]:
        """All fields but a tracker that is not there and layers that are SAM3's, so that nothing that was exported
        before these were told counts as changed."""
        data = {name: value for name, value in asdict(self).items() if name != "tracker" or value}
        if self.checkpoint.layers == Layers():
            del data["checkpoint"]["layers"]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Variant:
        """The inverse of `to_dict`; raises TypeError on unknown fields, ValueError on values that cannot be."""
        tracker = data.get("tracker")
        checkpoint = Checkpoint.from_dict(data.get("checkpoint", {}))
        parts = {"checkpoint": checkpoint, "tracker": tracker and Tracker(**tracker)}
        return cls(**{**data, **parts})


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
    resolution, _, precision = name.removeprefix("sam3_r").partition("_")
    try:
        return Variant(int(resolution), precision=precision or "fp16").front_name == name
    except ValueError:  # no resolution or no precision of a model
        return False
