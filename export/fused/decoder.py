"""The decoder for one GPU without TensorRT: computes what `Decoder` does, with its largest tensors never in memory.

Attention over image tokens runs in this project's kernel (libraries' kernels are slow at a head width of 32), which
adds the box bias of the decoder layers from one number for a row and one for a column. The ReLU of the MLPs runs in
their products' epilogue.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import Sam3Model

from export.fused.layers import FusedAttention, FusedMlp, Kernels, operation
from export.sub_models.decoder import BoxBias, Decoder, DecoderLayer, EncoderLayer


class FusedDecoder(Decoder):
    """Inputs and outputs of `Decoder`."""

    def __init__(self, model: Sam3Model, kernels: Kernels) -> None:
        super().__init__(model, "fused")
        source, patches = model.detr_decoder, self.bias_x.coordinates.shape[0]
        self.encoder_layers = nn.ModuleList(
            FusedEncoderLayer(layer, kernels, side)
            for layer, side in zip(model.detr_encoder.layers, self.pooled_sides, strict=True)
        )
        self.decoder_layers = nn.ModuleList(FusedDecoderLayer(layer, kernels) for layer in source.layers)
        self.bias_x = FusedBoxBias(source.box_rpb_embed_x, patches, kernels)
        self.bias_y = FusedBoxBias(source.box_rpb_embed_y, patches, kernels)


class FusedEncoderLayer(EncoderLayer):
    """One layer of the DETR encoder."""

    def __init__(self, layer: nn.Module, kernels: Kernels, pooled_side: int = 0) -> None:
        super().__init__(layer, "fused", pooled_side)
        self.self_attention = FusedAttention(layer.self_attn, self.image_inputs, kernels)
        self.prompt_attention = FusedAttention(layer.cross_attn, ("q", "kv"), kernels)
        self.mlp = FusedMlp(layer.mlp)


class FusedDecoderLayer(DecoderLayer):
    """One layer of the DETR decoder."""

    def __init__(self, layer: nn.Module, kernels: Kernels) -> None:
        super().__init__(layer, "fused")
        self.self_attention = FusedAttention(layer.self_attn, ("qk", "v"), kernels)
        self.prompt_attention = FusedAttention(layer.text_cross_attn, ("q", "kv"), kernels)
        self.image_attention = FusedAttention(layer.vision_cross_attn, ("q", "k", "v"), kernels)
        self.mlp = FusedMlp(layer.mlp)


class FusedBoxBias(BoxBias):
    """Relative position bias along one axis, whose hidden layer is never in memory."""

    def __init__(self, mlp: nn.Module, patches: int, kernels: Kernels) -> None:
        super().__init__(mlp, patches)
        self.kernels: Kernels = kernels

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        first, second = self.mlp.layer1, self.mlp.layer2
        weights = first.weight, first.bias, second.weight, second.bias
        return operation("box_bias", self.kernels)(low, high, *weights, self.coordinates.shape[0])
