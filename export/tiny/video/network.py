"""The tracker's forward pass for training and for propagation in a loop: many objects of many clips at once.

transformers' `Sam3TrackerVideoModel` takes one object after the other and keeps its state in a session; here the same
modules are called in the same order on batches, with gradients and with the state in the caller's hands. A test checks
that both give the same masks. N objects, B frames, p = resolution / 14, c = 128.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam3VideoModel

from export.sub_models.tracker.arithmetic import enlarging
from export.sub_models.tracker.seed import SCALE, SHIFT
from export.tiny.configuration import PATCH
from export.tiny.dataset import normalised


@dataclass(slots=True)
class Features:
    """What the neck makes of B frames: fine [B, c/8, 4p, 4p], middle [B, c/4, 2p, 2p], coarse [B, c, p, p]."""

    fine: Tensor
    middle: Tensor
    coarse: Tensor

    def of(self, index: Tensor) -> "Features":
        """Those of the frames that the objects lie in, `index` [N]."""
        return Features(self.fine[index], self.middle[index], self.coarse[index])


@dataclass(slots=True)
class Tracked:
    """What a step says of N objects: masks [N, 3, 4p, 4p] logits, ious [N, 3], score [N] logit of being in the frame,
    pointers [N, 3, c]."""

    masks: Tensor
    ious: Tensor
    score: Tensor
    pointers: Tensor

    def best(self) -> tuple[Tensor, Tensor]:
        """The mask [N, 4p, 4p] and the pointer [N, c] with the highest predicted IoU."""
        rows = torch.arange(len(self.ious), device=self.ious.device)
        chosen = self.ious.argmax(1)
        return self.masks[rows, chosen], self.pointers[rows, chosen]


class Tables(nn.Module):
    """Positions of one resolution, constants in fp32."""

    def __init__(self, model: Sam3VideoModel, resolution: int) -> None:
        super().__init__()
        tracker, p = model.tracker_model, resolution // PATCH
        device = next(model.parameters()).device
        image = model.tracker_neck.position_encoding((1, tracker.hidden_dim, p, p), device, torch.float32)
        space = tracker.memory_encoder.position_encoding((1, tracker.mem_dim, p, p), device, torch.float32)
        rows, columns = torch.meshgrid(torch.arange(p, device=device), torch.arange(p, device=device), indexing="ij")
        places = torch.stack([columns.flatten(), rows.flatten()], -1)
        cos, sin = tracker.memory_attention.rotary_emb(torch.ones(1, device=device), places)
        centres = (torch.stack([columns, rows], -1) + 0.5) / p
        self.enlarge = nn.Buffer(enlarging(4 * p, resolution).to(device))  # [16p, 4p]
        self.image = nn.Buffer(0.1 * image.flatten(2).transpose(1, 2).clone())  # [1, p², c]
        self.space = nn.Buffer(space.flatten(2).transpose(1, 2)[0].clone())  # [p², 64]
        self.cos, self.sin = nn.Buffer(cos[0].clone()), nn.Buffer(sin[0].clone())  # [p², c]
        self.centres = nn.Buffer(tracker.shared_image_embedding(centres).permute(2, 0, 1)[None].clone())  # [1, c, p, p]


def given_logits(masks: Tensor) -> Tensor:
    """Logits of masks in 0..1 that are given: -10 and 10."""
    return masks * SCALE + SHIFT


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on pairs of channels; x [..., T, c], cos and sin [T, c]."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos.to(x.dtype) + torch.stack((-b, a), -1).flatten(-2) * sin.to(x.dtype)


class TrackerNetwork(nn.Module):
    """The tracker of a `Sam3VideoModel` as functions over batches; `at` chooses the resolution of what follows."""

    def __init__(self, model: Sam3VideoModel, resolutions: tuple[int, ...]) -> None:
        super().__init__()
        self.neck, self.tracker = model.tracker_neck, model.tracker_model
        self.trunk = model.detector_model.vision_encoder.backbone.requires_grad_(False)
        self.tables = nn.ModuleDict({str(r): Tables(model, r) for r in resolutions})
        self.places = {r: self._trunk_places(r) for r in resolutions}
        self.now: Tables = self.tables[str(resolutions[0])]  # type: ignore[assignment]

    def at(self, resolution: int) -> None:
        """Sets the resolution of the frames that follow, one of those given at the start."""
        self.now = self.tables[str(resolution)]  # type: ignore[assignment]
        for layer, place in zip(self.trunk.layers, self.places[resolution], strict=True):
            layer.position_ids = place

    def _trunk_places(self, resolution: int) -> list[Tensor]:
        places = []
        for layer in self.trunk.layers:
            if layer.window_size == 0:
                size, self.trunk.config.image_size = self.trunk.config.image_size, resolution
                place = layer.precompute_positions(self.trunk.config, 0).to(layer.position_ids.device)
                self.trunk.config.image_size = size
            else:
                place = layer.position_ids
            places.append(nn.Buffer(place, persistent=False))
        return places

    def trainable(self) -> list[nn.Parameter]:
        """The weights on which a mask depends: without the neck's unused last level and the prompts of points."""
        unused = ("fpn_layers.3.", "point_embed", "no_memory_positional_encoding", "no_memory_embedding")
        named = [*self.neck.named_parameters(), *self.tracker.named_parameters()]
        return [p for name, p in named if not any(part in f"{name}." for part in unused)]

    @torch.no_grad()
    def see(self, pixels: Tensor) -> Tensor:
        """The frozen trunk: uint8 [B, R, R, 3] to [B, p², d]."""
        return self.trunk(normalised(pixels)).last_hidden_state

    def features(self, hidden: Tensor) -> Features:
        """The tracker's own neck on what the trunk saw, [B, p², d]."""
        p = round(hidden.shape[1] ** 0.5)
        image = hidden.transpose(1, 2).unflatten(2, (p, p))
        fine, middle, coarse = (layer(image) for layer in self.neck.fpn_layers[:3])
        decoder = self.tracker.mask_decoder
        return Features(decoder.conv_s0(fine), decoder.conv_s1(middle), coarse)

    def step(
        self, seen: Features, memory: Tensor, memory_age: Tensor, pointers: Tensor, pointer_age: Tensor
    ) -> Tracked:
        """One frame further. seen: of the N objects' frames; memory [N, M, p², 64] with ages int64 [N, M] (0
        conditioning, 1 to 6 frames ago); pointers [N, P, c] with ages float [N, P] in frames. No entry is empty."""
        attention = self.tracker.memory_attention
        x = seen.coarse.flatten(2).transpose(1, 2) + self.now.image
        time = self.tracker.memory_temporal_positional_encoding[:, 0, 0]
        time = torch.cat([time[-1:], time[:-1]])  # the last row is a conditioning frame's, row t - 1 that of age t
        placed = (memory + (self.now.space + time[memory_age][:, :, None])).flatten(1, 2)
        points, when = self._pointer_tokens(pointers, pointer_age)
        keys, values = torch.cat([placed, points + when], 1), torch.cat([memory.flatten(1, 2), points], 1)
        for layer in attention.layers:
            x = self._layer(layer, x, keys, values, memory.shape[1])
        x = attention.layer_norm(x)
        return self.decode(x.transpose(1, 2).unflatten(2, seen.coarse.shape[-2:]), seen, None)

    def _pointer_tokens(self, pointers: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        splits, half = pointers.shape[-1] // self.tracker.mem_dim, pointers.shape[-1] // 2
        wave = 10000 ** (2 * (torch.arange(half, device=age.device) // 2) / half)
        angle = (age / (self.tracker.config.max_object_pointers_in_encoder - 1))[..., None] / wave
        when = self.tracker.temporal_positional_encoding_projection_layer(torch.cat([angle.sin(), angle.cos()], -1))
        return pointers.unflatten(2, (splits, -1)).flatten(1, 2), when.repeat_interleave(splits, 1)

    def _layer(self, layer: nn.Module, x: Tensor, keys: Tensor, values: Tensor, maps: int) -> Tensor:
        cos, sin = self.now.cos, self.now.sin
        a, y = layer.self_attn, layer.layer_norm1(x)
        q, k = rotate(a.q_proj(y), cos, sin), rotate(a.k_proj(y), cos, sin)
        x = x + a.o_proj(_attend(q, k, a.v_proj(y)))
        a, y = layer.cross_attn_image, layer.layer_norm2(x)
        q, k, tokens = rotate(a.q_proj(y), cos, sin), a.k_proj(keys), maps * cos.shape[0]
        image = rotate(k[:, :tokens].unflatten(1, (maps, -1)), cos, sin).flatten(1, 2)
        x = x + a.o_proj(_attend(q, torch.cat([image, k[:, tokens:]], 1), a.v_proj(values)))
        return x + layer.linear2(layer.activation(layer.linear1(layer.layer_norm3(x))))

    def decode(self, image: Tensor, seen: Features, dense: Tensor | None) -> Tracked:
        """The mask decoder on conditioned features [N, c, p, p]; `dense` [N, c, p, p]: a mask prompt, or None."""
        n, prompt = len(image), self.tracker.prompt_encoder
        sparse = prompt.not_a_point_embed.weight.expand(n, 2, -1)[:, None]  # an empty prompt is two of these
        if dense is None:
            dense = prompt.no_mask_embed.weight[0][:, None, None]
        masks, ious, tokens, score = self.tracker.mask_decoder(
            image_embeddings=image,
            image_positional_embeddings=self.now.centres.expand(n, -1, -1, -1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
            high_resolution_features=[seen.fine, seen.middle],
        )
        pointers = self.tracker.object_pointer_proj(tokens[:, 0])
        return Tracked(masks[:, 0], ious[:, 0], score[:, 0, 0], pointers)

    def seed(self, seen: Features, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Given masks [N, 4p, 4p] in 0..1 to their logits, pointers [N, c], and scores [N] of being in the frame."""
        side, resolution = masks.shape[-1], masks.shape[-1] * PATCH // 4
        full = F.interpolate(masks[:, None].float(), size=(resolution,) * 2, mode="bilinear", antialias=True)
        low = self.tracker.mask_downsample(full)
        low = F.interpolate(low.float(), size=(side, side), mode="bilinear", antialias=True)
        dense = self.tracker.prompt_encoder.mask_embed(low)
        decoded = self.decode(seen.coarse, seen, dense)
        return given_logits(masks), decoded.best()[1], decoded.score

    def remember(self, seen: Features, masks: Tensor, hard: Tensor, there: Tensor) -> Tensor:
        """Masks [N, 4p, 4p] (logits; cut where `hard` [N], a given mask) to memory maps [N, p², 64]; `there` [N] says
        whether the object is in the frame."""
        encoder, config = self.tracker.memory_encoder, self.tracker.config
        x = (self.now.enlarge @ masks.float() @ self.now.enlarge.t())[:, None]
        x = torch.where(hard[:, None, None, None], (x > 0).to(x.dtype), x.sigmoid())
        x = x * config.sigmoid_scale_for_mem_enc + config.sigmoid_bias_for_mem_enc
        x = encoder.feature_projection(seen.coarse) + _downsampled(encoder.mask_downsampler, x)
        x = encoder.projection(encoder.memory_fuser(x)).flatten(2).transpose(1, 2)
        absent = (~there)[:, None, None].to(x.dtype)
        return x + absent * self.tracker.occlusion_spatial_embedding_parameter.to(x.dtype)

    def pointer(self, pointer: Tensor, there: Tensor) -> Tensor:
        """The pointer [N, c] that is kept: another one where the object is not in the frame."""
        return torch.where(there[:, None], pointer, self.tracker.no_object_pointer.to(pointer.dtype))


def _downsampled(downsampler: nn.Module, x: Tensor) -> Tensor:
    for layer in downsampler.layers:
        x = layer.conv(x).float()
        # PyTorch's layer norm gives a block of threads to each pixel, which here has as few as four channels.
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        norm = layer.layer_norm
        x = (x - mean) * (variance + norm.eps).rsqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
        x = layer.activation(x)
    return downsampler.final_conv(x)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # Autocast leaves sums in fp32; the fused kernels want one dtype for all three.
    q, k = q.to(v.dtype), k.to(v.dtype)
    return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
