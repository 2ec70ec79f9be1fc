"""Runs `model.pt2`, PyTorch compiled ahead of time. The package needs none of the export's Python."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Before PyTorch reads them. Batches of all sizes come and go: segments that grow leave no holes between them. And a
# package for a GPU needs no compiler that tries the processor's vector instructions, which takes half a minute.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

import torch

from ensemble.engines.cuda_graphs import CapturedCalls
from ensemble.engines.device import use_gpu

SIGNATURE = "sam3_signature"
"""Key of a package's metadata: names of inputs and outputs, and which outputs the pipeline reads; the compiled function
itself knows no names."""


SMALL = {"pixel_values": 1, "fpn_2": 1}
"""First input of a sub-model -> images up to which its calls are captured as CUDA graphs: vision encoder, and decoder
and geometry encoder. Measured on an H100 at 672: 9.4 in place of 10.0 ms for one frame, 15.8 of 16.1 for two, which is
not worth the memory. Shapes of the mask head change from frame to frame."""


class AotiRunner:
    """One package on one device: `device_id` is the GPU's number, or None for a package that was compiled for the CPU.

    Raises ValueError for a package without a signature or for another device.
    """

    def __init__(self, path: Path, device_id: int | None) -> None:
        self._device = torch.device("cpu") if device_id is None else torch.device("cuda", device_id)
        if device_id is not None:
            use_gpu(device_id)
        torch.backends.cudnn.allow_tf32 = False  # PyTorch allows it, but ten bits of mantissa are not fp32
        # The loader that `torch._inductor.aoti_load_package` wraps: the wrapper imports the compiler, eight seconds of
        # a start, and reads two JSON documents in each call. One thread computes: with the locks of several there is
        # an event that a run waits for, and no CUDA graph.
        self._package = torch._C._aoti.AOTIModelPackageLoader(
            str(path), "model", True, 1, -1 if device_id is None else device_id
        )
        self._captured = CapturedCalls(self._run)
        metadata = self._package.get_metadata()
        if SIGNATURE not in metadata:
            raise ValueError(
                f"{path}: expected a package that sam3-export wrote, got one without {SIGNATURE!r} in its metadata;"
                " export it again"
            )
        made_for = metadata.get("AOTI_DEVICE_KEY", self._device.type)
        if made_for != self._device.type:
            raise ValueError(
                f"{path}: expected a package for {self._device.type}, got one for {made_for}; export it on the machine"
                " that serves it"
            )
        signature = json.loads(metadata[SIGNATURE])
        self.inputs: list[str] = signature["inputs"]
        self.outputs: list[str] = signature["outputs"]
        self.host: frozenset[str] = frozenset(signature["host"])

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """All outputs by name, on the device; `inputs` by name: NumPy arrays, or tensors on any device and in any
        memory format. Where a CUDA graph is replayed, they are valid until the next call of the same shapes."""
        with torch.inference_mode():
            # The compiled function does not look at strides: it would read a channels-last map as if it were in C
            # order.
            ready = [self._on_device(inputs[name]).contiguous() for name in self.inputs]
            results = self._captured(ready) if self._is_small(ready) else self._run(ready)
        return dict(zip(self.outputs, results, strict=True))

    def _run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return self._package.boxed_run(list(inputs))

    def _is_small(self, inputs: Sequence[torch.Tensor]) -> bool:
        """Whether the processor's launches take longer than the GPU's work. The first input's first axis are images, of
        all sub-models but the text encoder, which runs once a word."""
        return self._device.type == "cuda" and self.inputs[0] in SMALL and len(inputs[0]) <= SMALL[self.inputs[0]]

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        """`SubModel` of `ensemble/engines`: NumPy arrays of the outputs that the pipeline reads, finished; of the
        others tensors on the device, which may still be under way on PyTorch's current stream."""
        results = self(inputs)
        wanted = {name: _to_host(results[name]) if name in self.host else results[name] for name in outputs}
        if self._device.type == "cuda" and not self.host.isdisjoint(outputs):
            torch.cuda.current_stream(self._device).synchronize()  # the copies to the host
        return {name: value.numpy() if name in self.host else value for name, value in wanted.items()}

    def _on_device(self, value: Any) -> torch.Tensor:
        if isinstance(value, np.ndarray):
            tensor = torch.from_numpy(value)
            if self._device.type == "cuda":
                tensor = tensor.pin_memory()
        else:
            tensor = value if isinstance(value, torch.Tensor) else torch.from_dlpack(value)
        return tensor.to(self._device, non_blocking=True)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in host memory; from a GPU into pinned memory, which PyTorch keeps for the next call, and not finished
    before the stream is."""
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
