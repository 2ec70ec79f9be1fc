"""The image transformer of SAM3 and its feature pyramid: runs once per frame, whatever is looked for in it.

`Sam3Model`'s own, rewritten without changing its result: normalisation folded into the patch embedding, positions and
RoPE tables as constants, tokens in window order from the first layer to the last (`export/sub_models/token_order.py`),
queries, keys and values in one product taken before windows are padded (so that padding costs no product), rotary pairs
as halves, and each 1x1 convolution behind a transposed convolution folded into it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam3Model

from export.sub_models.attention import Form, attend, joined_projection
from export.sub_models.positions import halves_order, rope_tables, tiled_positions
from export.sub_models.precision import layer_norm
from export.sub_models.token_order import TokenOrder

PIXEL_MEAN = PIXEL_SCALE = 127.5
"""The processor's normalisation is x/127.5 - 1."""
PIXEL_SHIFT = 128.0
"""Pixels are divided by this power of two (exact) so that the folded weights stay in fp16's normal range."""


class VisionEncoder(nn.Module):
    """`pixel_values` uint8 [B,3,R,R] -> `fpn_0` [B,C,4p,4p], `fpn_1` [B,C,2p,2p], `fpn_2` [B,C,p,p], p = R/14; for a
    tracker `hidden` too, the tokens that they are made of, row by row: [B,p*p,width]."""

    def __init__(self, model: Sam3Model, form: Form = "explicit", hidden: bool = False) -> None:
        super().__init__()
        self.hidden = hidden
        vit = model.vision_encoder.backbone
        config = vit.config
        self.patches: int = config.image_size // config.patch_size
        order = TokenOrder(self.patches, config.window_size)
        raster = order.raster()
        self.register_buffer("raster", raster, persistent=False)  # [p*p]
        self.register_buffer("ordered", raster.argsort(), persistent=False)
        self.patch_embedding, offset = fold_normalisation(vit.embeddings.patch_embeddings.projection)
        positions = tiled_positions(vit.embeddings.position_embeddings, self.patches)
        self.register_buffer("positions", (positions + offset).flatten(1, 2)[:, raster])  # [1,p*p,C]
        self.norm = vit.layer_norm
        for name, grid in (("window", config.window_size), ("global", self.patches)):
            cos, sin = rope_tables(vit.layers[0].rotary_emb, grid, config.window_size)
            if name == "global":
                cos, sin = cos[raster], sin[raster]
            self.register_buffer(f"{name}_cos", cos, persistent=False)  # [grid*grid, head_dim]
            self.register_buffer(f"{name}_sin", sin, persistent=False)
        self.blocks = nn.ModuleList(Block(layer, order, form) for layer in vit.layers)
        self.levels = nn.ModuleList(pyramid_level(level) for level in model.vision_encoder.neck.fpn_layers[:3])

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        pixels = pixel_values.to(self.patch_embedding.weight.dtype) * (1 / PIXEL_SHIFT)
        x = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [B,p*p,C]
        x = layer_norm(self.norm, x.index_select(1, self.raster) + self.positions)
        x = through(self.blocks, x, (self.window_cos, self.window_sin), (self.global_cos, self.global_sin))
        tokens = x.index_select(1, self.ordered)  # [B,p*p,C]
        x = tokens.transpose(1, 2).unflatten(2, (self.patches, self.patches))  # [B,C,p,p]
        levels = tuple(level(x) for level in self.levels)
        return (*levels, tokens) if self.hidden else levels


def through(blocks: nn.ModuleList, x: Tensor, windowed: tuple[Tensor, Tensor], whole: tuple[Tensor, Tensor]) -> Tensor:
    """Tokens [B,p*p,C] after all `blocks`, given the cosines and sines of layers with windows and of global ones."""
    for block in blocks:
        x = block(x, *(windowed if block.window else whole))
    return x


