"""The image transformer for one GPU without TensorRT: it computes what `VisionEncoder` does in fewer passes over
memory.

Tokens stay in window order from the patch embedding to the pyramid (`export/sub_models/token_order.py`), so that
windows need no partition: a window is a run of tokens, and the order makes no difference to global attention as long as
its rotary table is permuted too. Where windows do not fill the map, a kernel of its own computes what padding would
add. Transposed convolutions with stride 2 are matrix products whose pixels are put in place once, at the end; GELU runs
in its product's epilogue.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam3Model

from export.fused.layers import Kernels, gelu_linear, linear_of, operation
from export.fused.plain import turn
from export.sub_models.attention import joined_projection, split_heads
from export.sub_models.positions import rope_tables, tiled_positions
from export.sub_models.precision import layer_norm
from export.sub_models.token_order import TokenOrder
from export.sub_models.vision_encoder import PIXEL_SHIFT, fold_normalisation, pyramid_level, rotary_rows


class FusedVisionEncoder(nn.Module):
    """`pixel_values` uint8 [B,3,R,R] -> `fpn_0` [B,C,4p,4p], `fpn_1` [B,C,2p,2p], `fpn_2` [B,C,p,p], p = R/14; for a
    tracker `hidden` too, the tokens that they are made of, row by row: [B,p*p,width]; each contiguous."""

    def __init__(self, model: Sam3Model, kernels: Kernels, hidden: bool = False) -> None:
        super().__init__()
        self.hidden = hidden
        vit = model.vision_encoder.backbone
        config = vit.config
        self.patch: int = config.patch_size
        patches: int = config.image_size // config.patch_size
        self.order = TokenOrder(patches, config.window_size)
        folded, offset = fold_normalisation(vit.embeddings.patch_embeddings.projection)
        weight = folded.weight.flatten(1)  # [C,3*14*14]
        self.padding: int = -weight.shape[1] % 8  # fp16 products want rows of 16 bytes
        self.patch_weight = nn.Parameter(F.pad(weight, (0, self.padding)), requires_grad=False)
        positions = (tiled_positions(vit.embeddings.position_embeddings, patches) + offset).flatten(1, 2)
        self.register_buffer("positions", positions[:, self.order.raster()].contiguous())  # [1,p*p,C]
        self.norm = vit.layer_norm
        for name, grid in (("window", config.window_size), ("global", patches)):
            cos, sin = half_tables(*rope_tables(vit.layers[0].rotary_emb, grid, config.window_size))
            if name == "global":
                cos, sin = cos[self.order.raster()], sin[self.order.raster()]
            elif not self.order.filled:
                cos, sin = places_tables(cos, sin, self.order)
            # [grid*grid,d/2], or as `places_tables` makes them
            self.register_buffer(f"{name}_cos", cos.contiguous(), persistent=False)
            self.register_buffer(f"{name}_sin", sin.contiguous(), persistent=False)
        self.blocks = nn.ModuleList(FusedBlock(layer, self.order, kernels) for layer in vit.layers)
        levels = model.vision_encoder.neck.fpn_layers[:3]
        self.levels = nn.ModuleList(FusedLevel(level, self.order, kernels) for level in levels)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        x = self.embed(pixel_values)
        for block in self.blocks:
            x = block(x, *self.tables(block))
        levels = tuple(level(x) for level in self.levels)
        return (*levels, self.order.to_map(x, 0).flatten(2).transpose(1, 2).contiguous()) if self.hidden else levels

    def embed(self, pixel_values: Tensor) -> Tensor:
        """What the first block is given: [B,p*p,C]."""
        pixels = self.order.patches_of(pixel_values, self.patch)  # [B,p*p,3*14*14]
        pixels = F.pad(pixels.to(self.patch_weight.dtype) * (1 / PIXEL_SHIFT), (0, self.padding))
        return layer_norm(self.norm, F.linear(pixels, self.patch_weight) + self.positions)

    def tables(self, block: nn.Module) -> tuple[Tensor, Tensor]:
        """Cosines and sines of a block's rotary positions."""
        if block.window:
            return self.window_cos, self.window_sin
        return self.global_cos, self.global_sin


