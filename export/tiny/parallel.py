"""Training on several GPUs: the mean of the gradients of all processes.

Started by `torchrun`, every process learns from scenes of its own and they take each step together; started plainly,
there is one process and nothing to do. The model is small: one flat all-reduce a step costs less than a wrapper around
the modules would.
"""

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist


class Team:
    """The processes that train together. `rank` of this one, `size` of them all."""

    def __init__(self, device: str) -> None:
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.size > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")

    @property
    def leads(self) -> bool:
        """Whether this process evaluates, saves and logs."""
        return self.rank == 0

    def agree(self, value: float) -> float:
        """The first process's value, for all: clocks differ, and a process that stopped alone would leave the others
        waiting."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)

    @torch.no_grad()
    def average_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replaces every gradient by its mean over the team, in place."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        parts = flat.split([g.numel() for g in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])

    def leave(self) -> None:
        """Ends the group of processes."""
        if self.size > 1:
            dist.destroy_process_group()
