"""A small random SAM3 (64 wide, with its own tokenizer), saved and loaded as a checkpoint folder, and its exports, each
made once a session."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer, Sam3Config, Sam3LiteTextConfig, Sam3Model

from ensemble.spec import ENGINES, Variant
from export import checkpoint
from export.engines.onnxruntime import onnx_session
from export.gate.frames import drawn_frames
from export.gate.reference import Sample, expected_outputs, make_sample
from export.gate.verify import Run
from export.repository import Written
from export.sub_models.parts import PARTS
from export.tiny.tokenizer import build_tokenizer
from export.variant import Job, export_variant

# Most tensors here are small, on which threads only wait for each other; and other tests run beside these.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

WORDS = (
    "red circle",
    "blue square",
    "green star",
    "a purple triangle",
    "ring",
    "yellow cross",
    "white",
    "the thing on the left",
)


def small_config(tokenizer: CLIPTokenizer) -> Sam3Config:
    """Every part of SAM3 at 64 wide: window 4 of a 4 x 4 pretraining grid, so 112 fills its windows and 126 and 140 are
    padded."""
    width = dict(hidden_size=64, num_attention_heads=4)
    detr = dict(**width, intermediate_size=128, dropout=0.0)
    vit = dict(
        num_hidden_layers=4,
        image_size=112,
        patch_size=14,
        window_size=4,
        global_attn_indexes=[1, 3],
        pretrain_image_size=56,
    )
    ends = dict(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    text = dict(
        intermediate_size=128, projection_dim=64, num_hidden_layers=2, max_position_embeddings=32, hidden_act="gelu"
    )
    return Sam3Config(
        vision_config=dict(
            fpn_hidden_size=64, backbone_config=dict(model_type="sam3_vit_model", **width, **vit, intermediate_size=160)
        ),
        text_config=dict(model_type="clip_text_model", **width, **text, **ends, vocab_size=len(tokenizer)),
        geometry_encoder_config=dict(**detr, num_layers=1),
        detr_encoder_config=dict(**detr, num_layers=2),
        detr_decoder_config=dict(**detr, num_layers=2, num_queries=20),
        mask_decoder_config=dict(**width),
    )


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random checkpoint as save_pretrained writes it."""
    path = tmp_path_factory.mktemp("checkpoints") / "small"
    tokenizer = build_tokenizer()
    checkpoint.random_source(small_config(tokenizer)).model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def source(folder: Path) -> checkpoint.Source:
    return checkpoint.load(str(folder))


@pytest.fixture(scope="session")
def state(source: checkpoint.Source) -> dict[str, torch.Tensor]:
    """The weights of the small random checkpoint."""
    return dict(source.model.state_dict())


@pytest.fixture(scope="session")
def lite_folder(folder: Path, source: checkpoint.Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random SAM3-LiteText: everything but the text encoder has the sizes of the small checkpoint. Its table of
    positions is longer than the tokenizer's 32 tokens."""
    path = tmp_path_factory.mktemp("checkpoints") / "lite"
    shutil.copytree(folder, path, ignore=shutil.ignore_patterns("*.safetensors"))
    same = source.model.config.to_dict()
    text = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, projection_dim=64)
    text |= dict(max_position_embeddings=40, vocab_size=source.record.vocabulary_size, repmixer_kernel_size=5)
    parts = {name: part for name, part in same.items() if name.endswith("_config") and name != "text_config"}
    for name, part in parts.items():
        if "model_type" in part and name != "vision_config":
            parts[name] = part | {"model_type": part["model_type"].replace("sam3", "sam3_lite_text")}
    model = checkpoint.random_source(Sam3LiteTextConfig(text_config=text, **parts), seed=1).model
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):  # batch statistics that are not those of a new layer
            buffer.uniform_(0.5, 2.0)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.5)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def sized(source: checkpoint.Source) -> Callable[[int], Sam3Model]:
    """Resolution -> the random model at it, with all queries."""
    return cache(lambda resolution: checkpoint.at_size(source.model, resolution, 20))


@dataclass(frozen=True)
class Export:
    """One variant's artifacts, open."""

    root: Path
    variant: Variant
    model: Sam3Model
    runs: dict[str, Run]
    written: Sequence[Written]


def export(source: checkpoint.Source, root: Path, resolution: int, precision: str = "fp32") -> Export:
    queries = source.record.num_queries
    variant = Variant(resolution, queries, precision, max_pairs=16, checkpoint=source.record)
    written = export_variant(Job(source, variant, "onnxruntime", root, drawn_frames(2, resolution)))
    return opened(source, root, variant, written)


def opened(source: checkpoint.Source, root: Path, variant: Variant, written: Sequence[Written] = ()) -> Export:
    artifact = ENGINES["onnxruntime"].artifact
    runs = {part: onnx_session(root / getattr(variant, part).name / "1" / artifact) for part in PARTS}
    return Export(root, variant, checkpoint.at_size(source.model, variant.resolution, variant.queries), runs, written)


@pytest.fixture(scope="session")
def exported(source: checkpoint.Source, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Export]:
    """Resolution -> the random model's export; resolutions share one repository."""
    root = tmp_path_factory.mktemp("export") / "repository"
    return cache(lambda resolution: export(source, root, resolution))


@pytest.fixture(scope="session")
def sample(source: checkpoint.Source) -> Callable[..., Sample]:
    """(resolution, images, pairs, with_boxes) -> noise frames, prompts and pairs; with boxes, pairs have one, two or
    none."""

    def make(resolution: int, images: int, pairs: int, with_boxes: bool, slots: int = 8) -> Sample:
        rng = np.random.default_rng(images * 100 + pairs)
        coarse = rng.integers(0, 256, (images, 3, 7, 7), np.uint8)
        pixels = coarse.repeat(resolution // 7, 2).repeat(resolution // 7, 3)
        pixels = (pixels // 2 + rng.integers(0, 128, pixels.shape)).astype(np.uint8)
        chosen = [(int(rng.integers(images)), int(rng.integers(len(WORDS)))) for _ in range(pairs)]
        boxes = {
            n: [(*rng.uniform(0.3, 0.7, 2), *rng.uniform(0.1, 0.9, 2), label) for label in (1, 0)[: 1 + n % 3]]
            for n in range(pairs)
            if n % 3 != 2
        }
        return make_sample(
            pixels, source.tokenizer, WORDS, chosen, boxes if with_boxes else None, slots if with_boxes else 0
        )

    return make


@pytest.fixture(scope="session")
def truth(sized: Callable[[int], Sam3Model], sample: Callable[..., Sample]) -> Callable[..., dict[str, np.ndarray]]:
    """(resolution, images, pairs, with_boxes) -> what Sam3Model says about that sample."""
    return cache(lambda *case: expected_outputs(sized(case[0]), sample(*case)))


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """max|found - wanted| / max|wanted|"""
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.fixture(scope="session")
def error() -> Callable[[torch.Tensor, torch.Tensor], float]:
    return relative


@pytest.fixture(scope="session")
def export_fresh(source: checkpoint.Source) -> Callable[..., Export]:
    """(root, resolution, precision, source) -> an export of its own, of the random checkpoint unless another is
    given."""
    return lambda root, resolution, precision="fp32", other=None: export(other or source, root, resolution, precision)


@pytest.fixture(scope="session")
def open_export() -> Callable[..., Export]:
    """(source, root, variant) -> an export for ONNX Runtime that is in that repository."""
    return opened


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    with torch.no_grad():
        yield
