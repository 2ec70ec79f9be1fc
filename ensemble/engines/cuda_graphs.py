"""CUDA graphs of small calls: a batch of one or two frames is computed faster than a processor can launch its kernels,
so the launches are recorded once and replayed.

Graphs are made at the third call of a shape, so that shapes that come by chance cost nothing; they share one pool of
memory, which is that of the largest of them, since one call runs after the other.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakSet

import torch

Run = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]
CALLS_BEFORE = 2
"""Calls of a shape without a graph: they also load kernels and choose algorithms, which a capture must not."""
MAX_GRAPHS = 8
"""Of one sub-model; the one that was not used for longest goes."""
MAX_SHAPES = 256
"""Shapes whose calls are counted."""
log = logging.getLogger(__name__)
_turn = threading.Lock()
"""A capture and giving memory back happen one after the other, in whichever threads."""
_made: WeakSet[CapturedCalls] = WeakSet()


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]


class CapturedCalls:
    """`run`, replayed from a graph where its inputs have a shape that came before.

    The outputs of a replay are valid until the next call with the same shapes. Where a capture fails, calls go on
    without graphs, and the log says why.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._graphs: OrderedDict[Any, _Captured] = OrderedDict()
        self._calls: Counter[Any] = Counter()
        self._usable = True
        _made.add(self)

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Outputs on the device, of inputs on the device in C order."""
        shapes = tuple(tensor.shape for tensor in inputs)
        with _turn:
            captured = self._known(shapes, inputs)
        if captured is None:
            return self._run(inputs)
        for kept, given in zip(captured.inputs, inputs, strict=True):
            kept.copy_(given, non_blocking=True)
        captured.graph.replay()
        return captured.outputs

    def drop(self) -> None:
        self._graphs.clear()

    def _known(self, shapes: Any, inputs: Sequence[torch.Tensor]) -> _Captured | None:
        """The graph of these shapes, captured now where it is time; None where there is none."""
        captured = self._graphs.get(shapes)
        if captured is None:
            self._calls[shapes] += 1
            if len(self._calls) > MAX_SHAPES:
                self._calls.clear()
            if not self._usable or self._calls[shapes] <= CALLS_BEFORE:
                return None
            captured = self._capture(inputs)
            if captured is None:
                return None
            self._graphs[shapes] = captured
            if len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(shapes)
        return captured

    def _capture(self, inputs: Sequence[torch.Tensor]) -> _Captured | None:
        try:
            kept = [tensor.clone() for tensor in inputs]
            graph = torch.cuda.CUDAGraph()
            # Other threads of the process go on with their own CUDA calls meanwhile.
            with torch.cuda.graph(graph, pool=_pool(inputs[0].device), capture_error_mode="thread_local"):
                outputs = self._run(kept)
            return _Captured(graph, kept, outputs)
        except RuntimeError as error:
            self._usable = False
            log.warning("small batches run without CUDA graphs: %s", str(error).splitlines()[0])
            return None


def release() -> None:
    """Gives up all graphs of this process, which are made again when they are needed, and their memory and all other
    that PyTorch keeps for the next calls."""
    with _turn:
        for calls in _made:
            calls.drop()
        torch.cuda.empty_cache()


@cache
def _pool(device: torch.device) -> Any:
    with torch.cuda.device(device):
        return torch.cuda.graph_pool_handle()
