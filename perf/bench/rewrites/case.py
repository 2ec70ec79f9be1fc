"""What both forms of a rewrite are made from: a checkpoint's layers, ready to run, and random tensors for them.

Two cases of the same sizes draw the same tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Sam3Model

from export.fused.layers import Kernels
from export.sub_models.precision import in_precision

Form = Callable[[], list[Tensor]]
Forms = tuple[Form, Form]


@dataclass(frozen=True)
class Rewrite:
    """`forms(case)` makes the form as written and the rewritten one, which return the same tensors; `compared` is what
    each of the two does."""

    name: str
    compared: str
    forms: Callable[[Case], Forms]


@dataclass(frozen=True)
class Case:
    """Sizes, and where and in which precision to compute. `model` is in fp32, on the CPU and at the resolution; pairs
    follow their frames' order."""

    model: Sam3Model
    device: str
    precision: str
    frames: int
    classes: int

    def __post_init__(self) -> None:
        torch.manual_seed(0)

    @property
    def kernels(self) -> Kernels:
        return "gpu" if self.device == "cuda" and self.precision == "fp16" else "plain"

    @property
    def patches(self) -> int:
        return self.model.config.vision_config.image_size // self.model.config.vision_config.backbone_config.patch_size

    @property
    def width(self) -> int:
        return self.model.config.vision_config.fpn_hidden_size

    @property
    def queries(self) -> int:
        return self.model.config.detr_decoder_config.num_queries

    @property
    def every(self) -> Tensor:
        """int32 [N]: all pairs."""
        return torch.arange(self.frames * self.classes, device=self.device, dtype=torch.int32)

    @property
    def image_index(self) -> Tensor:
        return self.every // self.classes

    def ready(self, module: nn.Module) -> nn.Module:
        """A copy of `module`, as the sub-models have it."""
        return in_precision(copy.deepcopy(module), self.precision).to(self.device)

    def cast(self, x: Tensor) -> Tensor:
        return x.detach().to(self.device, torch.float16 if self.precision == "fp16" else torch.float32).contiguous()

    def random(self, *shape: int) -> Tensor:
        return self.cast(torch.randn(shape, device=self.device))

    def per_pair(self, *shape: int) -> Tensor:
        return self.random(len(self.every), *shape)

    def maps(self, count: int, scale: int) -> Tensor:
        """[count,C,scale*p,scale*p], channels last in memory, as the sub-models have them on a GPU."""
        side = scale * self.patches
        return self.random(count, side, side, self.width).permute(0, 3, 1, 2)

    def stages(self) -> list[tuple[nn.Conv2d, nn.GroupNorm, Tensor, Tensor]]:
        """The mask head's two: convolution, normalisation, coarse maps [N,C,h,h], skip maps [B,C,2h,2h]."""
        pixels = self.model.mask_decoder.pixel_decoder
        return [
            (
                pixels.conv_layers[i],
                pixels.norms[i],
                self.maps(len(self.every), i + 1),
                self.maps(self.frames, 2 * i + 2),
            )
            for i in range(2)
        ]
