"""The engines that are set side by side: each a function that encodes frames and one that decodes pairs and draws
masks, in fp16.

All of them get the same random SAM3 of real size and the same tensors on the GPU; what they return is compared with the
same computation in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Sam3Model
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from ensemble.engines.aoti import AotiRunner
from export.fused.layers import Kernels
from export.fused.parts import make_fused_part
from export.sub_models.parts import Style, make_part

ENGINES = ("transformers", "transformers-compiled", "wrappers", "fused", "aoti")
"""transformers' model as it is, the same through `torch.compile`, the export's wrappers, their versions for one GPU,
and those compiled ahead of time."""
TIMED_PARTS = ("vision_encoder", "text_encoder", "decoder", "mask_head")


@dataclass(frozen=True)
class Work:
    """Tensors of one call: B frames, N pairs of which M are present, T picks each."""

    pixel_values: Tensor  # uint8 [B,3,R,R]
    input_ids: Tensor  # int32 [P,L]
    image_index: Tensor  # int32 [N]
    prompt_features: Tensor  # fp16 [N,S,C]
    prompt_mask: Tensor  # int32 [N,S]
    present: Tensor  # int32 [M]: the pairs that get masks
    query_index: Tensor  # int32 [M,T]


Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Candidate:
    """One engine at one resolution. `encode(work)` -> fpn_0..2, `text(work)` -> text_features, `decode(features, work)`
    -> the decoder's and the mask head's outputs; `None` where an engine has no such part of its own.
    """

    encode: Callable[[Work], Outputs]
    decode: Callable[[Outputs, Work], Outputs]
    text: Callable[[Work], Outputs] | None = None


def from_parts(parts: Mapping[str, Callable[..., Any]]) -> Candidate:
    """A candidate made of sub-models with the specification's inputs and outputs."""

    def encode(work: Work) -> Outputs:
        return dict(zip(("fpn_0", "fpn_1", "fpn_2"), parts["vision_encoder"](work.pixel_values), strict=True))

    def text(work: Work) -> Outputs:
        found = parts["text_encoder"](work.input_ids)
        return {"text_features": found if isinstance(found, Tensor) else found[0]}

    def decode(features: Outputs, work: Work) -> Outputs:
        names = ("pred_logits", "pred_boxes", "presence_logits", "query_features", "memory")
        prompt = (work.prompt_features, work.prompt_mask)
        out = dict(zip(names, parts["decoder"](features["fpn_2"], work.image_index, *prompt), strict=True))
        if len(work.present):
            images = work.image_index.index_select(0, work.present)
            arguments = (features["fpn_0"], features["fpn_1"], out["memory"], out["query_features"], *prompt)
            masks = parts["mask_head"](*arguments, images, work.present, work.query_index)
            out |= dict(zip(("mask_logits", "mask_bits"), masks, strict=True))
        return out

    return Candidate(encode, decode, text if "text_encoder" in parts else None)


def reference(model: Sam3Model, device: str) -> Candidate:
    """The wrappers in fp32, which the tests hold to transformers' model; features and prompts are taken as they come
    and raised to fp32."""
    parts = {part: make_part(part, model, Style("fused", "plain"), "fp32").to(device) for part in TIMED_PARTS}

    def raised(module: nn.Module) -> Callable[..., Any]:
        return lambda *tensors: module(*(t.float() if t.is_floating_point() else t for t in tensors))

    return from_parts({part: raised(module) for part, module in parts.items()})


def wrappers(model: Sam3Model, device: str) -> Candidate:
    return from_parts(
        {part: make_part(part, model, Style("fused", "subpixel"), "fp16").to(device) for part in TIMED_PARTS}
    )


def fused(model: Sam3Model, device: str) -> Candidate:
    """With the Triton kernels on a GPU, in plain PyTorch on the CPU (to try the command out)."""
    kernels: Kernels = "plain" if device == "cpu" else "gpu"
    return from_parts({part: make_fused_part(part, model, "fp16", kernels).to(device) for part in TIMED_PARTS})


def aoti(packages: Mapping[str, Path]) -> Candidate:
    """`packages`: part -> model.pt2."""

    def positional(runner: AotiRunner) -> Callable[..., list[Tensor]]:
        return lambda *tensors: list(runner(dict(zip(runner.inputs, tensors, strict=True))).values())

    return from_parts({part: positional(AotiRunner(path, 0)) for part, path in packages.items()})


def transformers_model(model: Sam3Model, compiled: bool, device: str) -> Candidate:
    """transformers' own forward pass, its features repeated for each pair; it has no way to leave out masks."""
    half = model.half().to(device)
    forward = half.forward
    encoder = half.get_vision_features
    if compiled:
        forward, encoder = torch.compile(forward), torch.compile(encoder)

    def encode(work: Work) -> Outputs:
        vision = encoder(work.pixel_values.half() / 127.5 - 1)
        names = [f"fpn_{i}" for i in range(3)]
        found = dict(zip(names, vision.fpn_hidden_states, strict=False))
        return found | {f"position_{i}": p for i, p in enumerate(vision.fpn_position_encoding)}

    def decode(features: Outputs, work: Work) -> Outputs:
        index = work.image_index.long()
        maps = [features[f"fpn_{i}"][index] for i in range(3)]
        positions = [features[f"position_{i}"][:1].expand(len(index), -1, -1, -1) for i in range(3)]
        vision = Sam3VisionEncoderOutput(
            last_hidden_state=maps[2],
            fpn_hidden_states=(*maps, maps[2]),
            fpn_position_encoding=(*positions, positions[2]),
        )
        prompt = BaseModelOutputWithPooling(pooler_output=work.prompt_features)
        found = forward(vision_embeds=vision, text_embeds=prompt, attention_mask=work.prompt_mask.long())
        rows = work.present.long()
        masks = found.pred_masks[rows[:, None], work.query_index.long()]
        names = ("pred_logits", "pred_boxes", "presence_logits")
        return {name: getattr(found, name) for name in names} | {"mask_logits": masks}

    return Candidate(encode, decode)
