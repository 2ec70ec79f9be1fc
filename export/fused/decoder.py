"""The decoder written for one GPU without TensorRT: the same pairs in and out as `decoder`, with the largest tensors
never in memory.

Attention over image tokens runs in this project's kernel (head width 32, where the libraries' kernels are slow), the
box bias of the decoder layers is added inside it from a row's and a column's number, and the MLPs' ReLU runs in their
products' epilogue.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam3Model
from transformers.models.sam3.modeling_sam3 import box_cxcywh_to_xyxy, inverse_sigmoid

from export.fused.layers import FusedAttention, Kernels, relu_linear
from export.sub_models.decoder import BoxBias, Decoder, DecoderLayer, EncoderLayer
from export.sub_models.precision import layer_norm


class FusedDecoder(Decoder):
    """Inputs and outputs of `Decoder`."""

    def __init__(self, model: Sam3Model, kernels: Kernels) -> None:
        super().__init__(model, "fused")
        self.kernels: Kernels = kernels
        self.encoder_layers = nn.ModuleList(FusedEncoderLayer(layer, kernels) for layer in model.detr_encoder.layers)
        self.decoder_layers = nn.ModuleList(FusedDecoderLayer(layer, kernels) for layer in model.detr_decoder.layers)

    def decode(self, memory: Tensor, prompt: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        keys = memory + self.positions
        hidden, boxes = self.queries, self.references  # [1,...] until the first layer reads the prompt
        for layer in self.decoder_layers:
            # zero for the presence token
            position = F.pad(self.reference_head(self.box_code(boxes).to(memory.dtype)), (0, 0, 1, 0))
            left, top, right, bottom = box_cxcywh_to_xyxy(boxes).unbind(-1)
            rows, columns = self.edge_bias(self.bias_y, top, bottom), self.edge_bias(self.bias_x, left, right)
            hidden = layer(hidden, position, prompt, token_mask, memory, keys, rows, columns)
            step = self.box_head(layer_norm(self.norm, hidden[:, 1:].float()))  # [N,Q,4]
            boxes = (step + inverse_sigmoid(boxes)).sigmoid()
        return hidden, boxes

    def edge_bias(self, bias: BoxBias, low: Tensor, high: Tensor) -> Tensor:
        """Bias along one axis [N,heads,Q,p] of edges [N,Q]."""
        if self.kernels == "plain":
            return bias(low, high)
        from export.fused.kernels.box_bias import box_bias

        first, second = bias.mlp.layer1, bias.mlp.layer2
        return box_bias(low, high, first.weight, first.bias, second.weight, second.bias, bias.coordinates.shape[0])


class FusedEncoderLayer(EncoderLayer):
    """One layer of the DETR encoder."""

    def __init__(self, layer: nn.Module, kernels: Kernels) -> None:
        super().__init__(layer, "fused")
        self.self_attention = FusedAttention(layer.self_attn, ("qk", "v"), kernels)
        self.prompt_attention = FusedAttention(layer.cross_attn, ("q", "kv"), kernels)

    def read_prompt(self, x: Tensor, prompt: Tensor, token_mask: Tensor) -> Tensor:
        x = x + self.prompt_attention(layer_norm(self.norm2, x), prompt, bias=token_mask)
        return x + self.mlp.fc2(relu_linear(self.mlp.fc1, layer_norm(self.norm3, x)))


class FusedDecoderLayer(DecoderLayer):
    """One layer of the DETR decoder over [N,1+Q,C] (or [1,1+Q,C] in the first layer); `rows` and `columns`
    [N,heads,Q,p] make the box bias."""

    def __init__(self, layer: nn.Module, kernels: Kernels) -> None:
        super().__init__(layer, "fused")
        self.self_attention = FusedAttention(layer.self_attn, ("qk", "v"), kernels)
        self.prompt_attention = FusedAttention(layer.text_cross_attn, ("q", "kv"), kernels)
        self.image_attention = FusedAttention(layer.vision_cross_attn, ("q", "k", "v"), kernels)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        position: Tensor,
        prompt: Tensor,
        token_mask: Tensor,
        memory: Tensor,
        keys: Tensor,
        rows: Tensor,
        columns: Tensor,
    ) -> Tensor:
        pairs = prompt.shape[0]
        x = layer_norm(self.norm1, x + self.self_attention(x + position, x))
        x = x.expand(pairs, -1, -1)
        x = layer_norm(self.norm2, x + self.prompt_attention(x + position, prompt, bias=token_mask))
        q, k, v = self.image_attention.project(x + position, keys, memory)
        rows, columns = (t.expand(pairs, -1, -1, -1).contiguous() for t in (rows, columns))
        x = layer_norm(self.norm3, x + self.image_attention.attend_boxes(q, k, v, rows, columns))
        return layer_norm(self.norm4, x + self.mlp.fc2(relu_linear(self.mlp.fc1, x)))
