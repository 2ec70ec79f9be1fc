"""Compiles kernels to machine code for each generation of GPUs; needs no GPU."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

# compute capability -> shared memory of a block in KiB (CUDA C++ Programming Guide, table of technical specifications)
GENERATIONS = (
    pytest.param(80, 163, id="A100"),
    pytest.param(86, 99, id="A10, RTX 30"),
    pytest.param(89, 99, id="L4, RTX 40"),
    pytest.param(90, 227, id="H100, H200"),
    pytest.param(100, 227, id="B200"),
    pytest.param(120, 99, id="RTX 50"),
)


# Ahead-of-time compilation makes a 64-bit argument of a number that varies from call to call, a 32-bit one of a fixed
# number.
def half(*names: str, **others: str) -> dict[str, str]:
    """Types of a kernel's arguments: pointers to fp16, and others; what is not named is a 32-bit number."""
    return {f"{name}_ptr": "*fp16" for name in names} | others


def compiled(
    file: str,
    types: dict[str, str],
    constants: dict[str, Any],
    capability: int,
    warps: int,
    stages: int,
) -> Any:
    """What Triton makes of the kernel in the file of that name, given types of its arguments and constants."""
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"export.fused.kernels.{file}"), f"{file}_kernel")
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n].startswith("*")}
    source = ASTSource(kernel, signature, {(names.index(n),): value for n, value in constants.items()}, aligned)
    options = dict(num_warps=warps, num_stages=stages)
    return compile_kernel(source, target=GPUTarget("cuda", capability, 32), options=options)


def multiplies(capability: int, ptx: str) -> bool:
    """Whether the code has the matrix instructions of that generation."""
    return {90: "wgmma.mma_async", 100: "tcgen05.mma"}.get(capability, "mma.sync") in ptx
