"""A repository's compiled packages, run in this process under PyTorch's profiler: the table of GPU kernels and a trace.

Features stay on the GPU between the models, as in the server; each call is awaited, so a kernel belongs to the part in
whose range it ran. Without the profiler, stages and parts are NVTX ranges for Nsight Systems: the two cannot watch a
GPU at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemble.engines.aoti import AotiRunner
from ensemble.records import ModelSpec

PRODUCTS = (
    *("gemm", "gemv", "matmul", "cutlass", "nvjet", "xmma", "conv", "flash", "fmha", "attention", "cudnn"),
    *("addmm", "::mm", "::bmm"),
)
"""Names that hold one of these multiply matrices; what is left moves and changes numbers, and memory is its limit."""
PART = "part: "
COMPILED = "compiled loops"


class AotiPackages:
    """`call` for a `Pipeline`: a package per sub-model on `device` ("cuda" or "cpu"), under PyTorch's profiler, or
    marked for Nsight Systems."""

    def __init__(self, repository: Path, device: str, nvtx: bool) -> None:
        self._repository, self._device, self._nvtx = repository, device, nvtx
        self._open: dict[str, AotiRunner] = {}
        activities = [torch.profiler.ProfilerActivity.CPU]
        activities += [torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else []
        self._profiler = torch.profiler.profile(activities=activities, acc_events=True)

    def annotate(self, name: str) -> AbstractContextManager[object]:
        """A range of that name in the trace, or for Nsight Systems."""
        return torch.cuda.nvtx.range(name) if self._nvtx else torch.profiler.record_function(name)

    def __call__(self, model: ModelSpec, tensors: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        if model.part not in self._open:
            path = self._repository / model.name / "1" / "model.pt2"
            self._open[model.part] = AotiRunner(path, 0 if self._device == "cuda" else None)
        runner = self._open[model.part]
        with self.annotate(PART + model.part):
            given = {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in tensors.items()}
            found = runner(given)
            results = {name: found[name].cpu().numpy() if name in runner.host else found[name] for name in outputs}
            if self._device == "cuda":
                torch.cuda.synchronize()
        return results

    def warm(self) -> None:
        """What was called so far is not counted."""
        if not self._nvtx:
            self._profiler.start()

    def finish(self, trace: Path, rounds: int) -> list[dict[str, Any]]:
        """Ends the profiler; writes the trace, which Perfetto opens, and returns the table of kernels; nothing of
        either for Nsight Systems."""
        if self._nvtx:
            return []
        self._profiler.stop()
        self._profiler.export_chrome_trace(str(trace))
        return kernels(self._profiler.events(), rounds, self._device)

    def ceilings(self) -> dict[str, float]:
        """What this device reaches: GFLOP/s of a product of square matrices in the packages' dtype, GB/s of a copy
        (read and written), best of five."""
        on_gpu = self._device == "cuda"
        side, elements = (8192, 1 << 29) if on_gpu else (1536, 64 << 20)
        a = torch.randn(side, side, device=self._device, dtype=torch.float16 if on_gpu else torch.float32)
        block = torch.zeros(elements, device=self._device, dtype=torch.uint8 if on_gpu else torch.float32)
        target = torch.empty_like(block)
        product = min(self._seconds(lambda: a @ a) for _ in range(5))
        copy = min(self._seconds(lambda: target.copy_(block)) for _ in range(5))
        moved = 2 * block.numel() * block.element_size()
        return {"gflop_s": round(2 * side**3 / product / 1e9, 1), "copy_gb_s": round(moved / copy / 1e9, 1)}

    def _seconds(self, work: Callable[[], object]) -> float:
        work()
        if self._device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def kernels(events: Sequence[Any], rounds: int, device: str) -> list[dict[str, Any]]:
    """One record per part and kernel, the longest first: milliseconds and launches per round. On the CPU these are
    PyTorch's operators and their own time; compiled loops have no names there and are the rest of the part.
    """
    kinds = torch.autograd.DeviceType
    ranges = [e for e in events if e.name.startswith(PART) and e.device_type == kinds.CPU]
    parts = sorted((e.time_range.start, e.time_range.end, e.name.removeprefix(PART)) for e in ranges)
    spent: dict[tuple[str, str], list[float]] = {}
    for event in events:
        wanted = kinds.CUDA if device == "cuda" else kinds.CPU
        if event.device_type != wanted or event.name.startswith(PART) or event.is_user_annotation:
            continue
        part = next((name for start, end, name in parts if start <= event.time_range.start <= end), None)
        if part is not None:
            duration = event.time_range.elapsed_us() if device == "cuda" else event.self_cpu_time_total
            spent.setdefault((part, event.name), []).append(duration / 1e3)
    if device == "cpu":
        for part in {name for _, _, name in parts}:
            named = sum(sum(found) for (owner, _), found in spent.items() if owner == part)
            calls = [(end - start) / 1e3 for start, end, name in parts if name == part]
            spent[part, COMPILED] = [call - named / len(calls) for call in calls]
    rows = []
    for (part, name), milliseconds in spent.items():
        limit = "arithmetic" if any(word in name.lower() for word in PRODUCTS) else "memory"
        limit = "either" if name == COMPILED else limit
        row = {"part": part, "kernel": name[:90], "ms": round(sum(milliseconds) / rounds, 3)}
        rows.append(row | {"launches": round(len(milliseconds) / rounds), "limit": limit})
    return sorted(rows, key=lambda row: -row["ms"])