class FusedBlock(nn.Module):
    """One layer of the image transformer over [B,p*p,C]; `window` tokens a side, 0 for global attention."""

    def __init__(self, layer: nn.Module, order: TokenOrder, kernels: Kernels) -> None:
        super().__init__()
        source = layer.attention
        self.window: int = layer.window_size
        self.kernels: Kernels = kernels
        self.ragged = bool(self.window) and not order.filled  # some windows have fewer tokens
        self.tokens = order.window**2 if self.window and order.filled else order.patches**2  # of a run
        if self.ragged:
            runs = order.padding()[1]
            self.longest = max(count for _, count, _, _ in runs)
            self.register_buffer("windows", torch.tensor(runs, dtype=torch.int32), persistent=False)  # [windows,4]
        self.heads, self.head_dim = source.num_attention_heads, source.head_dim
        joined = joined_projection(source, "qkv")
        rows = rotary_rows(self.heads, self.head_dim)
        self.qkv = linear_of(joined.weight[rows], joined.bias[rows])
        self.output, self.norm1, self.norm2 = source.o_proj, layer.layer_norm1, layer.layer_norm2
        self.fc1, self.fc2 = layer.mlp.fc1, layer.mlp.fc2

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.output(self.attention(layer_norm(self.norm1, x), cos, sin))
        return x + self.fc2(gelu_linear(self.fc1, layer_norm(self.norm2, x)))

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attention up to its output projection: [B,p*p,C] -> [B,p*p,C]"""
        tokens, width = x.shape[1:]
        qkv = self.qkv(x).reshape(-1, self.tokens, 3 * width)
        q, k, v = (split_heads(t, self.heads) for t in qkv.chunk(3, -1))  # [*,heads,tokens,d]
        if self.ragged:
            _, key, value = self.qkv.bias.reshape(3, self.heads, self.head_dim)
            k = turn(k, cos[:tokens], sin[:tokens])
            attend = operation("window_attention", self.kernels)
            out = attend(q, k, v, key, value, cos, sin, self.windows, self.longest)
        else:
            out = operation("attention", self.kernels)(q, turn(k, cos, sin), v, None, cos, sin)  # [*,tokens,C]
        return out.reshape(-1, tokens, width)


class FusedLevel(nn.Module):
    """One level of the pyramid: tokens [B,p*p,M] -> [B,C,s,s], s = p, 2p or 4p; every transposed convolution and the
    1x1 one as products over tokens."""

    def __init__(self, level: nn.Module, order: TokenOrder, kernels: Kernels) -> None:
        super().__init__()
        self.order = order
        self.kernels: Kernels = kernels
        folded = pyramid_level(level)
        if folded is level:  # the coarse level: no transposed convolution to fold into
            before: list[nn.Module] = []
            self.products = nn.ModuleList([linear_of(level.proj1.weight[:, :, 0, 0], level.proj1.bias)])
            last = level.proj2
        else:
            *before, last = list(folded)
            doubling = [m for m in before if isinstance(m, nn.ConvTranspose2d)]
            self.products = nn.ModuleList(token_product(convolution) for convolution in doubling)
        self.doublings = sum(isinstance(m, nn.ConvTranspose2d) for m in before)
        weight = last.weight.detach().contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = last.bias

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        *hidden, last = self.products
        for product in hidden:  # GELU stands between two transposed convolutions
            x = gelu_linear(product, x).reshape(-1, product.out_features // 4)
        x = last(x).reshape(-1, tokens, last.out_features * 4 ** len(hidden))
        x = self.order.to_map(x, self.doublings)
        return operation("planes", self.kernels)(F.conv2d(x, self.weight, self.bias, padding=1))


def token_product(convolution: nn.ConvTranspose2d) -> nn.Linear:
    """A 2x2 transposed convolution of stride 2 as a product over tokens: each becomes its four pixels, line by line."""
    weight = convolution.weight.detach().permute(2, 3, 1, 0)  # [2,2,O,I]
    return linear_of(weight.reshape(-1, weight.shape[3]), convolution.bias.detach().repeat(4))


def places_tables(cos: Tensor, sin: Tensor, order: TokenOrder) -> tuple[Tensor, Tensor]:
    """The rows of a window's tables [w*w,d/2] for all tokens in order, then for all padded ones: [p*p+P,d/2]."""
    places = torch.cat([order.places(), order.padding()[0]])
    return cos[places], sin[places]


def half_tables(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [n,d/2] of `rope_tables`' [n,d]: both members of a pair turn by the same angle."""
    half = cos.shape[1] // 2
    return cos[:, :half], sin[:, half:]
