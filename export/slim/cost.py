"""What a change of weights costs before any training: how far the outputs are from the whole model's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import Sam3Model

from export.slim.distil import distillation
from export.slim.recover import Sized
from export.tiny.dataset import Batch

Cost = Callable[[Sam3Model], float]


@torch.no_grad()
def output_error(
    model: Sam3Model, batches: Iterator[Batch], count: int, resolutions: Sequence[int], device: str
) -> tuple[Sized, Cost]:
    """A cost that grows as a model's outputs leave those that `model` gives now: the loss that recovery starts from
    (`distillation`), a mean over `count` batches. The first is `model` on its device, to be changed and measured."""
    place = torch.device(device)
    sized = Sized(model, resolutions, place)
    lessons = []
    for _ in range(count):
        batch = next(batches).to(place)
        lessons.append((batch, sized(batch)))

    @torch.no_grad()
    def cost(changed: Sam3Model) -> float:
        other = sized if changed is sized.model else Sized(changed, resolutions, place)
        return float(torch.stack([distillation(other(batch), truth)["loss"] for batch, truth in lessons]).mean())

    return sized, cost
