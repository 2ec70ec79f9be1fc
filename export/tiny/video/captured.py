"""A training step's forward and backward pass as CUDA graphs.

A rollout launches some ten thousand small kernels, and a host that launches them one by one takes several times as long
as the GPU needs for them. A graph is captured once for each shape of batch and plan, and launched whole from then on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from export.tiny.video.losses import Losses


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rollout does beside its batch: `recent` maps of the last frames are remembered, at the frame `again` (or
    never) objects get a mask for a second time, and with `trust` the tracker's own word counts on who is there."""

    recent: int
    again: int | None
    trust: bool


Rollout = Callable[[Sequence[Tensor], Plan], Losses]


def passes(rollout: Rollout, batch: Sequence[Tensor], plan: Plan, parameters: Sequence[nn.Parameter]) -> Losses:
    """Forward and backward: fills the parameters' gradients, which must be there, and gives the losses without any."""
    told = rollout(batch, plan)
    gradients = torch.autograd.grad(told.total, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is not None
        if gradient is None:
            parameter.grad.zero_()
        else:
            parameter.grad.copy_(gradient)
    return Losses(*(getattr(told, field.name).detach() for field in fields(Losses)))


@dataclass(frozen=True, slots=True)
class Captured:
    """A graph, the batch that it reads and the losses that it writes."""

    graph: torch.cuda.CUDAGraph
    batch: list[Tensor]
    told: Losses


class CapturedSteps:
    """`passes` by graphs, which share their memory; a batch of a new shape or with a new plan is captured first."""

    def __init__(self, rollout: Rollout, parameters: Sequence[nn.Parameter]) -> None:
        self.rollout, self.parameters = rollout, parameters
        self.pool = torch.cuda.graph_pool_handle()
        self.graphs: dict[tuple, Captured] = {}

    def __call__(self, batch: Sequence[Tensor], plan: Plan) -> Losses:
        key = (*(part.shape for part in batch), plan)
        if key not in self.graphs:
            self.graphs[key] = self._captured(batch, plan)
        known = self.graphs[key]
        for own, given in zip(known.batch, batch, strict=True):
            own.copy_(given)
        known.graph.replay()
        return Losses(*(getattr(known.told, field.name).clone() for field in fields(Losses)))

    def _captured(self, batch: Sequence[Tensor], plan: Plan) -> Captured:
        own = [part.clone() for part in batch]
        side, now = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(now)
        with torch.cuda.stream(side):  # kernels that are loaded at their first call cannot be while capturing
            passes(self.rollout, own, plan, self.parameters)
        now.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # The thread that pins the loader's batches goes on meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            told = passes(self.rollout, own, plan, self.parameters)
        return Captured(graph, own, told)
