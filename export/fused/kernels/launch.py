"""Starting kernels so that `torch.export` can record them, those with tensor descriptors too."""

from __future__ import annotations

from typing import Any

from torch._higher_order_ops.triton_kernel_wrap import (
    TraceableTritonKernelWrapper,
    TracingTritonHOPifier,
    create_tma_stable_metadata,
    triton_kernel_wrapper_mutation,
)
from torch._library.triton import is_wrap_triton_enabled
from torch.library import wrap_triton
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor


def traced(kernel: Any) -> Any:
    """`kernel` as `torch.export` can record it; one that Triton's interpreter runs (TRITON_INTERPRET=1) as it is."""
    return wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel


def traced_with_descriptors(kernel: Any) -> Any:
    """`traced` of a kernel some of whose arguments are `TensorDescriptor`s, which the GPU's copy engine reads by.

    PyTorch compiles such kernels, but its `wrap_triton` (2.11) records no descriptors; a descriptor made inside a
    kernel is no way out, since a compiled package reserves memory for the descriptor of one program alone.
    """
    if isinstance(kernel, JITFunction) and is_wrap_triton_enabled():
        return _Recorded(kernel, None, None)
    return kernel


class _Recorder(TracingTritonHOPifier):
    """PyTorch's recorder, which passes a descriptor on as its tensor and the shape of its block."""

    def call_HOP(self, variable: Any, grids: Any, combined_args: dict[str, Any], tx: None) -> Any:  # noqa: N802
        descriptors = {name: value for name, value in combined_args.items() if isinstance(value, TensorDescriptor)}
        blocks = {name: create_tma_stable_metadata(value.block_shape) for name, value in descriptors.items()}
        arguments = combined_args | {name: value.base for name, value in descriptors.items()}
        graphable, constants = self.store_non_graphable_args(arguments)
        return triton_kernel_wrapper_mutation(
            kernel_idx=variable.kernel_idx,
            constant_args_idx=constants,
            grid=grids,
            tma_descriptor_metadata=blocks,
            kwargs=graphable,
        )


_recorder = _Recorder()


class _Recorded(TraceableTritonKernelWrapper):
    """`wrap_triton`'s wrapper with `_Recorder` in the place of PyTorch's own."""

    def __getitem__(self, *grid: Any) -> Any:
        return _recorder.call_getitem(self, grid)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _recorder.call_triton_kernel(self, args, kwargs, None)
