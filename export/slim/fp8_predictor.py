"""Detections with FP8 as the engine computes it, rounding by rounding, in PyTorch on any machine: what E4M3 costs in
average precision."""

from __future__ import annotations

from functools import cached_property

import torch
from transformers import PreTrainedTokenizerBase, Sam3Model
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from export.fused.vision_encoder import FusedVisionEncoder
from export.slim.calibration import drawn_pixels
from export.slim.fp8 import calibrate, in_fp8
from export.tiny.predictor import TorchPredictor


class Fp8Predictor(TorchPredictor):
    """`TorchPredictor` whose vision encoder is calibrated on drawn frames (`calibration`) and has its linear layers in
    E4M3; everything else is in fp32."""

    def __init__(self, model: Sam3Model, tokenizer: PreTrainedTokenizerBase, resolution: int) -> None:
        super().__init__(model, tokenizer, resolution)
        self.calibration = calibrate(model, "", drawn_pixels(resolution), model.device.type)
        self.encoder = in_fp8(FusedVisionEncoder(model, "plain").eval(), self.calibration)

    def see(self, pixels: torch.Tensor) -> Sam3VisionEncoderOutput:
        levels = self.encoder(pixels.permute(0, 3, 1, 2))
        levels = (*levels, levels[-1])  # Sam3Model has a fourth, which it never reads
        return Sam3VisionEncoderOutput(fpn_hidden_states=levels, fpn_position_encoding=self.positions)

    @cached_property
    def positions(self) -> tuple[torch.Tensor, ...]:
        """Position encodings of the levels, which depend on the resolution alone."""
        blank = torch.zeros(1, self.resolution, self.resolution, 3, device=self.model.device, dtype=torch.uint8)
        return super().see(blank).fpn_position_encoding
