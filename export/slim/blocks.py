"""Leaves blocks of the vision transformer out: which ones cost least is measured, one after another.

Blocks pass on what they add to a sum, so the others still read something near what they learnt on. Which of them attend
to the whole image and which within windows goes with each block, and so do its rotary positions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Sam3Model
from transformers.initialization import no_init_weights

from export.sub_models import pooled_keys

BLOCKS = "vision_encoder.backbone.layers."
Cost = Callable[[Sam3Model], float]
"""How far a model is from the whole one; 0 for the same."""


@dataclass(frozen=True)
class Choice:
    """One round of the search: the block that went, the cost of leaving it out with those before it, and what each of
    the others would have cost instead."""

    block: int
    cost: float
    others: dict[int, float]


def without_blocks(model: Sam3Model, dropped: Sequence[int]) -> Sam3Model:
    """A new model without these blocks (numbers from 0), which shares all other weights. Raises ValueError where such
    blocks cannot be left out."""
    trunk = model.config.vision_config.backbone_config
    check_blocks(dropped, trunk.num_hidden_layers)
    kept = [block for block in range(trunk.num_hidden_layers) if block not in set(dropped)]
    config = copy.deepcopy(model.config)
    small = config.vision_config.backbone_config
    small.num_hidden_layers = len(kept)
    small.global_attn_indexes = [new for new, old in enumerate(kept) if old in set(trunk.global_attn_indexes)]
    with no_init_weights():  # the weights are assigned in the next lines
        result = type(model)._from_config(config, dtype=torch.float32)
    result.load_state_dict(renumbered(model.state_dict(), kept), assign=True)
    return pooled_keys.apply(result).eval()


def check_blocks(dropped: Sequence[int], count: int) -> None:
    """Raises ValueError, with what to do, unless these blocks are among `count` and leave some."""
    beyond = sorted({block for block in dropped if not 0 <= block < count})
    if beyond:
        raise ValueError(f"expected blocks 0 to {count - 1} of the vision transformer, got {beyond}; name others")
    if len(set(dropped)) != len(dropped):
        raise ValueError(f"expected each block once, got {list(dropped)}")
    if not dropped or len(dropped) >= count:
        raise ValueError(f"expected 1 to {count - 1} of {count} blocks to leave out, got {len(dropped)}")


def renumbered(weights: dict[str, Tensor], kept: Sequence[int], prefix: str = BLOCKS) -> dict[str, Tensor]:
    """The weights without those of other layers (names that begin with `prefix` and a number), the kept ones numbered
    from 0."""
    places = {old: new for new, old in enumerate(kept)}
    found = {}
    for name, tensor in weights.items():
        if name.startswith(prefix):
            number, rest = name.removeprefix(prefix).split(".", 1)
            if int(number) not in places:
                continue
            name = f"{prefix}{places[int(number)]}.{rest}"
        found[name] = tensor
    return found


def search(
    model: Sam3Model, count: int, cost: Cost, progress: Callable[[str], None] = lambda step: None
) -> list[Choice]:
    """Finds `count` blocks to leave out: the cheapest one first, then the cheapest beside it, and so on. Costs are
    measured on `model` itself, whose blocks are bridged meanwhile."""
    total = len(model.vision_encoder.backbone.layers)
    check_blocks(range(count), total)
    choices: list[Choice] = []
    for _ in range(count):
        gone = [choice.block for choice in choices]
        costs = {}
        for block in (b for b in range(total) if b not in gone):
            progress(f"measuring what leaving out {', '.join(map(str, [*gone, block]))} costs")
            with bridged(model, [*gone, block]):
                costs[block] = cost(model)
        best = min(costs, key=lambda block: costs[block])
        choices.append(Choice(best, costs.pop(best), costs))
    return choices


@contextmanager
def bridged(model: Sam3Model, blocks: Sequence[int]) -> Iterator[None]:
    """Inside of the block, these blocks of `model` pass on what they are given."""
    layers = [model.vision_encoder.backbone.layers[block] for block in blocks]
    for layer in layers:
        layer.forward = lambda hidden_states, **_: hidden_states
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own again
