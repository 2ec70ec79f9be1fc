"""Runs `model.pt2`, PyTorch compiled ahead of time, for `ensemble/engine.py`: Triton's tensors in, PyTorch tensors on
the GPU and small NumPy arrays out.

Inputs that lie on the GPU are taken over without a copy (DLPack); outputs that stay between the models are handed on
the same way. What the front model reads is copied to the host here, because that process has no PyTorch. The package
needs none of the export's Python.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401  (registers RoIAlign, which the geometry encoder's package calls by name)

SIGNATURE = "sam3_signature"
"""Key of a package's metadata: names of inputs and outputs, and which outputs the front model reads; the compiled
function itself knows no names."""


class AotiRunner:
    """One package on one device: `device_id` is the GPU's number, or None for a package that was compiled for the CPU.

    Raises ValueError for a package without a signature or for another device.
    """

    def __init__(self, path: Path, device_id: int | None) -> None:
        self._device = torch.device("cpu") if device_id is None else torch.device("cuda", device_id)
        torch.backends.cudnn.allow_tf32 = False  # PyTorch allows it, but ten bits of mantissa are not fp32
        self._run = torch._inductor.aoti_load_package(str(path), device_index=-1 if device_id is None else device_id)
        metadata = self._run.get_metadata()
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

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """All outputs by name, on the device, in C order; `inputs` by name, on any device and in any memory format."""
        with torch.inference_mode():
            # The compiled function does not look at strides: it would read a channels-last map as if it were in C
            # order.
            results = self._run(
                *(inputs[name].to(self._device, non_blocking=True).contiguous() for name in self.inputs)
            )
        if isinstance(results, torch.Tensor):  # a package with one output returns it bare
            results = [results]
        return {name: in_c_order(result) for name, result in zip(self.outputs, results, strict=True)}

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        """The wanted outputs of Triton tensors by name: NumPy arrays where the front model reads them, tensors on the
        device otherwise."""
        results = self({name: as_torch(tensor) for name, tensor in inputs.items()})
        wanted = [to_host(results[name]) if name in self.host else results[name] for name in outputs]
        if self._device.type == "cuda":
            # The copies to the host are under way, and whoever gets a tensor reads it on a stream of its own, in
            # another process.
            torch.cuda.current_stream(self._device).synchronize()
        return [result.numpy() if name in self.host else result for name, result in zip(outputs, wanted, strict=True)]


def in_c_order(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with the strides of its shape, copied only where its values lie otherwise.

    PyTorch calls any stride of an axis of one element contiguous; Triton, which compares every stride, does not.
    """
    return tensor.contiguous().as_strided(tensor.shape, torch.empty(tensor.shape, device="meta").stride())


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in host memory; from a GPU into pinned memory, which PyTorch keeps for the next call, and not finished
    before the stream is."""
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def as_torch(tensor: Any) -> torch.Tensor:
    """A Triton tensor as PyTorch's, without a copy, wherever it lies."""
    if tensor.is_cpu():
        return torch.from_numpy(tensor.as_numpy())
    return torch.from_dlpack(tensor.to_dlpack())
