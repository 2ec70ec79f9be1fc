"""The text encoders of SAM3 and SAM3-LiteText: one feature for each token of a prompt, the same for every resolution.

Features of padding tokens mean nothing and are masked where they are read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Sam3LiteTextModel, Sam3Model

from export.sub_models.attention import MASKED, Attention, Form, token_bias
from export.sub_models.precision import layer_norm


def make_text_encoder(model: Sam3Model | Sam3LiteTextModel, form: Form = "explicit") -> nn.Module:
    """`input_ids` int32 [N,L] -> `text_features` [N,L,C]"""
    return LiteTextEncoder(model, form) if isinstance(model, Sam3LiteTextModel) else TextEncoder(model, form)


class TextEncoder(nn.Module):
    """CLIP's: attention is causal and prompts are padded on the right, so real tokens never attend to padding and need
    no attention mask."""

    fp32_islands = ("causal_bias",)

    def __init__(self, model: Sam3Model, form: Form = "explicit") -> None:
        super().__init__()
        text = model.text_encoder.text_model
        length = text.embeddings.position_embedding.num_embeddings
        self.tokens = text.embeddings.token_embedding
        self.positions = text.embeddings.position_embedding.weight
        self.layers = nn.ModuleList(TextLayer(layer, form) for layer in text.encoder.layers)
        self.norm, self.projection = text.final_layer_norm, model.text_projection
        self.register_buffer("causal_bias", torch.full((length, length), MASKED).triu(1), persistent=False)  # [L,L]

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tokens(input_ids) + self.positions  # [N,L,W]
        for layer in self.layers:
            x = layer(x, self.causal_bias)
        return self.projection(layer_norm(self.norm, x))


class TextLayer(nn.Module):
    """One CLIP layer over [N,L,W]."""

    def __init__(self, layer: nn.Module, form: Form) -> None:
        super().__init__()
        self.attention = Attention(layer.self_attn, ("qkv",), form)
        self.norm1, self.norm2, self.mlp = layer.layer_norm1, layer.layer_norm2, layer.mlp

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attention(layer_norm(self.norm1, x), bias=bias)
        return x + self.mlp(layer_norm(self.norm2, x))


class LiteTextEncoder(nn.Module):
    """MobileCLIP's: every token attends to every real one, and the first and the last layer are convolutions along the
    prompt.

    A token is real up to the first that ends a prompt, which is counted by a product with ones above the diagonal: not
    every engine knows cumulative sums.
    """

    fp32_islands = ("earlier",)

    def __init__(self, model: Sam3LiteTextModel, form: Form = "explicit") -> None:
        super().__init__()
        text, config = model.text_encoder, model.config.text_config
        length = config.max_position_embeddings
        self.end: int = config.eos_token_id
        self.tokens = text.embeddings.token_embedding
        table = text.embeddings.position_embedding.position_embedding.detach()
        self.positions = nn.Parameter(table[0, 0], requires_grad=False)  # [L,W]
        self.layers = nn.ModuleList(
            TextLayer(layer, form) if hasattr(layer, "self_attn") else MixerLayer(layer) for layer in text.layers
        )
        self.norm, self.projection = text.final_layer_norm, model.text_projection
        self.register_buffer("earlier", torch.ones(length, length).triu(1), persistent=False)  # [L,L]

    def forward(self, input_ids: Tensor) -> Tensor:
        ends_before = (input_ids == self.end).float() @ self.earlier  # [N,L]
        bias = token_bias(ends_before < 0.5)
        x = self.tokens(input_ids) + self.positions  # [N,L,W]
        for layer in self.layers:
            x = layer(x, bias)
        return self.projection(layer_norm(self.norm, x))


class MixerLayer(nn.Module):
    """A Sam3LiteTextRepMixerBlock over [N,L,W] with its batch norms, its skip and its scales folded into two
    convolutions along the prompt and the last linear layer: all of them are linear and constant."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        mixer, feed = block.token_mixer, block.conv_feed_forward
        width = mixer.mixer.conv.weight.shape[0]
        one = torch.zeros_like(mixer.mixer.conv.weight)  # the kernel [W,1,1,K] that changes nothing
        one[..., one.shape[-1] // 2] = 1
        parts = [
            (1, mixer.mixer.conv.weight, mixer.mixer.batchnorm_conv),
            (1, one, mixer.mixer.batchnorm_skip),
            (-1, one, mixer.reference_batchnorm),
        ]
        folded = [(sign, *_normed(kernel, norm)) for sign, kernel, norm in parts]
        scale = mixer.layer_scale.detach().reshape(-1)
        kernel = sum(sign * kernel for sign, kernel, _ in folded) * scale.reshape(-1, 1, 1, 1)
        self.mix = _along_prompts(kernel, sum(sign * shift for sign, _, shift in folded) * scale)
        self.gather = _along_prompts(*_normed(feed.depthwise_conv.weight, feed.depthwise_batchnorm))
        self.fc1 = _linear(feed.mlp.fc1.weight.reshape(-1, width), feed.mlp.fc1.bias)
        self.activation = feed.mlp.activation_fn
        last = block.layer_scale.detach().reshape(-1)
        self.fc2 = _linear(feed.mlp.fc2.weight.reshape(width, -1) * last[:, None], feed.mlp.fc2.bias * last)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.mix(x.transpose(1, 2)).transpose(1, 2)
        gathered = self.gather(x.transpose(1, 2)).transpose(1, 2)
        return x + self.fc2(self.activation(self.fc1(gathered)))


def _normed(kernel: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A kernel [W,1,1,K] with the batch norm behind it folded in, and the shift [W] that it leaves."""
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (kernel * gain.reshape(-1, 1, 1, 1)).detach(), (norm.bias - norm.running_mean * gain).detach()


def _along_prompts(kernel: Tensor, shift: Tensor) -> nn.Conv1d:
    """A convolution of each channel by itself: [N,W,L] -> [N,W,L]"""
    width, size = kernel.shape[0], kernel.shape[-1]
    conv = nn.Conv1d(width, width, size, padding=size // 2, groups=width, device="meta")
    conv.weight, conv.bias = (
        nn.Parameter(kernel[:, :, 0], requires_grad=False),
        nn.Parameter(shift, requires_grad=False),
    )
    return conv


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = (nn.Parameter(t.detach(), requires_grad=False) for t in (weight, bias))
    return linear
