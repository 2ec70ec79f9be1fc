"""What single benchmarks on a GPU share: a call's median time, its memory, and how far two tensors agree."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ensemble.server.memory import MB

T = TypeVar("T")


def require_gpu(parser: argparse.ArgumentParser, instead: str = "") -> None:
    """Ends the command where PyTorch finds no GPU."""
    if not torch.cuda.is_available():
        parser.error(f"expected a CUDA GPU, PyTorch finds none; run on the GPU host{instead}")


def median_ms(call: Callable[[], object], device: str, warmup: int = 100, repeat: int = 250) -> float:
    """Median milliseconds of a call, by CUDA events: `repeat` ms of calls after `warmup` ms of them; on the CPU a
    single call by the clock."""
    if device == "cuda":
        from triton.testing import do_bench

        return float(do_bench(call, warmup=warmup, rep=repeat, return_mode="median"))
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def with_peak(call: Callable[[], T], device: str) -> tuple[T, float]:
    """What a call returns, and the megabytes of GPU memory that it needs beside what is allocated already, its result
    included; 0 on the CPU."""
    if device != "cuda":
        return call(), 0.0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = call()
    torch.cuda.synchronize()
    return found, round((torch.cuda.max_memory_allocated() - before) / MB, 1)


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two tensors of one shape, flattened; NaN where either holds one."""
    a, b = a.flatten().double(), b.flatten().double()
    return float(a @ b / (a.norm() * b.norm()))