class Block(nn.Module):
    """One layer of the image transformer over [B,p*p,C]; `window` tokens a side, 0 for global attention."""

    def __init__(self, layer: nn.Module, order: TokenOrder, form: Form) -> None:
        super().__init__()
        source = layer.attention
        self.window: int = layer.window_size
        self.form = form
        self.tokens = order.window**2 if self.window else order.patches**2  # that attend to each other
        self.padded: bool = bool(self.window) and not order.filled
        if self.padded:
            own, held = order.slots()
            self.register_buffer("own", own, persistent=False)
            self.register_buffer("held", held, persistent=False)
        self.heads, self.head_dim = source.num_attention_heads, source.head_dim
        joined = joined_projection(source, "qkv")
        rows = rotary_rows(self.heads, self.head_dim)  # queries and keys only: values are not rotated
        self.qkv_weight = nn.Parameter(joined.weight[rows], requires_grad=False)  # [3C,C]
        self.qkv_bias = nn.Parameter(joined.bias[rows], requires_grad=False)  # [3C]
        self.output = source.o_proj
        self.norm1, self.norm2, self.mlp = layer.layer_norm1, layer.layer_norm2, layer.mlp

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(layer_norm(self.norm1, x), cos, sin)
        return x + self.mlp(layer_norm(self.norm2, x))

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        width = self.heads * self.head_dim
        # A padded token is zero before the projection and so the bias after it: project, pad, then add the bias.
        qkv = F.linear(x, self.qkv_weight)  # [B,p*p,3C]
        if self.padded:
            qkv = F.pad(qkv, (0, 0, 0, 1)).index_select(1, self.held)  # [B,windows*w*w,3C]
        qkv = (qkv + self.qkv_bias).reshape(-1, self.tokens, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [*,heads,tokens,d]
        out = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, None, self.form)  # [*,tokens,C]
        if self.padded:  # padded tokens, 30 % of all at 840 and 560, are dropped before the projection
            return self.output(out.reshape(-1, self.held.shape[0], width).index_select(1, self.own))
        return self.output(out.reshape(-1, x.shape[1], width))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on [*,tokens,d] in half-split order."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([second, first], -1) * sin


def rotary_rows(heads: int, head_dim: int) -> Tensor:
    """Order [3*heads*head_dim] of a joined projection's rows that puts each query's and key's head in half-split
    order."""
    width = heads * head_dim
    head = (torch.arange(heads)[:, None] * head_dim + halves_order(head_dim)).flatten()  # [C]
    return torch.cat([head, width + head, 2 * width + torch.arange(width)])


def fold_normalisation(projection: nn.Conv2d) -> tuple[nn.Conv2d, Tensor]:
    """The patch convolution for pixels divided by `PIXEL_SHIFT`, and what to add to its result [C]: w*(x/127.5 - 1) =
    (w/127.5)*x - sum(w).

    Patches do not overlap and nothing is padded, so the shift is the same at every position.
    """
    weight = projection.weight.detach()
    channels, kernel = (weight.shape[1], weight.shape[0]), projection.kernel_size
    folded = nn.Conv2d(*channels, kernel, projection.stride, bias=False, device="meta")
    folded.weight = nn.Parameter(weight * (PIXEL_SHIFT / PIXEL_SCALE), requires_grad=False)
    offset = -weight.sum((1, 2, 3)) * (PIXEL_MEAN / PIXEL_SCALE)
    return folded, offset if projection.bias is None else offset + projection.bias.detach()


def pyramid_level(level: nn.Module) -> nn.Module:
    """A Sam3FPNLayer with its 1x1 convolution folded into the transposed convolution before it: both are linear, with
    nothing between them."""
    *before, last = list(level.scale_layers) or [None]
    if not isinstance(last, nn.ConvTranspose2d):
        return level
    projection = level.proj1.weight.detach()[:, :, 0, 0]  # [O,M]
    weight = torch.einsum("om,imyx->ioyx", projection, last.weight.detach())
    bias = level.proj1.bias.detach() + (projection @ last.bias.detach())
    folded = nn.ConvTranspose2d(weight.shape[0], weight.shape[1], last.kernel_size, last.stride, device="meta")
    folded.weight, folded.bias = (nn.Parameter(t, requires_grad=False) for t in (weight, bias))
    return nn.Sequential(*before, folded, level.proj2)
